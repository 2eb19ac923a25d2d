package task

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/test/leaktest"
)

// podSpec is the document of a container of the pod that begins with the container a.
func podSpec(kind string) *specs.Spec {
	s := spec()
	s.Annotations = map[string]string{"io.kubernetes.cri.sandbox-id": "a", "io.kubernetes.cri.container-type": kind}
	return s
}

// memberSpec is that of one beside it, which has the namespaces that the pod shares.
func memberSpec() *specs.Spec {
	s := podSpec("container")
	for i, kind := range []string{"pid", "ipc", "uts"} {
		s.Linux.Namespaces[i].Path = "/proc/4711/ns/" + kind
	}
	s.Linux.Namespaces[4].Path = "/run/netns/pod"
	return s
}

// member creates a container b in the pod.
func (f *fixture) member(change func(*specs.Spec)) error {
	f.t.Helper()
	s := memberSpec()
	if change != nil {
		change(s)
	}
	r := bundle(f.t, s)
	r.ID = "b"
	_, err := f.Create(f.t.Context(), r)
	return err
}

// runningPod is a fixture with a pod of the containers a and b, which run.
func runningPod(t *testing.T) *fixture {
	t.Helper()
	f := newFixture(t)
	if _, err := f.Create(t.Context(), bundle(t, podSpec("sandbox"))); err != nil {
		t.Fatal(err)
	}
	if err := f.member(nil); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b"} {
		if _, err := f.Service.Start(t.Context(), &taskapi.StartRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// TestCgroup: the bundle of each container of a pod says which control group was made for the VM, and of one that was
// there before none does.
func TestCgroup(t *testing.T) {
	for _, group := range []string{"/strata-test/none", "/"} {
		f := newFixture(t)
		s := podSpec("sandbox")
		s.Linux.CgroupsPath = group
		first, second := bundle(t, s), bundle(t, memberSpec())
		second.ID = "b"
		for _, r := range []*taskapi.CreateTaskRequest{first, second} {
			if _, err := f.Create(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if !f.sizes.Forward {
				t.Error("ports of the pod are not forwarded")
			}
			if got, err := ReadCgroup(r.Bundle); err != nil || got != map[bool]string{true: group}[group != "/"] {
				t.Errorf("of %s the bundle of %s has %q, %v", group, r.ID, got, err)
			}
		}
	}
}

// TestPod: the containers of a pod are in one VM, which ends with the last of them.
func TestPod(t *testing.T) {
	leaktest.Check(t)
	f := newFixture(t)
	ctx := t.Context()
	if err := f.member(nil); !is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), "sandbox") {
		t.Errorf("a container without its sandbox: %v", err)
	}
	if _, err := f.Create(ctx, bundle(t, podSpec("sandbox"))); err != nil {
		t.Fatal(err)
	}
	if err := f.member(nil); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b"} {
		if _, err := f.Service.Start(ctx, &taskapi.StartRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	if f.vms != 1 || !slices.Equal(f.m.connected, []string{"a"}) {
		t.Errorf("%d VMs were started, and %q connected; want one, and the sandbox", f.vms, f.m.connected)
	}
	for i, ns := range f.m.program(1).spec.Spec.Linux.Namespaces {
		if own := i == 3 || ns.Type == specs.CgroupNamespace; own == (ns.Path == "container:a") {
			t.Errorf("the namespace %s of a member is %q", ns.Type, ns.Path)
		}
	}
	end := func(id string, program int) {
		t.Helper()
		f.m.program(program).exit(0, nil)
		if _, err := f.Wait(ctx, &taskapi.WaitRequest{ID: id}); err != nil {
			t.Error(err)
		}
		if _, err := f.Delete(ctx, &taskapi.DeleteRequest{ID: id}); err != nil {
			t.Error(err)
		}
	}
	end("b", 1)
	if f.m.ends != 0 || len(f.m.vm.Claims()) != 1 {
		t.Errorf("without the member: the VM has ended %d times, in it are %v", f.m.ends, f.m.vm.Claims())
	}
	if err := f.member(nil); err != nil {
		t.Errorf("another member: %v", err)
	}
	if _, err := f.Service.Start(ctx, &taskapi.StartRequest{ID: "b"}); err != nil {
		t.Fatal(err)
	}
	end("a", 0)
	if f.m.ends != 0 {
		t.Error("the VM has ended with a container in it")
	}
	end("b", 2)
	if f.m.ends != 1 {
		t.Errorf("the VM has ended %d times, want once", f.m.ends)
	}
}

// TestPodSize: the VM has room for all containers of the pod, and no member may have more.
func TestPodSize(t *testing.T) {
	f := newFixture(t)
	s := podSpec("sandbox")
	s.Annotations["io.kubernetes.cri.sandbox-memory"] = "1073741824"
	s.Annotations["io.kubernetes.cri.sandbox-cpu-quota"] = "350000"
	s.Annotations["io.kubernetes.cri.sandbox-cpu-period"] = "100000"
	if _, err := f.Create(t.Context(), bundle(t, s)); err != nil {
		t.Fatal(err)
	}
	if f.sizes.MemoryMiB != 1024+32+guestMiB || f.sizes.CPUs != 4 {
		t.Errorf("the VM is started by %+v", f.sizes)
	}
	limit := int64(2 << 30)
	err := f.member(func(s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	})
	if !is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "2048 MiB") {
		t.Errorf("a member with more memory than the VM: %v", err)
	}
	for name, change := range map[string]func(*specs.Spec){
		"names no sandbox":    func(s *specs.Spec) { delete(s.Annotations, "io.kubernetes.cri.sandbox-id") },
		"sandbox-memory":      func(s *specs.Spec) { s.Annotations["io.kubernetes.cri.sandbox-memory"] = "much" },
		"linux.namespaces[3]": func(s *specs.Spec) { s.Linux.Namespaces[3].Path = "/proc/1/ns/mnt" },
		"host's network":      func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:4] },
	} {
		if err := f.member(change); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want an error with %q: %v", name, err)
		}
	}
}

// TestPodStaysWithItsOthers: KILL of one container that does not come through for a reason of the caller's, or because
// the container is being started, does not end the others.
func TestPodStaysWithItsOthers(t *testing.T) { synctest.Test(t, testPodStaysWithItsOthers) }

func testPodStaysWithItsOthers(t *testing.T) {
	f := newFixture(t)
	if _, err := f.Create(t.Context(), bundle(t, podSpec("sandbox"))); err != nil {
		t.Fatal(err)
	}
	if err := f.member(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Service.Start(t.Context(), &taskapi.StartRequest{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	f.m.beSilent(true)
	started := make(chan error, 1)
	go func() {
		_, err := f.Service.Start(t.Context(), &taskapi.StartRequest{ID: "b"})
		started <- err
	}()
	synctest.Wait()
	if _, err := f.Kill(t.Context(), &taskapi.KillRequest{ID: "b", Signal: 9}); !is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("kill of what is being started: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Kill(gone, &taskapi.KillRequest{ID: "a", Signal: 9}); err == nil {
		t.Error("killed by a caller who has gone")
	}
	if f.m.ends != 0 {
		t.Error("the VM of the pod was ended")
	}
	if err := <-started; err == nil {
		t.Error("started in a VM that does not answer")
	}
	f.m.beSilent(false)
	if err := f.Close(t.Context()); err != nil || f.m.ends != 1 {
		t.Errorf("close: %v, the VM was ended %d times", err, f.m.ends)
	}
}

// TestBusyPod: the others in a VM that does not answer at once are not ended by the end of one container.
func TestBusyPod(t *testing.T) {
	leaktest.Check(t)
	f := runningPod(t)
	f.m.beSilent(true)
	killed := make(chan error, 1)
	go func() {
		_, err := f.Kill(t.Context(), &taskapi.KillRequest{ID: "b", Signal: 9})
		killed <- err
	}()
	for asked := 0; asked == 0; time.Sleep(time.Millisecond) {
		f.m.mu.Lock()
		asked = f.m.asked
		f.m.mu.Unlock()
	}
	f.m.beSilent(false)
	if err := <-killed; err != nil {
		t.Error(err)
	}
	if w, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "b"}); err != nil || w.ExitStatus != 137 || f.m.ends != 0 {
		t.Errorf("%v, %v; the VM has ended %d times", w, err, f.m.ends)
	}
	f.exit()
}
