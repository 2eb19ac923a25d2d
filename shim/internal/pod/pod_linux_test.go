package pod

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
)

// needVM sets up what the start of a VM takes.
func needVM(t *testing.T) {
	t.Helper()
	treetest.NeedRoot(t, "which mounts and starts VMs")
	program := filepath.Join(t.TempDir(), "strata-init")
	cmd := exec.Command("go", "build", "-C", "../../..", "-o", program, "./cmd/strata-init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("STRATA_INIT", program)
}

// TestFullDisk: where the state of a VM has no room none is started, and nothing is left.
func TestFullDisk(t *testing.T) {
	needVM(t)
	leaktest.Check(t)
	state := t.TempDir()
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(state, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	full, err := os.Create(state + "/full")
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = full.Write(make([]byte, 4096))
	}
	if err := full.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), Options{Dir: filepath.Join(state, "ns", "vms", "a"), MemoryMiB: 256,
		Namespace: vmm.NewNamespace, Logger: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room in "+state) {
		t.Errorf("%v, want %v", err, unix.ENOSPC)
	}
	if left, err := filepath.Glob(state + "/*/*/*"); len(left) > 0 || err != nil {
		t.Errorf("left: %q, %v", left, err)
	}
}

// TestNamespaceGone: where the network namespace has gone no VM is started, and nothing is left.
func TestNamespaceGone(t *testing.T) {
	needVM(t)
	leaktest.Check(t)
	state := t.TempDir()
	_, err := Start(t.Context(), Options{Dir: filepath.Join(state, "ns", "vms", "a"), MemoryMiB: 256,
		Namespace: "/run/netns/gone", Logger: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "/run/netns/gone: it is no network namespace") {
		t.Errorf("%v, want an error that names it", err)
	}
	if left, err := filepath.Glob(state + "/*"); len(left) > 0 || err != nil {
		t.Errorf("left: %q, %v", left, err)
	}
}

// TestTemplate: where containerd's environment says so the second VM is loaded from a template that the first has left,
// each in a network namespace of its own. A word that is neither yes nor no starts none.
func TestTemplate(t *testing.T) {
	needVM(t)
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		treetest.Need(t, false, "QEMU", "apt-get install qemu-system-x86")
	}
	leaktest.Check(t)
	state := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	start := func(id string) (*Pod, error) {
		return Start(t.Context(), Options{Dir: filepath.Join(state, "ns", "vms", id), MemoryMiB: 256,
			Namespace: vmm.NewNamespace, Logger: slog.New(slog.DiscardHandler)})
	}
	t.Setenv(TemplateEnv, "perhaps")
	if _, err := start("a"); err == nil || !strings.Contains(err.Error(), "use 1 or 0") {
		t.Errorf("got %v", err)
	}
	t.Setenv(TemplateEnv, "1")
	for i, id := range []string{"a", "b"} {
		p, err := start(id)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := p.End(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		info, err := strata.InspectVM(t.Context(), p.dir)
		if err != nil || (info.Template != "") != (i > 0) {
			t.Errorf("VM %s is one of the template %q (%v)", id, info.Template, err)
		}
		own, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		if ns, err := os.Readlink(p.netns); err != nil || ns == own {
			t.Errorf("VM %s is in the network namespace %s (%v)", id, ns, err)
		}
		var out strings.Builder
		proc, err := p.Exec(t.Context(), vmm.ProcessSpec{Args: []string{"/init", "--strata-agent"}, Stdout: &out})
		if err != nil {
			t.Fatal(err)
		}
		if code, err := proc.Wait(t.Context()); code != 0 || err != nil || out.Len() == 0 {
			t.Errorf("a program in VM %s: %d, %v", id, code, err)
		}
		if err := proc.Close(); err != nil {
			t.Error(err)
		}
	}
}
