package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/internal/slirp"
	"github.com/stratavm/strata/internal/tapnet/tapnettest"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// contractEnv is m for the contract suite; file returns the n-th disk.
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

// contractContainer is a container whose root nobody can write to.
func contractContainer(t *testing.T, m *Machine, dir, busybox string) *vmmtest.Container {
	path := filepath.Join(dir, "root.raw")
	if _, err := os.Stat(path); err != nil {
		tree := t.TempDir()
		for _, d := range []string{"proc", "sys", "dev", "etc", "run", "tmp"} {
			if err := os.Mkdir(filepath.Join(tree, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(busybox)
		if err == nil {
			err = os.WriteFile(filepath.Join(tree, "busybox"), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		treetest.Run(t, "mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", "-d", tree, path, "4M")
	}
	disk := vmmtest.ContractDisk(func(int) string { return path }, vmm.FormatRaw)(0)
	return &vmmtest.Container{
		Root: []vmm.Change{disk, {Op: vmm.Add, Mount: vmm.CombinedLayers{ContainerID: "c", RootPath: "/run/c/rootfs",
			Layers: []vmm.GuestLayer{{Path: disk.Mount.Target()}}}}},
		Program: vmm.ProcessSpec{ContainerID: "c", Root: "/run/c/rootfs", First: true,
			Args: []string{"/busybox", "sleep", "1000"}},
		Runner: func(t *testing.T) vmmtest.ContainerRunner {
			s, err := OpenExec(t.Context(), m.dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			return s
		},
	}
}

func TestVMContract(t *testing.T) {
	img := image(t)
	dir := t.TempDir()
	busybox, err := exec.LookPath("busybox")
	treetest.Need(t, err == nil, "busybox", "apt-get install busybox-static")
	ext4File(t, dir, 0, 4<<20, busybox)
	for n := range 8 {
		ext4File(t, dir, n, 1<<20)
	}
	vmmtest.Contract(t, func(t *testing.T) vmmtest.Env {
		m := realVM(t, img)
		env := contractEnv(t, m, func(n int) string { return filepath.Join(dir, fmt.Sprintf("%d.raw", n)) })
		if _, err := exec.LookPath(slirp.Program); err == nil || os.Getenv("CI") != "" {
			env.Network = vmmtest.ContractNetwork
		}
		pairs := map[int]*tapnettest.Pair{}
		env.Namespace = func(n int) vmm.Change {
			if pairs[n] == nil {
				pairs[n] = tapnettest.Named(t, fmt.Sprintf("net%d", n))
			}
			return namespaceChange(t, pairs[n], uint32(n), "linked")
		}
		env.Left = func() {
			for _, p := range pairs {
				p.Clean(t)
			}
		}
		bad := vmm.SCSIDisk{LUN: 9, Path: diskFile(t, t.TempDir(), "garbage.raw", 1<<20), ReadOnly: true}
		env.Bad = vmm.Change{Op: vmm.Add, Device: bad,
			Mount: vmm.MappedDisk{LUN: 9, MountPath: "/run/contract/bad", ReadOnly: true}}
		env.Program = vmm.ProcessSpec{Args: []string{"/run/contract/0/busybox", "sleep", "1000"}}
		if _, err := crun.Find(); err == nil || os.Getenv("CI") != "" {
			env.Container = contractContainer(t, m, dir, busybox)
		}
		return env
	})
}
