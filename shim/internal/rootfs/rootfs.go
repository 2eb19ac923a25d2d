// Package rootfs turns the mounts of containerd's snapshotters into the root file system of a container in a VM. New
// makes a plan without side effects, which Mount carries out.
package rootfs

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

// Plan is how a container's root file system is set up: as a directory of the host shared with the VM, or as Disks.
type Plan struct {
	// Mounts are made at Folder in order. If there are none, Folder is the root as it is.
	Mounts []mount.Mount
	// Folder is the directory of the host that is shared with the VM as the container's root.
	Folder string
	// Disks, when set, is the root instead.
	Disks *Disks
}

// folderName is the directory of a bundle where the root is mounted. containerd unmounts what is left there when it
// removes the bundle.
const folderName = "rootfs"

// kinds are the file system types that may be mounted on the host.
var kinds = []string{"bind", "overlay", "erofs", "ext4", "xfs", "btrfs"}

// New plans the root of a bundle's container. root is root.path of its config.json, which is used if there are no
// mounts.
func New(mounts []*types.Mount, bundle, root string) (Plan, error) {
	if len(mounts) == 0 {
		if root == "" {
			root = folderName
		}
		if !filepath.IsAbs(root) {
			root = filepath.Join(bundle, root)
		}
		return Plan{Folder: filepath.Clean(root)}, nil
	}
	all := mount.FromProto(mounts)
	if areDisks(all) {
		d, err := disks(all)
		return Plan{Disks: d}, err
	}
	p := Plan{Folder: filepath.Join(bundle, folderName)}
	for _, m := range all {
		if err := check(m); err != nil {
			return Plan{}, fmt.Errorf("root file system: mount of type %q from %q: %w", m.Type, m.Source, err)
		}
		p.Mounts = append(p.Mounts, m)
	}
	return p, nil
}

// check returns an error for a mount that is not supported.
func check(m mount.Mount) error {
	if !slices.Contains(kinds, m.Type) {
		return fmt.Errorf("file systems of this type are not supported, only %s: use another snapshotter, such as "+
			"overlayfs, erofs or blockfile: %w", strings.Join(kinds, ", "), errdefs.ErrNotImplemented)
	}
	if m.Target != "" {
		return fmt.Errorf("the target %q in the root is not supported: %w", m.Target, errdefs.ErrNotImplemented)
	}
	for _, o := range append(slices.Clone(m.Options), m.Source) {
		if strings.Contains(o, "{{") {
			return fmt.Errorf("%q has to be filled in by containerd's mount manager: %w", o, errdefs.ErrNotImplemented)
		}
		if strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap=") {
			return fmt.Errorf("%q: idmapped mounts are not supported: %w", o, errdefs.ErrNotImplemented)
		}
	}
	return nil
}
