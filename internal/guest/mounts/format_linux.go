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

// probe reads what file system a device holds: "ext4", "xfs", "erofs", "squashfs", or "" for none of
// these.
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

// checkSuperblock refuses a device whose superblock asks for what is not granted. Only the file systems
// that the agent probes for are on devices.
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

// knownFilesystem reports whether the agent mounts a type at all.
func knownFilesystem(t string) bool {
	return t == "ext4" || t == "xfs" || t == "erofs" || t == "squashfs"
}

// format creates a file system. When ctx ends before that, there is none or a torn one.
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
