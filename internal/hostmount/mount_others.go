//go:build !linux

package hostmount

import (
	"context"
	"errors"
)

// MountImage mounts an image at an existing directory.
func MountImage(context.Context, Image, string) error { return unsupported("mount") }

// MountOverlay mounts a stack of directories at an existing directory.
func MountOverlay(context.Context, Overlay, string) error { return unsupported("mount") }

// MountDirectory makes a directory appear at another, existing one.
func MountDirectory(context.Context, string, string, bool) error { return unsupported("mount") }

// Unmount takes away what is mounted at a directory. Nothing mounted there is a success.
func Unmount(context.Context, string) error { return unsupported("unmount") }

// Mounts returns the mount points at and below a directory.
func Mounts(string) ([]string, error) { return nil, unsupported("list mounts") }

// CanDisks reports whether the kernel mounts disks for somebody here.
func CanDisks() bool { return false }

// CanEROFS reports whether this process may mount EROFS.
func CanEROFS() bool { return false }

func unsupported(what string) error { return fail(what, "on this system", errors.ErrUnsupported) }
