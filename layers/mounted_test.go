package layers

import (
	"errors"
	"slices"
	"testing"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// A program is started inside the root of its container, also by who finds that again.
func TestExecInContainer(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 1)
	m := w.mustMount(w.request("a", w.layers))
	found, err := Open(w.vm, "a")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Mounted{m, found} {
		if code, err := c.Run(t.Context(),
			vmm.ProcessSpec{Args: []string{"id"}, ContainerID: "other", Root: "/"}); code != 0 || err != nil {
			t.Errorf("Run: code %d, %v", code, err)
		}
	}
	if _, err := w.vm.Run(t.Context(), vmm.ProcessSpec{Args: []string{"id"}}); err != nil {
		t.Error(err)
	}
	for i, p := range w.f.Execs() {
		want := [3]string{m.ID, m.ID, ""}[i]
		if p.ContainerID != want || (want != "" && p.Root != m.Root) || (want == "" && p.Root != "") {
			t.Errorf("program %d: container %q, root %q", i, p.ContainerID, p.Root)
		}
	}
	if _, err := m.Exec(t.Context(), vmm.ProcessSpec{}); err == nil {
		t.Error("no program was run without an error")
	}
	if err := m.EndPrograms(t.Context()); err != nil || !slices.Equal(w.f.Forgotten(), []string{"a"}) {
		t.Errorf("EndPrograms: %v, %q", err, w.f.Forgotten())
	}
	w.f.Kill()
	if err := errors.Join(m.EndPrograms(t.Context()), m.Release(t.Context())); err != nil {
		t.Errorf("in a VM that is gone: %v", err)
	}
	if _, err := m.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"id"}}); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("Exec in a VM that is gone: %v", err)
	}
}

// ReleaseScratch keeps the layers for a later Release.
func TestReleaseScratch(t *testing.T) {
	for os, limits := range map[vmm.OS]vmm.Limits{vmm.Linux: vmmtest.LinuxLimits(), vmm.Windows: vmmtest.WindowsLimits()} {
		w := newWorld(t, os, limits, 2)
		m := w.mustMount(w.request("a", w.layers))
		all := m.Held()
		for range 2 {
			if err := m.ReleaseScratch(t.Context()); err != nil {
				t.Fatal(err)
			}
			if m.Held() != 2 || all != 4 {
				t.Errorf("%s: holds %d of %d, want the 2 layers of 4", os, m.Held(), all)
			}
		}
		for range 2 {
			if err := m.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if m.Held() != 0 {
			t.Errorf("%s: holds %d after Release", os, m.Held())
		}
		w.checkEmpty()
	}
}

// TestLookup: containers are found while another has the VM open, whose lock is not waited for.
func TestLookup(t *testing.T) {
	w := newWorld(t, vmm.Linux, vmmtest.LinuxLimits(), 1)
	if _, err := Lookup(w.state, "a"); !errors.Is(err, uvm.ErrUnknownClaim) {
		t.Errorf("in an empty VM: %v", err)
	}
	r := w.request("a", w.layers)
	m := w.mustMount(r)
	w.mustMount(w.request("b", w.layers))
	c, err := Lookup(w.state, "a")
	if err != nil {
		t.Fatal(err)
	}
	if c.Root != m.Root || c.ScratchPath != m.ScratchPath || c.Scratch != r.Scratch ||
		!slices.Equal(c.Layers, []string{w.layers[0].Folder}) || c.Phase != uvm.Mounted {
		t.Errorf("found %+v", c)
	}
	if spec, err := c.Process(vmm.ProcessSpec{Args: []string{"id"}}); err != nil || spec.Root != m.Root ||
		spec.ContainerID != "a" {
		t.Errorf("a program in it: %+v, %v", spec, err)
	}
	if all, err := List(w.state); err != nil || len(all) != 2 || all[1].ID != "b" {
		t.Errorf("List: %+v, %v", all, err)
	}
	if err := m.ReleaseScratch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c, err = Lookup(w.state, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Process(vmm.ProcessSpec{Args: []string{"id"}}); err == nil || c.Phase != uvm.Partial {
		t.Errorf("a program in a container without a root: phase %s, error %v", c.Phase, err)
	}
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Lookup(w.state, "a"); !errors.Is(err, uvm.ErrUnknownClaim) {
		t.Errorf("after Release: %v", err)
	}
}
