package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

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
	head := make([]byte, 4096)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read %s: %w", device, err)
	}
	return probeBytes(head[:n]), nil
}

func probeBytes(head []byte) string {
	switch {
	case len(head) >= 1082 && binary.LittleEndian.Uint16(head[1080:]) == 0xef53:
		return "ext4"
	case bytes.HasPrefix(head, []byte("XFSB")):
		return "xfs"
	case len(head) >= 1028 && binary.LittleEndian.Uint32(head[1024:]) == 0xe0f5e1e2:
		return "erofs"
	case bytes.HasPrefix(head, []byte("hsqs")):
		return "squashfs"
	}
	return ""
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
		return fmt.Errorf("%w: %w", errInvalid, err)
	}
	return nil
}

// knownFilesystem reports whether the agent mounts a type at all.
func knownFilesystem(t string) bool {
	return t == "ext4" || t == "xfs" || t == "erofs" || t == "squashfs"
}

// format makes a file system. When ctx ends before that, there is none or a torn one.
func (r *linuxRuntime) format(ctx context.Context, device, fstype string) error {
	var program string
	var args []string
	switch fstype {
	case "ext4":
		program = "/sbin/mkfs.ext4"
		args = []string{"-q", "-F", "-b", "4096", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", device}
	case "xfs":
		program, args = "/sbin/mkfs.xfs", []string{"-q", "-f", device}
	default:
		return fmt.Errorf("format as %q: %w", fstype, errUnsupported)
	}
	err := r.spawn.run(ctx, program, args...)
	if errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("the guest image has no %s; format the disk on the host: %w", program, errUnsupported)
	}
	return err
}
