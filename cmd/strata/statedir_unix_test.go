//go:build unix

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestPrivateState: what is kept for VMs is closed to others, whoever created it with which mode.
func TestPrivateState(t *testing.T) {
	const sticky = fs.ModeSticky
	for _, tt := range []struct {
		name    string
		before  fs.FileMode // of the state directory
		folders map[string]fs.FileMode
		after   fs.FileMode
		fails   bool
	}{
		{"of an earlier version", 0o755, map[string]fs.FileMode{"vms": 0o755, "store": 0o711, "run": 0o700}, 0o700, false},
		{"closed already", 0o700, map[string]fs.FileMode{"cache": 0o700}, 0o700, false},
		{"a home directory", 0o755, map[string]fs.FileMode{"vms": 0o755, "Mail": 0o755}, 0o755, false},
		{"empty", 0o755, nil, 0o755, false},
		{"for everybody", 0o777, map[string]fs.FileMode{"Mail": 0o755}, 0o777, true},
		{"for a group", 0o770, map[string]fs.FileMode{"Mail": 0o755}, 0o770, true},
		{"for everybody, who cannot exchange ours", 0o777 | sticky, map[string]fs.FileMode{"vms": 0o755, "x": 0o755},
			0o777 | sticky, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			state := filepath.Join(t.TempDir(), "state")
			mkdir := func(path string, mode fs.FileMode) {
				if err := os.Mkdir(path, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(path, mode); err != nil { // whatever the umask
					t.Fatal(err)
				}
			}
			mkdir(state, tt.before)
			for name, mode := range tt.folders {
				mkdir(filepath.Join(state, name), mode)
			}
			if err := checkPrivate(state); (err != nil) != tt.fails {
				t.Errorf("error: %v", err)
			}
			mode := func(path string) fs.FileMode {
				fi, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				return fi.Mode() & (fs.ModePerm | sticky)
			}
			if got := mode(state); got != tt.after {
				t.Errorf("the directory has mode %v, want %v", got, tt.after)
			}
			for name, before := range tt.folders {
				want := before
				if name != "Mail" && name != "x" {
					want = 0o700
				}
				if got := mode(filepath.Join(state, name)); got != want {
					t.Errorf("%s has mode %v, want %v", name, got, want)
				}
			}
		})
	}
	if err := checkPrivate(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Error(err)
	}
}
