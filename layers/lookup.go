package layers

import (
	"encoding/json"
	"fmt"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// Meta is the metadata of a container in the VM's journal.
type Meta struct {
	GuestRoot   string   `json:"guestRoot"`
	Root        string   `json:"root,omitempty"`
	ScratchPath string   `json:"scratchPath,omitempty"` // the container's own directory on the scratch
	Layers      []string `json:"layers"`                // host paths, top-most first
	Scratch     string   `json:"scratch,omitempty"`     // host path
	RootFolder  string   `json:"rootFolder,omitempty"`  // host path
	RootDisk    string   `json:"rootDisk,omitempty"`    // host path
	// Volumes are the container's host folders and files, VolumePaths their paths in the guest.
	Volumes     []Volume `json:"volumes,omitempty"`
	VolumePaths []string `json:"volumePaths,omitempty"`
	Image       *Image   `json:"image,omitempty"`
}

// Container is the record of a container in a VM's state directory.
type Container struct {
	ID    string    `json:"id"`
	Phase uvm.Phase `json:"phase"`
	Meta
}

// Lookup finds a container by its id in the state directory of a VM. It takes no lock and does not contact the
// machine: it can be used while another process has the VM open. That process's changes in progress may be missing. If
// there is no such container, the error matches uvm.ErrUnknownClaim.
func Lookup(dir, id string) (Container, error) {
	status, err := uvm.ReadStatus(dir)
	if err != nil {
		return Container{}, err
	}
	for _, c := range status.Claims {
		if c.ID == id {
			return container(c)
		}
	}
	return Container{}, fmt.Errorf("container %q: %w", id, uvm.ErrUnknownClaim)
}

// List returns all containers as Lookup does, sorted by id.
func List(dir string) ([]Container, error) {
	status, err := uvm.ReadStatus(dir)
	if err != nil {
		return nil, err
	}
	out := make([]Container, len(status.Claims))
	for i, c := range status.Claims {
		if out[i], err = container(c); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func container(c uvm.ClaimStatus) (Container, error) {
	out := Container{ID: c.ID, Phase: c.Phase}
	if err := json.Unmarshal(c.Meta, &out.Meta); err != nil {
		return Container{}, fmt.Errorf("container %q: %w", c.ID, err)
	}
	return out, nil
}

// Process returns spec completed to run inside the container's root. It fails if the container is not completely
// mounted.
func (c Container) Process(spec vmm.ProcessSpec) (vmm.ProcessSpec, error) {
	if c.Phase != uvm.Mounted || c.Root == "" {
		return spec, fmt.Errorf("container %q has no root: it is %s", c.ID, c.Phase)
	}
	spec.ContainerID, spec.Root = c.ID, c.Root
	return spec, nil
}
