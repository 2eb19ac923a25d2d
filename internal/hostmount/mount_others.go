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

// MountDirectory bind-mounts a directory at another, existing one.
func MountDirectory(context.Context, string, string, bool) error { return unsupported("mount") }

// Unmount unmounts what is mounted at a directory. It is no error if nothing is.
func Unmount(context.Context, string) error { return unsupported("unmount") }

// Mounts returns the mount points at and below a directory.
func Mounts(string) ([]string, error) { return nil, unsupported("list mounts") }

// CanDisks reports whether root can mount disk images here.
func CanDisks() bool { return false }

// CanEROFS reports whether this process may mount EROFS.
func CanEROFS() bool { return false }

func unsupported(what string) error { return fail(what, "on this system", errors.ErrUnsupported) }
