package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/layerdir"
)

// Mount makes the plan's mounts on the host, or creates the scratch disk in Disks.Work. On error nothing is mounted.
func (p Plan) Mount(ctx context.Context) error {
	if p.Disks != nil && p.Disks.Work != "" {
		_, err := layerdir.CreateScratch(ctx, layerdir.ScratchOptions{Dir: filepath.Join(p.Disks.Work, scratchName)})
		if err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("root file system: %w", err)
		}
		return nil
	}
	if len(p.Mounts) == 0 {
		return nil
	}
	if err := os.Mkdir(p.Folder, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("root file system: %w", err)
	}
	if err := mount.All(p.Mounts, p.Folder); err != nil {
		return fmt.Errorf("mount the root file system on the host: %w", errors.Join(err, unmount(p.Folder)))
	}
	return nil
}

// maxFiles bounds the inodes of Memory, whose kernel memory does not count against its size.
const maxFiles = 16 << 10

// Memory mounts a tmpfs of at most mib MiB as the root of a bundle, and returns its path. Unmount unmounts it.
func Memory(bundle string, mib int) (folder string, err error) {
	folder = filepath.Join(bundle, folderName)
	if err := os.Mkdir(folder, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("root file system: %w", err)
	}
	err = unix.Mount("strata", folder, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC,
		fmt.Sprintf("mode=755,size=%dm,nr_inodes=%d", mib, maxFiles))
	if err != nil {
		return "", fmt.Errorf("root file system in memory: %w", &os.PathError{Op: "mount", Path: folder, Err: err})
	}
	return folder, nil
}

// Unmount unmounts the root of a bundle on the host, also if another process has mounted it. It is idempotent.
func Unmount(bundle string) error {
	if err := unmount(filepath.Join(bundle, folderName)); err != nil {
		return fmt.Errorf("unmount the root file system on the host: %w", err)
	}
	return nil
}

func unmount(folder string) error {
	if _, err := os.Lstat(folder); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return mount.UnmountRecursive(folder, unix.UMOUNT_NOFOLLOW)
}
