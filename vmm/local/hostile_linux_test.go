package local_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/local"
)

// hostileRoot mounts busybox and more entries as the root of container c.
func hostileRoot(t *testing.T, more ...entry) *local.Machine {
	t.Helper()
	m := machine(t)
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is needed: apt-get install busybox-static")
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	entries := append([]entry{{Name: "bin/busybox", Mode: 0o755, Body: string(busybox)}, {Name: "x/"}}, more...)
	changes := []vmm.Change{disk(0, layer(t, layerdir.EROFS, entries...)), folder(t.TempDir()), root(1, "/run/scratch")}
	apply(t, m, changes...)
	t.Cleanup(func() {
		if err := m.DeleteContainerState(context.Background(), "c"); err != nil {
			t.Error(err)
		}
		for _, c := range slices.Backward(changes) {
			if err := m.Apply(context.Background(), c.Inverse()); err != nil {
				t.Error(err)
			}
		}
	})
	return m
}

func shell(script string) []string { return []string{"/bin/busybox", "sh", "-c", script} }

// inside runs a program in container c and returns what it writes.
func inside(t *testing.T, m *local.Machine, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	p, err := m.Exec(t.Context(), vmm.ProcessSpec{ContainerID: "c", Root: "/run/c/rootfs", Args: args, Stdout: &out,
		Stderr: io.Discard})
	if err != nil {
		return "", err
	}
	_, err = p.Wait(t.Context())
	return out.String(), errors.Join(err, p.Close())
}

// TestMountPointsThatLeadElsewhere: an image cannot have the kernel's file systems mounted at another place, where
// nothing of them would be masked.
func TestMountPointsThatLeadElsewhere(t *testing.T) {
	link := func(name, to string) entry { return entry{Name: name, Type: tar.TypeSymlink, Link: to} }
	for name, entries := range map[string][]entry{
		"proc over two links":    {link("proc", "/dev/l"), link("dev/l", "/x")},
		"proc":                   {link("proc", "x")},
		"sys":                    {link("sys", "/x")},
		"dev":                    {link("dev", "../../x")},
		"proc that is no folder": {{Name: "proc", Body: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := hostileRoot(t, entries...)
			out, err := inside(t, m, shell("/bin/busybox ls /x; /bin/busybox cat /proc/self/mounts")...)
			if err == nil || !strings.Contains(err.Error(), "is no directory") {
				t.Errorf("it runs and says %q, %v", out, err)
			}
		})
	}
}

// TestWaysOut: what a program that is root in a container can see and do of this system.
func TestWaysOut(t *testing.T) {
	before := programs(t)
	// Open for whoever inherits it, as by a shell's "9</".
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	m := hostileRoot(t, entry{Name: "enter", Type: tar.TypeSymlink, Link: "/proc/self/exe"})
	abstract, err := net.Listen("unix", "@"+t.Name()) // a socket that is reached by whoever shares the network
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	const busybox = "export PATH=/bin; /bin/busybox --install -s /bin; "
	for _, tt := range []struct{ name, script, want string }{
		{"descriptors", "ls /proc/self/fd", "0\n1\n2\n3\n"}, // the last is that of ls
		{"descriptors of others", "ls -l /proc/*/fd | grep -c ' -> /$'", "0\n"},
		{"user namespaces", "unshare -Ur true 2>/dev/null || echo refused", "refused\n"},
		{"mounts", "mount -t tmpfs none /x 2>/dev/null || echo refused", "refused\n"},
		{"cgroups",
			"for f in $(find /sys/fs/cgroup -name cgroup.procs); do echo 0 >$f; done 2>/dev/null && echo written; echo end",
			"end\n"},
		{"all of /sys is read-only",
			"grep ' /sys' /proc/mounts | grep -v ' ro,' | grep -v '^cgroup /sys/fs/cgroup tmpfs'; " +
				"# the last is its own memory\n echo end", "end\n"},
		{"interfaces", "ls /sys/class/net; tail -n +3 /proc/net/dev | cut -d: -f1", "lo\n    lo\n"},
		{"abstract sockets", "grep -c '@' /proc/net/unix", "0\n"},
		{"keys", "cat /proc/keys", ""},
		{"kernel memory", "head -c 1 /proc/kcore", ""},
		{"firmware", "ls /sys/firmware", ""},
		{"power", "ls /proc/acpi 2>/dev/null", ""},
		{"sysrq", "(echo h >/proc/sysrq-trigger) 2>/dev/null || echo refused", "refused\n"},
		{"core dumps", "(echo '|/x' >/proc/sys/kernel/core_pattern) 2>/dev/null || echo refused", "refused\n"},
		{"devices", "mknod /x/sda b 8 0 2>/dev/null || echo refused", "refused\n"},
		{"own cgroup only", "cut -d: -f3 /proc/self/cgroup | sort -u", "/\n"},
		{"capabilities", "grep -E 'Cap(Inh|Eff|Bnd|Amb)' /proc/self/status",
			"CapInh:\t0000000000000000\nCapEff:\t00000000a00425fb\n" +
				"CapBnd:\t00000000a00425fb\nCapAmb:\t0000000000000000\n"},
		{"system calls", "grep Seccomp: /proc/self/status", "Seccomp:\t2\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if out, err := inside(t, m, shell(busybox+tt.script)...); err != nil || out != tt.want {
				t.Errorf("%q, %v; want %q", out, err, tt.want)
			}
		})
	}
	t.Run("the program that enters", func(t *testing.T) {
		out, err := inside(t, m, "/enter", "-test.list", "WaysOut")
		if strings.Contains(out, "TestWaysOut") {
			t.Errorf("this program ran in the container: %q, %v", out, err)
		}
		if _, err := inside(t, m, shell("for p in /proc/[0-9]*; do (echo x >$p/exe) 2>/dev/null; done")...); err != nil {
			t.Error(err)
		}
	})
	if after := programs(t); after != before {
		t.Errorf("programs of this system were changed: %s, before %s", after, before)
	}
}

// programs returns sums of the programs that take part in running containers.
func programs(t *testing.T) (sums string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	runtime, err := crun.Find()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{self, runtime} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sums += fmt.Sprintf("%s %x\n", path, sha256.Sum256(b))
	}
	return sums
}

// TestSessionKeyring: a program in a container has another session keyring than this process, or may not ask.
func TestSessionKeyring(t *testing.T) {
	ours, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	if err != nil {
		t.Fatal(err)
	}
	src, bin := filepath.Join(t.TempDir(), "main.go"), filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(src, []byte(`package main

import (
	"fmt"
	"syscall"
)

func main() {
	id, _, err := syscall.Syscall(syscall.SYS_KEYCTL, 0, ^uintptr(2), 0) // the id of the session keyring
	fmt.Println(int32(id), err)
}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	m := hostileRoot(t, entry{Name: "bin/keys", Mode: 0o755, Body: string(b)})
	out, err := inside(t, m, "/bin/keys")
	if err != nil || out == "" || strings.HasPrefix(out, fmt.Sprintf("%d ", ours)) {
		t.Errorf("it says %q, %v; the keyring here is %d", out, err, ours)
	}
}

// TestRootInUse: a root in which a program runs that another handle of the machine has started is not unmounted, and
// the program is named; ending the container's programs ends it.
func TestRootInUse(t *testing.T) {
	m := hostileRoot(t)
	other := reopenForExec(t, m)
	p, err := other.Exec(t.Context(), vmm.ProcessSpec{ContainerID: "c", Root: "/run/c/rootfs",
		Args: []string{"/bin/busybox", "sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	remove := root(1, "/run/scratch").Inverse()
	if err := m.Apply(t.Context(), remove); !errors.Is(err, vmm.ErrBusy) ||
		!strings.Contains(err.Error(), "/bin/busybox") {
		t.Errorf("unmounted while a program runs: %v", err)
	}
	if err := m.DeleteContainerState(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if code, err := p.Wait(t.Context()); code != 137 || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
	if err := errors.Join(p.Close(), m.Apply(t.Context(), remove), m.Apply(t.Context(), remove.Inverse())); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Join(filepath.Dir(m.HostPath("/")), "containers"))
	if len(left) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %v, %v", left, err)
	}
}

func reopenForExec(t *testing.T, m *local.Machine) *local.Machine {
	t.Helper()
	other, err := local.Open(local.Options{Dir: filepath.Dir(m.HostPath("/"))})
	if err != nil {
		t.Fatal(err)
	}
	return other
}

// TestTerminalInAFolderWithALongName: the socket for a terminal has a name that is longer than those of sockets may be.
func TestTerminalInAFolderWithALongName(t *testing.T) {
	m := hostileRoot(t)
	if n := len(m.HostPath("/")) + len("containers/0123456789abcdef/console.sock"); n < 108 {
		t.Fatalf("the name has %d bytes only", n)
	}
	var out bytes.Buffer
	p, err := m.Exec(t.Context(), vmm.ProcessSpec{ContainerID: "c", Root: "/run/c/rootfs",
		Args:     shell("/bin/busybox stty size"),
		Terminal: true, Width: 90, Height: 30, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	code, err := p.Wait(t.Context())
	if err := errors.Join(err, p.Close()); code != 0 || err != nil || out.String() != "30 90\r\n" {
		t.Errorf("%q, code %d, %v", out.String(), code, err)
	}
}
