package leaktest

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guardEnv makes a test binary the guard of another process. Its value is
// "FOLDER PID-OF-THE-TESTS PID-OF-GO-TEST".
const guardEnv = "STRATA_TEST_GUARD"

func init() {
	if job := os.Getenv(guardEnv); job != "" {
		os.Exit(guard(job))
	}
}

// startGuard creates the folder of this run and starts its guard. release waits until the guard has
// cleaned up; what it had to clean up after the tests is an error.
func startGuard() (release func() error, err error) {
	dir, err := os.MkdirTemp("", "st") // short: paths of sockets have 108 bytes
	if err != nil {
		return nil, err
	}
	// Tests in a user namespace have to reach what they are given below it by name.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	// The tests hold the writing end. It closes when they end, whatever ends them.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d", guardEnv, dir, os.Getpid(), os.Getppid()))
	cmd.Stdin, cmd.Dir = r, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C is not for it
	var found strings.Builder
	cmd.Stderr = &found
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if err := errors.Join(os.Setenv("TMPDIR", dir), os.Setenv(guardedEnv, "1")); err != nil {
		return nil, err
	}
	return func() error {
		if err := errors.Join(w.Close(), cmd.Wait()); err != nil {
			return fmt.Errorf("%w: %s", err, &found)
		}
		return nil
	}, nil
}

// guard waits for the end of the tests and cleans up after them.
func guard(job string) int {
	f := strings.Fields(job)
	if len(f) != 3 {
		fmt.Fprintf(os.Stderr, "%s=%q\n", guardEnv, job)
		return 2
	}
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE)
	dir := f[0]
	tests, err1 := strconv.Atoi(f[1])
	parent, err2 := strconv.Atoi(f[2])
	if err := errors.Join(err1, err2); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until the last writing end closes
		close(ended)
	}()
	for over := false; !over; {
		select {
		case <-ended:
			over = true
		case <-time.After(200 * time.Millisecond):
			if parentOf(tests) != parent { // "go test" is gone: nobody wants these tests any more
				_ = unix.Kill(tests, unix.SIGKILL)
			}
		}
	}
	left, err := cleanUp(dir)
	for _, l := range left {
		fmt.Fprintln(os.Stderr, "left behind by the tests:", l)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if len(left) > 0 || err != nil {
		return 1
	}
	return 0
}

func parentOf(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) < 2 {
		return 0
	}
	ppid, err := strconv.Atoi(f[1])
	if err != nil {
		return 0
	}
	return ppid
}

// cleanUp ends the programs that work below dir, unmounts and detaches what is there and removes dir. It
// returns what it found besides files, and an error when something cannot be taken away.
func cleanUp(dir string) (found []string, err error) {
	dirs := []string{dir}
	seen := map[string]bool{}
	note := func(kind string, m map[string]int) {
		for name := range maps.Keys(m) {
			if !seen[name] {
				seen[name] = true
				found = append(found, kind+" "+name)
			}
		}
	}
	begin := time.Now()
	for deadline := begin.Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		procs, perr := processes(dirs)
		points, merr := mounts(dirs)
		disks, lerr := loops(dirs)
		err = errors.Join(perr, merr, lerr)
		if time.Since(begin) > settle { // what is on its way out has gone
			note("process", procs)
			note("mount", points)
			note("loop device", disks)
			endAll(procs, points, disks)
		}
		if err == nil && len(procs)+len(points)+len(disks) == 0 {
			if err = os.RemoveAll(dir); err == nil {
				return found, nil
			}
		}
		if time.Now().After(deadline) {
			return found, fmt.Errorf("clean up below %s: %w", dir, errors.Join(err, errors.New("it does not end")))
		}
	}
}

func endAll(procs, points, disks map[string]int) {
	for name := range procs {
		if pid, err := strconv.Atoi(strings.Fields(name)[0]); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	// The deepest first: names of mounts on others are longer.
	for _, name := range slices.Backward(slices.SortedFunc(maps.Keys(points), byLength)) {
		point := name[:strings.LastIndex(name, " (")]
		_ = unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	for name := range disks {
		dev, err := os.Open(strings.Fields(name)[0])
		if err != nil {
			continue
		}
		_ = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0)
		_ = dev.Close()
	}
}

func byLength(a, b string) int { return len(a) - len(b) }
