package procs

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/crun"
)

// freezer makes a cgroup whose processes do not end when they are killed, and a program that enters it.
func freezer(t *testing.T) (program string, begun func() bool) {
	t.Helper()
	const freezer = "/sys/fs/cgroup/freezer"
	if _, err := os.Stat(freezer); errors.Is(err, os.ErrNotExist) {
		t.Skip("with control groups of version 2 alone, what is frozen ends when it is killed")
	}
	dir, err := os.MkdirTemp(freezer, "strata-test")
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "freezer.state")
	t.Cleanup(func() {
		writeFile(t, state, "THAWED")
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if err := os.Remove(dir); err == nil || time.Now().After(end) {
				if err != nil {
					t.Error(err)
				}
				return
			}
		}
	})
	program = filepath.Join(t.TempDir(), "freeze")
	script := "#!/bin/sh\necho FROZEN >" + state + "; echo $$ >" + dir + "/tasks; exec sleep 1000\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return program, func() bool {
		text, err := os.ReadFile(dir + "/tasks")
		return err != nil || len(text) > 0
	}
}

// TestStuckProgram: a program that does not end when it is killed is not waited for.
func TestStuckProgram(t *testing.T) {
	if unix.Geteuid() != 0 {
		t.Skip("making a cgroup needs root")
	}
	for name, run := range map[string]func(*Spawner, context.Context, string) error{
		"runtime": func(s *Spawner, ctx context.Context, program string) error {
			_, err := s.Starter().Run(ctx, crun.Command{Path: program})
			return err
		},
		"helper": func(s *Spawner, ctx context.Context, program string) error { return s.Run(ctx, program) },
	} {
		t.Run(name, func(t *testing.T) {
			program, begun := freezer(t)
			s := NewSpawner(false)
			s.stuckTime = 10 * time.Millisecond
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- run(s, ctx, program) }()
			for !begun() && len(ended) == 0 {
				time.Sleep(time.Millisecond)
			}
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "stuck") {
				t.Errorf("it ends with %v", err)
			}
		})
	}
}

// TestOutputAfterExit: output ends with the process, also when what it has left writes on.
func TestOutputAfterExit(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	left := exec.Command("yes")
	left.Stdout = w
	if err := errors.Join(left.Start(), w.Close()); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = left.Process.Kill(), left.Wait() }()
	if _, err := r.Read(make([]byte, 1)); err != nil { // it writes
		t.Fatal(err)
	}
	here, there := net.Pipe()
	exited := make(chan struct{})
	close(exited)
	got := make(chan int)
	go func() {
		n := 0
		for b := make([]byte, 8<<10); n < 2*maxPipe; { // slower than what is written, until it is closed
			time.Sleep(time.Millisecond)
			m, err := there.Read(b)
			if n += m; err != nil {
				break
			}
		}
		got <- n
		there.Close()
	}()
	go relayOutput(here, r, exited)
	if n := <-got; n == 0 || n >= 2*maxPipe {
		t.Errorf("%d bytes came out", n)
	}
}

// TestOrphansOfOthers: after a start that failed only what is in its cgroup is ended, not other children of this process.
func TestOrphansOfOthers(t *testing.T) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, group, _ := strings.Cut(strings.TrimSpace(string(own)), "::") // which both children are in
	if group == "" {
		group = "/"
	}
	s := NewSpawner(false)
	start := func() *exec.Cmd {
		t.Helper()
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	other := start()
	release := s.expect()
	s.mayLeave("/strata-none-of-these")
	release()
	s.mu.Lock()
	if s.pids[other.Process.Pid] != nil {
		t.Error("a child of others is ended")
	}
	s.mu.Unlock()
	release = s.expect()
	s.mayLeave(group)
	release()
	if err := other.Wait(); err == nil {
		t.Error("it ended by itself")
	}
}
