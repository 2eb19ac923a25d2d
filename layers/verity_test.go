package layers

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// digests lists the root digests that the guest was told of.
func (w *world) digests() []string {
	var out []string
	for _, c := range w.f.Log() {
		var v *vmm.Verity
		switch g := c.Mount.(type) {
		case vmm.MappedDisk:
			v = g.Verity
		case vmm.MappedPMEM:
			v = g.Verity
		}
		if v != nil {
			out = append(out, v.RootDigest)
		}
	}
	return out
}

// TestUnchecked: a layer with a hash tree is checked, or it is refused, or somebody said that it need not
// be checked. It is never mounted unchecked without a word.
func TestUnchecked(t *testing.T) {
	recorded := Layer{Folder: filepath.Join(t.TempDir(), "recorded")}
	res, err := layerdir.Convert(t.Context(), layerdir.Options{Format: layerdir.EROFS, Verity: true, Dir: recorded.Folder,
		Tar: bytes.NewReader(treetest.Tar(t, treetest.Entry{Name: "file", Body: "text"}))})
	if err != nil {
		t.Fatal(err)
	}
	told := Layer{Folder: realLayers(t, layerdir.EROFS, 1)[0].Folder,
		Verity: &vmm.Verity{DataBytes: 4096, RootDigest: "told"}}
	noPMEM := func(l vmm.Limits) vmm.Limits { l.VPMEMDevices = 0; return l }
	blind := func(l vmm.Limits) vmm.Limits { l.Verity = false; return l }
	for _, machine := range []struct {
		name   string
		os     vmm.OS
		limits vmm.Limits
	}{
		{"VPMEM", vmm.Linux, vmmtest.LinuxLimits()},
		{"SCSI", vmm.Linux, noPMEM(vmmtest.LinuxLimits())},
		{"VPMEM, cannot check", vmm.Linux, blind(vmmtest.LinuxLimits())},
		{"SCSI, cannot check", vmm.Linux, noPMEM(blind(vmmtest.LinuxLimits()))},
		{"Windows", vmm.Windows, vmmtest.WindowsLimits()},
	} {
		for _, l := range []struct {
			name, digest string
			layer        Layer
		}{
			{"recorded", res.Verity.RootDigest, recorded},
			{"told", "told", told},
		} {
			if machine.os == vmm.Windows && l.name == "recorded" {
				continue // folders of Windows layers hold no image
			}
			for _, allow := range []bool{false, true} {
				t.Run(machine.name+"/"+l.name+map[bool]string{true: ", allowed"}[allow], func(t *testing.T) {
					w := newWorld(t, machine.os, machine.limits, 0)
					r := w.request("a", []Layer{l.layer})
					r.AllowUnchecked = allow
					m, err := Mount(t.Context(), r)
					if !machine.limits.Verity && !allow {
						if !errors.Is(err, ErrUnchecked) || !errors.Is(err, uvm.ErrNotSupported) ||
							!strings.Contains(err.Error(), l.layer.Folder) {
							t.Errorf("mounting where nobody can check: %v", err)
						}
						if len(w.f.Log()) > 0 {
							t.Errorf("something was touched: %q", w.f.Log())
						}
						w.checkEmpty()
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					var want []string
					if machine.limits.Verity {
						want = []string{l.digest}
					}
					if got := w.digests(); !slices.Equal(got, want) {
						t.Errorf("the guest was told of %q, want %q", got, want)
					}
					if err := m.Release(t.Context()); err != nil {
						t.Fatal(err)
					}
					w.checkEmpty()
				})
			}
		}
	}
}

// otherNames are the names of the host, by way of something else than hostNames.
type otherNames struct{ hostNames }

// TestNoLookupIsSkipped: however a layer with a hash tree is named, the guest is told its root digest, or the
// layer is refused: what is recorded is never mounted unchecked. A tree that nobody recorded counts where the guest
// can check.
func TestNoLookupIsSkipped(t *testing.T) {
	made := func(t *testing.T) (folder, digest string) {
		folder = filepath.Join(t.TempDir(), "layer")
		res, err := layerdir.Convert(t.Context(), layerdir.Options{Format: layerdir.EROFS, Verity: true, Dir: folder,
			Tar: bytes.NewReader(treetest.Tar(t, treetest.Entry{Name: "file", Body: "text"}))})
		if err != nil {
			t.Fatal(err)
		}
		return folder, res.Verity.RootDigest
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	record := layerEROFS + ".verity.json"
	for _, tt := range []struct {
		name    string
		layer   func(t *testing.T, folder string) Layer
		names   names
		refused bool // also where the guest can check
		silent  bool // where the guest cannot check, it is mounted all the same
	}{
		{name: "no record", silent: true, layer: func(t *testing.T, f string) Layer {
			must(t, os.Remove(filepath.Join(f, record)))
			return Layer{Folder: f}
		}},
		{name: "no record, file", silent: true, layer: func(t *testing.T, f string) Layer {
			must(t, os.Remove(filepath.Join(f, record)))
			return Layer{File: filepath.Join(f, layerEROFS)}
		}},
		{name: "no record, half a tree", refused: true, silent: true, layer: func(t *testing.T, f string) Layer {
			must(t, os.Remove(filepath.Join(f, record)))
			info, err := os.Stat(filepath.Join(f, layerEROFS))
			must(t, err)
			must(t, os.Truncate(filepath.Join(f, layerEROFS), info.Size()-4096))
			return Layer{Folder: f}
		}},
		{name: "folder", layer: func(_ *testing.T, f string) Layer { return Layer{Folder: f} }},
		{name: "folder, names from elsewhere", names: otherNames{},
			layer: func(_ *testing.T, f string) Layer { return Layer{Folder: f} }},
		{name: "file in the folder", layer: func(_ *testing.T, f string) Layer {
			return Layer{File: filepath.Join(f, layerEROFS)}
		}},
		{name: "file with a name of its own", layer: func(t *testing.T, f string) Layer {
			own := filepath.Join(t.TempDir(), "own.erofs")
			must(t, os.Rename(filepath.Join(f, layerEROFS), own))
			must(t, os.Rename(filepath.Join(f, record), own+".verity.json"))
			return Layer{File: own}
		}},
		{name: "link to the file", layer: func(t *testing.T, f string) Layer {
			link := filepath.Join(t.TempDir(), "link.erofs")
			symlink(t, filepath.Join(f, layerEROFS), link)
			return Layer{File: link}
		}},
		{name: "folder with a link to the file", layer: func(t *testing.T, f string) Layer {
			folder := t.TempDir()
			symlink(t, filepath.Join(f, layerEROFS), filepath.Join(folder, layerEROFS))
			return Layer{Folder: folder}
		}},
		{name: "partition of the file", refused: true, layer: func(_ *testing.T, f string) Layer {
			return Layer{File: filepath.Join(f, layerEROFS), Partition: 1}
		}},
		{name: "damaged record", refused: true, layer: func(t *testing.T, f string) Layer {
			must(t, os.WriteFile(filepath.Join(f, record), []byte("{"), 0o600))
			return Layer{Folder: f}
		}},
		{name: "empty record", refused: true, layer: func(t *testing.T, f string) Layer {
			must(t, os.WriteFile(filepath.Join(f, record), []byte("{}"), 0o600))
			return Layer{Folder: f}
		}},
		{name: "endless record", refused: true, layer: func(t *testing.T, f string) Layer {
			must(t, os.Truncate(filepath.Join(f, record), 1<<30))
			return Layer{Folder: f}
		}},
		{name: "folder in the place of the record", refused: true, layer: func(t *testing.T, f string) Layer {
			must(t, os.Remove(filepath.Join(f, record)))
			must(t, os.Mkdir(filepath.Join(f, record), 0o700))
			return Layer{Folder: f}
		}},
	} {
		for _, checks := range []bool{true, false} {
			t.Run(tt.name+map[bool]string{true: "", false: ", cannot check"}[checks], func(t *testing.T) {
				folder, digest := made(t)
				limits := vmmtest.LinuxLimits()
				limits.Verity = checks
				w := newWorld(t, vmm.Linux, limits, 0)
				r := w.request("a", []Layer{tt.layer(t, folder)})
				r.names = tt.names
				m, err := Mount(t.Context(), r)
				if !checks && tt.silent {
					if err != nil {
						t.Fatal(err)
					}
					if got := w.digests(); len(got) > 0 {
						t.Errorf("the guest was told of %q", got)
					}
					must(t, m.Release(t.Context()))
					return
				}
				if !checks || tt.refused {
					if err == nil {
						t.Errorf("mounted; the guest was told of %q", w.digests())
					}
					if !tt.refused && !errors.Is(err, ErrUnchecked) {
						t.Errorf("refused: %v, want ErrUnchecked", err)
					}
					w.checkEmpty()
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := w.digests(); !slices.Equal(got, []string{digest}) {
					t.Errorf("the guest was told of %q, want %q", got, digest)
				}
				if err := m.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// TestVerityOfTree: a root digest for a directory tree, which no machine checks, is refused.
func TestVerityOfTree(t *testing.T) {
	limits := vmmtest.LinuxLimits()
	limits.LayerFolders, limits.Plan9 = true, true
	w := newWorld(t, vmm.Linux, limits, 0)
	folder := w.folder("tree", "x")
	if err := makeTree(folder); err != nil {
		t.Fatal(err)
	}
	for _, l := range []Layer{{Folder: folder}, {File: filepath.Join(folder, layerTree)}} {
		if l.Verity = (&vmm.Verity{RootDigest: "one"}); runtime.GOOS == "windows" {
			t.Skip("there are no layers of this kind on Windows hosts")
		}
		if _, err := Mount(t.Context(), w.request("a", []Layer{l})); !errors.Is(err, ErrUnchecked) {
			t.Errorf("%+v: %v", l, err)
		}
		w.checkEmpty()
	}
}

// TestChainOfFiles: the order is checked too where layers are named by the files in their folders.
func TestChainOfFiles(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 2)
	top, base := w.layers[0].Folder, w.layers[1].Folder
	if err := layerdir.WriteChain(top, []string{base}); err != nil {
		t.Fatal(err)
	}
	file := func(f string) Layer { return Layer{File: filepath.Join(f, layerVHD)} }
	for _, tt := range []struct {
		layers []Layer
		want   error
	}{
		{[]Layer{file(top), file(base)}, nil},
		{[]Layer{{Folder: top}, file(base)}, nil},
		{[]Layer{file(base), file(top)}, ErrLayerOrder},
		{[]Layer{file(base), {Folder: top}}, ErrLayerOrder},
		{[]Layer{file(top)}, ErrLayerOrder},
	} {
		r := w.request("a", tt.layers)
		r.names = otherNames{}
		m, err := Mount(t.Context(), r)
		if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
			t.Errorf("%+v: %v, want %v", tt.layers, err, tt.want)
		}
		if err == nil {
			if err := m.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		w.checkEmpty()
	}
}

// symlink creates a link, or skips the test where the system has none for everybody.
func symlink(t *testing.T, target, link string) {
	t.Helper()
	if err := os.Symlink(target, link); err != nil {
		t.Skipf("no links here: %v", err)
	}
	if _, err := os.Lstat(link); err != nil {
		t.Skip("there are no links here: ", err) // Wine says that it makes one, and does not
	}
}
