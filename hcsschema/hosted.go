package hcsschema

// LinuxHostedSystem is the document of a Linux container inside a utility VM, as its guest gets it.
// Its specification is that of the OCI runtime specification.
type LinuxHostedSystem struct {
	SchemaVersion    *SchemaVersion `json:",omitempty"`
	OciBundlePath    string         `json:",omitempty"` // of the guest
	OciSpecification any            `json:",omitempty"`
}

// LinuxProcessParameters starts a process in a Linux container. Without OciProcess the guest starts
// the process of the container's specification.
type LinuxProcessParameters struct {
	ProcessParameters
	OciProcess any `json:",omitempty"`
}
