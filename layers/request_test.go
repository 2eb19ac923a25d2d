package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// The service shares whatever folder it is told, and a layer there may be none, or none of this host's.
func TestBadWindowsRequests(t *testing.T) {
	w := newWorld(t, vmm.Windows, vmmtest.WindowsLimits(), 1)
	good := w.request("a", w.layers)
	folder := func(p string) func(*Request) { return func(r *Request) { r.Layers = []Layer{{Folder: p}} } }
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
	if log := w.f.Log(); len(log) != 0 {
		t.Errorf("bad requests reached the machine: %q", log)
	}
	w.checkEmpty()
}
