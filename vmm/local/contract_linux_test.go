package local_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stratavm/strata/internal/slirp"
	"github.com/stratavm/strata/internal/userns"
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
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is needed: apt-get install busybox-static")
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	base := layer(t, layerdir.EROFS, entry{Name: "bin/busybox", Mode: 0o755, Body: string(program)})
	mounted := disk // of this package
	disk := vmmtest.ContractDisk(func(n int) string { return files[n] }, "")
	vmmtest.Contract(t, func(t *testing.T) vmmtest.Env {
		m := machine(t)
		var network func(int) vmm.Change
		if _, err := exec.LookPath(slirp.Program); err == nil && !userns.Inside() || os.Getenv("CI") != "" {
			network = vmmtest.ContractNetwork
		}
		return vmmtest.Env{Machine: m, Disk: disk, Network: network,
			Container: &vmmtest.Container{
				Root: []vmm.Change{mounted(0, base), folder(t.TempDir()), root(1, "/run/scratch")},
				Program: vmm.ProcessSpec{ContainerID: "c", Root: "/run/c/rootfs", First: true,
					Args: []string{"/bin/busybox", "sleep", "1000"}},
			},
			Bad: vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{LUN: 40, Path: bad, ReadOnly: true}, Mount: vmm.MappedDisk{LUN: 40,
				MountPath: "/run/bad", ReadOnly: true}},
			Kill: func() {
				if err := m.Terminate(t.Context()); err != nil {
					t.Error(err)
				}
			}}
	})
}
