package layers

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/gpt"
	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// realLayers creates layer folders with a file each, top-most first.
func realLayers(t *testing.T, format layerdir.Format, n int) []Layer {
	t.Helper()
	out := make([]Layer, n)
	for i := range out {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		body := fmt.Sprintf("content of layer %d", i)
		for _, name := range []string{fmt.Sprintf("only%d", i), "same"} {
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body))}); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, body); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), fmt.Sprint("real", i))
		if _, err := layerdir.Convert(t.Context(), layerdir.Options{Format: format, Tar: &buf, Dir: dir}); err != nil {
			t.Fatal(err)
		}
		out[i].Folder = dir
	}
	return out
}

// composite reads the disk that extents make up, as a VMM would.
func composite(t *testing.T, extents []vmm.Extent) []byte {
	t.Helper()
	var disk []byte
	for _, e := range extents {
		if e.Length <= 0 || e.Length%512 != 0 || e.Offset%512 != 0 {
			t.Fatalf("extent %+v is not made of sectors", e)
		}
		part := make([]byte, e.Length)
		if e.Path != "" {
			f, err := os.Open(e.Path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.ReadAt(part, e.Offset); err != nil {
				t.Fatalf("extent %+v: %v", e, err)
			}
			_ = f.Close()
		}
		disk = append(disk, part...)
	}
	return disk
}

// snoop is a machine that looks at composite disks while they are attached.
type snoop struct {
	*vmmtest.Fake
	t     *testing.T
	disks [][]byte
}

func (w *world) snoop(t *testing.T) *snoop {
	s := &snoop{Fake: w.f, t: t}
	w.f.Script(func(_ int, c vmm.Change) vmmtest.Fault {
		if d, ok := c.Device.(vmm.SCSIDisk); ok && c.Op == vmm.Add && d.Extents != nil {
			s.disks = append(s.disks, composite(t, d.Extents))
		}
		return vmmtest.NoFault
	})
	return s
}

func (w *world) counts() (devices, guests int) {
	for _, c := range w.f.Log() {
		if c.Device != nil {
			devices++
		}
		if c.Mount != nil {
			guests++
		}
	}
	return devices, guests
}

func (w *world) stateFiles() []string {
	w.t.Helper()
	all, err := filepath.Glob(filepath.Join(w.state, "*"))
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, f := range all {
		if b := filepath.Base(f); b != "journal" && b != "lock" {
			out = append(out, b)
		}
	}
	return out
}

// EROFS layers travel behind one disk whatever their number, as one mount.
func TestIndexOneDisk(t *testing.T) {
	for _, n := range []int{2, 5, 30} {
		w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 0)
		chain := realLayers(t, layerdir.EROFS, n)
		s := w.snoop(t)
		a := w.mustMount(w.request("a", chain))
		if d, g := w.counts(); d != 2 || g != 3 {
			t.Errorf("%d layers: %d device operations and %d guest round trips, want 2 (layers, scratch) and 3", n, d, g)
		}
		tree, err := erofs.Open(bytes.NewReader(s.disks[0]), int64(len(s.disks[0])))
		if err != nil {
			t.Fatalf("what the guest gets is no EROFS: %v", err)
		}
		entries := 0
		if err := tree.Walk(func(string, *layertree.Node) error { entries++; return nil }); err != nil {
			t.Fatal(err)
		}
		if want := n + 2; entries != want { // the root, one file of each layer, and the one they share
			t.Errorf("the index shows %d files, want %d", entries, want)
		}
		if left := w.stateFiles(); len(left) > 0 {
			t.Errorf("files left beside the journal: %q", left)
		}
		w.snoop(t)
		b := w.mustMount(Request{VM: w.vm, ID: "b", Layers: chain})
		if d, g := w.counts(); d != 0 || g != 1 {
			t.Errorf("warm: %d device operations and %d guest round trips, want 0 and 1", d, g)
		}
		for _, m := range []*Mounted{a, b} {
			if err := m.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		w.checkEmpty()
	}
}

// Two images on one base: each brings one disk, of which only the index is its own. All else on it is the layers' own
// files, the base's in both, and of these nothing is copied.
func TestIndexesOfOneBase(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 0)
	all := realLayers(t, layerdir.EROFS, 6)
	base := all[2:]
	var disks []map[string]int64 // the bytes of each by what they are from: a layer's folder, "" for the rest
	w.f.Script(func(_ int, c vmm.Change) vmmtest.Fault {
		d, ok := c.Device.(vmm.SCSIDisk)
		if !ok || c.Op != vmm.Add || d.Extents == nil {
			return vmmtest.NoFault
		}
		from := map[string]int64{}
		for _, e := range d.Extents {
			folder := filepath.Dir(e.Path)
			if !slices.ContainsFunc(all, func(l Layer) bool { return l.Folder == folder }) {
				folder = ""
			}
			from[folder] += e.Length
		}
		disks = append(disks, from)
		return vmmtest.NoFault
	})
	before := 0
	var mounted []*Mounted
	for i := range 2 {
		chain := append([]Layer{all[i]}, base...)
		mounted = append(mounted, w.mustMount(Request{VM: w.vm, ID: fmt.Sprint("c", i), Layers: chain}))
		d, _ := w.counts()
		if d-before != 1 || len(disks) != i+1 {
			t.Fatalf("image %d: %d device operations, %d disks with an index", i, d-before, len(disks))
		}
		before = d
		for _, l := range chain {
			fi, err := os.Stat(filepath.Join(l.Folder, layerEROFS))
			if err != nil {
				t.Fatal(err)
			}
			if got := disks[i][l.Folder]; got != fi.Size() {
				t.Errorf("image %d: %d bytes of the disk are of layer %s, which has %d", i, got, l.Folder, fi.Size())
			}
		}
		if own := disks[i][""]; own <= 0 || own > 8<<10 { // 5 layers with 2 files each
			t.Errorf("image %d: %d bytes are its own", i, own)
		}
	}
	for _, m := range mounted {
		if err := m.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.checkEmpty()
}

// Layers that cannot be indexed become partitions; those that are in the VM stay where they are.
func TestPartitionsOneDisk(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 0)
	chain := realLayers(t, layerdir.VHD, 5)
	s := w.snoop(t)
	a := w.mustMount(Request{VM: w.vm, ID: "a", Layers: chain[2:], Attach: AttachOneDisk})
	if d, g := w.counts(); d != 1 || g != 4 {
		t.Errorf("%d device operations and %d guest round trips, want 1 and 4", d, g)
	}
	parts, err := gpt.Read(bytes.NewReader(s.disks[0]), int64(len(s.disks[0])))
	if err != nil || len(parts) != 3 {
		t.Fatalf("partitions: %+v, %v", parts, err)
	}
	for i, p := range parts {
		want, err := os.ReadFile(filepath.Join(chain[2+i].Folder, layerVHD))
		if err != nil {
			t.Fatal(err)
		}
		want = want[:len(want)-512] // the footer
		if !bytes.HasPrefix(s.disks[0][p.Offset:p.Offset+p.Size], want) {
			t.Errorf("partition %d is not layer %d", i+1, 2+i)
		}
	}
	// The second container has two more layers on top: only these travel, on a disk of their own.
	b := w.mustMount(Request{VM: w.vm, ID: "b", Layers: chain, Attach: AttachOneDisk})
	obs, err := w.f.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(obs.Devices) != 2 {
		t.Errorf("the machine has %d disks, want 2", len(obs.Devices))
	}
	// The first disk stays while b uses its partitions.
	if err := a.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if obs, _ := w.f.Observe(t.Context()); len(obs.Devices) != 2 {
		t.Errorf("a took a disk that b uses: %q", w.f.Leftovers())
	}
	if err := b.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := w.stateFiles(); len(left) > 0 {
		t.Errorf("files left beside the journal: %q", left)
	}
	w.checkEmpty()
}

// EROFS layers that an index cannot serve, here because one is compressed, become partitions: the guest's
// kernel knows more than package erofs. Where there is no room in a table for all, each goes by itself.
func TestCompressedLayers(t *testing.T) {
	_, err := exec.LookPath("mkfs.erofs")
	treetest.Need(t, err == nil, "mkfs.erofs", "apt-get install erofs-utils")
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "text"), bytes.Repeat([]byte("compresses well\n"), 1<<14),
		0o644); err != nil {
		t.Fatal(err)
	}
	compressed := Layer{Folder: t.TempDir()}
	treetest.Run(t, "mkfs.erofs", "-zlz4hc", "--quiet", filepath.Join(compressed.Folder, layerEROFS), folder)
	few := append(realLayers(t, layerdir.EROFS, 2), compressed)
	many := append(realLayers(t, layerdir.EROFS, gpt.MaxPartitions), compressed)
	for _, c := range []struct {
		name    string
		attach  Attach
		layers  []Layer
		devices int
	}{
		{"auto", AttachAuto, few, 1},
		{"one disk", AttachOneDisk, few, 1},
		{"more than there are partitions", AttachAuto, many, len(many)},
	} {
		t.Run(c.name, func(t *testing.T) {
			limits := vmmtest.LinuxLimits()
			limits.VPMEMDevices = 0
			w := newWorld(t, vmm.Linux, limits, 0)
			s := w.snoop(t)
			m := w.mustMount(Request{VM: w.vm, ID: "a", Layers: c.layers, Attach: c.attach})
			if d, g := w.counts(); d != c.devices || g != len(c.layers)+1 {
				t.Errorf("%d device operations and %d guest round trips, want %d and %d", d, g, c.devices, len(c.layers)+1)
			}
			if c.devices == 1 {
				if parts, err := gpt.Read(bytes.NewReader(s.disks[0]), int64(len(s.disks[0]))); err != nil ||
					len(parts) != len(c.layers) {
					t.Errorf("partitions: %+v, %v", parts, err)
				}
			}
			if left := w.stateFiles(); len(left) > 0 {
				t.Errorf("files left beside the journal: %q", left)
			}
			if err := m.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.checkEmpty()
		})
	}
}

// Every fault of a mount with one disk for all layers leaves nothing.
func TestOneDiskFaults(t *testing.T) {
	for _, format := range []layerdir.Format{layerdir.EROFS, layerdir.VHD} {
		chain := realLayers(t, format, 3)
		for _, fault := range vmmtest.Faults() {
			for k := 1; k <= 6; k++ {
				w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 0)
				m, err := Mount(w.failNth(k, fault),
					Request{VM: w.vm, ID: "a", Layers: chain, Scratch: w.scratch("a"), Attach: AttachOneDisk})
				failed := len(w.f.Log()) >= k
				w.f.Script(nil)
				switch {
				case failed && err == nil:
					t.Errorf("%s, %s at change %d: Mount did not say so", format, fault, k)
				case failed && !strings.Contains(err.Error(), `container "a"`):
					t.Errorf("error %v does not name the container", err)
				case err == nil:
					if err := m.Release(t.Context()); err != nil {
						t.Error(err)
					}
				}
				if left := w.stateFiles(); len(left) > 0 {
					t.Errorf("files left beside the journal: %q", left)
				}
				w.checkEmpty()
			}
		}
	}
}

// What a process leaves that is killed while its disk is attached, the next one that opens the VM removes.
func TestOneDiskKilled(t *testing.T) {
	for _, format := range []layerdir.Format{layerdir.EROFS, layerdir.VHD} {
		w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 0)
		killed := filepath.Join(t.TempDir(), "vm")
		w.f.Script(func(_ int, c vmm.Change) vmmtest.Fault {
			if d, ok := c.Device.(vmm.SCSIDisk); ok && c.Op == vmm.Add && d.Extents != nil {
				if err := os.CopyFS(killed, os.DirFS(w.state)); err != nil {
					t.Error(err)
				}
			}
			return vmmtest.NoFault
		})
		w.mustMount(Request{VM: w.vm, ID: "a", Layers: realLayers(t, format, 2), Attach: AttachOneDisk})
		w = &world{t: t, f: vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits()), state: killed}
		if len(w.stateFiles()) == 0 {
			t.Fatalf("%s: the disk has no files: nothing is tested", format)
		}
		w.open()
		if left := w.stateFiles(); len(left) > 0 {
			t.Errorf("%s: files left beside the journal: %q", format, left)
		}
		w.checkEmpty()
	}
}

// Without composite disks every layer goes by itself, with the same result.
func TestOneDiskFallsBack(t *testing.T) {
	limits := vmmtest.LinuxLimits()
	limits.CompositeDisks, limits.VPMEMDevices = false, 0
	w := newWorld(t, vmm.Linux, limits, 0)
	m := w.mustMount(Request{VM: w.vm, ID: "a", Layers: realLayers(t, layerdir.EROFS, 3)})
	if d, _ := w.counts(); d != 3 {
		t.Errorf("%d device operations, want 3", d)
	}
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.checkEmpty()
}
