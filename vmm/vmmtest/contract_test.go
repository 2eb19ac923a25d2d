package vmmtest_test

import (
	"fmt"
	"testing"

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
		return vmmtest.Env{Machine: f, Kill: f.Kill, Hang: f.Hang,
			Program: vmm.ProcessSpec{Args: []string{"/bin/sleep", "1000"}},
			Disk:    vmmtest.ContractDisk(func(n int) string { return fmt.Sprintf("/layers/%d/layer.vhd", n) }, "")}
	})
}
