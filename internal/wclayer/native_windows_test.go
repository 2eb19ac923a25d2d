package wclayer_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/Microsoft/go-winio/pkg/guid"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/windows"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/internal/wclayer/wclayertest"
	"github.com/stratavm/strata/test/wine/standin"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// native returns the System of this Windows and the stand-in behind its libraries.
func native(t *testing.T) (*wclayer.System, *standin.Client) {
	t.Helper()
	c := standin.Find()
	if c == nil {
		t.Skip("the libraries of this Windows are the real ones, which need real layers: run TestWine of test/wine on Linux")
	}
	must(t, c.Reset(hcstest.Options{}))
	t.Cleanup(func() {
		if left, err := c.Leftovers(); err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, %v", left, err)
		}
	})
	return wclayer.NewNative(nil, t.TempDir()), c
}

// args are the arguments of the n-th call of a function.
func args(t *testing.T, c *standin.Client, fn string) map[string]any {
	t.Helper()
	trace, err := c.Trace()
	must(t, err)
	for _, call := range trace {
		if call.Fn == fn {
			return call.Args
		}
	}
	t.Fatalf("%s was not called", fn)
	return nil
}

func TestNativeMount(t *testing.T) {
	s, c := native(t)
	const strange = `C:\слои\層 100%d`
	must(t, wclayer.Supported())
	must(t, s.Activate(t.Context(), scratch))
	must(t, s.Prepare(t.Context(), scratch, []string{strange, app, base}))
	path, err := s.MountPath(t.Context(), scratch)
	must(t, err)
	if want := wclayertest.MountPath(scratch); path != want {
		t.Errorf("mount path %q, want %q", path, want)
	}
	var want []any
	for _, folder := range []string{strange, app, base} {
		id, err := s.LayerID(t.Context(), folder)
		must(t, err)
		if g := hcstest.GUID(filepath.Base(folder)); id != g {
			t.Errorf("identity %s of %s, want %s", id, folder, g)
		}
		want = append(want, map[string]any{"layerId": id, "flags": 0.0, "path": folder})
	}
	if d := cmp.Diff(want, args(t, c, "PrepareLayer")["descriptors"]); d != "" {
		t.Error(d)
	}
	if err := s.Destroy(t.Context(), base); !errors.Is(err, wclayer.ErrInUse) {
		t.Errorf("destroy: %v", err)
	}
	must(t, s.Unprepare(t.Context(), scratch))
	must(t, s.Deactivate(t.Context(), scratch))
	must(t, s.Destroy(t.Context(), base))
}

func TestNativeErrors(t *testing.T) {
	s, c := native(t)
	must(t, c.Step("fail", hcstest.Injection{Function: "ActivateLayer", Call: 1, HResult: "0x80070020"},
		hcstest.Injection{Function: "OpenVirtualDisk", Call: 1, HResult: "0x80070005"}))
	if err := s.Activate(t.Context(), scratch); !errors.Is(err, wclayer.ErrSharingViolation) {
		t.Errorf("error %v", err)
	}
	if _, err := s.VHDMountPath(t.Context(), scratch+`\sandbox.vhdx`); !errors.Is(err, wclayer.ErrDenied) {
		t.Errorf("error %v", err)
	}
	// The real pause of Prepare, once.
	must(t, s.Activate(t.Context(), scratch))
	must(t, c.Step("retry", hcstest.Injection{Function: "PrepareLayer", Call: 1, HResult: "0x80070015"}))
	must(t, s.Prepare(t.Context(), scratch, []string{base}))
	must(t, s.Unprepare(t.Context(), scratch))
	must(t, s.Deactivate(t.Context(), scratch))
}

func TestNativePreparesOneByOne(t *testing.T) {
	s, c := native(t)
	var wg sync.WaitGroup
	for _, folder := range []string{`C:\c\1`, `C:\c\2`, `C:\c\3`, `C:\c\4`} {
		wg.Go(func() {
			if err := errors.Join(s.Activate(t.Context(), folder), s.Prepare(t.Context(), folder, []string{base}),
				s.Unprepare(t.Context(), folder), s.Deactivate(t.Context(), folder)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n, err := c.Races(); n != 0 || err != nil {
		t.Errorf("%d races, %v", n, err)
	}
}

func TestNativeScratch(t *testing.T) {
	s, c := native(t)
	must(t, s.CreateScratch(t.Context(), scratch, []string{base}))
	if ok, err := s.LayerExists(t.Context(), scratch); !ok || err != nil {
		t.Errorf("exists: %v, %v", ok, err)
	}
	// The stand-in has no volumes that could be opened. What comes before and after that is checked.
	const size = 5<<32 + 20<<30 // beyond 32 bits
	if err := s.ExpandScratch(t.Context(), scratch, size); !errors.Is(err, wclayer.ErrFileMissing) {
		t.Errorf("expand: %v", err)
	}
	if got := args(t, c, "ExpandSandboxSize")["size"]; got != float64(size) {
		t.Errorf("size %v", got)
	}
	must(t, s.GrantVMAccess(t.Context(), "vm-1", scratch+`\sandbox.vhdx`))
	must(t, s.RevokeVMAccess(t.Context(), "vm-1", scratch+`\sandbox.vhdx`))
	if got := args(t, c, "HcsRevokeVmAccess"); got["vmId"] != "vm-1" || got["filePath"] != scratch+`\sandbox.vhdx` {
		t.Errorf("revoked %v", got)
	}
	must(t, s.Destroy(t.Context(), scratch))
}

func TestNativeStorage(t *testing.T) {
	s, c := native(t)
	const file = scratch + `\sandbox.vhdx`
	must(t, s.FormatVHD(t.Context(), file))
	volume, err := s.VHDMountPath(t.Context(), file)
	must(t, err)
	if want := strings.TrimSuffix(wclayertest.MountPath(file), `\`); volume != want {
		t.Errorf("volume %s, want %s", volume, want)
	}
	must(t, s.InitializeWritable(t.Context(), volume, []string{base}))
	must(t, s.AttachFilter(t.Context(), volume, []string{app, base}))
	document, _ := args(t, c, "HcsAttachLayerStorageFilter")["layerData"].(map[string]any)
	if layers, _ := document["Layers"].([]any); len(layers) != 2 {
		t.Errorf("document %v", document)
	}
	must(t, s.DetachFilter(t.Context(), volume))
	must(t, s.DetachVHD(t.Context(), file))
}

func TestNativeImages(t *testing.T) {
	s, c := native(t)
	digest := make([]byte, wclayer.DigestSize)
	digest[31] = 7
	one, two := wclayer.CIM{Dir: `C:\b\1.bcim`, Name: "1.cim"}, wclayer.CIM{Dir: `C:\b\2.bcim`, Name: "2.cim"}
	merged := wclayer.CIM{Dir: `C:\b\m.bcim`, Name: "m.cim"}
	for _, tt := range []struct {
		fn string
		m  wclayer.CIMMount
	}{
		{"CimMountImage", wclayer.CIMMount{Image: one}},
		{"CimMergeMountImage", wclayer.CIMMount{Kind: wclayer.BlockFile, Image: merged, Sources: []wclayer.CIM{one, two}}},
		{"CimMountVerifiedImage", wclayer.CIMMount{Kind: wclayer.BlockDevice, Image: one, Digest: digest}},
		{"CimMergeMountVerifiedImage", wclayer.CIMMount{Kind: wclayer.BlockFile, Image: merged,
			Sources: []wclayer.CIM{one, two}, Digest: digest}},
	} {
		volume, err := guid.NewV4()
		must(t, err)
		at, err := s.MountCIM(t.Context(), volume, tt.m)
		must(t, err)
		must(t, s.AttachOverlay(t.Context(), `C:\root`, []wclayer.OverlayLayer{{ID: volume, Path: at + "Files"}}))
		must(t, s.DetachOverlay(t.Context(), `C:\root`))
		must(t, s.DismountCIM(t.Context(), volume))
		got := args(t, c, tt.fn)
		images := []any{}
		for _, i := range append([]wclayer.CIM{tt.m.Image}, tt.m.Sources...) {
			images = append(images, map[string]any{"dir": i.Dir, "name": i.Name})
		}
		if d := cmp.Diff(images, got["images"]); d != "" || got["volume"] != volume.String() ||
			(got["digest"] != nil) != (tt.m.Digest != nil) {
			t.Errorf("%s: %v %s", tt.fn, got, d)
		}
	}
}

// The access list is one of the real file system, or of what Wine makes of one.
func TestNativeGroupAccess(t *testing.T) {
	s, _ := native(t)
	file := filepath.Join(t.TempDir(), "layer.vhd")
	must(t, os.WriteFile(file, []byte("x"), 0o600))
	must(t, s.GrantVMGroupAccess(t.Context(), file))
	sd, err := windows.GetNamedSecurityInfo(file, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION)
	must(t, err)
	if !strings.Contains(sd.String(), "S-1-5-83-0") {
		t.Logf("Wine does not keep entries for unknown groups: %s", sd)
	}
	if err := s.GrantVMGroupAccess(t.Context(), file+".gone"); !errors.Is(err, wclayer.ErrFileMissing) {
		t.Errorf("missing file: %v", err)
	}
}
