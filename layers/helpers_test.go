package layers

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/internal/userns"
	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// world is a machine in memory, the VM over it, and layer folders on disk.
type world struct {
	t        testing.TB
	f        *vmmtest.Fake
	vm       *uvm.UtilityVM
	state    string
	fixtures string
	layers   []Layer
	network  *uvm.Network // of the containers
	volumes  []Volume     // of the containers
	// What the roots of the containers are, instead of layers and a scratch that others may share.
	rootFolder, rootDisk, wholeScratch bool
}

func newWorld(t testing.TB, os vmm.OS, limits vmm.Limits, layers int) *world {
	t.Helper()
	w := &world{t: t, f: vmmtest.New("vm", os, limits), state: t.TempDir()}
	for i := range layers {
		w.layers = append(w.layers, Layer{Folder: w.folder("layer"+string(rune('a'+i)), layerVHD)})
	}
	w.open()
	return w
}

// sweepWorld is newWorld with layer folders that all sweeps of the package use: they are only read.
func sweepWorld(t testing.TB, os vmm.OS, limits vmm.Limits, layers int) *world {
	t.Helper()
	w := newWorld(t, os, limits, 0)
	w.fixtures = sweepFolders
	for i := range layers {
		w.layers = append(w.layers, Layer{Folder: filepath.Join(sweepFolders, "layer"+string(rune('a'+i)))})
	}
	return w
}

// sweepFolders holds the folders layera to layerc, and the scratches a and other.
var sweepFolders string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "layers")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		for name, file := range map[string]string{"layera": layerVHD, "layerb": layerVHD, "layerc": layerVHD,
			"a": sandboxVHDX, "other": sandboxVHDX} {
			if err := makeFolder(filepath.Join(dir, name), file); err != nil {
				panic(err)
			}
			if file == layerVHD {
				if err := makeTree(filepath.Join(dir, name)); err != nil {
					panic(err)
				}
			}
		}
		sweepFolders = dir
		return leaktest.Main(m)
	}())
}

func makeFolder(dir, file string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file), make([]byte, 4096), 0o600)
}

// makeTree creates a layer that is a directory tree, where there are such.
func makeTree(dir string) error {
	ids, err := userns.Current()
	if err != nil {
		return nil // not Linux
	}
	return errors.Join(os.Mkdir(filepath.Join(dir, layerTree), 0o755), os.WriteFile(filepath.Join(dir, layerTree+".ids"),
		[]byte(ids.Text), 0o600))
}

func (w *world) open() {
	w.t.Helper()
	vm, err := uvm.Open(w.t.Context(), w.state, func(context.Context) (vmm.Machine, error) { return w.f, w.f.Err() },
		uvm.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.vm = vm
	w.t.Cleanup(func() { _ = vm.Close() })
}

// folder creates a folder with one file in it.
func (w *world) folder(name, file string) string {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), name)
	if err := makeFolder(dir, file); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

func (w *world) scratch(name string) string {
	if w.fixtures != "" {
		return filepath.Join(w.fixtures, name)
	}
	return w.folder(name, sandboxVHDX)
}

func (w *world) request(id string, layers []Layer) Request {
	network := w.network
	if network != nil && id != "a" { // a port of the host is one container's
		network = &uvm.Network{}
	}
	r := Request{VM: w.vm, ID: id, Layers: layers, Scratch: w.scratch(id), Host: ids{}, Network: network,
		Volumes: w.volumes}
	switch {
	case w.rootFolder:
		r.RootFolder, r.Layers, r.Scratch = r.Scratch, nil, ""
	case w.rootDisk:
		r.RootDisk, r.Layers, r.Scratch = filepath.Join(r.Scratch, sandboxVHDX), nil, ""
	case w.wholeScratch:
		r.Scratch, r.WholeScratch = filepath.Join(r.Scratch, sandboxVHDX), true
	}
	return r
}

func (w *world) mustMount(r Request) *Mounted {
	w.t.Helper()
	m, err := Mount(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *world) checkEmpty() {
	w.t.Helper()
	if left := w.f.Leftovers(); len(left) > 0 {
		w.t.Errorf("left in the machine: %q", left)
	}
	if s := w.vm.Status(); !s.Empty() {
		w.t.Errorf("left in the ledger: %+v", s)
	}
	if v := w.f.Violations(); len(v) > 0 {
		w.t.Errorf("rules of the world broken: %q", v)
	}
}

// ids is a Windows host that knows identities only.
type ids struct{ wclayer.Host }

func (ids) LayerID(_ context.Context, folder string) (string, error) {
	return "id-of-" + hostpath.Base(folder), nil
}
