package guest

import (
	"log/slog"

	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/internal/guest/mounts"
	"github.com/stratavm/strata/internal/guest/procs"
)

// NewContainers returns a Runtime for containers in this very system, without a guest: of its methods
// those about containers and processes are of use. Roots lie below base, and what belongs to containers that run below
// state. Containers of a process that ends before them run on until the next process with the same state finds them.
// Without crun and runc on this system the error matches crun.ErrNoRuntime.
//
// While a container's process is being started this process is a subreaper: see prctl(2).
func NewContainers(log *slog.Logger, base, state string) (Containers, error) {
	spawn := procs.NewSpawner(false)
	r, err := crun.New(spawn.Starter())
	if err != nil {
		return nil, err
	}
	rt := newLinuxRuntime(log, spawn, mounts.Config{Base: base, Devices: &mounts.Devices{}})
	rt.UseRuntime(r, state, "")
	return rt, nil
}
