package layers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// Volume is a folder or a regular file of the host for a container. Changes on either side are visible on the other.
type Volume struct {
	Path     string `json:"path"` // absolute
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// checkVolumes validates the volumes and resolves links, before anything is changed.
func (r *Request) checkVolumes() error {
	if len(r.Volumes) > 0 && r.windows() {
		return fmt.Errorf("%w: volumes are for Linux containers", ErrInvalid)
	}
	r.Volumes = slices.Clone(r.Volumes) // do not modify the caller's slice
	for i, v := range r.Volumes {
		if err := localPath(ErrInvalid, "volume", v.Path); err != nil {
			return err
		}
		resolved, err := r.names.EvalSymlinks(v.Path)
		if err != nil {
			return fmt.Errorf("volume: %w", err)
		}
		fi, err := r.names.Stat(resolved)
		if err != nil {
			return fmt.Errorf("volume: %w", err)
		}
		if !fi.IsDir() && !fi.Mode().IsRegular() && (r.VM == nil || !r.VM.Limits().HostFiles) {
			return fmt.Errorf("%w: volume %s is a %s: give a folder or a regular file", ErrInvalid, v.Path,
				kindOf(fi.Mode()))
		}
		r.Volumes[i].Path = resolved
	}
	return nil
}

// kindOf names a type of file.
func kindOf(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeSocket != 0:
		return "socket"
	case mode&fs.ModeNamedPipe != 0:
		return "pipe"
	case mode&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// attachVolumes shares the volumes with the machine.
func attachVolumes(ctx context.Context, r *Request, m *Mounted) error {
	for _, v := range r.Volumes {
		path, err := attachVolume(ctx, r, m.claim, v)
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.Path, err)
		}
		m.VolumePaths = append(m.VolumePaths, path)
	}
	return nil
}

func attachVolume(ctx context.Context, r *Request, c *uvm.Claim, v Volume) (string, error) {
	if r.VM.Limits().HostFiles {
		return v.Path, nil
	}
	fi, err := r.names.Stat(v.Path)
	if err != nil {
		return "", err
	}
	file := !fi.IsDir()
	le, err := r.VM.VirtioFS().Share(ctx, c, roleVolume, v.Path, file, v.ReadOnly)
	if err != nil {
		return "", err
	}
	if file {
		return le.GuestPath() + "/" + vmm.VirtioFSFile, nil
	}
	return le.GuestPath(), nil
}

// VolumePath returns the path at which the container has a volume of Request.Volumes.
func (m *Mounted) VolumePath(v Volume) (string, bool) {
	var meta Meta
	if m.claim.Meta(&meta) != nil {
		return "", false
	}
	if resolved, err := filepath.EvalSymlinks(v.Path); err == nil {
		v.Path = resolved
	}
	for i, have := range meta.Volumes {
		if i < len(m.VolumePaths) && have.ReadOnly == v.ReadOnly &&
			hostpath.Identity(have.Path) == hostpath.Identity(v.Path) {
			return m.VolumePaths[i], true
		}
	}
	return "", false
}

// LostVolume returns an error that names a volume of the container whose server no longer runs, or nil if there is
// none. Such a volume cannot be unmounted: see Abandon.
func (m *Mounted) LostVolume(ctx context.Context) error {
	server, ok := m.vm.Machine().(vmm.ShareServer)
	if !ok {
		return nil
	}
	for _, le := range m.claim.Leases() {
		if slot, shared := le.ShareSlot(); shared {
			if err := server.CheckShare(ctx, slot); err != nil {
				return fmt.Errorf("volume: %w", err)
			}
		}
	}
	return nil
}

// Abandon gives up a container that Release cannot unmount because its programs are blocked on a lost volume. Its
// network is released; everything else stays in the VM until the VM ends, without affecting other containers.
func (m *Mounted) Abandon(ctx context.Context) error {
	network := []*uvm.Lease{} // not nil, which means all
	for _, le := range m.claim.Leases() {
		if le.Role() == roleNetwork {
			network = append(network, le)
		}
	}
	return errors.Join(m.claim.Release(ctx, network), m.claim.Abandon(ctx))
}

// WatchVolumes blocks until a volume of the container is lost, and returns an error that names it: programs that
// access it block forever. If ctx ends first, it returns its cause. s is the machine, or a Runner for it; if that has
// no volumes that can be lost, WatchVolumes only waits for ctx.
func (m *Mounted) WatchVolumes(ctx context.Context, s any) error {
	var slots []uint32
	for _, le := range m.claim.Leases() {
		if slot, ok := le.ShareSlot(); ok {
			slots = append(slots, slot)
		}
	}
	return watchSlots(ctx, s, slots)
}

func watchSlots(ctx context.Context, s any, slots []uint32) error {
	server, ok := s.(vmm.ShareServer)
	if !ok || len(slots) == 0 {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	err := server.WatchShares(ctx, slots...)
	if err != nil && !errors.Is(err, context.Cause(ctx)) {
		return fmt.Errorf("volume: %w", err)
	}
	return err
}
