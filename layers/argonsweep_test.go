package layers_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/internal/wclayer/wclayertest"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/argon"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// argonWorld is a Windows host in memory with its rules in force, opened as a machine with a state directory.
type argonWorld struct {
	t        *testing.T
	service  *hcstest.Service
	platform *wclayertest.Platform
	host     wclayer.Host
	files    *windowsFiles
	dir      string
	boot     string
	vm       *uvm.UtilityVM
	request  layers.Request
}

func newArgonWorld(t *testing.T, cim bool) *argonWorld {
	w := &argonWorld{t: t, service: hcstest.New(hcstest.Options{}), dir: t.TempDir(), boot: "one"}
	w.platform = wclayertest.New(w.service)
	w.host = wclayer.New(wclayer.Options{API: w.platform, UsesDir: t.TempDir(),
		Sleep: func(context.Context, time.Duration) error { return nil }})
	w.files = newWindowsFiles([]fixture{{Path: `C:\s\sandbox.vhdx`, Kind: "file", Size: 4096},
		{Path: `C:\top\Files\a`, Kind: "file", Size: 1}, {Path: `C:\base\Files\a`, Kind: "file", Size: 1},
		{Path: `C:\b\merged.bcim`, Kind: "file", Size: 1}, {Path: `C:\b\top.bcim`, Kind: "file", Size: 1},
		{Path: `C:\b\base.bcim`, Kind: "file", Size: 1}})
	w.request = layers.Request{ID: "a", Scratch: `C:\s`}
	if cim {
		w.request.CIM = &wclayer.CIMMount{Kind: wclayer.BlockFile,
			Image:   wclayer.CIM{Dir: `C:\b\merged.bcim`, Name: "merged.cim"},
			Sources: []wclayer.CIM{{Dir: `C:\b\top.bcim`, Name: "top.cim"}, {Dir: `C:\b\base.bcim`, Name: "base.cim"}}}
	} else {
		w.request.Layers = []layers.Layer{{Folder: `C:\top`}, {Folder: `C:\base`}}
	}
	w.open(uvm.Options{})
	return w
}

// open opens the host, as the next process does.
func (w *argonWorld) open(o uvm.Options) {
	w.t.Helper()
	vm, err := uvm.Open(w.t.Context(), w.dir, func(context.Context) (vmm.Machine, error) {
		return argon.Open(argon.Options{Dir: filepath.Join(w.dir, "argon"), Boot: w.boot, Host: w.host})
	}, o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.vm = vm
	w.t.Cleanup(func() { _ = vm.Close() })
}

func (w *argonWorld) mount(ctx context.Context) (*layers.Mounted, error) {
	r := w.request
	r.VM = w.vm
	return layers.Mount(ctx, r.WithNames(w.files))
}

func (w *argonWorld) unmount(ctx context.Context) error {
	m, err := layers.Open(w.vm, "a")
	if err != nil {
		return err
	}
	return m.Release(ctx)
}

// life mounts and unmounts until both have succeeded.
func (w *argonWorld) life() {
	w.t.Helper()
	if _, err := w.mount(w.t.Context()); err != nil {
		w.t.Fatalf("mount: %v", err)
	}
	if err := w.unmount(w.t.Context()); err != nil {
		w.t.Fatalf("unmount: %v", err)
	}
}

func (w *argonWorld) checkEmpty(when string) {
	w.t.Helper()
	if left := append(w.platform.Leftovers(), w.service.Leftovers()...); len(left) > 0 {
		w.t.Errorf("%s: left on the host: %q", when, left)
	}
	if s := w.vm.Status(); !s.Empty() {
		w.t.Errorf("%s: left in the ledger: %+v", when, s)
	}
	if obs, err := w.vm.Machine().Observe(w.t.Context()); err != nil || len(obs.Devices)+len(obs.Mounts) > 0 {
		w.t.Errorf("%s: left in the machine's records: %+v, %v", when, obs, err)
	}
}

// changes reports whether a function of the platform changes something.
func changes(fn string) bool {
	return strings.Contains(fn, "Layer") && fn != "GetLayerMountPath" && fn != "LayerExists" ||
		strings.HasPrefix(fn, "HcsAttach") || strings.HasPrefix(fn, "HcsDetach") || strings.HasPrefix(fn, "Cim")
}

// nth has the k-th call that changes something fail.
func (w *argonWorld) nth(k int, fault func() hcstest.Verdict) (seen *atomic.Int32) {
	seen = new(atomic.Int32)
	w.service.Script(func(fn string, _ int, _ map[string]any) hcstest.Verdict {
		if changes(fn) && int(seen.Add(1)) == k {
			return fault()
		}
		return hcstest.Verdict{}
	})
	return seen
}

func eachArgon(t *testing.T, run func(t *testing.T, world func(*testing.T) *argonWorld, calls int)) {
	for name, cim := range map[string]bool{"folders": false, "CIM": true} {
		t.Run(name, func(t *testing.T) {
			w := newArgonWorld(t, cim)
			seen := w.nth(0, nil)
			w.life()
			w.checkEmpty("a life without faults")
			calls := int(seen.Load())
			if want := map[bool]int{false: 4, true: 6}[cim]; calls != want {
				t.Errorf("%d calls change something, want %d", calls, want)
			}
			run(t, func(t *testing.T) *argonWorld { return newArgonWorld(t, cim) }, calls)
		})
	}
}

// TestArgonFaultSweep fails every call that changes something in every way. A failed mount leaves nothing, a failed
// unmount is continued by the next.
func TestArgonFaultSweep(t *testing.T) {
	faults := map[string]hcstest.Verdict{
		"refused":            {HR: 0x80070005},
		"timed out":          {HR: 0xC0370109},
		"error after effect": {HR: 0xC0370109, AfterEffect: true},
	}
	eachArgon(t, func(t *testing.T, world func(*testing.T) *argonWorld, calls int) {
		for name, verdict := range faults {
			for k := 1; k <= calls; k++ {
				t.Run(fmt.Sprintf("call %d %s", k, name), func(t *testing.T) {
					w := world(t)
					w.nth(k, func() hcstest.Verdict { return verdict })
					_, err := w.mount(t.Context())
					if err != nil {
						w.checkEmpty("after a failed mount")
						w.life()
						return
					}
					if err := w.unmount(t.Context()); err == nil {
						t.Errorf("call %d failed and nobody says so", k)
					} else if err := w.unmount(t.Context()); err != nil {
						t.Errorf("unmount again: %v", err)
					}
					w.checkEmpty("after the second unmount")
					w.life()
				})
			}
		}
	})
}

// TestArgonCrashSweep ends a process within each call that changes something, before and after its effect: the
// next process takes back a mount and finishes an unmount.
func TestArgonCrashSweep(t *testing.T) {
	eachArgon(t, func(t *testing.T, world func(*testing.T) *argonWorld, calls int) {
		for _, after := range []bool{false, true} {
			for k := 1; k <= calls; k++ {
				t.Run(fmt.Sprintf("call %d after=%t", k, after), func(t *testing.T) {
					w := world(t)
					if err := w.vm.Close(); err != nil {
						t.Fatal(err)
					}
					w.open(uvm.Options{RollbackTimeout: time.Nanosecond}) // nothing is taken back by who dies
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					hang := make(chan struct{})
					w.nth(k, func() hcstest.Verdict {
						cancel()
						if after {
							return hcstest.Verdict{After: hang}
						}
						return hcstest.Verdict{Before: hang}
					})
					_, err := w.mount(ctx)
					if err == nil {
						err = w.unmount(ctx)
					}
					if !errors.Is(err, context.Canceled) {
						t.Errorf("a process that dies: %v", err)
					}
					if err := w.vm.Close(); err != nil {
						t.Fatal(err)
					}
					close(hang)
					w.service.Script(nil)
					w.open(uvm.Options{})
					w.checkEmpty("after recovery")
					w.life()
				})
			}
		}
	})
}

// A container is found by the next process, and forgotten when the system was booted since.
func TestArgonNextProcess(t *testing.T) {
	for _, cim := range []bool{false, true} {
		w := newArgonWorld(t, cim)
		m, err := w.mount(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if m.Root != wclayertest.MountPath(`C:\s`) {
			t.Errorf("root %s", m.Root)
		}
		again := func() {
			if err := w.vm.Close(); err != nil {
				t.Fatal(err)
			}
			w.open(uvm.Options{})
		}
		again()
		if found, err := layers.Open(w.vm, "a"); err != nil || found.Root != m.Root {
			t.Errorf("found %+v, %v", found, err)
		}
		if _, err := w.mount(t.Context()); !errors.Is(err, uvm.ErrClaimed) {
			t.Errorf("mounted twice: %v", err)
		}
		if err := w.unmount(t.Context()); err != nil {
			t.Error(err)
		}
		w.checkEmpty("after the unmount of another process")

		if _, err := w.mount(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.boot = "two"
		again()
		if _, err := layers.Open(w.vm, "a"); !errors.Is(err, uvm.ErrUnknownClaim) {
			t.Errorf("after a boot: %v", err)
		}
		if s := w.vm.Status(); !s.Empty() {
			t.Errorf("after a boot, in the ledger: %+v", s)
		}
	}
}
