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

// linuxRuntime is the gcsserver.Runtime of a Linux system. It combines the tables of mounts, processes and networks.
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

// Create implements gcsserver.Runtime. For a container with CAP_NET_ADMIN it loads the bridge module: the guest has no
// modprobe by which the kernel could do so on demand.
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

// Await blocks while the VM is held as a template. gcsserver calls it before other requests.
func (r *linuxRuntime) Await(ctx context.Context) error { return r.template.await(ctx) }

// listTimeout is how long Mounts waits for networks that are being changed.
const listTimeout = 20 * time.Second

// Mounts implements gcsserver.Runtime.
func (r *linuxRuntime) Mounts(ctx context.Context) ([]gcs.Mount, error) {
	mounts, err := r.Table.Mounts(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	networks, err := r.networks.List(ctx)
	return append(mounts, networks...), err
}

// pausePath is the boot image's init for containers. containersPath is where the agent keeps the bundles of containers;
// hosts cannot mount there.
const (
	pausePath      = "/sbin/catatonit"
	containersPath = "/var/strata/containers"
)

// useCrun makes the crun or runc of the boot image the container runtime.
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

// PowerOff implements gcsserver.Runtime: it ends all processes, unmounts what can be unmounted, and stops the machine.
func (r *linuxRuntime) PowerOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r.StopAll(ctx)
	r.UnmountAll()
	return r.powerOff()
}
