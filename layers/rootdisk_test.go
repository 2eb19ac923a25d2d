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

// TestRootDisk mounts a disk of the host as the root of one container. Its content decides nothing.
func TestRootDisk(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 0)
	disk := filepath.Join(w.scratch("d"), sandboxVHDX) // raw whatever it is called
	disk, err := filepath.EvalSymlinks(disk)
	if err != nil {
		t.Fatal(err)
	}
	m := w.mustMount(Request{VM: w.vm, ID: "a", RootDisk: disk})
	if want := "/run/gcs/c/a/rootfs"; m.Root != want {
		t.Errorf("the root is at %s, want %s", m.Root, want)
	}
	saw, err := w.f.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d, ok := saw.Device("scsi 0:0").(vmm.SCSIDisk); !ok || d.Path != disk || d.ReadOnly || d.Format != vmm.FormatRaw {
		t.Errorf("the machine has %+v, want the raw disk %s", saw.Devices, disk)
	}
	other := []Layer{{Folder: w.folder("l", layerVHD)}}
	for _, r := range []Request{{RootDisk: disk}, {Scratch: disk, WholeScratch: true, Layers: other}} {
		r.VM, r.ID = w.vm, "b"
		if _, err := Mount(t.Context(), r); !errors.Is(err, uvm.ErrAlreadyAttached) {
			t.Errorf("the disk of two containers: %v, want an error matching %q", err, uvm.ErrAlreadyAttached)
		}
	}
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.checkEmpty()
}

// TestWholeScratch puts what a container writes at the root of its disk, which is not formatted.
func TestWholeScratch(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 2)
	w.wholeScratch = true
	m := w.mustMount(w.request("a", w.layers))
	if want := "/run/gcs/c/a"; m.ScratchPath != want {
		t.Errorf("the scratch is %s, want %s", m.ScratchPath, want)
	}
	saw, err := w.f.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d, ok := saw.Device("scsi 0:0").(vmm.SCSIDisk); !ok || d.Format != vmm.FormatRaw {
		t.Errorf("the machine has %+v, want a raw disk", saw.Devices)
	}
	for _, c := range w.f.Log() {
		if g, ok := c.Mount.(vmm.MappedDisk); ok && g.EnsureFilesystem {
			t.Errorf("the disk would be formatted: %+v", g)
		}
	}
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.checkEmpty()
}

// TestRootDiskRefused lists what cannot be a root or a scratch.
func TestRootDiskRefused(t *testing.T) {
	linux := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 1)
	windows := newWorld(t, vmm.Windows, vmmtest.WindowsLimits(), 0)
	folder := t.TempDir()
	disk := filepath.Join(linux.scratch("d"), sandboxVHDX)
	for name, tt := range map[string]struct {
		r    Request
		want error
	}{
		"also layers":    {Request{VM: linux.vm, RootDisk: disk, Layers: linux.layers}, ErrInvalid},
		"also a scratch": {Request{VM: linux.vm, RootDisk: disk, Scratch: disk}, ErrInvalid},
		"also a folder":  {Request{VM: linux.vm, RootDisk: disk, RootFolder: folder}, ErrInvalid},
		"a folder":       {Request{VM: linux.vm, RootDisk: folder}, ErrInvalid},
		"not absolute":   {Request{VM: linux.vm, RootDisk: "disk"}, ErrInvalid},
		"not there":      {Request{VM: linux.vm, RootDisk: disk + "2"}, os.ErrNotExist},
		"of Windows":     {Request{VM: windows.vm, RootDisk: disk}, ErrInvalid},
		"no scratch":     {Request{VM: linux.vm, WholeScratch: true, Layers: linux.layers}, ErrInvalid},
		"scratch not there": {
			Request{VM: linux.vm, WholeScratch: true, Scratch: disk + "2", Layers: linux.layers}, os.ErrNotExist},
	} {
		tt.r.ID = "a"
		if _, err := Mount(t.Context(), tt.r); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want an error matching %q", name, err, tt.want)
		}
	}
}
