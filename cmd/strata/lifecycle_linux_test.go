package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/supervise"
	"github.com/stratavm/strata/test/leaktest"
)

// supervisor returns the process behind a container.
func (c cliBox) supervisor(name string) int {
	c.t.Helper()
	_, rest, _ := strings.Cut(c.run("inspect", name), `"supervisor": `)
	pid, err := strconv.Atoi(strings.FieldsFunc(rest+" ", func(r rune) bool { return r < '0' || r > '9' })[0])
	if err != nil {
		c.t.Fatal(err)
	}
	return pid
}

// holdings counts what the containers of a state directory hold on this system.
func (c cliBox) holdings() string {
	c.t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		c.t.Fatal(err)
	}
	files := 0
	if err := filepath.WalkDir(c.state, func(string, os.DirEntry, error) error { files++; return nil }); err != nil {
		c.t.Fatal(err)
	}
	procs, err := exec.Command("pgrep", "-c", "-f", c.state).Output() // which fails where there are none
	return fmt.Sprintf("%d mounts, %d files, %s processes (%v)", bytes.Count(mounts, []byte(c.state)), files,
		bytes.TrimSpace(procs), err)
}

// rest is what is held when the processes of containers that have ended are gone: their end is told a moment before.
func (c cliBox) rest(held func() string) (got string) {
	c.t.Helper()
	eventually(c.t, "no process is left", func() bool {
		got = held()
		return strings.Contains(got, " 0 processes")
	})
	return got
}

// TestManyStarts: a container that is started and stopped a hundred times holds no more than after the first time.
func TestManyStarts(t *testing.T) {
	c, root := processBox(t)
	t.Cleanup(func() { removeAll(t, c.state, c.strata) })
	c.run("run", "-d", "--isolation=process", "--name", "web", root, "/bin/busybox", "sleep", "1000")
	c.run("stop", "-t", "0", "web")
	stopped := c.rest(c.holdings)
	c.run("start", "web")
	running := c.holdings()
	for range 99 {
		c.run("stop", "-t", "0", "web")
		c.run("start", "web")
	}
	eventually(t, "as much is held as after the first start: "+running, func() bool {
		return c.holdings() == running
	})
	c.run("stop", "-t", "0", "web")
	if got := c.rest(c.holdings); got != stopped {
		t.Errorf("after 100 stops: %s, after the first %s", got, stopped)
	}
	c.run("rm", "web")
}

// TestManyClients: a hundred programs beside that of a container, and clients that were killed, leave nothing in its
// supervisor.
func TestManyClients(t *testing.T) {
	c, root := processBox(t)
	t.Cleanup(func() { removeAll(t, c.state, c.strata) })
	c.run("run", "-d", "-i", "--isolation=process", "--name", "web", root, "/bin/busybox", "sleep", "1000")
	pid := c.supervisor("web")
	fds := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	client := func(i int) {
		c.run("exec", "web", "/bin/busybox", "true")
		if i%10 > 0 {
			return
		}
		attached := c.cmd("attach", "web")
		in, err := attached.StdinPipe()
		if err == nil {
			err = attached.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		c.run("ps")
		_ = attached.Process.Kill()
		_ = attached.Wait()
		_ = in.Close()
	}
	client(0)
	before := fds()
	for i := range 100 {
		client(i)
	}
	eventually(t, "the supervisor has as many files open as before", func() bool { return fds() <= before })
	if got := c.run("ps"); !strings.Contains(got, "Up ") {
		t.Errorf("the container has ended: %s", got)
	}
	c.run("rm", "-f", "web")
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for until := time.Now().Add(deadline); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("it never is so: %s", what)
		}
	}
}

// killSupervisors kills the supervisors of a state directory, and returns how many there were.
func (c cliBox) killSupervisors() int {
	pids, _ := exec.Command("pgrep", "-f", "--", c.state+" run --supervise").Output() // it fails where there are none
	for _, pid := range strings.Fields(string(pids)) {
		c.signalPID(pid, syscall.SIGKILL)
		n, err := strconv.Atoi(pid)
		for err == nil && !leaktest.Ended(n) { // its lock is free when its last thread has ended
			time.Sleep(time.Millisecond)
		}
	}
	return len(strings.Fields(string(pids)))
}

// TestKilledSupervisors kills the supervisor, or the command that started it, at any moment: the next command leaves a
// container that has ended, or none, and nothing else.
func TestKilledSupervisors(t *testing.T) {
	c, root := processBox(t)
	t.Cleanup(func() { removeAll(t, c.state, c.strata) })
	c.run("run", "--isolation=process", root, "/bin/busybox", "true") // imports it
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for i := range 24 {
		args := []string{"run", "-d", "--isolation=process", "--name", "web", root, "/bin/busybox", "sleep", "1000"}
		again := i%3 == 2
		if again {
			c.run(args...)
			c.run("kill", "web")
			c.run("wait", "web")
			args = []string{"start", "web"}
		}
		cmd := c.cmd(args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rnd.IntN(300)) * time.Millisecond) // where it hits does not matter
		if i%2 == 0 {
			_ = cmd.Process.Kill()
		}
		c.killSupervisors()
		_ = cmd.Wait()
		eventually(t, "no supervisor lives", func() bool { return c.killSupervisors() == 0 })
		got := c.run("ps", "-a")
		if again && !strings.Contains(got, "Exited (") || strings.Contains(got, "Up ") || strings.Contains(got, "Created") {
			t.Errorf("round %d: %s", i, got)
		}
		// Where the state of this system itself was just being made it stays until something uses it.
		c.run("recover")
		if names := left(t, c.state); len(names) > 0 {
			t.Errorf("round %d: left: %v", i, names)
		}
		if strings.Contains(got, " web\n") {
			c.run("rm", "web")
		}
		entries, err := os.ReadDir(filepath.Join(c.state, "containers"))
		if err != nil && !os.IsNotExist(err) || len(entries) > 0 {
			t.Errorf("round %d: left: %v, %v", i, entries, err)
		}
	}
}

// TestFlood: a program that writes without end fills no disk, and is stopped all the same.
func TestFlood(t *testing.T) {
	c, root := processBox(t)
	t.Cleanup(func() { removeAll(t, c.state, c.strata) })
	c.run("run", "-d", "--isolation=process", "--name", "web", root, "/bin/busybox", "yes", strings.Repeat("x", 1000))
	old := filepath.Join(c.state, "containers", "web", "log.json.1")
	for range 2 { // and once more
		var first os.FileInfo
		eventually(t, "the log is rotated", func() bool {
			fi, err := os.Stat(old)
			if first == nil {
				first = fi
			}
			return err == nil && first != nil && !os.SameFile(first, fi)
		})
	}
	// Who attaches and does not read is in nobody's way.
	attached := c.cmd("attach", "web")
	r, err := attached.StdoutPipe()
	if err == nil {
		err = attached.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, r, 1<<16); err != nil {
		t.Error(err)
	}
	_ = attached.Process.Signal(syscall.SIGSTOP)
	if got := c.run("ps"); !strings.Contains(got, "Up ") {
		t.Errorf("it does not run: %s", got)
	}
	c.run("stop", "-t", "1", "web")
	_ = attached.Process.Kill()
	_ = attached.Wait()
	var sum int64
	for _, name := range []string{"log.json", "log.json.1"} {
		if fi, err := os.Stat(filepath.Join(c.state, "containers", "web", name)); err == nil {
			sum += fi.Size()
		}
	}
	if sum > 17<<20 {
		t.Errorf("the log has %d bytes", sum)
	}
	var n int
	if err := supervise.ReadLog(t.Context(), filepath.Join(c.state, "containers", "web"), supervise.LogOptions{Tail: 10},
		func(l supervise.Line) error { n += len(l.Log); return nil }); err != nil || n < 9*1000 {
		t.Errorf("%d bytes of the log's end, %v", n, err)
	}
	c.run("rm", "web")
}
