package layers_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/test/wine/standin"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// TestHCSConformanceNative is TestHCSConformance by way of the libraries of Windows, behind which is
// the stand-in: everything that is compared went through them.
func TestHCSConformanceNative(t *testing.T) {
	c := standin.Find()
	if c == nil {
		t.Skip("the libraries of this Windows are the real ones: run TestWine of test/wine on Linux")
	}
	var files []string
	for _, set := range []string{"testdata/hcs/*/scenario.json", "testdata/hcs/head/*/scenario.json"} {
		found, err := filepath.Glob(set)
		if err != nil || len(found) == 0 {
			t.Fatalf("no scenarios in %s: %v", set, err)
		}
		files = append(files, found...)
	}
	for _, f := range files {
		s := loadScenario(t, filepath.Dir(f))
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(f)))+"/"+s.Name, func(t *testing.T) {
			r := newReplay(t, s)
			overLibraries(t, c, true)(r)
			if s.head {
				runHead(t, r)
			} else {
				runScenario(t, r)
			}
		})
	}
	// The scenarios leave their systems running.
	if err := c.Reset(hcstest.Options{}); err != nil {
		t.Error(err)
	}
}

// TestXenonCIMNative is TestXenonCIMDocuments by way of the libraries, with the service's rules in force.
func TestXenonCIMNative(t *testing.T) {
	c := standin.Find()
	if c == nil {
		t.Skip("the libraries of this Windows are the real ones: run TestWine of test/wine on Linux")
	}
	checkCIMDocuments(t, newCIMWorld(t, false, overLibraries(t, c, false)))
	if left, err := c.Leftovers(); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// TestMountedLayersAreNoted: the functions without a host of their own note what they mount, so that no
// process that shares the notes destroys it.
func TestMountedLayersAreNoted(t *testing.T) {
	c := standin.Find()
	if c == nil {
		t.Skip("the libraries of this Windows are the real ones: run TestWine of test/wine on Linux")
	}
	if err := c.Reset(hcstest.Options{}); err != nil {
		t.Fatal(err)
	}
	folders := []string{`C:\l\base`, `C:\c\a`}
	if _, err := layers.MountContainerLayers(t.Context(), folders, "", nil); err != nil {
		t.Fatal(err)
	}
	other := wclayer.NewNative(nil, wclayer.DefaultUsesDir())
	if err := other.Destroy(t.Context(), folders[0]); !errors.Is(err, wclayer.ErrInUse) {
		t.Errorf("destroy a layer that is mounted: %v", err)
	}
	if err := layers.UnmountContainerLayers(t.Context(), folders, "", nil, layers.UnmountOperationAll); err != nil {
		t.Fatal(err)
	}
	if err := other.Destroy(t.Context(), folders[0]); err != nil {
		t.Error(err)
	}
}

// overLibraries has a replay reach the service through the libraries of Windows, and begins anew there.
func overLibraries(t *testing.T, c *standin.Client, lenient bool) func(*replay) {
	return func(r *replay) {
		t.Helper()
		s := r.s
		err := c.Reset(hcstest.Options{Processors: s.Processors, Synchronous: s.SynchronousHCS, OldGuest: !s.head,
			Lenient: lenient})
		if err != nil {
			t.Fatal(err)
		}
		api, err := hcs.Native()
		if err != nil {
			t.Fatal(err)
		}
		host := wclayer.New(wclayer.Options{API: wclayer.Native(),
			Sleep: func(context.Context, time.Duration) error { return nil }})
		r.service, r.calls = nil, remote{t, c}
		r.mounter.Host = host
		r.host.API, r.host.Grant, r.host.Listen = api, host.GrantVMAccess, c.Listen
	}
}

// remote is the service behind the libraries.
type remote struct {
	t *testing.T
	c *standin.Client
}

func (r remote) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r remote) Step(name string, injections ...hcstest.Injection) {
	r.ok(r.c.Step(name, injections...))
}

func (r remote) Wait() { r.ok(r.c.Wait()) }

func (r remote) Trace() []hcstest.Call {
	trace, err := r.c.Trace()
	r.ok(err)
	return trace
}
