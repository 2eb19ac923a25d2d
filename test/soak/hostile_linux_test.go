package soak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/test/soak/hostile/hostiles"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

const (
	attackTime = 4 * time.Second  // what a call may take whose guest is hostile: its context's time
	honestTime = 2 * time.Minute  // what one may take whose guest is not: far more than it does
	stuckTime  = 90 * time.Second // after the end of its context a call that has not returned never will
	mostMemory = 200 << 20        // by which this process may grow
)

// victim is a host with a VM whose guest is hostile.
type victim struct {
	t     *testing.T
	dir   string
	image vmm.BootImage
	layer string
	vm    *uvm.UtilityVM // nil: it is not open
}

// place is a moment at which a guest turns hostile: when the host asks for a type, in one of the host's calls.
type place struct {
	call string
	asks gcs.MessageType
}

// breaks are the modes in which a guest sends what no agent ever sends.
var breaks = map[string]bool{"huge": true, "garbage": true, "noise": true}

var places = []place{
	{"open", gcs.TypeNegotiateProtocol},
	{"open", gcs.TypeGetProperties},
	{"mount", gcs.TypeModifySettings},
	{"exec", gcs.TypeCreate},
	{"exec", gcs.TypeExecuteProcess},
	{"exec", gcs.TypeWaitForProcess},
	{"end programs", gcs.TypeDeleteContainerState},
	{"unmount", gcs.TypeModifySettings},
}

// attack is one of a guest's.
type attack struct {
	mode string
	place
}

func attacks() (all []attack) {
	for _, mode := range hostiles.Modes {
		for _, p := range places {
			if mode == "chatter" && p.asks != gcs.TypeExecuteProcess || mode == "endless" && p.asks != gcs.TypeGetProperties {
				continue // it is for that alone
			}
			all = append(all, attack{mode, p})
		}
	}
	return all
}

// TestHostileGuest: whatever a guest does, each call to it ends when its context does, this process stays small, the
// VM can be killed, and when the guest is honest again so is what is known of it.
func TestHostileGuest(t *testing.T) {
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	busybox := need(t, "busybox", "busybox-static")
	init := bootimagetest.Program(t, "test/soak/hostile")
	v := &victim{t: t, image: bootimagetest.ImageOf(t, init), layer: filepath.Join(t.TempDir(), "layer")}
	leaktest.Check(t)
	v.makeLayer(busybox)
	t.Cleanup(v.end) // where the test ends early
	r := choices(t, 0)
	before := memory()
	deadline := time.Now().Add(howLong(t, 40*time.Second))
	booted := 0
	all := attacks()
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	seen := map[string]int{}
	for i := 0; len(seen) < len(hostiles.Modes) || time.Now().Before(deadline); i++ {
		a := all[i%len(all)]
		if soon := time.Now().After(deadline); soon && seen[a.mode] > 0 {
			continue
		}
		if i%20 == 0 {
			v.end()
			v.boot(hostiles.Modes[r.IntN(len(hostiles.Modes))])
			booted++
			v.start()
		}
		seen[a.mode]++
		v.suffer(a)
		if t.Failed() {
			break
		}
		if grown := memory() - before; grown > mostMemory {
			t.Fatalf("this process has grown by %d MiB", grown>>20)
		}
	}
	v.end()
	t.Logf("%d boots of a hostile guest, attacks: %v; this process grew by %d MiB", booted, seen, (memory()-before)>>20)
}

// memory is what this process has ever had of the system, for Go.
func memory() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys)
}

func (v *victim) makeLayer(busybox string) {
	v.t.Helper()
	root := filepath.Join(v.t.TempDir(), "root.tar")
	err := writeRoot(root, busybox)
	if err == nil {
		var f *os.File
		if f, err = os.Open(root); err == nil {
			defer f.Close()
			_, err = layerdir.Convert(v.t.Context(), layerdir.Options{Tar: f, Dir: v.layer})
		}
	}
	if err != nil {
		v.t.Fatal(err)
	}
}

// within calls f with a context that ends, and returns f's error. A call that does not come back fails the test.
func (v *victim) within(d time.Duration, what string, f func(context.Context) error) error {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	select {
	case err := <-done:
		return err
	case <-time.After(d + stuckTime):
		buf := make([]byte, 1<<20)
		v.t.Fatalf("%s does not end with its context:\n%s", what, buf[:runtime.Stack(buf, true)])
		return nil
	}
}

// must is within for a guest that is honest.
func (v *victim) must(what string, f func(context.Context) error) {
	v.t.Helper()
	if err := v.within(honestTime, what, f); err != nil {
		v.t.Fatalf("%s, of a guest that is honest again: %v", what, err)
	}
}

// boot starts a VM whose guest is hostile from the first moment on, and kills it.
func (v *victim) boot(mode string) {
	v.t.Helper()
	v.dir = filepath.Join(v.t.TempDir(), "vm")
	o := v.options()
	o.Image.Cmdline = append(o.Image.Cmdline[:len(o.Image.Cmdline):len(o.Image.Cmdline)], "hostile="+mode)
	err := v.within(5*attackTime, "start of a VM", func(ctx context.Context) (err error) {
		v.vm, err = strata.StartVM(ctx, o)
		return err
	})
	v.t.Logf("boot, %s: %v", mode, short(err))
	v.end()
}

func (v *victim) options() strata.VMOptions {
	return strata.VMOptions{Dir: v.dir, Image: v.image, RollbackTimeout: attackTime}
}

// start starts a VM whose guest is honest.
func (v *victim) start() {
	v.t.Helper()
	v.dir = filepath.Join(v.t.TempDir(), "vm")
	v.must("start", func(ctx context.Context) (err error) {
		v.vm, err = strata.StartVM(ctx, v.options())
		return err
	})
}

// open opens the VM.
func (v *victim) open(ctx context.Context) (err error) {
	v.vm, err = strata.OpenVM(ctx, v.dir, strata.OpenOptions{RollbackTimeout: attackTime})
	return err
}

func (v *victim) close() {
	v.t.Helper()
	if v.vm != nil {
		err := v.within(attackTime, "close", func(context.Context) error { return v.vm.Close() })
		if err != nil {
			v.t.Errorf("close: %v", err)
		}
		v.vm = nil
	}
}

// end closes and kills the VM.
func (v *victim) end() {
	v.t.Helper()
	v.close()
	if v.dir == "" {
		return
	}
	err := v.within(honestTime, "kill", func(ctx context.Context) error { return strata.KillVM(ctx, v.dir) })
	if err != nil && !errors.Is(err, strata.ErrNoVM) {
		v.t.Errorf("kill: %v", err)
	}
	v.dir = ""
}

// order tells the guest what to attack next, and reports whether the attack before has been made.
func (v *victim) order(mode string, asks gcs.MessageType) (made bool) {
	v.t.Helper()
	err := v.within(honestTime, "order", func(ctx context.Context) error {
		_, err := v.vm.Exec(ctx, vmm.ProcessSpec{Args: []string{hostiles.Control, mode, asks.String()}})
		return err
	})
	switch {
	case err != nil && strings.Contains(err.Error(), hostiles.Spent):
		return true
	case err != nil && strings.Contains(err.Error(), hostiles.Armed):
		return false
	}
	v.t.Fatalf("an order for the guest: %v", err)
	return false
}

// suffer has the guest make one attack, and afterwards, when it is honest again, looks at what is left.
func (v *victim) suffer(a attack) {
	v.t.Helper()
	var m *layers.Mounted
	mount := func(ctx context.Context) (err error) {
		m, err = layers.Mount(ctx, layers.Request{VM: v.vm, ID: "victim", Layers: []layers.Layer{{Folder: v.layer}}})
		return err
	}
	if a.call != "open" && a.call != "mount" {
		v.must("mount", mount)
	}
	if a.call == "end programs" {
		v.must("exec", func(ctx context.Context) error { return run(ctx, m) })
	}
	v.order(a.mode, a.asks)
	if a.call == "open" {
		v.close()
	}
	err := v.within(attackTime, a.call, func(ctx context.Context) error {
		switch a.call {
		case "open":
			return v.open(ctx)
		case "mount":
			return mount(ctx)
		case "exec":
			return run(ctx, m)
		case "end programs":
			return m.EndPrograms(ctx)
		}
		return m.Release(ctx)
	})
	v.t.Logf("%s, %s, %v: %v", a.mode, a.call, a.asks, short(err))
	if breaks[a.mode] && !errors.Is(err, vmm.ErrProtocol) {
		v.t.Errorf("%v breaks the protocol, which the error does not match: %v", a, short(err))
	}
	v.close()
	v.must("open", v.open)
	if !v.order("", 0) {
		v.t.Errorf("%v was not made: nothing was tested", a)
	}
	for _, c := range v.vm.Claims() {
		v.must("unmount", func(ctx context.Context) error {
			m, err := layers.Open(v.vm, c.ID())
			if err != nil {
				return err
			}
			return errors.Join(m.EndPrograms(ctx), m.Release(ctx))
		})
	}
	v.empty()
}

// run runs a program that writes a little.
func run(ctx context.Context, m *layers.Mounted) error {
	var out strings.Builder
	code, err := m.Run(ctx, vmm.ProcessSpec{Args: []string{"/bin/echo", "hello"}, Stdout: &limited{&out}})
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d", code)
	}
	return err
}

// limited keeps the beginning of what is written.
type limited struct{ b *strings.Builder }

func (l *limited) Write(p []byte) (int, error) {
	const most = 1 << 10
	l.b.Write(p[:min(len(p), most-min(most, l.b.Len()))])
	return len(p), nil
}

// empty checks that nothing is left in the VM, neither by the ledger nor in truth.
func (v *victim) empty() {
	v.t.Helper()
	s := v.vm.Status()
	for _, r := range s.Resources {
		if !r.Retained {
			v.t.Errorf("left in the VM: %+v", r)
		}
	}
	v.must("observe", func(ctx context.Context) error {
		o, err := v.vm.Machine().Observe(ctx)
		if len(o.Mounts) > 0 {
			err = errors.Join(err, fmt.Errorf("left in the guest: %v", o.Mounts))
		}
		return err
	})
}

func short(err error) string {
	return fmt.Sprintf("%.300s", fmt.Sprint(err))
}
