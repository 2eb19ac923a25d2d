// Package rootfs turns what containerd's snapshotters hand over, a list of mounts, into the root of a container in a
// VM. A plan is made first, which touches nothing.
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

// Plan says what is mounted on the host, and what of it the VM gets.
type Plan struct {
	// Mounts are made at Folder, in order. None: the folder is the root as it is.
	Mounts []mount.Mount
	// Folder of the host that is shared with the VM as the container's root.
	Folder string
	// Disks, when set, is the root instead.
	Disks *Disks
}

// folderName is the folder of a bundle where the root is mounted. containerd itself unmounts what is left there when it
// removes a bundle.
const folderName = "rootfs"

// kinds are the file systems that are mounted on the host. What is not among them may need what this shim has not
// said that it can do.
var kinds = []string{"bind", "overlay", "erofs", "ext4", "xfs", "btrfs"}

// New plans the root of a container of a bundle. root is where the container's document has its root, which counts
// when there are no mounts.
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
	if ofDisks(all) {
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

// check refuses what would not be mounted as it is meant.
func check(m mount.Mount) error {
	if !slices.Contains(kinds, m.Type) {
		return fmt.Errorf("file systems of this type are not supported, only %s: use another snapshotter, such as "+
			"overlayfs, erofs or blockfile: %w", strings.Join(kinds, ", "), errdefs.ErrNotImplemented)
	}
	if m.Target != "" {
		return fmt.Errorf("a place %q in the root is not supported: %w", m.Target, errdefs.ErrNotImplemented)
	}
	for _, o := range append(slices.Clone(m.Options), m.Source) {
		if strings.Contains(o, "{{") {
			return fmt.Errorf("%q has to be filled in by containerd's mount manager: %w", o, errdefs.ErrNotImplemented)
		}
		if strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap=") {
			return fmt.Errorf("%q: mapped owners are not supported: %w", o, errdefs.ErrNotImplemented)
		}
	}
	return nil
}
