package procs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// Spawner starts processes and collects their exit codes. As PID 1 it also collects the orphans that
// the kernel gives it.
type Spawner struct {
	mu   sync.Mutex // held while forking, so that no exit is collected before it is awaited
	pids map[int]func(status syscall.WaitStatus, last bool)
	init bool // reap everything

	stuckTime time.Duration // how long a process may take to end that was killed; 0: waitTime

	// While children of others are expected:
	expecting int
	strays    map[int]stray // exits of those that were not adopted yet
	inspect   map[int]*bool // of adopted ones: whether they never executed a program, known before their exit is told
	subreaper bool          // this process was one before
	orphans   []string      // cgroups in which there may be some that nobody will await
}

// NewSpawner creates a spawner. With all it collects every child of this process, as PID 1 has to; the
// caller must not wait for children in any other way.
func NewSpawner(all bool) *Spawner {
	s := &Spawner{pids: map[int]func(syscall.WaitStatus, bool){}, init: all}
	if all {
		sig := make(chan os.Signal, 1)
		signal.Notify(sig, unix.SIGCHLD)
		go func() {
			for range sig {
				s.reap()
			}
		}()
	}
	return s
}

// start runs a program. exited is called once, must not block, and hears as last whether no child is
// left.
func (s *Spawner) start(path string, args []string, attr *syscall.ProcAttr, exited func(status syscall.WaitStatus,
	last bool)) (int, error) {
	s.mu.Lock()
	pid, err := syscall.ForkExec(path, args, attr)
	if err == nil {
		s.pids[pid] = exited
	}
	s.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", path, err)
	}
	if !s.init {
		go s.await(pid)
	}
	return pid, nil
}

func (s *Spawner) await(pid int) {
	var status syscall.WaitStatus
	for {
		s.look(pid)
		if _, err := syscall.Wait4(pid, &status, 0, nil); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	s.mu.Lock()
	exited := s.pids[pid]
	delete(s.pids, pid)
	last := len(s.pids) == 0
	s.mu.Unlock()
	exited(status, last)
}

// reap collects every child that has exited.
func (s *Spawner) reap() {
	type exit struct {
		f      func(syscall.WaitStatus, bool)
		status syscall.WaitStatus
	}
	var exits []exit
	s.mu.Lock()
	none := false
	for {
		var status syscall.WaitStatus
		which, noexec := -1, false
		if s.expecting+len(s.inspect) > 0 {
			dead, some := deadChild()
			if dead == 0 { // one that dies now has a signal of its own
				none = !some
				break
			}
			which, noexec = dead, neverExecuted(dead)
		}
		pid, err := syscall.Wait4(which, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		none = errors.Is(err, syscall.ECHILD)
		if err != nil || pid <= 0 {
			break
		}
		if f := s.pids[pid]; f != nil {
			exits = append(exits, exit{f, status})
			delete(s.pids, pid)
			if note := s.inspect[pid]; note != nil {
				*note = noexec
				delete(s.inspect, pid)
			}
		} else if s.expecting > 0 {
			s.keepStray(pid, stray{status, noexec})
		}
	}
	s.mu.Unlock()
	for i, e := range exits { // in order: the last must be heard last
		e.f(e.status, none && i == len(exits)-1)
	}
}

// signal sends a signal to a process that start returned and whose exit was not collected yet, so that
// it cannot hit another one with the same number.
func (s *Spawner) signal(pid int, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pids[pid] == nil {
		return gcsserver.ErrNotFound
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %d to process %d: %w", sig, pid, err)
	}
	return nil
}

// killed waits for the exit of a process that was killed. One that waits in the kernel for what does not come, as from
// a file system that nobody serves any more, does not end.
func (s *Spawner) killed(done <-chan syscall.WaitStatus) (st syscall.WaitStatus, err error) {
	limit := cmp.Or(s.stuckTime, waitTime)
	select {
	case st = <-done:
		return st, nil
	case <-time.After(limit):
		return st, fmt.Errorf("it has not ended %s after it was killed: it is stuck in the kernel", limit)
	}
}

// Run runs a program of the guest to its end, or until ctx ends, and returns its output, shortened, with
// an error.
func (s *Spawner) Run(ctx context.Context, path string, args ...string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		w.Close()
		return err
	}
	defer null.Close()
	done := make(chan syscall.WaitStatus, 1)
	pid, err := s.start(path, append([]string{path}, args...), &syscall.ProcAttr{Dir: "/",
		Env:   []string{"PATH=" + defaultPath},
		Files: []uintptr{null.Fd(), w.Fd(), w.Fd()}}, func(st syscall.WaitStatus, _ bool) { done <- st })
	w.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = s.signal(pid, syscall.SIGKILL) // it may just have ended
		_ = r.SetReadDeadline(time.Now())
	})
	defer stop()
	out := make([]byte, 0, 2048)
	buf := make([]byte, 2048)
	for {
		n, err := r.Read(buf)
		if room := cap(out) - len(out); room > 0 {
			out = append(out, buf[:min(n, room)]...)
		}
		if err != nil {
			break
		}
	}
	var st syscall.WaitStatus
	select {
	case st = <-done:
	case <-ctx.Done():
		if st, err = s.killed(done); err != nil {
			return fmt.Errorf("%s: %w: %w", path, err, context.Cause(ctx))
		}
	}
	code := exitCode(st)
	if code != 0 && ctx.Err() != nil {
		return fmt.Errorf("%s was ended: %w", path, context.Cause(ctx))
	}
	if code != 0 {
		return fmt.Errorf("%s ended with %d: %s", path, code, out)
	}
	return nil
}

// exitCode is the code as shells count it.
func exitCode(st syscall.WaitStatus) int {
	if st.Signaled() {
		return 128 + int(st.Signal())
	}
	return st.ExitStatus()
}
