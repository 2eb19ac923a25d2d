//go:build linux

package mounts

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/hostmount"
)

// options are the options of what is mounted at a path: of the mount and of its file system.
func options(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[4] == path {
			return f[5] + "," + f[len(f)-1]
		}
	}
	t.Fatalf("nothing is mounted at %s", path)
	return ""
}

// TestForeignSuperblock: a disk whose superblock asks for a panic of the kernel at the first error is
// mounted so that it does not get it, read-only and writable, by the guest and by the host; one that asks
// for more is refused.
func TestForeignSuperblock(t *testing.T) {
	r := testRuntime(t)
	fakeSCSI(t, r.devices.Sys)
	image := func(name string, tune ...string) string {
		p := r.base + "/" + name
		if f, err := os.Create(p); err != nil {
			t.Fatal(err)
		} else if err := errors.Join(f.Truncate(16<<20), f.Close()); err != nil {
			t.Fatal(err)
		}
		tool(t, "e2fsprogs", "mke2fs", "-q", "-t", "ext4", "-b", "4096", p)
		tool(t, "e2fsprogs", "tune2fs", append(tune, p)...)
		return p
	}
	panics := image("panic.img", "-e", "panic")
	diskIn(t, r, 0, panics)
	for _, readOnly := range []bool{true, false} {
		s := hcsschema.LCOWMappedVirtualDisk{MountPath: r.base + "/mounts/panic", ReadOnly: readOnly}
		r.must(t, "Add", "MappedVirtualDisk", s)
		// The kernel shows the option where it differs from the superblock's.
		got := options(t, s.MountPath)
		if !strings.Contains(got, "errors=remount-ro") || !strings.Contains(got, "nodev") {
			t.Errorf("in the guest, read-only %v: %s", readOnly, got)
		}
		r.must(t, "Remove", "MappedVirtualDisk", s)
		at := r.base + "/host"
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := hostmount.MountImage(t.Context(), hostmount.Image{Path: panics, ReadOnly: readOnly}, at); err != nil {
			t.Fatal(err)
		}
		if got := options(t, at); !strings.Contains(got, "errors=remount-ro") {
			t.Errorf("on the host, read-only %v: %s", readOnly, got)
		}
		if err := unix.Unmount(at, 0); err != nil {
			t.Fatal(err)
		}
	}
	lun := 1
	for name, tune := range map[string][]string{
		"mount options": {"-E", "mount_opts=errors=panic"}, "protection": {"-O", "mmp"},
	} {
		p := image(strings.Fields(name)[0]+".img", tune...)
		diskIn(t, r, lun, p)
		s := hcsschema.LCOWMappedVirtualDisk{MountPath: r.base + "/mounts/refused", Lun: uint8(lun)}
		if err := r.try(t, "Add", "MappedVirtualDisk", s); !errors.Is(err, gcsserver.ErrInvalid) ||
			!strings.Contains(err.Error(), "tune2fs") {
			t.Errorf("%s, in the guest: %v", name, err)
		}
		err := hostmount.MountImage(t.Context(), hostmount.Image{Path: p}, r.base+"/host")
		if !errors.Is(err, hostmount.ErrSuperblock) {
			t.Errorf("%s, on the host: %v", name, err)
		}
		lun++
	}
	if len(r.real()) != 0 {
		t.Errorf("left: %v", r.real())
	}
}

// TestNodesInImages: a device node in an image opens nothing.
func TestNodesInImages(t *testing.T) {
	r := testRuntime(t)
	layers := r.layers(t, 1)
	if err := unix.Mknod(layers[0].Path+"/zero", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	for _, scratch := range []string{"", r.base + "/scratch/c"} {
		s := hcsschema.LCOWCombinedLayers{ContainerRootPath: r.base + "/gcs/c/c/rootfs", Layers: layers, ScratchPath: scratch}
		r.must(t, "Add", "CombinedLayers", s)
		if f, err := os.Open(s.ContainerRootPath + "/zero"); !errors.Is(err, unix.EACCES) {
			if err == nil {
				f.Close()
			}
			t.Errorf("scratch %q: %v", scratch, err)
		}
		r.must(t, "Remove", "CombinedLayers", s)
	}
}
