package task

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/test/leaktest"
)

// hold is a fixture with a pod a that is held.
func hold(t *testing.T) (*fixture, *Holder) {
	t.Helper()
	f := newFixture(t)
	h, err := f.Hold(t.Context(), "a", bundle(t, podSpec("sandbox")).Bundle, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f, h
}

// TestHold: containers are in the VM of a pod that is held, and end with it. containerd is not told of what holds it.
func TestHold(t *testing.T) {
	leaktest.Check(t)
	f, h := hold(t)
	if err := f.member(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Service.Start(t.Context(), &taskapi.StartRequest{ID: "b"}); err != nil {
		t.Fatal(err)
	}
	if f.vms != 1 || !slices.Equal(f.m.connected, []string{"a"}) || h.PID() != 4711 {
		t.Errorf("%d VMs were started, %q connected, the process is %d", f.vms, f.m.connected, h.PID())
	}
	if f.sizes.Cgroup != "/default/a" {
		t.Errorf("the control group of the VM is %q", f.sizes.Cgroup)
	}
	if _, _, ended := h.Exit(); ended {
		t.Error("the pod has ended")
	}
	if err := h.Forget(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("forget what runs: %v", err)
	}
	for range 2 {
		if err := h.End(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if code, _, ended := h.Exit(); code != killed || !ended {
		t.Errorf("the pod: %d, %v", code, ended)
	}
	if w, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "b"}); err != nil || w.ExitStatus != uint32(killed) {
		t.Errorf("its container: %v, %v", w, err)
	}
	r := bundle(t, memberSpec())
	r.ID = "c"
	if _, err := f.Create(t.Context(), r); !is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("a container of a pod that has ended: %v", err)
	}
	if _, err := f.Delete(t.Context(), &taskapi.DeleteRequest{ID: "b"}); err != nil {
		t.Error(err)
	}
	if _, err := f.Shutdown(t.Context(), &taskapi.ShutdownRequest{}); err != nil || f.ended {
		t.Errorf("shutdown with a pod that containerd may ask for: %v, the shim has ended: %t", err, f.ended)
	}
	if err := h.Forget(); err != nil {
		t.Error(err)
	}
	if _, err := f.Shutdown(t.Context(), &taskapi.ShutdownRequest{}); err != nil || !f.ended {
		t.Errorf("shutdown: %v, the shim has ended: %t", err, f.ended)
	}
	want := []any{"create", "start", [3]any{"exit", "b", uint32(killed)}, [2]any{"delete", uint32(killed)}}
	if got := f.published(); !slices.Equal(got, want) {
		t.Errorf("the events are %v, want %v", got, want)
	}
}

// TestHoldFails: of a pod whose holder does not start nothing is left.
func TestHoldFails(t *testing.T) {
	leaktest.Check(t)
	f := newFixture(t)
	f.m.execs = errors.New("no program")
	b := bundle(t, podSpec("sandbox")).Bundle
	if _, err := f.Hold(t.Context(), "a", b, nil); !errors.Is(err, f.m.execs) {
		t.Errorf("hold: %v", err)
	}
	if f.m.ends == 0 {
		t.Error("the VM was not ended")
	}
	if _, err := f.State(t.Context(), &taskapi.StateRequest{ID: "a"}); !is(err, errdefs.ErrNotFound) {
		t.Errorf("it is still there: %v", err)
	}
}

// TestPodFiles: containers of a pod that is held have its files and its shared memory, where their documents do not say
// otherwise, and only with its IPC namespace.
func TestPodFiles(t *testing.T) {
	f, h := hold(t)
	defer h.End(t.Context())
	own := filepath.Join(t.TempDir(), "hosts")
	shm := specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm"}
	for i, tt := range []struct {
		change func(*specs.Spec)
		want   map[string]string
	}{
		{func(s *specs.Spec) {}, map[string]string{"/dev/shm": "shm", "/etc/hosts": "hosts", "/etc/hostname": "hostname",
			"/etc/resolv.conf": "resolv.conf"}},
		{func(s *specs.Spec) {
			s.Linux.Namespaces[1].Path, s.Root.Readonly = "", true
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/hosts", Type: "tmpfs", Source: own})
		}, map[string]string{"/etc/hostname": "hostname", "/etc/resolv.conf": "resolv.conf"}},
	} {
		err := f.member(func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"}, shm}
			tt.change(s)
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Service.Start(t.Context(), &taskapi.StartRequest{ID: "b"}); err != nil {
			t.Fatal(err)
		}
		p := f.m.program(i + 1)
		got := map[string]string{}
		for _, m := range p.spec.Spec.Mounts {
			if dir, name := filepath.Split(m.Source); dir == f.m.program(0).spec.Root+"/" {
				got[m.Destination] = name
				if slices.Contains(m.Options, "ro") != (i == 1) {
					t.Errorf("%s is mounted by %q", m.Destination, m.Options)
				}
			}
		}
		if len(got) != len(tt.want) {
			t.Errorf("the files are %v, want %v", got, tt.want)
		}
		for place, name := range tt.want {
			if got[place] != name {
				t.Errorf("%s is %q, want %q", place, got[place], name)
			}
		}
		p.exit(0, nil)
		if _, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "b"}); err != nil {
			t.Error(err)
		}
		if _, err := f.Delete(t.Context(), &taskapi.DeleteRequest{ID: "b"}); err != nil {
			t.Error(err)
		}
	}
}

// TestOptionsOfMember: a container of a pod does not read the options again, whose file may have gone meanwhile.
func TestOptionsOfMember(t *testing.T) {
	f := newFixture(t)
	path := filepath.Join(t.TempDir(), "shim.toml")
	if err := os.WriteFile(path, []byte("memory = 300\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := typeurl.MarshalAnyToProto(&runtimeoptions.Options{ConfigPath: path})
	if err != nil {
		t.Fatal(err)
	}
	sandbox, member := bundle(t, podSpec("sandbox")), bundle(t, memberSpec())
	sandbox.Options, member.Options, member.ID = a, a, "b"
	if _, err := f.Create(t.Context(), sandbox); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Create(t.Context(), member); err != nil || f.sizes.MemoryMiB != 300 {
		t.Errorf("the pod's container: %v; the VM has %d MiB, want 300", err, f.sizes.MemoryMiB)
	}
}

// TestOptions: options size the VM where annotations do not, and go to what starts it.
func TestOptions(t *testing.T) {
	limit, quota, period := int64(1<<30), int64(500000), uint64(100000)
	limited := func(s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit},
			CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}
	}
	for _, tt := range []struct {
		name, options   string
		change          func(*specs.Spec)
		memoryMiB, cpus int
	}{
		{"options", "memory = 300\ncpus = 1", func(*specs.Spec) {}, 300, 1},
		{"less than a guest's overhead", "memory = 100", func(*specs.Spec) {}, 100, 0},
		{"none that size", "accel = 'tcg'", func(*specs.Spec) {}, defaultMemoryMiB, 0},
		{"a limit", "memory = 300\ncpus = 1", limited, 1024 + 32 + guestMiB, 5},
		{"a small limit", "memory = 4096\ncpus = 8", limited, 4096, 8},
		{"annotations", "memory = 4096\ncpus = 8", func(s *specs.Spec) {
			s.Annotations = map[string]string{memoryAnnotation: "640", cpusAnnotation: "2"}
		}, 640, 2},
	} {
		f, s := newFixture(t), spec()
		tt.change(s)
		f.Level = &slog.LevelVar{}
		r := bundle(t, s)
		a, err := typeurl.MarshalAnyToProto(&runtimeoptions.Options{ConfigBody: []byte("debug = true\n" + tt.options)})
		if err != nil {
			t.Fatal(err)
		}
		r.Options = a
		if _, err := f.Create(t.Context(), r); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if f.sizes.MemoryMiB != tt.memoryMiB || f.sizes.CPUs != tt.cpus || !f.sizes.Runtime.Debug ||
			f.Level.Level() != slog.LevelDebug {
			t.Errorf("%s: the VM is started by %+v, want %d MiB and %d processors", tt.name, f.sizes, tt.memoryMiB,
				tt.cpus)
		}
		_ = f.Close(t.Context())
	}
}
