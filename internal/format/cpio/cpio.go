// Package cpio reads and writes "newc" cpio archives (magic 070701), the format that Linux unpacks
// as an initramfs. The layout is that of the kernel's Documentation/driver-api/early-userspace
// ("buffer format"): a 110-byte header of hexadecimal fields, the name, the content, each padded to
// four bytes, and an entry called "TRAILER!!!" at the end.
//
// The package does no I/O but through the io.Reader or io.Writer it is given. A Writer or a Reader
// must not be used by several goroutines at once.
//
// github.com/cavaliergopher/cpio is not used: it writes no device numbers, without which a guest has no console, and
// trusts the length of a name in the input.
package cpio

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// File type bits of Header.Mode, with the values of stat(2).
const (
	TypeMask    = 0o170000
	TypeFIFO    = 0o010000
	TypeChar    = 0o020000
	TypeDir     = 0o040000
	TypeBlock   = 0o060000
	TypeRegular = 0o100000
	TypeSymlink = 0o120000
	TypeSocket  = 0o140000
)

// Limits of what is read and written.
const (
	MaxName   = 4096      // bytes of a name, without the closing NUL; PATH_MAX of Linux
	MaxSize   = 1<<32 - 1 // bytes of one file: the header has 32 bits for it
	headerLen = 6 + 13*8  // magic and 13 fields
	trailer   = "TRAILER!!!"
)

var (
	// ErrFormat: the input is no newc archive, or is damaged.
	ErrFormat = errors.New("not a newc cpio archive")
	// ErrTooLarge: a name or a file exceeds a limit of the format.
	ErrTooLarge = errors.New("too large for a newc cpio archive")
	// ErrSize: the content of a file does not have the size in its header.
	ErrSize = errors.New("content does not have the length of the header")
)

// Header describes one file. Names are relative, without a leading slash.
type Header struct {
	Name     string
	Mode     uint32 // type and permission bits as in stat(2)
	UID, GID uint32
	Links    uint32 // 0 is written as 1
	ModTime  uint32 // seconds since 1970
	Size     int64  // bytes of content; for a symbolic link the length of its target
	Inode    uint32 // 0: the Writer numbers the entries itself
	Major    uint32 // of a device node
	Minor    uint32
	DevMajor uint32 // of the device that the file lay on
	DevMinor uint32
}

func checkName(name string) error {
	switch {
	case name == "", name == trailer, strings.ContainsRune(name, 0):
		return fmt.Errorf("cpio: invalid file name %q: %w", name, ErrFormat)
	case len(name) > MaxName:
		return fmt.Errorf("cpio: file name of %d bytes, at most %d: %w", len(name), MaxName, ErrTooLarge)
	case path.IsAbs(name):
		return fmt.Errorf("cpio: file name %q is absolute: %w", name, ErrFormat)
	}
	return nil
}

// pad returns the number of padding bytes from n to the next multiple of four.
func pad(n int64) int64 { return -n & 3 }
