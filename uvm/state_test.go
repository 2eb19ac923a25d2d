package uvm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// TestTransitions walks the whole table: every state can be reached and left, nothing leads out of
// the table, a machine that is gone frees everything, and every change in motion can end each way.
func TestTransitions(t *testing.T) {
	reached := map[State]bool{Free: true}
	for from, events := range transitions {
		for ev, to := range events {
			if ev >= numEvents {
				t.Errorf("%s: event %d is not one", from, ev)
			}
			if _, ok := transitions[to]; !ok {
				t.Errorf("%s leads to %s, which has no row", from, to)
			}
			reached[to] = true
		}
		if to, err := next(from, evMachineGone); err != nil || to != Free {
			t.Errorf("%s when the machine is gone: %s, %v", from, to, err)
		}
		if to, err := next(from, evLost); err != nil || to != Free {
			t.Errorf("%s when lost: %s, %v", from, to, err)
		}
	}
	for s := range stateNames {
		if !reached[State(s)] {
			t.Errorf("%s is never reached", State(s))
		}
	}
	for _, s := range []State{Attaching, Detaching} {
		for _, ev := range []event{evDone, evNotDone, evUnknown} {
			if _, err := next(s, ev); err != nil {
				t.Error(err)
			}
		}
	}
	for _, bad := range []struct {
		s  State
		ev event
	}{{Free, evAttach}, {Attached, evAttach}, {Attached, evDone}, {Reserved, evDetach}, {Ejected, evDone}} {
		if _, err := next(bad.s, bad.ev); err == nil {
			t.Errorf("event %d may happen to a resource that is %s", bad.ev, bad.s)
		}
	}
}

// TestJournalTorn cuts the journal at every byte: what is read is a prefix of what was written, and
// the VM opens.
func TestJournalTorn(t *testing.T) {
	f := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	dir := t.TempDir()
	vm := openFake(t, f, dir)
	c := mustClaim(t, vm, "a")
	mustAttach(t, vm, c, disk("/l/1"))
	le := mustAttach(t, vm, c, disk("/l/2"))
	if err := c.Commit("meta"); err != nil {
		t.Fatal(err)
	}
	if err := le.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	all, _, err := readRecords(bytes.NewReader(whole))
	if err != nil || len(all) < 6 {
		t.Fatalf("%d records, %v", len(all), err)
	}
	for cut := range len(whole) {
		records, good, err := readRecords(bytes.NewReader(whole[:cut]))
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if good > int64(cut) || !bytes.HasPrefix(whole, whole[:good]) || len(records) > len(all) {
			t.Fatalf("cut at %d: %d records in %d bytes", cut, len(records), good)
		}
		torn := t.TempDir()
		if err := os.WriteFile(filepath.Join(torn, journalName), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		// The machine of a crash at that moment holds at most what the journal intends; here it
		// holds nothing, so that everything must come out as free.
		empty := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
		again := openFake(t, empty, torn)
		for _, c := range again.Claims() {
			if err := c.Release(t.Context(), nil); err != nil {
				t.Fatalf("cut at %d: %v", cut, err)
			}
		}
		checkEmpty(t, empty, again)
	}
}

// TestJournalDamaged flips a byte in the middle: that is no crash, and is not to be guessed at.
func TestJournalDamaged(t *testing.T) {
	dir := t.TempDir()
	f := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	vm := openFake(t, f, dir)
	mustAttach(t, vm, mustClaim(t, vm, "a"), disk("/l/1"))
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, journalName)
	b, _ := os.ReadFile(path)
	b[20] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), dir, func(context.Context) (vmm.Machine, error) { return f, nil }, Options{})
	if !errors.Is(err, ErrJournal) {
		t.Fatalf("Open: %v, want ErrJournal", err)
	}
	if _, err := ReadStatus(dir); !errors.Is(err, ErrJournal) {
		t.Fatalf("ReadStatus: %v, want ErrJournal", err)
	}
}

func TestJournalCompacts(t *testing.T) {
	f, vm := newLinux(t)
	c := mustClaim(t, vm, "a")
	mustAttach(t, vm, c, disk("/l/keep"))
	for range compactAt {
		if err := mustAttach(t, vm, c, disk("/l/1")).Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := vm.l.journal.records; n > 2*compactAt {
		t.Errorf("the journal has %d records for one disk", n)
	}
	dir := vm.Dir()
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	again := openFake(t, f, dir)
	if s := again.Status(); len(s.Resources) != 0 {
		t.Errorf("a claim that was never committed is still there: %+v", s)
	}
	checkEmpty(t, f, again)
}

func FuzzJournal(f *testing.F) {
	line, _ := encodeRecord(record{Leases: []leaseEntry{{ID: 1, Claim: "a"}}})
	f.Add(line)
	f.Add(append(line, line[:9]...))
	f.Add([]byte("00000000 {}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		records, good, err := readRecords(bytes.NewReader(b))
		if err == nil && good > int64(len(b)) {
			t.Fatalf("%d good bytes of %d", good, len(b))
		}
		replay(records).status()
	})
}
