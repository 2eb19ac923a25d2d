package layers

import (
	"bytes"
	"errors"
	"path/filepath"
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
	told := Layer{Folder: realLayers(t, layerdir.EROFS, 1)[0].Folder, Verity: &vmm.Verity{DataBytes: 4096, RootDigest: "told"}}
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
						if !errors.Is(err, ErrUnchecked) || !errors.Is(err, uvm.ErrNotSupported) || !strings.Contains(err.Error(), l.layer.Folder) {
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
					if err := m.Release(t.Context(), UnmountOperationAll); err != nil {
						t.Fatal(err)
					}
					w.checkEmpty()
				})
			}
		}
	}
}
