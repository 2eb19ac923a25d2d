package task

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/shim/internal/pod"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/uvm"
)

// TestNobodyReads ends a container whose output nobody reads: by itself, or because its VM loses what it needs.
func TestNobodyReads(t *testing.T) {
	for name, tt := range map[string]struct {
		unread time.Duration
		end    func(*fixture)
		code   uint32
	}{
		"exit":    {time.Millisecond, func(f *fixture) { f.m.program(1).exit(3, nil); f.m.program(0).exit(3, nil) }, 3},
		"a share": {time.Hour, func(f *fixture) { f.m.lost <- errors.New("virtiofsd has ended") }, 137},
	} {
		t.Run(name, func(t *testing.T) {
			leaktest.Check(t)
			f := newFixture(t)
			f.m.burst = 1 << 20
			r := bundle(t, spec())
			if _, err := f.Create(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			c := f.containers["a"]
			if err := f.addTo("e", r.Stderr, nil); err != nil {
				t.Fatal(err)
			}
			for id, p := range map[string]*process{"": c.init, "e": c.execs["e"]} {
				p.unread = tt.unread
				defer func() {
					if w, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "a", ExecID: id}); err != nil ||
						w.ExitStatus != tt.code {
						t.Errorf("wait %q: %v, %v", id, w, err)
					}
				}()
			}
			for _, id := range []string{"", "e"} {
				if _, err := f.Start(t.Context(), &taskapi.StartRequest{ID: "a", ExecID: id}); err != nil {
					t.Fatal(err)
				}
			}
			tt.end(f)
		})
	}
}

// slow is a fixture, in a bubble of time of its own, with a container with a terminal whose program begins when
// m.begin is closed. started is what its start says.
func slow(t *testing.T, test func(f *fixture, started <-chan error)) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.m.begin = make(chan struct{})
		s := spec()
		s.Process.Terminal = true
		r := bundle(t, s)
		r.Terminal = true
		if _, err := f.Create(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		started := make(chan error, 1)
		go func() {
			_, err := f.Start(t.Context(), &taskapi.StartRequest{ID: "a"})
			started <- err
		}()
		synctest.Wait()
		test(f, started)
	})
}

// TestDeleteWhileStarting waits for the start, and then the container runs.
func TestDeleteWhileStarting(t *testing.T) {
	slow(t, func(f *fixture, started <-chan error) {
		deleted := make(chan error, 1)
		go func() {
			_, err := f.Delete(f.t.Context(), &taskapi.DeleteRequest{ID: "a"})
			deleted <- err
		}()
		synctest.Wait()
		close(f.m.begin)
		if err := <-started; err != nil {
			f.t.Errorf("start: %v", err)
		}
		if err := <-deleted; !is(err, errdefs.ErrFailedPrecondition) || f.state("") != task.Status_RUNNING {
			f.t.Errorf("delete: %v", err)
		}
		f.exit()
	})
}

// TestResizeWhileStarting tells the program the size of its terminal when it has begun.
func TestResizeWhileStarting(t *testing.T) {
	slow(t, func(f *fixture, started <-chan error) {
		if _, err := f.ResizePty(f.t.Context(), &taskapi.ResizePtyRequest{ID: "a", Width: 91, Height: 33}); err != nil {
			f.t.Error(err)
		}
		close(f.m.begin)
		if err := <-started; err != nil {
			f.t.Fatal(err)
		}
		if p := f.m.program(0); p.width != 91 || p.height != 33 {
			f.t.Errorf("the terminal has %d times %d characters", p.width, p.height)
		}
		f.exit()
	})
}

// TestKillWhileStarting waits for a start that takes its time, and the VM is not ended.
func TestKillWhileStarting(t *testing.T) {
	slow(t, func(f *fixture, started <-chan error) {
		go func() {
			time.Sleep(startTimeout / 2)
			close(f.m.begin)
		}()
		if _, err := f.Kill(f.t.Context(), &taskapi.KillRequest{ID: "a", Signal: 9}); err != nil || f.m.ends != 0 {
			f.t.Errorf("kill: %v, the VM was ended %d times", err, f.m.ends)
		}
		if err := <-started; err != nil {
			f.t.Error(err)
		}
		if w, err := f.Wait(f.t.Context(), &taskapi.WaitRequest{ID: "a"}); err != nil || w.ExitStatus != 137 {
			f.t.Errorf("wait: %v, %v", w, err)
		}
	})
}

// TestSilentGuest keeps nobody for ever, nor who asks for something else meanwhile.
func TestSilentGuest(t *testing.T) {
	slow(t, func(f *fixture, started <-chan error) {
		close(f.m.begin)
		if err := <-started; err != nil {
			f.t.Fatal(err)
		}
		if err := f.add("e", nil); err != nil {
			f.t.Fatal(err)
		}
		ctx := f.t.Context()
		if _, err := f.Start(ctx, &taskapi.StartRequest{ID: "a", ExecID: "e"}); err != nil {
			f.t.Fatal(err)
		}
		f.m.beSilent(true)
		for name, call := range map[string]func() (*emptypb.Empty, error){
			"kill": func() (*emptypb.Empty, error) {
				return f.Kill(ctx, &taskapi.KillRequest{ID: "a", Signal: 15, All: true})
			},
			"resize": func() (*emptypb.Empty, error) { return f.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: "a"}) },
			"stats": func() (*emptypb.Empty, error) {
				_, err := f.Stats(ctx, &taskapi.StatsRequest{ID: "a"})
				return empty, err
			},
		} {
			answered := make(chan error, 1)
			go func() {
				_, err := call()
				answered <- err
			}()
			for range 3 { // between all that is asked of the guest
				time.Sleep(signalTimeout * 2 / 3)
				if s := f.state("e"); s != task.Status_RUNNING {
					f.t.Errorf("%s: the other process is %v", name, s)
				}
			}
			if err := <-answered; err == nil {
				f.t.Errorf("%s: no error of a guest that does not answer", name)
			}
		}
		f.m.program(1).exit(0, nil)
		f.exit()
	})
}

// TestDeleteNeverStarted ends what waits, and is told as a deletion only.
func TestDeleteNeverStarted(t *testing.T) {
	leaktest.Check(t)
	f := made(t)
	ctx := t.Context()
	p := f.containers["a"].init
	answers := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := f.Delete(ctx, &taskapi.DeleteRequest{ID: "a"})
			answers <- err
		}()
	}
	if one, other := <-answers, <-answers; (one == nil) == (other == nil) ||
		!is(errors.Join(one, other), errdefs.ErrNotFound) {
		t.Errorf("deleted twice: %v, and %v", one, other)
	}
	<-p.done
	if err := p.start(ctx, f.m.Exec); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("started after it was deleted: %v", err)
	}
	if got, want := f.published(), []any{"create", [2]any{"delete", uint32(137)}}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

// TestSilentStart fails when the guest does not answer, and the container can be killed and deleted then.
func TestSilentStart(t *testing.T) { synctest.Test(t, testSilentStart) }

func testSilentStart(t *testing.T) {
	f := newFixture(t)
	if _, err := f.Create(t.Context(), bundle(t, spec())); err != nil {
		t.Fatal(err)
	}
	f.m.beSilent(true)
	if _, err := f.Start(t.Context(), &taskapi.StartRequest{ID: "a"}); !is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), uvm.ErrNoAnswer.Error()) {
		t.Errorf("start: %v", err)
	}
	if _, err := f.Kill(t.Context(), &taskapi.KillRequest{ID: "a", Signal: 9, All: true}); err != nil {
		t.Error(err)
	}
	if d, err := f.Delete(t.Context(), &taskapi.DeleteRequest{ID: "a"}); err != nil || d.ExitStatus != 137 {
		t.Errorf("delete: %v, %v", d, err)
	}
}

// TestShutdownWhileCreating: a shim that is told to end while a container is created, which fails then, ends.
func TestShutdownWhileCreating(t *testing.T) {
	f := newFixture(t)
	asked, starting := make(chan struct{}), make(chan struct{})
	f.StartVM = func(ctx context.Context, _ pod.Options) (Machine, error) {
		close(starting)
		<-asked
		return nil, errors.New("nobody wants it")
	}
	go func() {
		<-starting
		if _, err := f.Shutdown(t.Context(), &taskapi.ShutdownRequest{ID: "a"}); err != nil || f.ended {
			t.Errorf("shutdown: %v, ended: %v", err, f.ended)
		}
		close(asked)
	}()
	if _, err := f.Create(t.Context(), bundle(t, spec())); err == nil || !f.ended {
		t.Errorf("create: %v, the shim has ended: %v", err, f.ended)
	}
}

// TestCreatedForNobody: a container of which nobody hears any more is not kept.
func TestCreatedForNobody(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	start := f.StartVM
	f.StartVM = func(ctx context.Context, o pod.Options) (Machine, error) {
		m, err := start(ctx, o)
		return impatient{m, cancel}, err
	}
	if _, err := f.Create(ctx, bundle(t, spec())); !is(err, context.Canceled) || f.m.ends != 1 {
		t.Errorf("create: %v, the VM was ended %d times", err, f.m.ends)
	}
}

// impatient is a machine whose user goes away when the root is mounted.
type impatient struct {
	Machine
	leave func()
}

func (m impatient) Mount(ctx context.Context, r layers.Request) (*layers.Mounted, error) {
	mounted, err := m.Machine.Mount(ctx, r)
	m.leave()
	return mounted, err
}

// TestLostAtStart: the start fails at once when the root is not served any more.
func TestLostAtStart(t *testing.T) { synctest.Test(t, testLostAtStart) }

func testLostAtStart(t *testing.T) {
	f := newFixture(t)
	if _, err := f.Create(t.Context(), bundle(t, spec())); err != nil {
		t.Fatal(err)
	}
	f.m.beSilent(true)
	f.m.lost <- errors.New("virtiofsd has ended")
	begun := time.Now()
	_, err := f.Start(t.Context(), &taskapi.StartRequest{ID: "a"})
	if err == nil || !strings.Contains(err.Error(), "virtiofsd has ended") || time.Since(begun) > 0 {
		t.Errorf("start: %v after %v", err, time.Since(begun))
	}
	if _, err := f.Delete(t.Context(), &taskapi.DeleteRequest{ID: "a"}); err != nil {
		t.Errorf("delete: %v", err)
	}
}

// TestOutOfMemory is told before the exit.
func TestOutOfMemory(t *testing.T) {
	f := running(t)
	p := f.m.program(0)
	p.mu.Lock()
	p.memory = true
	p.mu.Unlock()
	p.exit(137, nil)
	if _, err := f.Wait(t.Context(), &taskapi.WaitRequest{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	want := []any{"create", "start", "out of memory", [3]any{"exit", "a", uint32(137)}}
	if got := f.published(); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

// TestUnmounting leaves time for the end of the VM.
func TestUnmounting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if d := unmountLimit(t.Context()); d != unmountTimeout {
			t.Errorf("%v without a deadline", d)
		}
		limits := map[time.Duration]time.Duration{time.Hour: unmountTimeout, 4 * time.Second: 2 * time.Second}
		for left, want := range limits {
			limited, cancel := context.WithTimeout(t.Context(), left)
			if d := unmountLimit(limited); d != want {
				t.Errorf("%v of %v, want %v", d, left, want)
			}
			cancel()
		}
	})
}
