package wclayer_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/internal/wclayer/wclayertest"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

const (
	scratch = `C:\containers\a`
	app     = `C:\layers\app`
	base    = `C:\layers\base`
)

// rig is a System on a platform in memory.
type rig struct {
	*wclayer.System
	platform *wclayertest.Platform
	svc      *hcstest.Service
	slept    []time.Duration
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{svc: hcstest.New(hcstest.Options{})}
	r.platform = wclayertest.New(r.svc)
	r.System = wclayer.New(wclayer.Options{API: r.platform, UsesDir: t.TempDir(),
		Sleep: func(_ context.Context, d time.Duration) error { r.slept = append(r.slept, d); return nil }})
	t.Cleanup(func() {
		if left := r.platform.Leftovers(); len(left) > 0 && !t.Failed() {
			t.Errorf("left behind: %q", left)
		}
		if d := r.platform.Damage(); len(d) > 0 {
			t.Errorf("damage: %q", d)
		}
	})
	return r
}

// calls are the functions of a step.
func (r *rig) calls(step string) (out []string) {
	for _, c := range r.svc.Trace() {
		if c.Step == step {
			out = append(out, c.Fn)
		}
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) unmount(t *testing.T) {
	t.Helper()
	must(t, r.Unprepare(t.Context(), scratch))
	must(t, r.Deactivate(t.Context(), scratch))
}

func TestMountCallsTheFunctionsOfTheReference(t *testing.T) {
	r := newRig(t)
	r.svc.Step("mount")
	must(t, r.Activate(t.Context(), scratch))
	must(t, r.Prepare(t.Context(), scratch, []string{app, base}))
	path, err := r.MountPath(t.Context(), scratch)
	must(t, err)
	if want := wclayertest.MountPath(scratch); path != want {
		t.Errorf("mount path %q, want %q", path, want)
	}
	want := []string{"ActivateLayer", "NameToGuid", "NameToGuid", "PrepareLayer", "GetLayerMountPath", "GetLayerMountPath"}
	if d := cmp.Diff(want, r.calls("mount")); d != "" {
		t.Error(d)
	}
	r.unmount(t)
	if path, err := r.MountPath(t.Context(), scratch); path != "" || err != nil {
		t.Errorf("mount path of what is not mounted: %q, %v", path, err)
	}
	// Taking away what is not there is success: that is what was asked for.
	r.unmount(t)
}

func TestPrepareTriesAgainWhatPasses(t *testing.T) {
	retry := []string{"PrepareLayer", "DeactivateLayer", "ActivateLayer"}
	for _, tt := range []struct {
		name  string
		code  hcs.HRESULT
		fails int // how many calls
		calls []string
		want  error
	}{
		{"not ready once", 0x80070015, 1, slices.Concat(retry, retry[:1]), nil},
		{"not connected four times", 0x8007048F, 4, slices.Concat(retry, retry, retry, retry, retry[:1]), nil},
		{"not ready for ever", 0x80070015, 99, slices.Concat(retry, retry, retry, retry, retry[:1]), wclayer.ErrNotReady},
		{"denied", 0x80070005, 1, retry[:1], vmm.ErrAccessDenied},
		{"unrecognised", 0xC0370112, 1, retry[:1], wclayer.ErrUnknownFormat},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			must(t, r.Activate(t.Context(), scratch))
			r.svc.Step("prepare")
			left := tt.fails
			r.svc.Script(func(fn string, _ int, _ map[string]any) (v hcstest.Verdict) {
				if fn == "PrepareLayer" && left > 0 {
					left--
					v.HR = tt.code
				}
				return v
			})
			err := r.Prepare(t.Context(), scratch, []string{base})
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if d := cmp.Diff(append([]string{"NameToGuid"}, tt.calls...), r.calls("prepare")); d != "" {
				t.Error(d)
			}
			for _, d := range r.slept {
				if d != 100*time.Millisecond {
					t.Errorf("slept %v", d)
				}
			}
			if pauses := len(tt.calls) / 3; len(r.slept) != pauses {
				t.Errorf("slept %d times, want %d", len(r.slept), pauses)
			}
			r.svc.Script(nil)
			r.unmount(t)
		})
	}
}

func TestPrepareIsSerialised(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			folder := fmt.Sprintf(`C:\containers\%d`, i)
			for _, err := range []error{
				r.Activate(t.Context(), folder), r.Prepare(t.Context(), folder, []string{base}),
				r.Unprepare(t.Context(), folder), r.Deactivate(t.Context(), folder),
			} {
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := r.platform.Races(); n != 0 {
		t.Errorf("two layers were prepared at the same time, %d times", n)
	}
}

// A caller that leaves has its answer at once; the call that succeeds later is undone, and the next
// call on the same folder, however spelled, comes after that.
func TestLateSuccessIsUndone(t *testing.T) {
	for _, tt := range []struct {
		name, fn string
		before   func(context.Context, *rig) error
		do       func(context.Context, *rig) error
		again    func(context.Context, *rig) error
		undone   string
	}{
		{"activate", "ActivateLayer", nil,
			func(ctx context.Context, r *rig) error { return r.Activate(ctx, scratch) },
			func(ctx context.Context, r *rig) error { return r.Activate(ctx, `c:/containers/A/`) }, "DeactivateLayer"},
		{"prepare", "PrepareLayer",
			func(ctx context.Context, r *rig) error { return r.Activate(ctx, scratch) },
			func(ctx context.Context, r *rig) error { return r.Prepare(ctx, scratch, []string{base}) },
			func(ctx context.Context, r *rig) error { return r.Prepare(ctx, scratch, []string{base}) }, "UnprepareLayer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			if tt.before != nil {
				must(t, tt.before(t.Context(), r))
			}
			r.svc.Step("late")
			entered, proceed := make(chan struct{}), make(chan struct{})
			var once sync.Once
			r.svc.Script(func(fn string, _ int, _ map[string]any) (v hcstest.Verdict) {
				if fn == tt.fn {
					once.Do(func() { close(entered); v.Before = proceed })
				}
				return v
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			failed := make(chan error)
			go func() { failed <- tt.do(ctx, r) }()
			<-entered
			cancel()
			if err := <-failed; !errors.Is(err, wclayer.ErrUnfinished) || !errors.Is(err, context.Canceled) {
				t.Fatalf("error %v", err)
			}
			// While the platform works a second caller waits, and may leave too.
			if err := tt.again(ctx, r); !errors.Is(err, wclayer.ErrUnfinished) {
				t.Fatalf("second caller: %v", err)
			}
			close(proceed)
			must(t, tt.again(t.Context(), r))
			var got []string
			for _, fn := range r.calls("late") {
				if fn != "NameToGuid" {
					got = append(got, fn)
				}
			}
			if d := cmp.Diff([]string{tt.fn, tt.undone, tt.fn}, got); d != "" {
				t.Error(d)
			}
			must(t, r.Unprepare(t.Context(), scratch))
			must(t, r.Deactivate(t.Context(), scratch))
			must(t, r.Deactivate(t.Context(), `c:/containers/A`))
		})
	}
}

func TestErrorsTellWhatHappened(t *testing.T) {
	for _, tt := range []struct {
		hr   string
		want error
		text string
	}{
		{"0x80070015", wclayer.ErrNotReady, "Win32 error 21 (0x15)"},
		{"0x80070020", wclayer.ErrSharingViolation, "filter drivers"},
		{"0x80070001", wclayer.ErrFilterConflict, "fltmc"},
		{"0x80070003", fs.ErrNotExist, "missing"},
		{"0x80070005", fs.ErrPermission, "elevated"},
		{"0x80070032", errors.ErrUnsupported, "0x32"},
		{"0x8007007f", wclayer.ErrExportNotFound, "lacks the function"},
		{"0x80070070", wclayer.ErrDiskFull, "full"},
		{"0x800705b4", wclayer.ErrTimeout, "timed out"},
		{"0xc0370105", wclayer.ErrInvalidState, "HRESULT 0xc0370105"},
		{"0xc0370112", wclayer.ErrUnknownFormat, "newer than the host"},
		{"0x80131500", nil, "HRESULT 0x80131500"}, // nobody knows what that is
	} {
		r := newRig(t)
		r.svc.Step("fail", hcstest.Injection{Function: "ActivateLayer", Call: 1, HResult: tt.hr})
		err := r.Activate(t.Context(), scratch)
		we, ok := errors.AsType[*wclayer.Error](err)
		if !ok || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) ||
			!strings.HasPrefix(err.Error(), "ActivateLayer "+scratch+": ") {
			t.Errorf("%s: error %v", tt.hr, err)
		}
		if want := fmt.Sprintf("0x%08x", uint32(we.HR)); want != tt.hr {
			t.Errorf("kept %s of %s", want, tt.hr)
		}
	}
}

func TestSecondCallOfMountPathFails(t *testing.T) {
	r := newRig(t)
	must(t, r.Activate(t.Context(), scratch))
	r.svc.Step("ask", hcstest.Injection{Function: "GetLayerMountPath", Call: 2, HResult: "0x80070005"})
	if _, err := r.MountPath(t.Context(), scratch); !errors.Is(err, vmm.ErrAccessDenied) ||
		!strings.Contains(err.Error(), "second call") {
		t.Errorf("error %v", err)
	}
	must(t, r.Deactivate(t.Context(), scratch))
}

func TestBadPathsNeverReachThePlatform(t *testing.T) {
	long := `C:\` + strings.Repeat(`abcdefgh\`, 40) + `x`
	for _, tt := range []struct {
		name, path string
		ok         bool
	}{
		{"empty", "", false},
		{"relative", `layers\base`, false},
		{"relative to a drive", `C:layers`, false},
		{"unix", `/layers/base`, false},
		{"NUL", "C:\\layers\x00\\base", false},
		{"network share", `\\server\share\base`, false},
		{"network share, long form", `\\?\unc\server\share\base`, false},
		{"device", `\\.\PHYSICALDRIVE0`, false},
		{"far too long", `C:\` + strings.Repeat("a", 40000), false},
		{"percent", `C:\layers\100%d`, true},
		{"space and quote", `C:\my layers\o'base`, true},
		{"other letters", `C:\слой\層`, true},
		{"over 260 characters", long, true},
		{"long form", `\\?\C:\layers\base`, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			before := len(r.svc.Trace())
			_, existsErr := r.LayerExists(t.Context(), tt.path)
			for _, err := range []error{
				r.Activate(t.Context(), tt.path), r.Deactivate(t.Context(), tt.path), existsErr,
				r.CreateScratch(t.Context(), `D:\s`, []string{base, tt.path}), r.Destroy(t.Context(), tt.path),
			} {
				if tt.ok != (err == nil) || !tt.ok && !errors.Is(err, wclayer.ErrInvalid) {
					t.Errorf("error %v", err)
				}
			}
			if n := len(r.svc.Trace()) - before; !tt.ok && n > 0 {
				t.Errorf("%d calls were made", n)
			}
		})
	}
	r := newRig(t)
	if err := r.Prepare(t.Context(), scratch, nil); !errors.Is(err, wclayer.ErrInvalid) {
		t.Errorf("no parents: %v", err)
	}
}

func TestOtherSystemsSayThatTheyCannot(t *testing.T) {
	if wclayer.Supported() == nil {
		t.Skip("this system can: the tests of the native functions are for it")
	}
	s := wclayer.NewNative(nil, t.TempDir())
	for _, err := range []error{s.Activate(t.Context(), scratch), s.DetachFilter(t.Context(), `C:\v`),
		s.GrantVMGroupAccess(t.Context(), base), s.Destroy(t.Context(), base), wclayer.Supported()} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("error %v", err)
		}
	}
}
