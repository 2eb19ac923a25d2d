package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// The service shares whatever folder it is told, and a layer there may be none, or none of this host's.
func TestBadWindowsRequests(t *testing.T) {
	w := newWorld(t, vmm.Windows, vmmtest.WindowsLimits(), 1)
	linux := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 0)
	good := w.request("a", w.layers)
	folder := func(p string) func(*Request) { return func(r *Request) { r.Layers = []Layer{{Folder: p}} } }
	cim := func(edit func(*wclayer.CIMMount)) func(*Request) {
		return func(r *Request) {
			*r = cimRequest(w)
			edit(r.CIM)
		}
	}
	for _, c := range []struct {
		name string
		edit func(*Request)
		want error
		text string
	}{
		{"missing folder", folder(filepath.Join(t.TempDir(), "no")), fs.ErrNotExist, "import the layer first"},
		{"file for a folder", folder(filepath.Join(w.layers[0].Folder, layerVHD)), ErrInvalid, "no folder"},
		{"share", folder(`\\server\share\l`), ErrInvalid, "network share"},
		{"share, long form", folder(`\\?\UNC\server\share\l`), ErrInvalid, "network share"},
		{"device", folder(`\\.\PHYSICALDRIVE1`), ErrInvalid, "a device"},
		{"NUL", folder("C:\\l\x00"), ErrInvalid, "NUL"},
		{"scratch on a share", func(r *Request) { r.Scratch = `\\server\share\s` }, ErrInvalid, "network share"},
		{"scratch on a device", func(r *Request) { r.Scratch = `\\?\PHYSICALDRIVE1` }, ErrInvalid, "a device"},
		{"partition", func(r *Request) { r.Layers = []Layer{{Folder: w.layers[0].Folder, Partition: 1}} }, ErrInvalid,
			"partition"},
		{"file on the host", func(r *Request) { r.VM, r.Layers = nil, []Layer{{File: `C:\l.vhd`}} }, ErrInvalid,
			"is a folder"},
		{"hash tree on the host", func(r *Request) {
			r.VM, r.Layers = nil, []Layer{{Folder: `C:\l`, Verity: &vmm.Verity{RootDigest: "one"}}}
		}, ErrUnchecked, "hash tree"},
		{"CIM with a digest", cim(func(m *wclayer.CIMMount) { m.Digest = make([]byte, wclayer.DigestSize) }),
			errors.ErrUnsupported, "root digest"},
		{"CIM with DAX", cim(func(m *wclayer.CIMMount) { m.DAX = true }), errors.ErrUnsupported, "DAX"},
		{"CIM of files", cim(func(m *wclayer.CIMMount) { m.Kind, m.Sources = wclayer.Forked, nil }), errors.ErrUnsupported,
			"block CIM"},
		{"CIM of one source", cim(func(m *wclayer.CIMMount) { m.Sources = m.Sources[:1] }), ErrInvalid, "one source"},
		{"CIM of unknown kind", cim(func(m *wclayer.CIMMount) { m.Kind = 9 }), ErrInvalid, "kind 9"},
		{"CIM without a name", cim(func(m *wclayer.CIMMount) { m.Image.Name = "" }), ErrInvalid, "plain file name"},
		{"source without a name", cim(func(m *wclayer.CIMMount) { m.Sources[0].Name = "" }), ErrInvalid, "plain file name"},
		{"CIM in a Linux VM", func(r *Request) { *r = cimRequest(w); r.VM = linux.vm }, ErrInvalid, "runs linux"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := good
			c.edit(&r)
			_, err := Mount(t.Context(), r)
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("Mount: %v; want it to match %v and say %q", err, c.want, c.text)
			}
		})
	}
	if log := append(w.f.Log(), linux.f.Log()...); len(log) != 0 {
		t.Errorf("bad requests reached the machine: %q", log)
	}
	w.checkEmpty()
}

// Windows layers have their order checked as those of Linux: in a VM, and on the host.
func TestWindowsLayerOrder(t *testing.T) {
	w := newWorld(t, vmm.Windows, vmmtest.WindowsLimits(), 2)
	top, base := w.layers[0], w.layers[1]
	if err := layerdir.WriteChain(top.Folder, []string{base.Folder}); err != nil {
		t.Fatal(err)
	}
	host := newWorld(t, vmm.Windows, vmm.Limits{WritableLayers: true}, 0)
	for name, r := range map[string]Request{"VM": w.request("a", nil), "host": host.request("a", nil)} {
		r.Layers = []Layer{base, top}
		if _, err := Mount(t.Context(), r); !errors.Is(err, ErrLayerOrder) {
			t.Errorf("%s: reversed: %v", name, err)
		}
		r.Layers = []Layer{top, base}
		m, err := Mount(t.Context(), r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := m.Release(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	host.checkEmpty()
	w.checkEmpty()
}
