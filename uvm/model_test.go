package uvm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// TestModel plays random mounts, unmounts, faults, calls that hang until they are given up, restarts of
// our process and deaths of the VM against a model that knows only who uses what. References are users; a
// disk is attached if and only if it is used, or its removal failed and has not been repeated yet. What a
// call has given is there, whatever happened before.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		limits := vmmtest.LinuxLimits()
		limits.SCSIControllers, limits.SCSILUNs = 1, 4
		limits.VPMEMDevices = 2
		limits.VPMEMRetained = rapid.Bool().Draw(rt, "retained")
		m := &model{t: t, rt: rt, dir: t.TempDir(), f: vmmtest.New("vm", vmm.Linux, limits)}
		m.open()
		defer func() { _ = m.vm.Close() }()
		rt.Repeat(map[string]func(*rapid.T){
			"attach": m.attach, "release": m.release, "releaseClaim": m.releaseClaim,
			"fault": m.fault, "reopen": m.reopen, "kill": m.kill, "": m.check,
		})
		m.f.Script(nil)
		for _, c := range m.vm.Claims() {
			if err := c.Release(t.Context(), nil); err != nil {
				rt.Fatalf("final release of %s: %v", c.ID(), err)
			}
		}
		if s := m.vm.Status(); !s.Empty() {
			rt.Fatalf("left in the ledger: %+v", s)
		}
		retained, doubtful := 0, 0
		for _, r := range m.vm.Status().Resources {
			switch {
			case r.Retained && r.State == Doubtful: // it may be there: the next user settles it
				doubtful++
			case r.Retained:
				retained++
			}
		}
		if left := len(m.f.Leftovers()); left < retained || left > retained+doubtful {
			rt.Fatalf("left in the machine: %q, retained %d, in doubt %d", m.f.Leftovers(), retained, doubtful)
		}
	})
}

type model struct {
	t   *testing.T
	rt  *rapid.T
	dir string
	f   *vmmtest.Fake
	vm  *UtilityVM
	// users counts the leases that were given out, by claim and path.
	users map[string]map[string]int
	held  map[string][]*Lease
	hangs bool // a call may hang until it is given up
	dirty bool // a fault happened: leftovers are allowed until the VM is opened again
}

// patience is how long a call that hangs is waited for.
const patience = time.Millisecond

func (m *model) ctx() context.Context {
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	if !m.hangs {
		cancel()
		return m.t.Context()
	}
	m.t.Cleanup(cancel)
	return ctx
}

func (m *model) open() {
	vm, err := Open(m.t.Context(), m.dir, func(context.Context) (vmm.Machine, error) { return m.f, m.f.Err() },
		Options{RollbackTimeout: patience})
	if errors.Is(err, vmm.ErrGone) {
		m.f = vmmtest.New("vm", vmm.Linux, m.f.Limits())
		m.open()
		if s := m.vm.Status(); !s.Empty() {
			m.rt.Fatalf("the ledger of a machine that is gone: %+v", s)
		}
		return
	}
	m.dirty, m.hangs = false, false
	if err != nil {
		m.rt.Fatalf("open: %v", err)
	}
	m.vm, m.users, m.held = vm, map[string]map[string]int{}, map[string][]*Lease{}
	for _, c := range vm.Claims() {
		m.users[c.ID()] = map[string]int{}
		for _, le := range c.Leases() {
			m.users[c.ID()][le.Role()]++
			m.held[c.ID()] = append(m.held[c.ID()], le)
		}
	}
}

func (m *model) claim(rt *rapid.T) *Claim {
	id := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "claim")
	if c, err := m.vm.FindClaim(id); err == nil {
		return c
	}
	c, err := m.vm.Claim(m.t.Context(), id, nil)
	if err == nil {
		err = c.Commit(nil)
	}
	if err != nil {
		rt.Fatalf("claim %s: %v", id, err)
	}
	m.users[id] = map[string]int{}
	return c
}

// attach uses the host path as the role, so that a reopened model knows what a lease is on.
func (m *model) attach(rt *rapid.T) {
	c := m.claim(rt)
	path := rapid.SampledFrom([]string{"/s/1", "/s/2", "/s/3", "/p/1", "/p/2", "/p/3"}).Draw(rt, "path")
	var le *Lease
	var err error
	if path[1] == 's' {
		le, err = m.vm.SCSI().Attach(m.ctx(), c, path, disk(path))
	} else {
		le, err = m.vm.VPMEM().Attach(m.ctx(), c, path, PMEM{Path: path, Bytes: 4096})
	}
	if err != nil {
		m.dirty = m.dirty || !errors.Is(err, ErrNoAvailableLocation)
		return
	}
	if !m.attached()[path] {
		rt.Fatalf("%s was given out and is not attached", path)
	}
	m.users[c.ID()][path]++
	m.held[c.ID()] = append(m.held[c.ID()], le)
}

func (m *model) release(rt *rapid.T) {
	c := m.claim(rt)
	held := m.held[c.ID()]
	if len(held) == 0 {
		return
	}
	i := rapid.IntRange(0, len(held)-1).Draw(rt, "lease")
	if err := held[i].Release(m.ctx()); err != nil {
		m.dirty = true
		return // still ours; a later release finishes it
	}
	m.users[c.ID()][held[i].Role()]--
	m.held[c.ID()] = slices.Delete(held, i, i+1)
}

func (m *model) releaseClaim(rt *rapid.T) {
	c := m.claim(rt)
	if err := c.Release(m.ctx(), nil); err != nil {
		m.dirty = true
		return
	}
	delete(m.users, c.ID())
	delete(m.held, c.ID())
}

func (m *model) fault(rt *rapid.T) {
	n := rapid.IntRange(1, 3).Draw(rt, "n")
	fault := rapid.SampledFrom([]vmmtest.Fault{
		vmmtest.NoFault, vmmtest.RefuseFirst, vmmtest.RefuseSecond, vmmtest.AfterEffect,
		vmmtest.HangBefore, vmmtest.HangAfter}).Draw(rt, "fault")
	next := rapid.SampledFrom([]vmmtest.Fault{vmmtest.NoFault, vmmtest.RefuseFirst, vmmtest.AfterEffect}).Draw(rt, "next")
	m.hangs = fault == vmmtest.HangBefore || fault == vmmtest.HangAfter
	m.f.Script(func(i int, _ vmm.Change) vmmtest.Fault { return map[int]vmmtest.Fault{n: fault, n + 1: next}[i] })
}

// reopen is a crash of our process between two calls.
func (m *model) reopen(rt *rapid.T) {
	if rapid.IntRange(0, 3).Draw(rt, "skip") != 0 {
		return
	}
	m.f.Script(nil)
	if err := m.vm.Close(); err != nil {
		rt.Fatal(err)
	}
	m.open()
}

// kill ends the machine; whoever opens it next starts another.
func (m *model) kill(rt *rapid.T) {
	if rapid.IntRange(0, 7).Draw(rt, "skip") != 0 {
		return
	}
	m.f.Script(nil) // what is dead does not hang
	m.f.Kill()
	for _, c := range m.vm.Claims() {
		if err := c.Release(m.t.Context(), nil); err != nil {
			rt.Fatalf("release %s after the death of the machine: %v", c.ID(), err)
		}
	}
	if err := m.vm.Close(); err != nil {
		rt.Fatal(err)
	}
	m.open()
}

// attached returns the paths of what is in the machine.
func (m *model) attached() map[string]bool {
	obs, err := m.f.Observe(m.t.Context())
	if err != nil {
		m.rt.Fatal(err)
	}
	there := map[string]bool{}
	for _, d := range obs.Devices {
		there[devicePath(d)] = true
	}
	return there
}

func (m *model) check(rt *rapid.T) {
	used := map[string]bool{}
	for _, paths := range m.users {
		for path, n := range paths {
			if n > 0 {
				used[path] = true
			}
		}
	}
	there := m.attached()
	for path := range used {
		// A failed release may have taken the disk away and kept the lease, to be released again.
		if !there[path] && !m.dirty {
			rt.Fatalf("%s is used but not attached; attached: %v", path, slices.Sorted(maps.Keys(there)))
		}
	}
	for path := range there {
		if !used[path] && !m.dirty && path[1] == 's' {
			rt.Fatalf("%s is attached but not used; users: %v", path, fmt.Sprint(m.users))
		}
	}
	if v := m.f.Violations(); len(v) > 0 {
		rt.Fatalf("rules of the world broken: %q", v)
	}
}
