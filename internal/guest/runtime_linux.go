package guest

import (
	"context"
	"log/slog"
	"time"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/guest/mounts"
	"github.com/stratavm/strata/internal/guest/procs"
)

// linuxRuntime is the gcsserver.Runtime of a Linux system: mounts and processes, each of which knows the other
// by an interface only.
type linuxRuntime struct {
	*mounts.Table
	processes
	powerOff func() error
}

// processes is procs.Table under another name, so that both tables can be embedded.
type processes struct{ *procs.Table }

func newLinuxRuntime(log *slog.Logger, self string, spawn *procs.Spawner, c mounts.Config) *linuxRuntime {
	m := mounts.New(c)
	p := procs.New(log, self, spawn, m)
	m.SetProcesses(p)
	return &linuxRuntime{Table: m, processes: processes{p}, powerOff: func() error { return gcsserver.ErrUnsupported }}
}

// PowerOff implements gcsserver.Runtime: processes are ended, everything is unmounted in reverse order as far as
// that goes, and the machine stops.
func (r *linuxRuntime) PowerOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r.StopAll(ctx)
	r.UnmountAll()
	return r.powerOff()
}
