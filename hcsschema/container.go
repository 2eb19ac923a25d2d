package hcsschema

// Container describes a container's storage: of a process-isolated container, or inside a Windows VM.
type Container struct {
	Storage           *Storage          `json:",omitempty"`
	MappedDirectories []MappedDirectory `json:",omitempty"`
}

// Storage is the root of a container: on the host Path is a volume GUID path with a trailing
// backslash and Layers are host folders; in a Windows VM both are guest paths.
type Storage struct {
	Layers []Layer     `json:",omitempty"` // top-most first
	Path   string      `json:",omitempty"`
	QoS    *StorageQoS `json:",omitempty"`
}

// MappedDirectory shows a folder of the host in a container.
type MappedDirectory struct {
	HostPath      string `json:",omitempty"`
	HostPathType  string `json:",omitempty"`
	ContainerPath string `json:",omitempty"`
	ReadOnly      bool   `json:",omitempty"`
}

// HostedSystem is a container's document as a utility VM gets it.
type HostedSystem struct {
	SchemaVersion *SchemaVersion `json:",omitempty"`
	Container     *Container     `json:",omitempty"`
}

// ContainerV1 holds the members of a schema 1.0 container document that concern layers: with it the
// service itself starts a VM, mounts and unmounts.
type ContainerV1 struct {
	SystemType      string
	Name            string       `json:",omitempty"`
	Owner           string       `json:",omitempty"`
	LayerFolderPath string       `json:",omitempty"` // the scratch folder
	VolumePath      string       `json:",omitempty"` // process isolation: without trailing backslash
	Layers          []LayerV1    `json:",omitempty"` // top-most first
	HvPartition     bool         `json:",omitempty"` // true: in a VM of its own
	HvRuntime       *HvRuntimeV1 `json:",omitempty"`
}

// LayerV1 is a layer in a schema 1.0 document.
type LayerV1 struct {
	ID   string `json:",omitempty"`
	Path string `json:",omitempty"`
}

// HvRuntimeV1 says where the VM's own files are: the UtilityVM folder of a layer.
type HvRuntimeV1 struct {
	ImagePath string `json:",omitempty"`
}
