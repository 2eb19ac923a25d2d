package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/hostmount"
)

// probe returns the file system type of a device: "ext4", "xfs", "erofs", "squashfs", or "" for any other.
func probe(device string) (string, error) {
	f, err := os.Open(device)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fstype, err := hostmount.Probe(f, 0)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", device, err)
	}
	return fstype, nil
}

// checkSuperblock returns an error if the superblock of a device asks for options that are not allowed. Other types
// than those of knownFilesystem are not on devices and have no superblock.
func checkSuperblock(device, fstype string, readOnly bool) error {
	if !knownFilesystem(fstype) {
		return nil
	}
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := hostmount.CheckSuperblock(fstype, f, 0, readOnly); err != nil {
		return fmt.Errorf("%w: %w", gcsserver.ErrInvalid, err)
	}
	return nil
}

// knownFilesystem reports whether the agent mounts disks of a type.
func knownFilesystem(t string) bool {
	return t == "ext4" || t == "xfs" || t == "erofs" || t == "squashfs"
}

// format creates a file system. If ctx ends meanwhile, the file system may be incomplete.
func (t *Table) format(ctx context.Context, device, fstype string) error {
	var program string
	var args []string
	switch fstype {
	case "ext4":
		program = "/sbin/mkfs.ext4"
		args = []string{"-q", "-F", "-b", "4096", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", device}
	case "xfs":
		program, args = "/sbin/mkfs.xfs", []string{"-q", "-f", device}
	default:
		return fmt.Errorf("format as %q: %w", fstype, gcsserver.ErrUnsupported)
	}
	err := t.procs.Run(ctx, program, args...)
	if errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("the guest image has no %s; format the disk on the host: %w", program, gcsserver.ErrUnsupported)
	}
	return err
}
