package wclayer_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/Microsoft/go-winio/pkg/guid"
	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/internal/wclayer/wclayertest"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

func TestDestroyIsRefusedWhileInUse(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	r.System = wclayer.New(wclayer.Options{API: r.platform, UsesDir: dir})
	// Another process is another System on the same directory; it has not seen the mount happen.
	other := wclayer.New(wclayer.Options{API: r.platform, UsesDir: dir})
	refused := func(when string, folders ...string) {
		t.Helper()
		for _, f := range folders {
			err := other.Destroy(t.Context(), f)
			if !errors.Is(err, wclayer.ErrInUse) || !errors.Is(err, vmm.ErrBusy) || !strings.Contains(err.Error(), scratch) {
				t.Errorf("%s: destroy %s: %v", when, f, err)
			}
		}
	}
	must(t, r.CreateScratch(t.Context(), scratch, []string{app, base}))
	must(t, r.Activate(t.Context(), scratch))
	refused("activated", scratch, `C:\containers`)
	must(t, r.Prepare(t.Context(), scratch, []string{app, base}))
	refused("prepared", scratch, app, base, `c:/LAYERS/base/`, `C:\layers`, `\\?\C:\layers\app`, base+`\Files`)
	must(t, other.Destroy(t.Context(), `C:\layers\bas`)) // another folder, in spite of how it begins
	must(t, r.Unprepare(t.Context(), scratch))
	refused("unprepared", scratch)
	must(t, other.Destroy(t.Context(), app))
	must(t, r.Deactivate(t.Context(), scratch))
	must(t, other.Destroy(t.Context(), scratch))
	if ok, err := r.LayerExists(t.Context(), scratch); ok || err != nil {
		t.Errorf("the scratch exists still: %v", err)
	}
}

// TestNotesOfAnEarlierBoot: a crash of the host leaves notes of what was mounted then; they hold nothing. What cannot
// be told from this boot's counts.
func TestNotesOfAnEarlierBoot(t *testing.T) {
	const now = "2"
	note := func(boot string) string {
		return `{"user": "` + strings.ReplaceAll(scratch, `\`, `\\`) + `", "folders": ["C:\\layers\\base"], "pid": 7` + boot +
			`}`
	}
	for name, tt := range map[string]struct {
		note string
		now  string // empty: nobody knows
		want error
	}{
		"this boot":                {note(`, "boot": "2"`), now, wclayer.ErrInUse},
		"an earlier boot":          {note(`, "boot": "1"`), now, nil},
		"a note that does not say": {note(""), now, wclayer.ErrInUse},
		"a system that cannot say": {note(`, "boot": "1"`), "", errors.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			r, dir := newRig(t), t.TempDir()
			file := filepath.Join(dir, "x.use.json")
			must(t, os.WriteFile(file, []byte(tt.note), 0o600))
			r.System = wclayer.New(wclayer.Options{API: r.platform, UsesDir: dir, BootID: func() (string, error) {
				if tt.now == "" {
					return "", errors.ErrUnsupported
				}
				return tt.now, nil
			}})
			if err := r.Destroy(t.Context(), base); !errors.Is(err, tt.want) {
				t.Errorf("destroy: %v, want %v", err, tt.want)
			}
			if _, err := os.Stat(file); (err != nil) != (tt.want == nil) {
				t.Errorf("the note: %v", err)
			}
		})
	}
}

// TestMountAfterABoot: a scratch that an earlier boot had mounted is mounted again, and what is said of it then is said
// of this boot.
func TestMountAfterABoot(t *testing.T) {
	r, dir := newRig(t), t.TempDir()
	boot := func(id string) {
		r.System = wclayer.New(wclayer.Options{API: r.platform, UsesDir: dir,
			BootID: func() (string, error) { return id, nil }})
	}
	boot("1")
	must(t, r.Activate(t.Context(), scratch))
	must(t, r.Prepare(t.Context(), scratch, []string{base}))
	// The system ends, and with it what was mounted.
	if hr := r.platform.UnprepareLayer(scratch) | r.platform.DeactivateLayer(scratch); hr != 0 {
		t.Fatal(hr)
	}
	boot("2")
	must(t, r.Unprepare(t.Context(), scratch)) // a recovery that makes sure
	must(t, r.Destroy(t.Context(), base))
	must(t, r.Activate(t.Context(), scratch))
	must(t, r.Prepare(t.Context(), scratch, []string{base}))
	if err := r.Destroy(t.Context(), base); !errors.Is(err, wclayer.ErrInUse) {
		t.Errorf("destroy: %v, want %v", err, wclayer.ErrInUse)
	}
	r.unmount(t)
	must(t, r.Destroy(t.Context(), base))
}

func TestDestroyOfWhatIsMountedOtherwise(t *testing.T) {
	r := newRig(t)
	volume, err := guid.NewV4()
	must(t, err)
	at, err := r.MountCIM(t.Context(), volume, wclayer.CIMMount{Image: wclayer.CIM{Dir: `C:\cims\l1`, Name: "layer.cim"}})
	must(t, err)
	must(t, r.AttachFilter(t.Context(), `\\?\Volume{`+hcstest.GUID("v")+`}\`, []string{base}))
	for _, folder := range []string{`C:\cims\l1`, base} {
		if err := r.Destroy(t.Context(), folder); !errors.Is(err, wclayer.ErrInUse) {
			t.Errorf("destroy %s: %v", folder, err)
		}
	}
	must(t, r.DetachFilter(t.Context(), `\\?\Volume{`+hcstest.GUID("v")+`}\`))
	must(t, r.DismountCIM(t.Context(), volume))
	must(t, r.DismountCIM(t.Context(), volume))
	must(t, r.Destroy(t.Context(), base))
	if at != wclayer.VolumePath(volume) {
		t.Errorf("mounted at %s", at)
	}
}

func TestDestroyNeedsToKnowWhatIsMounted(t *testing.T) {
	r := newRig(t)
	without := wclayer.New(wclayer.Options{API: r.platform})
	if err := without.Destroy(t.Context(), base); !errors.Is(err, wclayer.ErrInvalid) {
		t.Errorf("without a directory: %v", err)
	}
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "x.use.json"), []byte("{torn"), 0o600))
	damaged := wclayer.New(wclayer.Options{API: r.platform, UsesDir: dir})
	if err := damaged.Destroy(t.Context(), base); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("with a damaged note: %v", err)
	}
	if c := r.svc.Trace(); len(c) > 0 {
		t.Errorf("called %s", c[0].Fn)
	}
}

func TestExpandScratchGrowsTheFileSystemAfterTheDisk(t *testing.T) {
	expand := []string{"ExpandSandboxSize", "OpenVirtualDisk", "AttachVirtualDisk", "HcsGetLayerVhdMountPath",
		"(volume size)"}
	detach := []string{"DetachVirtualDisk", "(close disk)"}
	for _, tt := range []struct {
		name  string
		size  uint64
		calls []string
		want  error
	}{
		{"larger", 40 << 30, slices.Concat(expand, []string{"(extend volume)"}, detach), nil},
		{"one cluster larger", 20<<30 + 4096, slices.Concat(expand, detach), nil},
		{"same", 20 << 30, slices.Concat(expand, detach), nil},
		{"smaller", 1 << 30, expand[:1], wclayer.ErrBadParameter},
		{"nothing", 0, nil, wclayer.ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			must(t, r.CreateScratch(t.Context(), scratch, []string{base}))
			r.svc.Step("expand")
			if err := r.ExpandScratch(t.Context(), scratch, tt.size); !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if d := cmp.Diff(tt.calls, r.calls("expand")); d != "" {
				t.Error(d)
			}
		})
	}
}

// Whichever call fails, the disk is detached and closed.
func TestExpandScratchLeavesNoDiskBehind(t *testing.T) {
	for _, fn := range []string{"OpenVirtualDisk", "AttachVirtualDisk", "HcsGetLayerVhdMountPath", "(volume size)",
		"(extend volume)"} {
		r := newRig(t)
		must(t, r.CreateScratch(t.Context(), scratch, []string{base}))
		r.svc.Step("expand", hcstest.Injection{Function: fn, Call: 1, HResult: "0x80070020"})
		if err := r.ExpandScratch(t.Context(), scratch, 40<<30); !errors.Is(err, wclayer.ErrSharingViolation) {
			t.Errorf("%s: %v", fn, err)
		}
		if left := r.platform.Leftovers(); len(left) > 0 {
			t.Errorf("%s: left behind %q", fn, left)
		}
	}
}

func TestVHDMountPath(t *testing.T) {
	r := newRig(t)
	const file = `C:\containers\a\sandbox.vhdx`
	must(t, r.FormatVHD(t.Context(), file))
	path, err := r.VHDMountPath(t.Context(), file)
	must(t, err)
	if want := strings.TrimSuffix(wclayertest.MountPath(file), `\`); path != want {
		t.Errorf("volume %s, want %s", path, want)
	}
	if _, err := r.VHDMountPath(t.Context(), strings.ToUpper(file)); !errors.Is(err, wclayer.ErrInvalid) {
		t.Errorf("twice: %v", err)
	}
	must(t, r.InitializeWritable(t.Context(), path, []string{base}))
	must(t, r.AttachFilter(t.Context(), path, []string{app, base}))
	must(t, r.DetachFilter(t.Context(), path))
	must(t, r.DetachFilter(t.Context(), path))

	r.svc.Step("busy", hcstest.Injection{Function: "DetachVirtualDisk", Call: 1, HResult: "0x80070020"})
	if err := r.DetachVHD(t.Context(), file); !errors.Is(err, wclayer.ErrSharingViolation) {
		t.Errorf("busy: %v", err)
	}
	must(t, r.DetachVHD(t.Context(), file)) // what failed can be tried again
	must(t, r.DetachVHD(t.Context(), file))
}

func TestOverlayDocuments(t *testing.T) {
	r := newRig(t)
	volume, err := guid.NewV4()
	must(t, err)
	root := `\\?\Volume{` + hcstest.GUID("root") + `}\`
	r.svc.Step("overlay")
	must(t, r.AttachOverlay(t.Context(), root, []wclayer.OverlayLayer{{ID: volume, Path: wclayer.VolumePath(volume) +
		"Files"}}))
	must(t, r.DetachOverlay(t.Context(), root))
	var got []any
	for _, c := range r.svc.Trace() {
		got = append(got, c.Args["layerData"])
	}
	version := map[string]any{"Major": 2.0, "Minor": 1.0}
	want := []any{
		map[string]any{"SchemaVersion": version, "FilterType": "UnionFS", "Layers": []any{
			map[string]any{"Id": volume.String(), "Path": wclayer.VolumePath(volume) + "Files"}}},
		map[string]any{"SchemaVersion": version, "FilterType": "UnionFS"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if err := r.AttachOverlay(t.Context(), root, nil); !errors.Is(err, wclayer.ErrInvalid) {
		t.Errorf("no layers: %v", err)
	}
}

func TestVMAccess(t *testing.T) {
	r := newRig(t)
	r.svc.Step("grant")
	must(t, r.GrantVMAccess(t.Context(), "vm", `C:\s\sandbox.vhdx`))
	must(t, r.RevokeVMAccess(t.Context(), "vm", `C:\s\sandbox.vhdx`))
	must(t, r.GrantVMGroupAccess(t.Context(), `C:\layers\base\layer.vhd`))
	if d := cmp.Diff([]string{"GrantVmAccess", "HcsRevokeVmAccess", "(grant group)"}, r.calls("grant")); d != "" {
		t.Error(d)
	}
	for _, err := range []error{r.GrantVMAccess(t.Context(), "", `C:\s`), r.GrantVMAccess(t.Context(), "a\x00b", `C:\s`),
		r.RevokeVMAccess(t.Context(), "vm", "s"), r.GrantVMGroupAccess(t.Context(), "")} {
		if !errors.Is(err, wclayer.ErrInvalid) {
			t.Errorf("error %v", err)
		}
	}
}

func TestCIMMounts(t *testing.T) {
	one := wclayer.CIM{Dir: `C:\cims\top\`, Name: "top.cim"}
	two := wclayer.CIM{Dir: `C:\cims\base.bcim\`, Name: "base.cim"}
	merged := wclayer.CIM{Dir: `C:\cims\merged.bcim\\`, Name: "merged.cim"}
	digest := make([]byte, wclayer.DigestSize)
	for _, tt := range []struct {
		name  string
		m     wclayer.CIMMount
		fn    string // empty: refused
		flags float64
		first string
	}{
		{"forked", wclayer.CIMMount{Image: one}, "CimMountImage", 0, `C:\cims\top`},
		{"forked, DAX", wclayer.CIMMount{Image: one, DAX: true}, "CimMountImage", 0x2, `C:\cims\top`},
		{"device", wclayer.CIMMount{Kind: wclayer.BlockDevice, Image: two}, "CimMountImage", 0x10, `C:\cims\base.bcim`},
		{"merged files", wclayer.CIMMount{Kind: wclayer.BlockFile, Image: merged, Sources: []wclayer.CIM{one, two}},
			"CimMergeMountImage", 0x20, `C:\cims\merged.bcim`},
		{"verified", wclayer.CIMMount{Kind: wclayer.BlockFile, Image: two, Digest: digest}, "CimMountVerifiedImage", 0x20,
			`C:\cims\base.bcim`},
		{"merged and verified", wclayer.CIMMount{Kind: wclayer.BlockDevice, Image: merged, Sources: []wclayer.CIM{one, two},
			Digest: digest}, "CimMergeMountVerifiedImage", 0x10, `C:\cims\merged.bcim`},
		{"merged from one", wclayer.CIMMount{Kind: wclayer.BlockFile, Image: merged, Sources: []wclayer.CIM{one}}, "", 0, ""},
		{"merged forked", wclayer.CIMMount{Image: merged, Sources: []wclayer.CIM{one, two}}, "", 0, ""},
		{"verified forked", wclayer.CIMMount{Image: one, Digest: digest}, "", 0, ""},
		{"short digest", wclayer.CIMMount{Kind: wclayer.BlockFile, Image: one, Digest: digest[:20]}, "", 0, ""},
		{"no name", wclayer.CIMMount{Image: wclayer.CIM{Dir: `C:\cims`}}, "", 0, ""},
		{"name with a folder", wclayer.CIMMount{Image: wclayer.CIM{Dir: `C:\cims`, Name: `a\b.cim`}}, "", 0, ""},
		{"relative", wclayer.CIMMount{Image: wclayer.CIM{Dir: `cims`, Name: `b.cim`}}, "", 0, ""},
		{"kind unknown", wclayer.CIMMount{Kind: 9, Image: one}, "", 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			volume := guid.GUID{Data1: 7}
			at, err := r.MountCIM(t.Context(), volume, tt.m)
			trace := r.svc.Trace()
			if tt.fn == "" {
				if !errors.Is(err, wclayer.ErrInvalid) || len(trace) > 0 {
					t.Errorf("error %v after %d calls", err, len(trace))
				}
				return
			}
			must(t, err)
			if at != `\\?\Volume{00000007-0000-0000-0000-000000000000}\` {
				t.Errorf("mounted at %s", at)
			}
			images, _ := trace[0].Args["images"].([]any)
			first, _ := images[0].(map[string]any)
			if trace[0].Fn != tt.fn || trace[0].Args["flags"] != tt.flags || first["dir"] != tt.first ||
				len(images) != 1+len(tt.m.Sources) {
				t.Errorf("called %s%v", trace[0].Fn, trace[0].Args)
			}
			must(t, r.DismountCIM(t.Context(), volume))
		})
	}
}

// TestFormatOnOldBuilds: builds up to 17763 want the file opened as such, later ones the virtual disk.
func TestFormatOnOldBuilds(t *testing.T) {
	for build, file := range map[uint32]bool{17763: true, 18362: false, 0: false} {
		r := newRig(t)
		r.platform.FormatsFiles = file
		s := wclayer.New(wclayer.Options{API: r.platform, Build: build})
		if err := s.FormatVHD(t.Context(), `C:\containers\a\sandbox.vhdx`); err != nil {
			t.Errorf("build %d: %v", build, err)
		}
		if left := r.platform.Leftovers(); len(left) > 0 {
			t.Errorf("build %d: left behind %q", build, left)
		}
	}
}
