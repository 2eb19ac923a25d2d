package vmmtest_test

import (
	"errors"
	"fmt"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

func TestFakeKeepsTheContract(t *testing.T) {
	vmmtest.Contract(t, func(t *testing.T) vmmtest.Env {
		f := vmmtest.New("fake", vmm.Linux, vmmtest.LinuxLimits())
		t.Cleanup(func() {
			for _, v := range f.Violations() {
				t.Error(v)
			}
		})
		return vmmtest.Env{Machine: f, Kill: f.Kill, Hang: f.Hang, Network: vmmtest.ContractNetwork,
			Namespace: vmmtest.ContractNamespace,
			Program:   vmm.ProcessSpec{Args: []string{"/bin/sleep", "1000"}},
			Disk:      vmmtest.ContractDisk(func(n int) string { return fmt.Sprintf("/layers/%d/layer.vhd", n) }, "")}
	})
}

// TestFakeContainers: a container is there from its first program until it is forgotten, and is paused and updated.
func TestFakeContainers(t *testing.T) {
	f := vmmtest.New("fake", vmm.Linux, vmmtest.LinuxLimits())
	if err := f.PauseContainer(t.Context(), "c"); err == nil {
		t.Error("a container that does not run was paused")
	}
	spec := vmm.ProcessSpec{ContainerID: "c", Root: "/run/c", Args: []string{"a"}}
	if _, err := f.Exec(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if err := f.ResumeContainer(t.Context(), "c"); !errors.Is(err, vmm.ErrNotPaused) {
		t.Errorf("resumed: %v", err)
	}
	if err := f.PauseContainer(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if _, err := f.Exec(t.Context(), spec); !errors.Is(err, vmm.ErrPaused) {
		t.Errorf("a program in one that is paused: %v", err)
	}
	if err := f.UpdateContainer(t.Context(), "c", specs.LinuxResources{}); err != nil {
		t.Error(err)
	}
	if c, ok := f.Container("c"); !ok || !c.Paused || len(c.Updates) != 1 {
		t.Errorf("%+v, %t", c, ok)
	}
	if err := f.DeleteContainerState(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if _, ok := f.Container("c"); ok {
		t.Error("it was forgotten, and is there")
	}
}
