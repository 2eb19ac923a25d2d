package guest

import (
	"context"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/guest/network"
)

// Containers runs containers on this system, without a VM.
type Containers interface {
	gcsserver.Runtime
	// InUse ends the containers that killed processes left running, and returns an error that matches gcsserver.ErrBusy
	// if a container of a live process runs in root.
	InUse(ctx context.Context, root string) error
	// SetInit sets the init program of containers whose spec asks for one; empty: there is none.
	SetInit(path string)
	// SetNetworks sets where the networks of containers are looked up.
	SetNetworks(n network.Networks)
}
