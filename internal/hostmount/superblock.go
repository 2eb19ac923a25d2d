package hostmount

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// ErrSuperblock: a superblock has a setting that is not allowed for an untrusted disk. The text names it and a remedy.
var ErrSuperblock = errors.New("the disk's superblock asks for what is not granted")

// MountOptions returns the mount options that override settings in the superblock of an untrusted disk: ext4's may ask
// the kernel to panic on an error. A read-only mount also does not write to its device, such as by replaying a journal.
func MountOptions(fstype string, readOnly bool) []string {
	var o []string
	switch fstype {
	case "ext4":
		o = append(o, "errors=remount-ro")
		if readOnly {
			o = append(o, "noload")
		}
	case "xfs":
		if readOnly {
			o = append(o, "norecovery")
		}
	}
	return slices.Clip(o)
}

// CheckSuperblock returns an error for settings that no mount option overrides:
//
//   - ext4: a journal on another device, which the superblock names by its number, and which would be
//     written to; mount options in the superblock; and, unless readOnly, multiple mount protection, whose
//     interval, up to ten minutes, the mount would wait for;
//   - EROFS: contents on other devices, which the superblock names by a path that the kernel opens.
//
// Other settings only affect the file system itself.
func CheckSuperblock(fstype string, r io.ReaderAt, offset int64, readOnly bool) error {
	if fstype != "ext4" && fstype != "erofs" {
		return nil
	}
	sb := make([]byte, 1024)
	if _, err := r.ReadAt(sb, offset+1024); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the superblock: %w", err)
	}
	refuse := func(text string, args ...any) error {
		return fmt.Errorf("%w: "+text, append([]any{ErrSuperblock}, args...)...)
	}
	le := binary.LittleEndian
	if fstype == "erofs" {
		if n := le.Uint16(sb[erofsDevices:]); n != 0 {
			return refuse("contents on %d other devices (pack the layer into one file)", n)
		}
		return nil
	}
	if dev := le.Uint32(sb[ext4JournalDev:]); dev != 0 {
		return refuse("a journal on the device with the number %#x (tune2fs -O ^has_journal)", dev)
	}
	if le.Uint32(sb[ext4Compat:])&ext4HasJournal != 0 && le.Uint32(sb[ext4JournalInode:]) == 0 {
		return refuse("a journal that is not on it (tune2fs -O ^has_journal)")
	}
	options, _, _ := bytes.Cut(sb[ext4Options:ext4Options+ext4OptionsSize], []byte{0})
	if len(options) > 0 {
		return refuse("the mount options %q (tune2fs -E clear_mntopts)", options)
	}
	if !readOnly && le.Uint32(sb[ext4Incompat:])&ext4MMP != 0 {
		return refuse("multiple mount protection (tune2fs -O ^mmp)")
	}
	return nil
}

// Offsets in superblocks, and flags.
const (
	ext4Compat       = 0x5c
	ext4Incompat     = 0x60
	ext4JournalInode = 0xe0
	ext4JournalDev   = 0xe4
	ext4Options      = 0x200
	ext4OptionsSize  = 64
	ext4HasJournal   = 0x4
	ext4MMP          = 0x100
	erofsDevices     = 86
)
