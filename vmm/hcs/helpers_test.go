package hcs_test

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

const (
	testBuild = 19041 // the Windows build that tests pretend
	patient   = time.Minute
)

// files is a file system that has the folders and files named; folders end in a backslash.
type files []string

func (f files) Stat(path string) (fs.FileInfo, error) {
	switch {
	case slices.Contains(f, path+`\`):
		return info{path, true}, nil
	case slices.Contains(f, path):
		return info{path, false}, nil
	}
	return nil, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
}

func (files) CopyFile(string, string) error { return errors.New("nothing is to be copied here") }

type info struct {
	path string
	dir  bool
}

func (i info) Name() string     { return hostpath.Base(i.path) }
func (info) Size() int64        { return 4096 }
func (info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool      { return i.dir }
func (info) Sys() any           { return nil }
func (i info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir
	}
	return 0
}

var bootFiles = files{`C:\boot\kernel`, `C:\boot\initrd.img`, `C:\base\UtilityVM\`, `C:\uvm\sandbox.vhdx`}

// rig is a service in memory and what a VM needs of a host.
type rig struct {
	t       *testing.T
	s       *hcstest.Service
	sockets *hcstest.Sockets
	host    hcs.Host
}

func newRig(t *testing.T, o hcstest.Options) *rig {
	leaktest.Check(t)
	r := &rig{t: t, sockets: hcstest.NewSockets()}
	o.Sockets = r.sockets
	r.s = hcstest.New(o)
	r.host = hcs.Host{API: r.s, FS: bootFiles, Build: testBuild, Listen: r.sockets.Listen, Connect: hcs.ConnectGCS,
		Grant: func(_ context.Context, vmID, path string) error {
			if hr := r.s.GrantVmAccess(vmID, path); hr != hcs.OK {
				return errors.New("grant failed")
			}
			return nil
		}}
	t.Cleanup(func() {
		r.s.Wait()
		if n := r.sockets.Listening(); n != 0 {
			t.Errorf("%d sockets are still listened on", n)
		}
	})
	return r
}

func (r *rig) lcow(external bool) hcs.OptionsLCOW {
	o := hcs.DefaultLCOW("vm", "test", `C:\boot`, testBuild)
	o.ExternalGuestConnection = external
	return o
}

// start creates a running machine that ends with the test.
func (r *rig) start(o hcs.OptionsLCOW) *hcs.Machine {
	r.t.Helper()
	m, err := hcs.CreateLCOW(r.t.Context(), r.host, o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		r.s.Script(nil)
		if err := m.Close(); err != nil {
			r.t.Errorf("close: %v", err)
		}
	})
	if err := m.Start(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	return m
}

func (r *rig) startWCOW(external bool) *hcs.Machine {
	r.t.Helper()
	o := hcs.DefaultWCOW("vm", "test", []string{`C:\base`, `C:\uvm`})
	o.ExternalGuestConnection = external
	m, err := hcs.CreateWCOW(r.t.Context(), r.host, o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := m.Close(); err != nil {
			r.t.Errorf("close: %v", err)
		}
	})
	if err := m.Start(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	return m
}

// calls counts the calls of a function.
func (r *rig) calls(fn string) (n int) {
	for _, c := range r.s.Trace() {
		if c.Fn == fn {
			n++
		}
	}
	return n
}

// eventually waits until a function has been called.
func (r *rig) eventually(fn string) {
	r.t.Helper()
	for deadline := time.Now().Add(patient); r.calls(fn) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s is not called", fn)
		}
	}
}

// within returns a context that ends when the test calls cancel, at the latest after long.
func within(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	t.Cleanup(cancel)
	return ctx, cancel
}

var both = map[string]bool{"internal": false, "external": true}

func disk(lun uint8) vmm.Change {
	return vmm.Change{Op: vmm.Add,
		Device: vmm.SCSIDisk{LUN: lun, Path: `C:\d\` + string(rune('a'+lun)) + ".vhdx"},
		Mount:  vmm.MappedDisk{LUN: lun, MountPath: "/m/" + string(rune('a'+lun))}}
}

func apply(t *testing.T, m vmm.Machine, c vmm.Change) {
	t.Helper()
	if err := m.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}
