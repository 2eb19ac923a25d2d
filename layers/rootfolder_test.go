package layers

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// TestRootFolder mounts a folder of the host as the root of one container.
func TestRootFolder(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 0)
	folder := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(folder, link); err != nil {
		t.Skip(err) // as on Windows for most users
	}
	folder, err := filepath.EvalSymlinks(folder)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(link); err != nil {
		link = folder // Wine makes no links, without an error
	}
	m := w.mustMount(Request{VM: w.vm, ID: "a", RootFolder: link})
	if want := "/run/gcs/c/a/rootfs"; m.Root != want {
		t.Errorf("the root is at %s, want %s", m.Root, want)
	}
	saw, err := w.f.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d, ok := saw.Device("virtiofs 0").(vmm.VirtioFSShare); !ok || d.Path != folder || d.ReadOnly || d.File {
		t.Errorf("the machine has %v, want the folder %s", saw.Devices, folder)
	}
	if c, err := Open(w.vm, "a"); err != nil || c.Root != m.Root {
		t.Errorf("found again: %+v, %v", c, err)
	}
	_, err = Mount(t.Context(), Request{VM: w.vm, ID: "b", RootFolder: folder})
	if !errors.Is(err, uvm.ErrAlreadyAttached) {
		t.Errorf("the root of two containers: %v, want an error matching %q", err, uvm.ErrAlreadyAttached)
	}
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := w.f.Leftovers(); len(left) > 0 {
		t.Errorf("left in the machine: %q", left)
	}
}

// TestRootFolderRefused lists what cannot be a root.
func TestRootFolderRefused(t *testing.T) {
	linux := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 1)
	noShares := vmmtest.LinuxLimits()
	noShares.VirtioFSShares = 0
	without := newWorld(t, vmm.Linux, noShares, 0)
	windows := newWorld(t, vmm.Windows, vmmtest.WindowsLimits(), 0)
	folder := t.TempDir()
	file := filepath.Join(folder, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		r    Request
		want error
	}{
		"also layers":      {Request{VM: linux.vm, RootFolder: folder, Layers: linux.layers}, ErrInvalid},
		"also a scratch":   {Request{VM: linux.vm, RootFolder: folder, Scratch: folder}, ErrInvalid},
		"a file":           {Request{VM: linux.vm, RootFolder: file}, ErrInvalid},
		"not absolute":     {Request{VM: linux.vm, RootFolder: "root"}, ErrInvalid},
		"not there":        {Request{VM: linux.vm, RootFolder: filepath.Join(folder, "none")}, os.ErrNotExist},
		"of Windows":       {Request{VM: windows.vm, RootFolder: folder}, ErrInvalid},
		"without virtiofs": {Request{VM: without.vm, RootFolder: folder}, uvm.ErrNotSupported},
	} {
		tt.r.ID = "a"
		if _, err := Mount(t.Context(), tt.r); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want an error matching %q", name, err, tt.want)
		}
	}
}
