package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/hostmount"
)

// overlay mounts layers, topmost first, as an overlay at target. upper and work are created in the directory scratch;
// if that is empty the overlay is read-only. On error, the directories that were created are removed.
//
// All directories are opened first, without following links, and passed as file descriptors.
func overlay(target string, layers []string, scratch, empty string) (err error) {
	if len(layers) == 0 {
		return fmt.Errorf("no layers to combine: %w", gcsserver.ErrInvalid)
	}
	if len(layers) > hostmount.MaxLayers {
		return fmt.Errorf("%d layers, the most that can be combined are %d: %w", len(layers), hostmount.MaxLayers,
			gcsserver.ErrInvalid)
	}
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	if scratch == "" && len(layers) == 1 {
		layers = append(layers, empty) // without an upper directory, overlayfs requires two layers
	}
	var lower []string
	for _, l := range layers {
		f, err := openPath(l)
		if err != nil {
			return fmt.Errorf("layer %s: %w", l, err)
		}
		open = append(open, f)
		lower = append(lower, strconv.Itoa(int(f.Fd())))
	}
	options := "lowerdir=" + strings.Join(lower, ":")
	flags := uintptr(unix.MS_NODEV | unix.MS_RDONLY)
	if scratch != "" {
		flags = unix.MS_NODEV
		var made [2]*madePath
		for i, name := range []string{"upper", "work"} {
			m, err := makePath(filepath.Join(scratch, name), 0o755)
			if err != nil {
				if i == 1 {
					made[0].undo()
				}
				return fmt.Errorf("scratch: %w", err)
			}
			made[i] = m
			options += fmt.Sprintf(",%sdir=%d", name, m.dir.Fd())
		}
		defer func() {
			if err == nil {
				made[0].close()
				made[1].close()
				return
			}
			if len(made[1].made) > 0 { // the kernel may have created these in it
				_ = unix.Rmdir(filepath.Join(scratch, "work", "work"))
				_ = unix.Rmdir(filepath.Join(scratch, "work", "index"))
			}
			made[1].undo()
			made[0].undo()
		}()
	}
	at, err := makePath(target, 0o755)
	if err != nil {
		return err
	}
	if err := hostmount.OverlayFDs(int(at.dir.Fd()), flags, options); err != nil {
		at.undo()
		if errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("combine %d layers at %s: the scratch is full: %w", len(layers), target, err)
		}
		return fmt.Errorf("combine %d layers at %s: %w", len(layers), target, err)
	}
	at.close()
	return nil
}
