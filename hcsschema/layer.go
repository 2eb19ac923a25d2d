package hcsschema

// Layer is one read-only layer of a container's storage: its identity (a GUID made from the name
// of its folder; empty for Linux guests) and its path as the receiver of the document sees it.
type Layer struct {
	Id    string `json:",omitempty"`
	Path  string `json:",omitempty"`
	Cache string `json:",omitempty"`
}

// FileSystemFilterType selects the filter driver that merges Windows layers.
type FileSystemFilterType string

// The filters Windows knows. WCIFS is the default and is not to be sent.
const (
	FilterWCIFS   FileSystemFilterType = "WCIFS"
	FilterUnionFS FileSystemFilterType = "UnionFS"
)
