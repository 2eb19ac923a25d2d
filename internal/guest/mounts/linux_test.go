//go:build linux

package mounts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/crun"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/internal/guest/procs"
)

// privateEnv says that this process has a mount namespace of its own.
const privateEnv = "STRATA_AGENT_TEST_PRIVATE"

// TestMain starts the tests again in a mount and PID namespace of their own when it may: what they
// mount goes with it, whatever happens.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 || os.Getenv(privateEnv) != "" {
		if os.Getenv(privateEnv) != "" {
			if err := unix.Mount("proc", "/proc", "proc", procs.NoSUIDDevExec, ""); err != nil {
				fmt.Fprintln(os.Stderr, "mount /proc:", err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), privateEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Cloneflags: syscall.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		os.Exit(m.Run()) // no namespaces here: the tests that need them say so
	}
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	} else if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// needRoot skips, or fails where everything is to be tested.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getenv(privateEnv) == "" {
		lacking(t, "root and mount namespaces are needed; run the tests as root")
	}
}

func lacking(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// testGuest is a table with the processes that use what it mounts: the tests here are about both.
type testGuest struct {
	*Table
	processes
	log *slog.Logger
}

type processes struct{ *procs.Table }

func (*testGuest) PowerOff(context.Context) error { return gcsserver.ErrUnsupported }

// testRuntime is a runtime on this host with a directory of its own.
func testRuntime(t *testing.T) *testGuest {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	log := slog.New(slog.DiscardHandler)
	table := New(Config{Base: dir, Devices: &Devices{Sys: filepath.Join(dir, "sys"), Dev: "/dev",
		Events: &Uevents{wake: make(chan struct{})}}})
	spawn := procs.NewSpawner(false)
	ps := procs.New(log, spawn, table)
	runtime, err := crun.New(spawn.Starter())
	if err != nil {
		t.Fatal(err)
	}
	ps.UseRuntime(runtime, filepath.Join(dir, "containers"), "")
	table.SetProcesses(ps)
	r := &testGuest{Table: table, processes: processes{ps}, log: log}
	for _, d := range []string{"layers", layersDir, "scratch"} {
		r.mounts[filepath.Join(dir, d)] = mounted{what: gcs.Mount{Kind: "pretended"}}
	}
	return r
}

const layersDir = "layers-with-a-name-of-some-length"

// real are the mounts but for those that testRuntime pretends.
func (r *testGuest) real() []gcs.Mount {
	return slices.DeleteFunc(r.known(), func(m gcs.Mount) bool { return m.Kind == "pretended" })
}

func (r *testGuest) try(t *testing.T, op hcsschema.RequestType, kind hcsschema.ResourceType, settings any) error {
	t.Helper()
	b, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Begin()()
	return r.Modify(t.Context(), gcsserver.Modification{RequestType: op, ResourceType: kind, Settings: b}, nil)
}

func (r *testGuest) must(t *testing.T, op hcsschema.RequestType, kind hcsschema.ResourceType, settings any) {
	t.Helper()
	if err := r.try(t, op, kind, settings); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// layers makes n directories; each has a file of its own and all have "same".
func (r *testGuest) layers(t *testing.T, n int) []hcsschema.Layer {
	t.Helper()
	var out []hcsschema.Layer
	for i := range n {
		dir := fmt.Sprintf("%s/%s/p%03d", r.base, layersDir, i)
		write(t, fmt.Sprintf("%s/file%d", dir, i), "x", 0o644)
		write(t, dir+"/same", fmt.Sprint(i), 0o644)
		out = append(out, hcsschema.Layer{Path: dir})
	}
	return out
}

func TestOverlayManyLayers(t *testing.T) {
	r := testRuntime(t)
	for _, n := range []int{1, 2, 120} {
		for _, scratch := range []string{"", r.base + "/scratch/c1"} {
			s := hcsschema.LCOWCombinedLayers{ContainerID: "c", ContainerRootPath: r.base + "/gcs/c/c/rootfs",
				Layers: r.layers(t, n), ScratchPath: scratch}
			r.must(t, "Add", "CombinedLayers", s)
			r.must(t, "Add", "CombinedLayers", s)
			root := s.ContainerRootPath
			if b, err := os.ReadFile(root + "/same"); err != nil || string(b) != "0" {
				t.Errorf("%d layers: the top one does not win: %q, %v", n, b, err)
			}
			if _, err := os.Stat(fmt.Sprintf("%s/file%d", root, n-1)); err != nil {
				t.Errorf("%d layers: %v", n, err)
			}
			err := os.WriteFile(root+"/new", nil, 0o644)
			if scratch == "" && !errors.Is(err, unix.EROFS) {
				t.Errorf("a root without a scratch can be written: %v", err)
			}
			if scratch != "" {
				if err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(scratch + "/upper/new"); err != nil {
					t.Error(err)
				}
			}
			other := s
			other.Layers = other.Layers[:1]
			other.ContainerID = "other"
			if err := r.try(t, "Add", "CombinedLayers", other); !errors.Is(err, gcsserver.ErrExists) {
				t.Errorf("something else at the same path: %v", err)
			}
			r.must(t, "Remove", "CombinedLayers", hcsschema.LCOWCombinedLayers{ContainerRootPath: root})
			r.must(t, "Remove", "CombinedLayers", hcsschema.LCOWCombinedLayers{ContainerRootPath: root})
			if _, err := os.Lstat(root); !os.IsNotExist(err) {
				t.Errorf("the mount point is left: %v", err)
			}
			if len(r.real()) != 0 {
				t.Errorf("left: %v", r.real())
			}
		}
	}
}

// TestCombinedOnMemory: a scratch or layer that nobody has mounted would be in the guest's memory.
func TestCombinedOnMemory(t *testing.T) {
	r := testRuntime(t)
	layers := r.layers(t, 1)
	write(t, r.base+"/elsewhere/file", "x", 0o644)
	elsewhere := []hcsschema.Layer{{Path: r.base + "/elsewhere"}}
	for name, s := range map[string]hcsschema.LCOWCombinedLayers{
		"scratch":         {Layers: layers, ScratchPath: r.base + "/elsewhere"},
		"name alike":      {Layers: layers, ScratchPath: r.base + "/scratch2"},
		"layer":           {Layers: elsewhere, ScratchPath: r.base + "/scratch/c"},
		"read-only layer": {Layers: elsewhere},
	} {
		s.ContainerRootPath = r.base + "/gcs/c/c/rootfs"
		if err := r.try(t, "Add", "CombinedLayers", s); !errors.Is(err, gcsserver.ErrInvalid) ||
			!strings.Contains(err.Error(), "mount it first") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, left := range []string{"elsewhere/upper", "scratch2", "gcs"} {
		if _, err := os.Stat(filepath.Join(r.base, left)); !os.IsNotExist(err) {
			t.Errorf("%s was made", left)
		}
	}
}

func TestOverlayFailureLeavesNothing(t *testing.T) {
	r := testRuntime(t)
	s := hcsschema.LCOWCombinedLayers{ContainerRootPath: r.base + "/gcs/c/c/rootfs", ScratchPath: r.base + "/scratch/c",
		Layers: append(r.layers(t, 2), hcsschema.Layer{Path: r.base + "/missing"})}
	if err := r.try(t, "Add", "CombinedLayers", s); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Fatalf("a missing layer: %v", err)
	}
	// The scratch within a layer: the kernel refuses the mount itself.
	s.Layers = s.Layers[:2]
	s.ScratchPath = s.Layers[0].Path
	s.Layers = append([]hcsschema.Layer{{Path: s.ScratchPath + "/upper"}}, s.Layers...)
	if err := os.Mkdir(s.ScratchPath+"/upper", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.try(t, "Add", "CombinedLayers", s); err == nil {
		t.Fatal("upper directory that is a layer, too: no error")
	}
	for _, p := range []string{r.base + "/gcs", r.base + "/scratch", s.ScratchPath + "/work"} {
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			t.Errorf("%s is left (%v)", p, err)
		}
	}
	if _, err := os.Lstat(s.ScratchPath + "/upper"); err != nil {
		t.Errorf("what was there before is gone: %v", err)
	}
}

func TestPathsRefused(t *testing.T) {
	r := testRuntime(t)
	layers := r.layers(t, 2)
	if err := os.Symlink("/etc", r.base+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"", "relative", "/etc/x", r.base, r.base + "/../x", r.base + "/a//b", r.base + "/a/", "/",
		r.base + "/link/x"} {
		err := r.try(t, "Add", "CombinedLayers", hcsschema.LCOWCombinedLayers{ContainerRootPath: p, Layers: layers})
		if err == nil {
			t.Errorf("a root at %q is accepted", p)
		}
		if err := r.try(t, "Add", "CombinedLayers", hcsschema.LCOWCombinedLayers{ContainerRootPath: r.base + "/r",
			Layers: append(layers, hcsschema.Layer{Path: p})}); err == nil {
			t.Errorf("a layer at %q is accepted", p)
		}
	}
	if _, err := os.Lstat("/etc/x"); !os.IsNotExist(err) {
		t.Error("a symbolic link was followed")
	}
}
