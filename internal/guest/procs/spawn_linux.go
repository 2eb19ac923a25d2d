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

// Spawner starts processes and collects their exit status. As PID 1 it also reaps orphans.
type Spawner struct {
	mu   sync.Mutex // held during fork, so that no exit is reaped before pids has the process
	pids map[int]func(status syscall.WaitStatus, last bool)
	init bool // reap every child

	stuckTime time.Duration // how long a killed process may take to end; 0: waitTime

	// The following are in use while processes that others have started become children of this one, see expect.
	expecting int           // calls of expect without release
	strays    map[int]stray // exits of processes that were not adopted yet
	inspect   map[int]*bool // by adopted process: set, before its exit is reported, to whether it executed no program
	subreaper bool          // this process was a subreaper before
	orphans   []string      // control groups that may have processes that nobody will adopt
}

// NewSpawner returns a spawner. With all it reaps every child of this process, as PID 1 must; the caller must not wait
// for children in any other way.
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

// start starts a program and returns its PID. When it has ended, exited is called once; it must not block. last is
// whether no child is left.
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
			if dead == 0 { // a later exit sends another SIGCHLD
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
	for i, e := range exits { // in order, because last must be reported last
		e.f(e.status, none && i == len(exits)-1)
	}
}

// signal sends a signal to a process that was started or adopted. If its exit was collected it returns an error, so
// that a reused PID is never hit.
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

// killed waits for the exit of a process that was killed. It gives up after stuckTime: a process that is blocked in the
// kernel, such as on a file system whose server is gone, does not end.
func (s *Spawner) killed(done <-chan syscall.WaitStatus) (st syscall.WaitStatus, err error) {
	limit := cmp.Or(s.stuckTime, waitTime)
	select {
	case st = <-done:
		return st, nil
	case <-time.After(limit):
		return st, fmt.Errorf("it has not ended %s after it was killed: it is stuck in the kernel", limit)
	}
}

// Run runs a program to its end and kills it if ctx ends. An error includes the beginning of the program's output.
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

// exitCode returns the exit code as a shell does: 128 plus the signal for a killed process.
func exitCode(st syscall.WaitStatus) int {
	if st.Signaled() {
		return 128 + int(st.Signal())
	}
	return st.ExitStatus()
}
