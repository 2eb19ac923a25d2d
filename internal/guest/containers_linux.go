package guest

import (
	"log/slog"

	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/internal/guest/mounts"
	"github.com/stratavm/strata/internal/guest/procs"
)

// NewContainers returns a Runtime for containers on this system, without a VM; only its methods for containers and
// processes are of use. Container roots are below base, the state of running containers is below state. Containers
// outlive this process; the next one with the same state directory finds them. If the system has neither crun nor runc,
// the error matches crun.ErrNoRuntime.
//
// While it starts a container's process, this process is a subreaper: see prctl(2).
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
