package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// stateFolders are the subdirectories of a state directory.
var stateFolders = []string{"cache", "containers", "run", "store", "vms", "volumes"}

// checkPrivate makes a state directory and its subdirectories accessible to their owner only (mode 0700), or returns an
// error. A directory that holds other files too, such as a home directory, keeps its mode, but must not be writable by
// others. On Windows the inherited ACL applies.
func checkPrivate(state string) error {
	if onWindows {
		return nil
	}
	fi, err := os.Stat(state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is created with mode 0700
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	entries, err := os.ReadDir(state)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	ours := len(entries) > 0
	for _, d := range entries {
		if !slices.Contains(stateFolders, d.Name()) {
			ours = false
			continue
		}
		if err := closeFolder(filepath.Join(state, d.Name())); err != nil {
			return err
		}
	}
	if ours {
		return closeFolder(state)
	}
	if m := fi.Mode(); m.Perm()&0o022 != 0 && m&fs.ModeSticky == 0 {
		return fmt.Errorf("state directory %s: others can write to it (mode %04o), and so exchange the disks of VMs: "+
			"chmod go-w %s, or give another one with --state-dir", state, m.Perm(), state)
	}
	return nil
}

// closeFolder sets the mode of a directory to 0700.
func closeFolder(path string) error {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if !fi.IsDir() || fi.Mode().Perm()&0o077 == 0 {
		return nil
	}
	if err := os.Chmod(path, 0o700); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state directory: %s is open to others (mode %04o): its owner can close it: "+
			"chmod 700 %s: %w", path, fi.Mode().Perm(), path, err)
	}
	return nil
}
