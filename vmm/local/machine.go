package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/stratavm/strata/internal/applyengine"
	"github.com/stratavm/strata/internal/bootid"
	"github.com/stratavm/strata/internal/bootimage"
	"github.com/stratavm/strata/internal/guest"
	"github.com/stratavm/strata/internal/hostmount"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/vmm"
)

const (
	controllers = 64
	luns        = 64
)

// Options are the options of Open.
type Options struct {
	Dir string // the machine's own folder; created if it does not exist
	ID  string // of a new machine; empty: the name of Dir
	// BootID identifies this boot of the system. Empty: that of the kernel.
	BootID string
	Logger *slog.Logger // for messages about containers; nil: none
	// Mounter is nil for the functions of package hostmount.
	Mounter Mounter
}

// Mounter is the interface to the system's mounts, implemented with package hostmount.
type Mounter interface {
	MountImage(ctx context.Context, im hostmount.Image, target string) error
	MountDirectory(ctx context.Context, source, target string, readOnly bool) error
	MountOverlay(ctx context.Context, o hostmount.Overlay, target string) error
	Unmount(ctx context.Context, target string) error
	Mounts(dir string) ([]string, error)
	CanEROFS() bool
	CanDisks() bool
}

type system struct{}

func (system) MountImage(ctx context.Context, im hostmount.Image, target string) error {
	return hostmount.MountImage(ctx, im, target)
}
func (system) MountDirectory(ctx context.Context, source, target string, ro bool) error {
	return hostmount.MountDirectory(ctx, source, target, ro)
}
func (system) MountOverlay(ctx context.Context, o hostmount.Overlay, target string) error {
	return hostmount.MountOverlay(ctx, o, target)
}
func (system) Unmount(ctx context.Context, target string) error {
	return hostmount.Unmount(ctx, target)
}
func (system) Mounts(dir string) ([]string, error) { return hostmount.Mounts(dir) }
func (system) CanEROFS() bool                      { return hostmount.CanEROFS() }
func (system) CanDisks() bool                      { return hostmount.CanDisks() }

// Machine is the host as a machine. All methods may be called concurrently, also by several Machines of one directory
// unless these change the same address.
type Machine struct {
	id     string
	dir    string
	mount  Mounter
	limits vmm.Limits
	engine *applyengine.Engine
	life   context.Context // ends with the machine, with the reason as its cause
	end    context.CancelCauseFunc
	dirs   sync.Mutex // held while mount points are created or removed

	containersOf func() (guest.Containers, error) // creates the container runtime

	mu    sync.Mutex
	run   guest.Containers  // nil: no processes yet
	roots map[string]string // by container that this process has created
}

var _ vmm.Machine = (*Machine)(nil)

// machineName is the name of the file with the machineFile.
const machineName = "machine.json"

type machineFile struct {
	ID   string `json:"id"`
	Boot string `json:"boot"`
}

// Open opens the machine in a directory, or creates one. Except on Linux the error matches errors.ErrUnsupported.
func Open(o Options) (*Machine, error) {
	m, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("open host machine %s: %w", o.Dir, err)
	}
	return m, nil
}

func open(o Options) (*Machine, error) {
	if o.Mounter == nil {
		if runtime.GOOS != "linux" {
			return nil, fmt.Errorf("layers are mounted without a VM on Linux only: %w", errors.ErrUnsupported)
		}
		o.Mounter = system{}
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// The kernel's list of mounts has paths without symbolic links.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	if o.BootID == "" {
		if o.BootID, err = bootid.Read(); err != nil {
			return nil, err
		}
	}
	if o.ID == "" {
		o.ID = filepath.Base(dir)
	}
	want := machineFile{ID: o.ID, Boot: o.BootID}
	path := filepath.Join(dir, machineName)
	have := machineFile{}
	b, err := regfile.ReadState(path)
	if err == nil {
		err = json.Unmarshal(b, &have)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if have.ID != "" {
		want.ID = have.ID
	}
	if have != want {
		// The system has been rebooted, so nothing in the records exists any more.
		for _, kind := range []string{devicesDir, mountsDir} {
			if err := os.RemoveAll(filepath.Join(dir, kind)); err != nil {
				return nil, err
			}
		}
		if err := writeJSON(path, want); err != nil {
			return nil, err
		}
	}
	for _, kind := range []string{devicesDir, mountsDir, fsDir} {
		if err := os.MkdirAll(filepath.Join(dir, kind), 0o755); err != nil {
			return nil, err
		}
	}
	m := &Machine{id: want.ID, dir: dir, mount: o.Mounter, roots: map[string]string{}, limits: limits(o.Mounter)}
	m.life, m.end = context.WithCancelCause(context.Background())
	m.engine = applyengine.New(m.life, vmm.Linux, nil, nil)
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	m.containersOf = func() (guest.Containers, error) {
		run, err := guest.NewContainers(log, filepath.Join(dir, fsDir), filepath.Join(dir, containersDir))
		if err == nil {
			run.SetNetworks(m)
			run.SetInit(bootimage.FindTool("", "catatonit"))
		}
		return run, err
	}
	return m, nil
}

func limits(m Mounter) vmm.Limits {
	return vmm.Limits{SCSIControllers: controllers, SCSILUNs: luns, Plan9: true, ScratchFolders: true,
		HostFiles: true, HostNetworks: true,
		EROFS: m.CanEROFS(), LayerFolders: !m.CanDisks(), NICs: nics, Observes: true}
}

// HostPath returns the host path of a path of the machine.
func (m *Machine) HostPath(guest string) string {
	return filepath.Join(m.dir, fsDir, filepath.FromSlash(filepath.Clean("/"+guest)))
}

// ID implements vmm.Machine.
func (m *Machine) ID() string { return m.id }

// OS implements vmm.Machine.
func (m *Machine) OS() vmm.OS { return vmm.Linux }

// Limits implements vmm.Machine.
func (m *Machine) Limits() vmm.Limits { return m.limits }

// Done implements vmm.Machine.
func (m *Machine) Done() <-chan struct{} { return m.life.Done() }

// Err implements vmm.Machine.
func (m *Machine) Err() error { return context.Cause(m.life) }

// Close implements vmm.Machine. What is mounted stays.
func (m *Machine) Close() error { return nil }

// Stacks implements vmm.Machine. As there is no agent, the result is empty.
func (m *Machine) Stacks(context.Context) (string, error) { return "", m.Err() }

// Shutdown implements vmm.Machine: it unmounts everything. What is in use stays mounted; the error names it, and the
// machine is still usable.
func (m *Machine) Shutdown(ctx context.Context) error {
	if m.Err() != nil {
		return nil
	}
	var errs []error
	for id := range m.containers() {
		errs = append(errs, m.DeleteContainerState(ctx, id))
	}
	records, err := m.mountRecords()
	if err != nil {
		return fmt.Errorf("shut down host machine %s: %w", m.id, err)
	}
	// In reverse order: a later mount may depend on an earlier one.
	mounts, err := m.mount.Mounts(filepath.Join(m.dir, fsDir))
	if err != nil {
		return fmt.Errorf("shut down host machine %s: %w", m.id, err)
	}
	byPath := make(map[string]vmm.Mount, len(records))
	for _, g := range records {
		byPath[m.HostPath(g.Target())] = g
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		g := byPath[mounts[i]]
		if g == nil { // without a record: unmounted too, as removing the directory must not remove its files
			errs = append(errs, m.mount.Unmount(ctx, mounts[i]))
			continue
		}
		errs = append(errs, m.Apply(ctx, vmm.Change{Op: vmm.Remove, Mount: g}))
		delete(byPath, mounts[i])
	}
	for _, g := range byPath { // records without a mount
		errs = append(errs, m.Apply(ctx, vmm.Change{Op: vmm.Remove, Mount: g}))
	}
	devices, err := m.devices()
	errs = append(errs, err)
	for _, d := range devices {
		errs = append(errs, m.Apply(ctx, vmm.Change{Op: vmm.Remove, Device: d}))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("shut down host machine %s: %w", m.id, err)
	}
	m.end(fmt.Errorf("host machine %s: everything is unmounted: %w", m.id, vmm.ErrGone))
	return nil
}

// Terminate implements vmm.Machine. There is nothing to kill, so it is the same as Shutdown.
func (m *Machine) Terminate(ctx context.Context) error { return m.Shutdown(ctx) }
