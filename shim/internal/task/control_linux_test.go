package task

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

// pause, resume and update are the calls of these names.
func (f *fixture) pause() error {
	_, err := f.Pause(f.t.Context(), &taskapi.PauseRequest{ID: "a"})
	return err
}

func (f *fixture) resume() error {
	_, err := f.Resume(f.t.Context(), &taskapi.ResumeRequest{ID: "a"})
	return err
}

func (f *fixture) update(limits *anypb.Any) error {
	_, err := f.Update(f.t.Context(), &taskapi.UpdateTaskRequest{ID: "a", Resources: limits})
	return err
}

// shows checks what state a process is said to be in.
func (f *fixture) shows(execID string, want task.Status) {
	f.t.Helper()
	s, err := f.State(f.t.Context(), &taskapi.StateRequest{ID: "a", ExecID: execID})
	if err != nil || s.Status != want {
		f.t.Errorf("process %q: %v, %v, want %v", execID, s.GetStatus(), err, want)
	}
}

// TestPause: a container and all its processes are shown as paused until it goes on; nothing is started in it
// meanwhile, and it can be killed.
func TestPause(t *testing.T) {
	f := made(t)
	if err := f.pause(); !is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("one that was not started was paused: %v", err)
	}
	start := func(id string) error {
		_, err := f.Service.Start(t.Context(), &taskapi.StartRequest{ID: "a", ExecID: id})
		return err
	}
	if err := start(""); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"runs", "waits"} {
		if err := f.add(id, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := start("runs"); err != nil {
		t.Fatal(err)
	}
	if err := f.resume(); !is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("one that is not paused: %v", err)
	}
	if err := f.pause(); err != nil {
		t.Fatal(err)
	}
	f.shows("", task.Status_PAUSED)
	f.shows("runs", task.Status_PAUSED)
	f.shows("waits", task.Status_CREATED)
	if err := f.pause(); !is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("paused twice: %v", err)
	}
	if err := start("waits"); !is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "paused") {
		t.Errorf("a program in one that is paused: %v", err)
	}
	if err := f.resume(); err != nil {
		t.Fatal(err)
	}
	f.shows("", task.Status_RUNNING)
	f.shows("runs", task.Status_RUNNING)
	if err := f.pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Kill(t.Context(), &taskapi.KillRequest{ID: "a", Signal: 9, All: true}); err != nil {
		t.Fatal(err)
	}
	if w, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "a"}); err != nil || int(w.ExitStatus) != killed {
		t.Errorf("killed: %v, %v", w, err)
	}
	f.shows("", task.Status_STOPPED)
	if err := f.pause(); !is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("one that has ended was paused: %v", err)
	}
	got := f.published()
	at := slices.Index(got, any("paused"))
	if at < 0 || len(got) < at+3 || got[at+1] != "resumed" || got[at+2] != "paused" {
		t.Errorf("events %v", got)
	}
}

// TestUpdate: limits come to the guest, and what cannot be is refused.
func TestUpdate(t *testing.T) {
	f := running(t)
	limits := func(memory int64) *anypb.Any {
		a, err := typeurl.MarshalAnyToProto(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if err := f.update(limits(64 << 20)); err != nil {
		t.Error(err)
	}
	if c, ok := f.m.fake.Container("a"); !ok || len(c.Updates) != 1 || *c.Updates[0].Memory.Limit != 64<<20 {
		t.Errorf("the guest has %+v, %t", c, ok)
	}
	// The VM has 512 MiB.
	if err := f.update(limits(513 << 20)); !is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(),
		"513 MiB") || !strings.Contains(err.Error(), "512 MiB") {
		t.Errorf("more than the VM has: %v", err)
	}
	for name, a := range map[string]*anypb.Any{
		"nothing": nil, "no document": {Value: []byte("x")}, "of another system": {Value: []byte(`{"storage":{}}`)},
	} {
		if err := f.update(a); !is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.exit()
	if err := f.update(limits(64 << 20)); !is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("one that has ended: %v", err)
	}
}

// TestSilentPause: a guest that does not answer keeps nobody for long, and the container can be killed.
func TestSilentPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := running(t)
		f.m.beSilent(true)
		for range 2 {
			if err := f.pause(); err == nil {
				t.Error("paused by a guest that does not answer")
			}
		}
		f.shows("", task.Status_RUNNING)
		if _, err := f.Kill(t.Context(), &taskapi.KillRequest{ID: "a", Signal: 9}); err != nil {
			t.Error(err)
		}
		if _, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "a"}); err != nil {
			t.Error(err)
		}
	})
}

// TestPeer: a container of a pod that is paused, and killed with all its processes, leaves the others as they are; so
// does a memory limit that is more than the VM of the pod has.
func TestPeer(t *testing.T) {
	f := runningPod(t)
	if err := f.add("beside", nil); err != nil { // in a
		t.Fatal(err)
	}
	if _, err := f.Pause(t.Context(), &taskapi.PauseRequest{ID: "b"}); err != nil {
		t.Fatal(err)
	}
	f.shows("", task.Status_RUNNING)
	if _, err := f.Service.Start(t.Context(), &taskapi.StartRequest{ID: "a", ExecID: "beside"}); err != nil {
		t.Errorf("a program beside a container that is paused: %v", err)
	}
	if _, err := f.Kill(t.Context(), &taskapi.KillRequest{ID: "b", Signal: 9, All: true}); err != nil {
		t.Error(err)
	}
	if w, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "b"}); err != nil || int(w.ExitStatus) != killed {
		t.Errorf("killed: %v, %v", w, err)
	}
	for i, want := range [][]int{nil, {9}, nil} {
		p := f.m.program(i)
		p.mu.Lock()
		if !slices.Equal(p.signals, want) {
			t.Errorf("program %d got the signals %v, want %v", i, p.signals, want)
		}
		p.mu.Unlock()
	}
	f.shows("", task.Status_RUNNING)
	limit := int64(4 << 30)
	a, err := typeurl.MarshalAnyToProto(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.update(a); !is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "512 MiB") {
		t.Errorf("more memory than the VM of the pod has: %v", err)
	}
}
