package procs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/crun"
)

// Run implements crun.Starter.
func (r starter) Run(ctx context.Context, c crun.Command) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, context.Cause(ctx)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Dir: c.Dir, Env: c.Env, Sys: &syscall.SysProcAttr{Setsid: true}}
	for _, f := range c.Stdio {
		if f == nil {
			f = null
		}
		attr.Files = append(attr.Files, f.Fd())
	}
	for _, f := range c.Extra {
		attr.Files = append(attr.Files, f.Fd())
	}
	defer r.s.expect()() // its helpers are children of this process once it has ended
	done := make(chan syscall.WaitStatus, 1)
	var pid int
	start := func() error {
		pid, err = r.s.start(c.Path, append([]string{c.Path}, c.Args...), attr,
			func(st syscall.WaitStatus, _ bool) { done <- st })
		return err
	}
	if c.OwnUnified {
		group, err := unifiedGroup(c.Dir)
		if err != nil {
			return 0, err
		}
		defer group.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(group.Fd())
	}
	if c.HideUnified {
		err = withoutUnified(start)
	} else {
		err = start()
	}
	runtime.KeepAlive(c)
	if err != nil {
		return 0, err
	}
	var st syscall.WaitStatus
	select {
	case st = <-done:
	case <-ctx.Done():
		// Kill its process group, with its helpers; containers have their own.
		if err := unix.Kill(-pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return 0, fmt.Errorf("kill %s: %w", c.Path, err)
		}
		_, err := r.s.killed(done)
		r.s.reapHelpers(filepath.Base(c.Path), true)
		return 0, errors.Join(fmt.Errorf("it was killed, for it did not end: %w", context.Cause(ctx)), err)
	}
	r.s.reapHelpers(filepath.Base(c.Path), st != 0)
	if st.Signaled() {
		return 0, fmt.Errorf("it was killed by signal %d (%v)", st.Signal(), st.Signal())
	}
	return st.ExitStatus(), nil
}

// reapHelpers reaps the helpers of a runtime that has ended, which became children of this process and are about to
// end: forked processes that have executed no program and are not in another PID namespace, as containers are. If the
// runtime has failed, it may also have left a container's process that executed no program; the container has not ended
// before that is reaped.
func (s *Spawner) reapHelpers(name string, failed bool) {
	if s.init {
		return // everything is collected
	}
	own := namespaceDepth(os.Getpid())
	end := time.Now().Add(waitTime)
	for pause := 100 * time.Microsecond; time.Now().Before(end); pause = min(2*pause, 10*time.Millisecond) {
		living := false
		procs, _ := filepath.Glob("/proc/[0-9]*")
		for _, proc := range procs {
			pid, _ := strconv.Atoi(filepath.Base(proc))
			st, ok := readStat(pid)
			if !ok || st.parent != os.Getpid() || st.name != name || !st.noexec {
				continue
			}
			inside := namespaceDepth(pid) != own
			if inside && !failed {
				continue
			}
			if st.state != "Z" {
				living = true
				continue
			}
			s.mu.Lock()
			if s.pids[pid] == nil {
				var status syscall.WaitStatus
				got, _ := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
				if got == pid && inside { // another start may be about to adopt it
					s.keepStray(pid, stray{status, true})
				}
			}
			s.mu.Unlock()
		}
		if !living {
			return
		}
		time.Sleep(pause)
	}
}

// namespaceDepth returns how many nested PID namespaces a process is in, counted from this one, or 0 if unknown.
func namespaceDepth(pid int) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return len(strings.Fields(numbers))
		}
	}
	return 0
}

// processStat has fields of /proc/PID/stat.
type processStat struct {
	name, state string
	parent      int
	noexec      bool // it has executed no program since it was forked
}

// forkNoExec is the kernel's flag PF_FORKNOEXEC: forked but not executed a program.
const forkNoExec = 0x40

func readStat(pid int) (st processStat, ok bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if err != nil || open < 0 || end < open {
		return st, false
	}
	fields := strings.Fields(string(text[end+1:]))
	if len(fields) < 7 {
		return st, false
	}
	parent, err1 := strconv.Atoi(fields[1])
	flags, err2 := strconv.ParseUint(fields[6], 10, 64)
	return processStat{string(text[open+1 : end]), fields[0], parent, flags&forkNoExec != 0}, err1 == nil && err2 == nil
}

// starter implements crun.Starter by a Spawner, whose own Run has another signature.
type starter struct{ s *Spawner }

// Starter returns the spawner as what starts the runtime.
func (s *Spawner) Starter() crun.Starter { return starter{s} }

// NoSUIDDevExec are the mount flags nosuid, nodev and noexec.
const NoSUIDDevExec = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// unified is the cgroup v2 hierarchy of systems with both versions.
const unified = "/sys/fs/cgroup/unified"

// unifiedGroup opens the group in unified of the instance with directory dir, and creates it if it is missing.
func unifiedGroup(dir string) (*os.File, error) {
	path := unified + cgroupOf(dir)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return os.Open(path)
}

// groupTime bounds the wait for the last processes of a control group, which were killed or are exiting, to be gone.
const groupTime = time.Second

// removeGroup removes a control group and its descendants, which its container may have created. It tries until end; a
// group that is still busy then is left.
func removeGroup(path string, end time.Time) {
	var all []string
	_ = filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, path)
		}
		return nil
	})
	for _, dir := range slices.Backward(all) {
		for errors.Is(os.Remove(dir), unix.EBUSY) && time.Now().Before(end) {
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// withoutUnified calls start in a new mount namespace in which unified is hidden by an empty tmpfs. The namespace ends
// with the process that is started.
func withoutUnified(start func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		result <- func() error {
			own, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(own)
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("tmpfs", unified, "tmpfs", NoSUIDDevExec, "size=64k"); err != nil {
				return err
			}
			// Back, so that the copies of all mounts end with the started process, not with this thread.
			return errors.Join(start(), unix.Setns(own, unix.CLONE_NEWNS))
		}()
	}()
	return <-result
}

// expect prepares for processes that become children of this one when their parent ends, such as those of containers,
// which the runtime starts. Until release is called, this process is a subreaper and keeps their exits for adopt.
func (s *Spawner) expect() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expecting++; s.expecting == 1 && !s.init {
		var was int32
		err := unix.Prctl(unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&was)), 0, 0, 0)
		s.subreaper = err == nil && was != 0
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) // if it fails, so does adopt
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.expecting--; s.expecting > 0 {
			return
		}
		s.strays = nil
		if len(s.orphans) > 0 {
			s.endOrphans(s.orphans)
			s.orphans = nil
		}
		if !s.init && !s.subreaper {
			_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
		}
	}
}

// mayLeave records the control group of a failed start, whose process may run with an unknown PID. It is killed when
// nothing is expected any more.
func (s *Spawner) mayLeave(group string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orphans = append(s.orphans, group)
}

// endOrphans kills and reaps children that nobody waits for in control groups of these names: a container has not ended
// before they are reaped. The caller must hold s.mu, and none may be expected.
func (s *Spawner) endOrphans(groups []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		pid, _ := strconv.Atoi(filepath.Base(proc))
		st, ok := readStat(pid)
		if !ok || st.parent != os.Getpid() || s.pids[pid] != nil {
			continue
		}
		cgroup, _ := os.ReadFile(proc + "/cgroup")
		if !slices.ContainsFunc(groups, func(g string) bool { return bytes.Contains(cgroup, []byte(g)) }) {
			continue
		}
		_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
		s.pids[pid] = func(syscall.WaitStatus, bool) {}
		if !s.init {
			go s.await(pid)
		}
	}
}

// adopt calls exited, as start does, at the exit of a process that became or is about to become a child of this one. It
// must be called between expect and its release. Before it calls exited, it sets noexec to whether the process ended
// without having executed a program.
func (s *Spawner) adopt(ctx context.Context, pid int, noexec *bool, exited func(status syscall.WaitStatus,
	last bool)) error {
	if s.init {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.adoptStray(pid, noexec, exited) {
			s.note(pid, noexec, exited)
		}
		return nil
	}
	// It is no child of this process until its parent has ended.
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ECHILD) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("process %d: %w", pid, err)
		}
		s.mu.Lock()
		stray := s.adoptStray(pid, noexec, exited)
		s.mu.Unlock()
		if stray {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("process %d is not a child of this one: %w", pid, context.Cause(ctx))
		}
	}
	s.mu.Lock()
	s.note(pid, noexec, exited)
	s.mu.Unlock()
	go s.await(pid)
	return nil
}

// note records the callback and noexec of an adopted process. The caller must hold s.mu.
func (s *Spawner) note(pid int, noexec *bool, exited func(syscall.WaitStatus, bool)) {
	if s.inspect == nil {
		s.inspect = map[int]*bool{}
	}
	s.pids[pid], s.inspect[pid] = exited, noexec
}

// adoptStray reports the exit of a process that was reaped already; false if it was not. The caller must hold s.mu.
func (s *Spawner) adoptStray(pid int, noexec *bool, exited func(syscall.WaitStatus, bool)) bool {
	st, ok := s.strays[pid]
	if ok {
		delete(s.strays, pid)
		*noexec = st.noexec
		exited(st.status, false)
	}
	return ok
}

// keepStray keeps the exit of a process for adopt, until nothing is expected any more. The caller must hold s.mu.
func (s *Spawner) keepStray(pid int, st stray) {
	if s.strays == nil {
		s.strays = map[int]stray{}
	}
	s.strays[pid] = st
}

// stray is the exit of a child that was not adopted yet.
type stray struct {
	status syscall.WaitStatus
	noexec bool
}

// look waits until an adopted process has exited, and sets its noexec before the exit is reaped.
func (s *Spawner) look(pid int) {
	s.mu.Lock()
	note := s.inspect[pid]
	delete(s.inspect, pid)
	s.mu.Unlock()
	if note == nil {
		return
	}
	for errors.Is(unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	*note = neverExecuted(pid)
}

// deadChild returns a child that has exited and was not reaped yet, or 0, and whether there are children at all.
func deadChild() (pid int, some bool) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, !errors.Is(err, unix.ECHILD)
		}
		// si_pid follows three 32-bit numbers, aligned to 8 bytes.
		return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16))), true
	}
}

// neverExecuted reports whether a process was forked and has executed no program since.
func neverExecuted(pid int) bool {
	st, ok := readStat(pid)
	return ok && st.noexec
}
