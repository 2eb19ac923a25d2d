package guest

import (
	"context"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/guest/network"
)

// Containers runs containers in this very system.
type Containers interface {
	gcsserver.Runtime
	// InUse ends what processes that were killed left running in containers, and fails when something runs in a
	// root on behalf of any that lives. The error matches gcsserver.ErrBusy.
	InUse(ctx context.Context, root string) error
	// SetInit sets the program that begins containers whose documents ask for one; empty: there is none.
	SetInit(path string)
	// SetNetworks sets where it is asked what networks were made for containers.
	SetNetworks(n network.Networks)
}
