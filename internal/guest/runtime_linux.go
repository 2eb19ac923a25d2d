package guest

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/guest/mounts"
	"github.com/stratavm/strata/internal/guest/network"
	"github.com/stratavm/strata/internal/guest/procs"
)

// linuxRuntime is the gcsserver.Runtime of a Linux system: mounts and processes, each of which knows the other
// by an interface only.
type linuxRuntime struct {
	*mounts.Table
	processes
	networks *network.Table
	load     func(feature string) // as mounts.Config has it
	powerOff func() error
	template template
}

// processes is procs.Table under another name, so that both tables can be embedded.
type processes struct{ *procs.Table }

func newLinuxRuntime(log *slog.Logger, spawn *procs.Spawner, c mounts.Config) *linuxRuntime {
	m := mounts.New(c)
	p := procs.New(log, spawn, m)
	m.SetProcesses(p)
	n := network.New(network.Dir, c.Load)
	p.SetNetworks(n)
	return &linuxRuntime{Table: m, processes: processes{p}, networks: n, load: c.Load,
		powerOff: func() error { return gcsserver.ErrUnsupported }}
}

// Create implements gcsserver.Runtime. A container that may change its network may make bridges, for which the kernel
// would look for a program that loads modules.
func (r *linuxRuntime) Create(ctx context.Context, id string, config gcs.ContainerConfig) error {
	if s := config.OciSpecification; r.load != nil && s != nil && s.Process != nil && s.Process.Capabilities != nil &&
		slices.Contains(s.Process.Capabilities.Bounding, "CAP_NET_ADMIN") {
		r.load("bridge")
	}
	return r.processes.Create(ctx, id, config)
}

// Modify implements gcsserver.Runtime.
func (r *linuxRuntime) Modify(ctx context.Context, m gcsserver.Modification, dial gcsserver.Dialer) error {
	if m.ResourceType == hcsschema.ResourceTemplate {
		return r.template.modify(m)
	}
	if m.ResourceType == hcsschema.ResourceNetwork {
		return r.networks.Modify(ctx, m)
	}
	return r.Table.Modify(ctx, m, dial)
}

// Await implements what gcsserver asks of a runtime that can be held.
func (r *linuxRuntime) Await(ctx context.Context) error { return r.template.await(ctx) }

// listTime bounds how long networks that are being changed are waited for.
const listTime = 20 * time.Second

// Mounts implements gcsserver.Runtime.
func (r *linuxRuntime) Mounts(ctx context.Context) ([]gcs.Mount, error) {
	mounts, err := r.Table.Mounts(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	networks, err := r.networks.List(ctx)
	return append(mounts, networks...), err
}

// What the boot image holds for containers, and where the agent keeps their folders: nothing that hosts mount is there.
const (
	pausePath      = "/sbin/catatonit"
	containersPath = "/var/strata/containers"
)

// useCrun has containers run by the crun or runc of the boot image.
func (r *linuxRuntime) useCrun(spawn *procs.Spawner) error {
	for _, path := range []string{pausePath, "/sys/fs/cgroup/cgroup.controllers"} {
		if _, err := os.Stat(path); err != nil {
			return err
		}
	}
	run, err := crun.New(spawn.Starter())
	if err != nil {
		return err
	}
	if err := run.Seal(); err != nil {
		return err
	}
	if err := os.MkdirAll(containersPath, 0o700); err != nil {
		return err
	}
	r.UseRuntime(run, containersPath, pausePath)
	r.SetInit(pausePath)
	return nil
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
