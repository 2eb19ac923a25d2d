package task

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// is reports whether an answer has the class of an error of containerd.
func is(err, class error) bool { return errors.Is(errgrpc.ToNative(err), class) }

func (f *fixture) state(execID string) task.Status {
	f.t.Helper()
	s, err := f.State(f.t.Context(), &taskapi.StateRequest{ID: "a", ExecID: execID})
	if err != nil {
		f.t.Fatal(err)
	}
	if s.Pid != 4711 || s.ID != "a" {
		f.t.Errorf("state: %v", s)
	}
	return s.Status
}

// add adds a process beside the first.
func (f *fixture) add(id string, change func(*specs.Process)) error {
	f.t.Helper()
	return f.addTo(id, "", change)
}

// addTo is add, and names where its output goes.
func (f *fixture) addTo(id, stdout string, change func(*specs.Process)) error {
	f.t.Helper()
	p := *spec().Process
	p.Args = []string{"/bin/ls"}
	if change != nil {
		change(&p)
	}
	b, err := json.Marshal(p)
	if err != nil {
		f.t.Fatal(err)
	}
	_, err = f.Exec(f.t.Context(), &taskapi.ExecProcessRequest{ID: "a", ExecID: id, Stdout: stdout,
		Spec: &anypb.Any{Value: b}})
	return err
}

func TestLife(t *testing.T) {
	leaktest.Check(t)
	f := running(t)
	ctx := t.Context()
	first := f.m.program(0)
	if s := first.spec; !s.First || !s.MakeDir || s.ContainerID != "a" || s.Root != "/run/gcs/c/a/rootfs" ||
		s.User != "5:6" || s.Stdin == nil || s.Stdout == nil || s.Stderr == nil || s.Spec == nil ||
		s.Spec.Linux.CgroupsPath != "" {
		t.Errorf("the program is started by %+v", s)
	}
	if f.sizes.MemoryMiB != defaultMemoryMiB || f.sizes.CPUs != 0 || f.sizes.Dir != "/run/strata/shim/ns/vms/a" ||
		f.sizes.Namespace != vmm.NewNamespace || f.sizes.Forward {
		t.Errorf("the VM is started by %+v", f.sizes)
	}
	if s := f.state(""); s != task.Status_RUNNING {
		t.Errorf("the container is %v", s)
	}
	if _, err := f.Start(ctx, &taskapi.StartRequest{ID: "a"}); !is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("started twice: %v", err)
	}
	if _, err := f.Delete(ctx, &taskapi.DeleteRequest{ID: "a"}); !is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("deleted while it runs: %v", err)
	}
	if err := f.add("e", nil); err != nil {
		t.Fatal(err)
	}
	if err := f.add("e", nil); !is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("added twice: %v", err)
	}
	if _, err := f.Start(ctx, &taskapi.StartRequest{ID: "a", ExecID: "e"}); err != nil {
		t.Fatal(err)
	}
	if s := f.m.program(1).spec; s.First || s.Spec != nil || s.ContainerID != "a" || s.Root == "" {
		t.Errorf("the other program is started by %+v", s)
	}
	f.m.program(1).exit(7, nil)
	if w, err := f.Wait(ctx, &taskapi.WaitRequest{ID: "a", ExecID: "e"}); err != nil || w.ExitStatus != 7 {
		t.Errorf("wait: %v, %v", w, err)
	}
	if d, err := f.Delete(ctx, &taskapi.DeleteRequest{ID: "a", ExecID: "e"}); err != nil || d.ExitStatus != 7 {
		t.Errorf("delete: %v, %v", d, err)
	}
	if _, err := f.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "a"}); err != nil || f.ended {
		t.Errorf("shutdown with a container: %v, ended: %v", err, f.ended)
	}
	if _, err := f.Kill(ctx, &taskapi.KillRequest{ID: "a", Signal: uint32(syscall.SIGTERM), All: true}); err != nil {
		t.Error(err)
	}
	if w, err := f.Wait(ctx, &taskapi.WaitRequest{ID: "a"}); err != nil || w.ExitStatus != 143 {
		t.Errorf("wait: %v, %v", w, err)
	}
	if _, err := f.Kill(ctx, &taskapi.KillRequest{ID: "a", Signal: 9}); !is(err, errdefs.ErrNotFound) {
		t.Errorf("kill of what has ended: %v", err)
	}
	bundle := f.containers["a"].bundle
	if d, err := f.Delete(ctx, &taskapi.DeleteRequest{ID: "a"}); err != nil || d.ExitStatus != 143 || d.Pid != 4711 {
		t.Errorf("delete: %v, %v", d, err)
	}
	if e, err := ReadExit(bundle); err != nil || e.ExitStatus != 143 || e.Pid != 4711 || e.ExitedAt.IsZero() {
		t.Errorf("the record of the exit: %+v, %v", e, err)
	}
	if left := f.m.fake.Leftovers(); len(left) > 0 || f.m.ends != 1 {
		t.Errorf("the VM was ended %d times with %q in it", f.m.ends, left)
	}
	if _, err := f.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "a"}); err != nil || !f.ended {
		t.Errorf("shutdown: %v, ended: %v", err, f.ended)
	}
	want := []any{"create", "start", "added e", "started e", [3]any{"exit", "e", uint32(7)},
		[3]any{"exit", "a", uint32(143)}, [2]any{"delete", uint32(143)}}
	if got := f.published(); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

// TestExitsLast tells the exit of a container behind those of its other processes.
func TestExitsLast(t *testing.T) {
	f := running(t)
	if err := f.add("e", nil); err != nil {
		t.Fatal(err)
	}
	if err := f.add("never", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Start(t.Context(), &taskapi.StartRequest{ID: "a", ExecID: "e"}); err != nil {
		t.Fatal(err)
	}
	f.m.program(0).exit(0, nil)
	f.m.program(1).exit(137, nil)
	if _, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Start(t.Context(), &taskapi.StartRequest{ID: "a", ExecID: "never"}); !is(err,
		errdefs.ErrFailedPrecondition) {
		t.Errorf("started in a container that has ended: %v", err)
	}
	got := f.published()
	if want := [3]any{"exit", "a", uint32(0)}; got[len(got)-1] != want {
		t.Errorf("events %v, want the container's exit last", got)
	}
}

// TestMachineDies ends everything with 137: QEMU dies, a share dies, or the guest does not answer to KILL.
func TestMachineDies(t *testing.T) {
	for name, die := range map[string]func(*fixture){
		"QEMU":    func(f *fixture) { f.m.program(0).exit(0, vmm.ErrGone) },
		"a share": func(f *fixture) { f.m.lost <- errors.New("virtiofsd has ended") },
		"silence": func(f *fixture) {
			f.m.beSilent(true)
			if _, err := f.Kill(f.t.Context(), &taskapi.KillRequest{ID: "a", Signal: 9}); err != nil {
				f.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			leaktest.Check(t)
			f := running(t)
			die(f)
			if w, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "a"}); err != nil || w.ExitStatus != 137 {
				t.Errorf("wait: %v, %v", w, err)
			}
			if _, err := f.Delete(t.Context(), &taskapi.DeleteRequest{ID: "a"}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCreateFails leaves nothing, and the id can be used again.
func TestCreateFails(t *testing.T) {
	leaktest.Check(t)
	f := newFixture(t)
	r := bundle(t, spec())
	f.starts = errors.New("no VM today")
	if _, err := f.Create(t.Context(), r); err == nil || !strings.Contains(err.Error(), "no VM today") {
		t.Errorf("without a VM: %v", err)
	}
	if f.m.ends != 0 {
		t.Error("a VM that was not started was ended")
	}
	f.starts = nil
	f.m.fake.FailNth(1, vmmtest.RefuseFirst)
	if _, err := f.Create(t.Context(), r); err == nil {
		t.Error("a root that was not mounted is no error")
	}
	if f.m.ends != 1 {
		t.Errorf("the VM was ended %d times, want once", f.m.ends)
	}
	f.m = newMachine(t)
	if _, err := f.Create(t.Context(), r); err != nil {
		t.Error(err)
	}
	if _, err := f.Create(t.Context(), r); !is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("created twice: %v", err)
	}
	if err := f.Close(t.Context()); err != nil || f.m.ends != 1 {
		t.Errorf("close: %v, the VM was ended %d times", err, f.m.ends)
	}
}

// TestCreateRefused names what is not supported, by a class that containerd does not take for an older protocol.
func TestCreateRefused(t *testing.T) {
	type request = taskapi.CreateTaskRequest
	limit, mask := int64(4<<30), uint32(0o7777)
	for want, change := range map[string]func(*request, *specs.Spec){
		"checkpoint":          func(r *request, _ *specs.Spec) { r.Checkpoint = "/c" },
		"runc.v1.Options":     func(r *request, _ *specs.Spec) { r.Options = &anypb.Any{TypeUrl: "runc.v1.Options"} },
		"type \"zfs\"":        func(r *request, _ *specs.Spec) { r.Rootfs = []*types.Mount{{Type: "zfs"}} },
		"binary://":           func(r *request, _ *specs.Spec) { r.Stdout = "syslog:///x" },
		"network namespace":   func(_ *request, s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:4] },
		"linux.namespaces[0]": func(_ *request, s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/1/ns/pid" },
		"hooks": func(_ *request, s *specs.Spec) {
			s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/h"}}}
		},
		"io.stratavm.cpus":   func(_ *request, s *specs.Spec) { s.Annotations = map[string]string{cpusAnnotation: "0"} },
		"process.user.umask": func(_ *request, s *specs.Spec) { s.Process.User.Umask = &mask },
		"mounts[0]: /x: source": func(_ *request, s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/x", Type: "bind", Source: "/none/such", Options: []string{"bind"}}}
		},
		"linux.devices[1]": func(_ *request, s *specs.Spec) { // 8:0 is a disk of the VM there
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/n", Type: "c", Major: 1, Minor: 3},
				{Path: "/dev/sda", Type: "b", Major: 8}}
		},
		"memory.limit is 4096": func(_ *request, s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
			s.Annotations = map[string]string{memoryAnnotation: "512"}
		},
	} {
		f := newFixture(t)
		s := spec()
		r := &taskapi.CreateTaskRequest{}
		change(r, s)
		b := bundle(t, s)
		r.ID, r.Bundle = "a", b.Bundle
		if _, err := f.Create(t.Context(), r); !strings.Contains(err.Error(), want) || is(err, errdefs.ErrNotImplemented) ||
			f.sizes.Dir != "" {
			t.Errorf("want an error with %q before a VM is started: %v", want, err)
		}
	}
}

// TestDocument: unknown fields, and data after the JSON value, are refused.
func TestDocument(t *testing.T) {
	f := newFixture(t)
	r := bundle(t, spec())
	for text, want := range map[string]string{
		`{"ociVersion":"1.3.0","novel":{}}`:                   "novel",
		`{"ociVersion":"1.3.0","process":{}} {}`:              "after the end",
		`{"ociVersion":"1.3.0"} x`:                            "after the end",
		`{"ociVersion":"1.3.0"}` + strings.Repeat(" ", 4<<20): "larger",
	} {
		if err := os.WriteFile(r.Bundle+"/config.json", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Create(t.Context(), r); !is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want an error with %q", text, err, want)
		}
	}
}

// TestOwnGroups: a container that may write to control groups has those of its own only, where the host asks for no
// namespace, too.
func TestOwnGroups(t *testing.T) {
	s := spec()
	s.Mounts = []specs.Mount{{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"rw"}}}
	for range 2 {
		d, err := readDocument(bundle(t, s).Bundle)
		if err != nil {
			t.Fatal(err)
		}
		own := 0
		for _, n := range d.spec.Linux.Namespaces {
			if n.Type == specs.CgroupNamespace {
				own++
			}
		}
		if own != 1 {
			t.Errorf("the container has %d cgroup namespaces, want one: %v", own, d.spec.Linux.Namespaces)
		}
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
}

// TestSize gives the VM room for the container.
func TestSize(t *testing.T) {
	limit, quota, period := int64(1<<30), int64(350000), uint64(100000)
	big := spec()
	big.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit},
		CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}
	said := spec()
	said.Annotations = map[string]string{memoryAnnotation: "777", cpusAnnotation: "3"}
	for _, tt := range []struct {
		spec            *specs.Spec
		memoryMiB, cpus int
	}{{spec(), 512, 0}, {big, 1024 + 32 + guestMiB, 4}, {said, 777, 3}} {
		f := newFixture(t)
		if _, err := f.Create(t.Context(), bundle(t, tt.spec)); err != nil {
			t.Fatal(err)
		}
		if f.sizes.MemoryMiB != tt.memoryMiB || f.sizes.CPUs != tt.cpus {
			t.Errorf("%d MiB and %d processors, want %d and %d", f.sizes.MemoryMiB, f.sizes.CPUs, tt.memoryMiB, tt.cpus)
		}
	}
}

// TestNamespace: the VM's process is in the network namespace that the document names, which the guest does not see.
func TestNamespace(t *testing.T) {
	f := newFixture(t)
	s := spec()
	s.Linux.Namespaces[4].Path = "/run/netns/a"
	if _, err := f.Create(t.Context(), bundle(t, s)); err != nil || f.sizes.Namespace != "/run/netns/a" {
		t.Errorf("the VM is started by %+v, %v", f.sizes, err)
	}
	if _, err := f.Service.Start(t.Context(), &taskapi.StartRequest{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	if ns := f.m.program(0).spec.Spec.Linux.Namespaces[4]; ns.Path != "" {
		t.Errorf("the guest's namespace is %+v", ns)
	}
}

// TestNeverStarted can be killed and deleted.
func TestNeverStarted(t *testing.T) {
	leaktest.Check(t)
	f := made(t)
	if s := f.state(""); s != task.Status_CREATED {
		t.Errorf("the container is %v", s)
	}
	f.m.connects = vmm.ErrNotExecutable
	if _, err := f.Start(t.Context(), &taskapi.StartRequest{ID: "a"}); err == nil || !strings.Contains(err.Error(),
		vmm.ErrNotExecutable.Error()) {
		t.Errorf("start without its network: %v", err)
	}
	f.m.connects, f.m.execs = nil, vmm.ErrProgramNotFound
	if _, err := f.Start(t.Context(), &taskapi.StartRequest{ID: "a"}); err == nil || !strings.Contains(err.Error(),
		"/bin/sh") || f.state("") != task.Status_CREATED {
		t.Errorf("start: %v", err)
	}
	if _, err := f.Kill(t.Context(), &taskapi.KillRequest{ID: "a", Signal: 1}); !is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("HUP before the start: %v", err)
	}
	if _, err := f.Kill(t.Context(), &taskapi.KillRequest{ID: "a", Signal: 9}); err != nil {
		t.Error(err)
	}
	if d, err := f.Delete(t.Context(), &taskapi.DeleteRequest{ID: "a"}); err != nil || d.ExitStatus != 137 {
		t.Errorf("delete: %v, %v", d, err)
	}
	want := []any{"create", [3]any{"exit", "a", uint32(137)}, [2]any{"delete", uint32(137)}}
	if got := f.published(); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}
