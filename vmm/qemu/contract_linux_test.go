package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// contractEnv is m for the contract suite; file gives the n-th disk.
func contractEnv(t *testing.T, m *Machine, file func(n int) string) vmmtest.Env {
	signal := func(s unix.Signal) {
		if err := unix.Kill(m.proc.pid, s); err != nil {
			t.Error(err)
		}
	}
	return vmmtest.Env{
		Machine: m, Disk: vmmtest.ContractDisk(file, vmm.FormatRaw),
		Hang: func() func() {
			signal(unix.SIGSTOP)
			return func() { signal(unix.SIGCONT) }
		},
		Kill: func() { signal(unix.SIGKILL) },
	}
}

func TestContractWithoutGuest(t *testing.T) {
	vmmtest.Contract(t, func(t *testing.T) vmmtest.Env {
		m, _, _ := bare(t)
		dir := t.TempDir()
		return contractEnv(t, m, func(n int) string { return diskFile(t, dir, fmt.Sprintf("%d.raw", n), 1<<20) })
	})
}

// ext4File makes a small file system with n in the file "name" and the given programs.
func ext4File(t testing.TB, dir string, n int, size int64, programs ...string) string {
	t.Helper()
	path := filepath.Join(dir, fmt.Sprintf("%d.raw", n))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "name"), fmt.Appendf(nil, "layer %d\n", n), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		b, err := os.ReadFile(p)
		if err == nil {
			err = os.WriteFile(filepath.Join(root, filepath.Base(p)), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", "-d", root, path,
		fmt.Sprint(size/1024, "k")).CombinedOutput()
	if err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	return path
}

func TestVMContract(t *testing.T) {
	img := image(t)
	dir := t.TempDir()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skipf("%v: apt-get install busybox-static", err)
	}
	ext4File(t, dir, 0, 4<<20, busybox)
	for n := range 8 {
		ext4File(t, dir, n, 1<<20)
	}
	vmmtest.Contract(t, func(t *testing.T) vmmtest.Env {
		m := realVM(t, img)
		env := contractEnv(t, m, func(n int) string { return filepath.Join(dir, fmt.Sprintf("%d.raw", n)) })
		bad := vmm.SCSIDisk{LUN: 9, Path: diskFile(t, t.TempDir(), "garbage.raw", 1<<20), ReadOnly: true}
		env.Bad = vmm.Change{Op: vmm.Add, Device: bad,
			Mount: vmm.MappedDisk{LUN: 9, MountPath: "/run/contract/bad", ReadOnly: true}}
		env.Program = vmm.ProcessSpec{Args: []string{"/run/contract/0/busybox", "sleep", "1000"}}
		return env
	})
}
