package uvm

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/vmm"
)

// vsmbRoot is the path prefix of VSMB shares in a Windows guest.
const vsmbRoot = `\\?\VMSMB\VSMB-{dcc079ae-60ba-4d07-847c-3493609c0870}\`

// ReadOnlyShare are the options of a read-only share; layers also need TakeBackupPrivilege.
var ReadOnlyShare = vmm.VSMBOptions{ReadOnly: true, ShareRead: true, CacheIo: true, PseudoOplocks: true}

// VSMB manages the folders shared with a Windows guest.
type VSMB struct{ vm *UtilityVM }

// VSMB returns the manager of the VM's VSMB shares.
func (vm *UtilityVM) VSMB() VSMB { return VSMB{vm} }

// Share shares a folder or reuses the existing share: a folder is shared at most once read-only and once writable. If
// the host cannot remove direct-mapped shares (vmm.Limits.VSMBRetained), they stay until the VM exits and are reused
// for the same folder.
func (v VSMB) Share(ctx context.Context, c *Claim, role, folder string, o vmm.VSMBOptions) (*Lease, error) {
	return v.share(ctx, c, role, folder, o, "")
}

// GuestPath returns the guest path of a shared folder; if it is not shared, the error matches ErrNotAttached.
func (v VSMB) GuestPath(folder string, readOnly bool) (string, error) {
	v.vm.l.mu.Lock()
	defer v.vm.l.mu.Unlock()
	r := v.vm.l.byKey[vsmbKey("dir", folder, readOnly)]
	if r == nil || r.state != Attached {
		return "", fmt.Errorf("VSMB share of %s: %w", folder, ErrNotAttached)
	}
	return vsmbRoot + r.device.(vmm.VSMBShare).Name, nil
}

func vsmbKey(kind, folder string, readOnly bool) string {
	return fmt.Sprintf("vsmb|%s|%s|ro=%t", kind, hostpath.Identity(folder), readOnly)
}

// ShareFile shares a single file through a share of its folder; other files of the folder are not accessible. Another
// file of the same folder is added to the list of that share, with the only kind of Change that is a vmm.Update.
// Layers do not need it: it is for callers that put host files into a container of a Windows VM.
func (v VSMB) ShareFile(ctx context.Context, c *Claim, role, file string, o vmm.VSMBOptions) (*Lease, error) {
	i := strings.LastIndexAny(file, `\/`)
	if i <= 0 || i == len(file)-1 {
		return nil, fmt.Errorf("share file %q: not the full path of a file", file)
	}
	o.RestrictFileAccess, o.SingleFileMapping = true, true
	le, err := v.share(ctx, c, role, file[:i], o, file)
	if err != nil {
		return nil, err
	}
	if err := v.vm.l.allow(ctx, le, file); err != nil {
		grace, cancel := v.vm.l.grace(ctx)
		defer cancel()
		if derr := v.vm.l.drop(grace, le); derr != nil {
			err = fmt.Errorf("%w; and could not be undone: %w", err, derr)
		}
		return nil, err
	}
	return le, nil
}

func (v VSMB) share(ctx context.Context, c *Claim, role, folder string, o vmm.VSMBOptions,
	file string) (*Lease, error) {
	l, lim := v.vm.l, v.vm.Limits()
	if !lim.VSMB {
		return nil, fmt.Errorf("share %s over VSMB: %w", folder, ErrNotSupported)
	}
	if lim.PhysicallyBacked {
		o.NoDirectmap = true
	}
	kind, suffix, allowed := "dir", "", []string(nil)
	if file != "" {
		kind, suffix, allowed = "file", file[len(folder):], []string{file}
	}
	return l.acquire(ctx, c, role, want{
		deviceKey: vsmbKey(kind, folder, o.ReadOnly),
		retained:  lim.VSMBRetained && !o.NoDirectmap,
		device: func() (vmm.Device, error) {
			l.vsmb++
			return vmm.VSMBShare{Name: fmt.Sprintf("s%x", l.vsmb), Path: folder, Options: o, AllowedFiles: allowed}, nil
		},
		path: func(d vmm.Device) string { return vsmbRoot + d.(vmm.VSMBShare).Name + suffix },
	})
}

// allow adds a file to the list of files that the lease's share gives access to.
func (l *ledger) allow(ctx context.Context, le *Lease, file string) error {
	for {
		l.mu.Lock()
		r := le.res
		if r == nil {
			l.mu.Unlock()
			return fmt.Errorf("share file %s: %w", file, ErrNotAttached)
		}
		if ch := busyOf(r); ch != nil {
			l.mu.Unlock()
			if err := wait(ctx, ch); err != nil {
				return err
			}
			continue
		}
		share := r.device.(vmm.VSMBShare)
		if slices.ContainsFunc(share.AllowedFiles,
			func(f string) bool { return hostpath.Identity(f) == hostpath.Identity(file) }) {
			l.mu.Unlock()
			return nil
		}
		share.AllowedFiles = append(slices.Clone(share.AllowedFiles), file)
		r.busy = make(chan struct{})
		l.mu.Unlock()

		change := vmm.Change{Op: vmm.Update, Device: share}
		err := l.apply(ctx, change)
		host, _ := vmm.Outcomes(change, err)
		l.mu.Lock()
		if host == vmm.Done { // removal is by name, so a list on the host that is longer than ours does no harm
			r.device = share
			t := l.begin()
			t.resource(r)
			l.logFailure(t.write())
		}
		l.rest(r)
		l.mu.Unlock()
		return err
	}
}

// Plan9 manages the folders shared with a Linux guest over 9P.
type Plan9 struct{ vm *UtilityVM }

// Plan9 returns the manager of the VM's Plan9 shares.
func (vm *UtilityVM) Plan9() Plan9 { return Plan9{vm} }

// Share shares a folder, or only the named files in it, and mounts it at guestPath; empty: a path is chosen. A folder
// is shared and mounted once for the same options.
func (p Plan9) Share(ctx context.Context, c *Claim, role, folder, guestPath string, readOnly bool,
	files ...string) (*Lease, error) {
	l := p.vm.l
	if !p.vm.Limits().Plan9 {
		return nil, fmt.Errorf("share %s over Plan9: %w", folder, ErrNotSupported)
	}
	if guestPath == "" {
		guestPath = p.vm.nextMountPath()
	}
	key := fmt.Sprintf("plan9|%s|ro=%t|%q", hostpath.Identity(folder), readOnly, slices.Sorted(slices.Values(files)))
	return l.acquire(ctx, c, role, want{
		deviceKey: key,
		device: func() (vmm.Device, error) {
			name := fmt.Sprint(l.plan9)
			l.plan9++
			return vmm.Plan9Share{Name: name, Path: folder, ReadOnly: readOnly, AllowedFiles: files}, nil
		},
		mountKey: key + "|mount",
		mount: func(d vmm.Device) (vmm.Mount, error) {
			return vmm.MappedDirectory{MountPath: guestPath, Share: d.(vmm.Plan9Share).Name, ReadOnly: readOnly}, nil
		},
	})
}
