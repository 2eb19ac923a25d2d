// Package hostmount mounts layers on this system itself: read-only images from files or loop devices, directories, and
// overlays of them. It is stateless; package vmm/local builds a machine on it, with a VM's ledger and recovery.
//
// Ways of mounting, by preference:
//
//   - an EROFS image is mounted from its file (Linux 6.12 and later), without any device;
//   - other images, and a part of a file, through a loop device that goes away by itself with the
//     mount (LO_FLAGS_AUTOCLEAR), so that a crash leaves at most a mount;
//   - overlays by mount(2) on a thread whose working directory is /proc/self/fd, so that a few digits
//     stand for each layer: all 500 that the kernel stacks fit in the page that mount options may have.
//
// All of it needs root, or CAP_SYS_ADMIN. In a user namespace the kernel lets nobody mount EROFS or
// ext4; bind mounts and overlays of folders work there (since Linux 5.11), with opaque directories
// marked by user.overlay.opaque (option userxattr). The errors say so and match fs.ErrPermission.
//
// Devices on mounted layers do not work: everything is mounted nodev. Whiteouts are not affected.
//
// On other systems every function returns errors.ErrUnsupported.
package hostmount

import (
	"errors"
	"fmt"
)

// Errors of this package.
var (
	// ErrBusy: a mount is in use. The text names its users.
	ErrBusy = errors.New("in use")
	// ErrNoFilesystem: a file contains no supported file system.
	ErrNoFilesystem = errors.New("no file system that can be mounted here (EROFS or ext4)")
)

// Image is a file system in a file.
type Image struct {
	Path       string
	Offset     int64 // in the file, a multiple of 512
	Size       int64 // bytes; 0: up to the end of the file
	ReadOnly   bool
	Filesystem string   // empty: detected
	Options    []string // of the file system, each "name" or "name=value"
}

// MaxLayers is overlayfs's maximum number of lower layers.
const MaxLayers = 500

// Overlay is a stack of directories.
type Overlay struct {
	Lowers []string // top first, at most MaxLayers
	Upper  string   // empty: read-only
	Work   string
}

func fail(what, path string, err error) error {
	return fmt.Errorf("%s %s: %w", what, path, err)
}
