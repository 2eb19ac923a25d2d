package local_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/hostmount"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/local"
)

type entry = treetest.Entry

// machine opens a machine and checks at the end that nothing of it is left in the system.
func machine(t testing.TB) *local.Machine {
	t.Helper()
	treetest.NeedRoot(t, "to mount")
	dir := filepath.Join(t.TempDir(), "machine with, odd: name\\")
	loops := loopDevices(t, dir)
	m := reopen(t, dir)
	t.Cleanup(func() {
		if left, err := hostmount.Mounts(dir); err != nil || len(left) > 0 {
			t.Errorf("still mounted: %q, %v", left, err)
		}
		if got := loopDevices(t, dir); got != loops {
			t.Errorf("loop devices:\n%s\nbefore:\n%s", got, loops)
		}
	})
	return m
}

func reopen(t testing.TB, dir string) *local.Machine {
	t.Helper()
	m, err := local.Open(local.Options{Dir: dir, ID: "h"})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// loopDevices lists the loop devices whose file lies near dir.
func loopDevices(t testing.TB, dir string) string {
	t.Helper()
	var out []string
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), filepath.Dir(filepath.Dir(dir))) {
			out = append(out, string(b))
		}
	}
	return strings.Join(out, "")
}

func layer(t testing.TB, format layerdir.Format, entries ...entry) string {
	t.Helper()
	res, err := layerdir.Convert(t.Context(), layerdir.Options{Format: format, Dir: filepath.Join(t.TempDir(), "l"),
		Tar: bytes.NewReader(treetest.Tar(t, entries...))})
	if err != nil {
		t.Fatal(err)
	}
	return res.Path
}

func apply(t testing.TB, m *local.Machine, changes ...vmm.Change) {
	t.Helper()
	for _, c := range changes {
		if err := m.Apply(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

// disk is the Change that mounts a layer as the i-th.
func disk(i int, path string) vmm.Change {
	ctrl, lun := uint8(i/64), uint8(i%64)
	return vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{Controller: ctrl, LUN: lun, Path: path, ReadOnly: true},
		Mount: vmm.MappedDisk{MountPath: fmt.Sprintf("/run/mounts/m%d", i), Controller: ctrl, LUN: lun, ReadOnly: true}}
}

func folder(path string) vmm.Change {
	return vmm.Change{Op: vmm.Add, Device: vmm.Plan9Share{Name: "scratch", Path: path},
		Mount: vmm.MappedDirectory{MountPath: "/run/scratch", Share: "scratch"}}
}

func root(n int, scratch string) vmm.Change {
	g := vmm.CombinedLayers{ContainerID: "c", RootPath: "/run/c/rootfs", ScratchPath: scratch}
	for i := n - 1; i >= 0; i-- {
		g.Layers = append(g.Layers, vmm.GuestLayer{Path: fmt.Sprintf("/run/mounts/m%d", i)})
	}
	return vmm.Change{Op: vmm.Add, Mount: g}
}

func undo(t testing.TB, m *local.Machine, changes []vmm.Change) {
	t.Helper()
	for _, c := range slices.Backward(changes) {
		apply(t, m, c.Inverse())
		apply(t, m, c.Inverse()) // removal is idempotent
	}
	o, err := m.Observe(t.Context())
	if err != nil || len(o.Devices)+len(o.Mounts) != 0 {
		t.Errorf("left in the machine: %+v, %v", o, err)
	}
}

// TestRoot mounts layers of both formats with a scratch of each kind, and uses the root.
func TestRoot(t *testing.T) {
	raw := filepath.Join(t.TempDir(), "scratch.img")
	if err := os.WriteFile(raw, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(raw, 32<<20); err != nil {
		t.Fatal(err)
	}
	treetest.Run(t, "mkfs.ext4", "-q", "-b", "4096", raw)
	for name, scratch := range map[string]vmm.Change{
		"folder": folder(t.TempDir()),
		"raw ext4": {Op: vmm.Add, Device: vmm.SCSIDisk{Controller: 3, Path: raw},
			Mount: vmm.MappedDisk{MountPath: "/run/scratch", Controller: 3, Filesystem: "ext4", EnsureFilesystem: true}},
	} {
		t.Run(name, func(t *testing.T) {
			m := machine(t)
			changes := []vmm.Change{
				disk(0, layer(t, layerdir.VHD, entry{Name: "etc/a", Body: "base"}, entry{Name: "etc/b", Body: "base"})),
				disk(1, layer(t, layerdir.EROFS, entry{Name: "etc/.wh.a"}, entry{Name: "etc/b", Body: "upper"},
					entry{Name: "setuid", Mode: 0o4755})),
				scratch, root(2, "/run/scratch/c"),
			}
			apply(t, m, changes...)
			apply(t, m, changes...) // adding what is there succeeds
			dir := m.HostPath("/run/c/rootfs")
			if b, err := os.ReadFile(filepath.Join(dir, "etc/b")); err != nil || string(b) != "upper" {
				t.Errorf("etc/b is %q, %v", b, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "etc/a")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the whiteout of etc/a: %v", err)
			}
			if err := os.WriteFile(filepath.Join(dir, "new"), []byte("x"), 0o644); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(m.HostPath("/run/scratch/c"), "upper/new")); err != nil {
				t.Errorf("what was written is not on the scratch: %v", err)
			}
			undo(t, m, changes)
		})
	}
}

// TestManyLayers: 200 layers need far more than the page of options that mount(2) takes.
func TestManyLayers(t *testing.T) {
	m := machine(t)
	const n = 200
	var changes []vmm.Change
	for i := range n {
		changes = append(changes, disk(i, layer(t, layerdir.EROFS, entry{Name: fmt.Sprintf("f%d", i)},
			entry{Name: "top", Body: fmt.Sprint(i)})))
	}
	changes = append(changes, root(n, ""))
	apply(t, m, changes...)
	dir := m.HostPath("/run/c/rootfs")
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != n+1 {
		t.Errorf("%d names, %v", len(names), err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "top")); err != nil || string(b) != fmt.Sprint(n-1) {
		t.Errorf("top is %q, %v", b, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o644); err == nil {
		t.Error("a root without a scratch can be written to")
	}
	undo(t, m, changes)
}

// TestOneLayer: what one layer hides is not seen either when there is nothing below it.
func TestOneLayer(t *testing.T) {
	m := machine(t)
	changes := []vmm.Change{disk(0, layer(t, layerdir.EROFS, entry{Name: "f"}, entry{Name: ".wh.hidden"})), root(1, "")}
	apply(t, m, changes...)
	names, err := os.ReadDir(m.HostPath("/run/c/rootfs"))
	if err != nil || len(names) != 1 || names[0].Name() != "f" {
		t.Errorf("the root has %v, %v", names, err)
	}
	undo(t, m, changes)
}

// TestBusy: an open file holds the root; the error names the process, and the removal succeeds after.
func TestBusy(t *testing.T) {
	m := machine(t)
	changes := []vmm.Change{disk(0, layer(t, layerdir.EROFS, entry{Name: "f", Body: "x"})), folder(t.TempDir()),
		root(1, "/run/scratch")}
	apply(t, m, changes...)
	for _, c := range changes[:2] { // used by the root
		if err := m.Apply(t.Context(), c.Inverse()); !errors.Is(err, vmm.ErrBusy) ||
			!strings.Contains(err.Error(), "/run/c/rootfs") {
			t.Errorf("%s: %v", c.Inverse(), err)
		}
	}
	if err := m.Apply(t.Context(), changes[0].HostOnly().Inverse()); !errors.Is(err, vmm.ErrBusy) {
		t.Errorf("detach under a mount: %v", err)
	}
	f, err := os.Open(filepath.Join(m.HostPath("/run/c/rootfs"), "f"))
	if err != nil {
		t.Fatal(err)
	}
	err = m.Apply(t.Context(), changes[2].Inverse())
	if _, guest := vmm.Outcomes(changes[2].Inverse(), err); !errors.Is(err, vmm.ErrBusy) || guest != vmm.NotDone ||
		!strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("unmount with an open file: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	undo(t, m, changes)
}

// TestReopen: another process finds everything, and takes it away.
func TestReopen(t *testing.T) {
	m := machine(t)
	changes := []vmm.Change{disk(0, layer(t, layerdir.VHD, entry{Name: "f"})), folder(t.TempDir()),
		root(1, "/run/scratch")}
	apply(t, m, changes...)
	dir := filepath.Dir(m.HostPath("/"))
	m = reopen(t, dir)
	o, err := m.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		if c.Device != nil && o.Device(c.Device.Addr()) == nil {
			t.Errorf("%s is not observed", c.Device)
		}
		if g := o.Mount(c.Mount); g == nil || g.String() != c.Mount.String() {
			t.Errorf("%s: observed %v", c.Mount, g)
		}
	}
	// Somebody unmounted the root by hand: it is not observed any more, and its removal succeeds.
	if err := hostmount.Unmount(t.Context(), m.HostPath("/run/c/rootfs")); err != nil {
		t.Fatal(err)
	}
	if o, err = m.Observe(t.Context()); err != nil || o.Mount(changes[2].Mount) != nil {
		t.Errorf("an unmounted root is observed: %v, %v", o, err)
	}
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	if err := m.Apply(t.Context(), changes[0]); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("after Shutdown: %v", err)
	}
	if o, err := reopen(t, dir).Observe(t.Context()); err != nil || len(o.Devices)+len(o.Mounts) != 0 {
		t.Errorf("after Shutdown there is %+v, %v", o, err)
	}
}

// TestReboot: records of another boot mean nothing.
func TestReboot(t *testing.T) {
	m := machine(t)
	apply(t, m, disk(0, layer(t, layerdir.EROFS, entry{Name: "f"})).HostOnly())
	dir := filepath.Dir(m.HostPath("/"))
	after, err := local.Open(local.Options{Dir: dir, BootID: "another boot"})
	if err != nil {
		t.Fatal(err)
	}
	if o, err := after.Observe(t.Context()); err != nil || len(o.Devices) != 0 || after.ID() != "h" {
		t.Errorf("machine %s has %+v, %v", after.ID(), o, err)
	}
}

// TestRefused: bad input leaves nothing behind.
func TestRefused(t *testing.T) {
	m := machine(t)
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := layer(t, layerdir.EROFS, entry{Name: "f"})
	apply(t, m, disk(7, good))
	whole, err := os.ReadFile(layer(t, layerdir.VHD, entry{Name: "f"}))
	if err != nil {
		t.Fatal(err)
	}
	scsi := func(path string) vmm.Change { return disk(0, path) }
	for name, c := range map[string]struct {
		change vmm.Change
		want   error
		text   string
	}{
		"missing file":   {scsi(filepath.Join(dir, "none.vhd")), fs.ErrNotExist, "none.vhd"},
		"folder":         {scsi(dir), nil, "no regular file"},
		"no file system": {scsi(write("text.img", []byte("hello"))), hostmount.ErrNoFilesystem, "text.img"},
		"empty":          {scsi(write("empty.img", nil)), hostmount.ErrNoFilesystem, "empty.img"},
		"truncated VHD":  {scsi(write("cut.vhd", whole[:len(whole)-4096])), nil, "truncated"},
		"VHDX":           {scsi(write("s.vhdx", []byte("vhdxfile"))), errors.ErrUnsupported, "VHDX"},
		"occupied slot": {vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{LUN: 7, Path: "/other"}}, vmm.ErrOccupied,
			"scsi 0:7"},
		"occupied path": {vmm.Change{Op: vmm.Add, Mount: vmm.MappedDisk{MountPath: "/run/mounts/m7", LUN: 9}},
			vmm.ErrOccupied, "/run/mounts/m7"},
		"no such disk": {vmm.Change{Op: vmm.Add, Mount: vmm.MappedDisk{MountPath: "/m", LUN: 9}}, nil, "no disk"},
		"path with ..": {vmm.Change{Op: vmm.Add, Mount: vmm.MappedDisk{MountPath: "/run/../../etc", LUN: 7}}, nil, ".."},
		"pmem":         {vmm.Change{Op: vmm.Add, Device: vmm.VPMEMDevice{Path: good}}, errors.ErrUnsupported, "vpmem"},
		"verity": {vmm.Change{Op: vmm.Add, Mount: vmm.MappedDisk{MountPath: "/m", LUN: 7, Verity: &vmm.Verity{}}},
			errors.ErrUnsupported, "verity"},
		"unmounted layer": {root(1, ""), nil, "not mounted"},
		"unmounted upper": {vmm.Change{Op: vmm.Add, Mount: vmm.CombinedLayers{RootPath: "/r",
			Layers: []vmm.GuestLayer{{Path: "/run/mounts/m7"}}, ScratchPath: "/s"}}, nil, "scratch"},
		"no partition": {vmm.Change{Op: vmm.Add, Mount: vmm.MappedDisk{MountPath: "/m", LUN: 7, Partition: 1}}, nil,
			"partition"},
		"share of nothing": {vmm.Change{Op: vmm.Add, Device: vmm.Plan9Share{Name: "x", Path: "/nonexistent"}}, fs.ErrNotExist,
			"/nonexistent"},
	} {
		err := m.Apply(t.Context(), c.change)
		if err == nil || (c.want != nil && !errors.Is(err, c.want)) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want %v with %q", name, err, c.want, c.text)
		}
		if host, _ := vmm.Outcomes(c.change, err); host == vmm.Done {
			apply(t, m, c.change.HostOnly().Inverse())
		}
	}
	undo(t, m, []vmm.Change{disk(7, good)})
	if left, _ := filepath.Glob(m.HostPath("/") + "/*"); len(left) > 0 {
		t.Errorf("directories were left: %q", left)
	}
}
