package local_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

func TestKeepsTheContract(t *testing.T) {
	var files []string
	for n := range 8 {
		files = append(files, layer(t, []layerdir.Format{layerdir.VHD, layerdir.EROFS}[n%2], entry{Name: fmt.Sprint(n)}))
	}
	bad := filepath.Join(t.TempDir(), "bad.img")
	if err := os.WriteFile(bad, make([]byte, 8192), 0o644); err != nil {
		t.Fatal(err)
	}
	disk := vmmtest.ContractDisk(func(n int) string { return files[n] }, "")
	vmmtest.Contract(t, func(t *testing.T) vmmtest.Env {
		m := machine(t)
		return vmmtest.Env{Machine: m, Disk: disk,
			Bad: vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{LUN: 40, Path: bad, ReadOnly: true}, Mount: vmm.MappedDisk{LUN: 40, MountPath: "/run/bad", ReadOnly: true}},
			Kill: func() {
				if err := m.Terminate(t.Context()); err != nil {
					t.Error(err)
				}
			}}
	})
}
