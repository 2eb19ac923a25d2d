package ocispec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ErrPlace is matched by errors about a mount whose destination the image does not allow.
var ErrPlace = errors.New("invalid mount")

// RootFiles are the files of a root in which nothing is mounted.
type RootFiles interface {
	// Link returns the target of a symbolic link, or "" if the path is not one. For a missing path the error matches
	// fs.ErrNotExist.
	Link(path string) (string, error)
	// Folder reports whether there is a directory at a resolved path. An error says that this is not known.
	Folder(path string) (bool, error)
}

// maxLinks is the kernel's limit of symbolic links in a path.
const maxLinks = 40

// Follow resolves the symbolic links of a path in a root: those that link returns, or "". Missing components are kept
// as they are.
func Follow(to string, link func(at string) (string, error)) (string, error) {
	at, rest := "/", to
	for links := 0; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		at = path.Join(at, name)
		says, err := link(at)
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || err == nil && says == "":
			continue
		case err != nil:
			return "", err
		}
		if links++; links > maxLinks {
			return "", &os.PathError{Op: "follow the links of", Path: to, Err: syscall.ELOOP}
		}
		if at = path.Dir(at); path.IsAbs(says) {
			at = "/"
		}
		rest = says + "/" + rest
	}
	return at, nil
}

// SystemPlace reports whether a resolved path is in /proc, /sys or /dev.
func SystemPlace(at string) bool {
	top, _, _ := strings.Cut(strings.TrimPrefix(at, "/"), "/")
	return top == "proc" || top == "sys" || top == "dev"
}

// Covered reports whether a path is at or below one of mounts.
func Covered(at string, mounts []specs.Mount) bool {
	at = cleanPath(at)
	return slices.ContainsFunc(mounts, func(m specs.Mount) bool {
		to := cleanPath(m.Destination)
		return at == to || strings.HasPrefix(at, to+"/")
	})
}

// CheckPlaces returns an error for a mount whose destination leads, by symbolic links of the image or a volume, to the
// root or into a kernel file system: it would hide these, and the masks in them. Destinations without links were
// checked before. A directory can be mounted only over a directory, anything else only over something else. linkIn is
// RootFiles.Link for a path at or below the destination of a mount, looked up in what the mount shows.
func CheckPlaces(mounts []specs.Mount, root RootFiles, linkIn func(m specs.Mount, at string) (string, error)) error {
	var before []specs.Mount // with resolved destinations
	for _, m := range mounts {
		images := true // the destination is in the image, not in an earlier mount
		place, err := Follow(m.Destination, func(at string) (string, error) {
			for _, over := range slices.Backward(before) {
				if Covered(at, []specs.Mount{over}) {
					images = false
					if slices.Contains(over.Options, "tmpcopyup") { // it is filled from the image
						return root.Link(at)
					}
					return linkIn(over, at)
				}
			}
			return root.Link(at)
		})
		if err == nil && images {
			err = sameKind(m, place, root)
		}
		if err != nil {
			return fmt.Errorf("mount at %q: %w", m.Destination, err)
		}
		placed := m
		placed.Destination = place
		before = append(before, placed)
		if place == cleanPath(m.Destination) {
			continue
		}
		if place == "/" || place == "/dev" || SystemPlace(place) && !strings.HasPrefix(place, "/dev/") {
			return fmt.Errorf("mount at %q: links of the image or a volume lead to %q, where nothing can be mounted: "+
				"%w", m.Destination, place, ErrPlace)
		}
	}
	return nil
}

// sameKind returns an error for a directory mounted over a file of the image, or the reverse. A missing source becomes
// a directory.
func sameKind(m specs.Mount, place string, root RootFiles) error {
	folder := true
	if IsBind(m) {
		fi, err := os.Stat(m.Source)
		switch {
		case err == nil:
			folder = fi.IsDir()
		case !errors.Is(err, fs.ErrNotExist): // the mount reports it
			return nil
		}
	}
	there, err := root.Folder(place)
	switch {
	case err != nil:
		return roomFor(place, root)
	case folder && !there:
		return fmt.Errorf("a folder cannot be mounted over the image's file %q: %w", place, ErrPlace)
	case !folder && there:
		return fmt.Errorf("a file cannot be mounted over the image's folder %q: %w", place, ErrPlace)
	}
	return nil
}

// roomFor returns an error for a missing path that cannot be created, as it is below a file.
func roomFor(place string, root RootFiles) error {
	for place != "/" {
		place = path.Dir(place)
		folder, err := root.Folder(place)
		if err == nil && !folder {
			return fmt.Errorf("nothing can be mounted below the image's file %q: %w", place, ErrPlace)
		}
		if err == nil {
			break
		}
	}
	return nil
}
