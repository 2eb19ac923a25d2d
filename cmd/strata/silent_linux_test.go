package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
)

// silentVM creates a state directory with a VM called default whose QEMU lets everybody connect and never says
// a word, like one that is stopped by a signal: a process that does nothing, and sockets that nobody reads.
func silentVM(t *testing.T) (state string, qemu *exec.Cmd) {
	t.Helper()
	state = t.TempDir()
	dir := filepath.Join(state, "vms", "default")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"qmp.sock", "gcs.0.sock", "gcs.1.sock"} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	qemu = exec.Command("sleep", "1000")
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = qemu.Process.Kill() // a command may have done so
		_ = qemu.Wait()
		_ = qemu.Process.Release() // Wait does not when the command has collected its status
	})
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", qemu.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	for name, text := range map[string]string{
		"pid":          fmt.Sprintf("%d %s\n", qemu.Process.Pid, strings.Fields(rest)[19]),
		"machine.json": `{"id": "default", "memoryMiB": 256, "cpus": 1, "accel": "tcg", "execPorts": 1}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return state, qemu
}

// fullHost lets the QEMU of the VM in state say that the guest stands still, as the host's disk is full.
func fullHost(t *testing.T, state string) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(state, "vms", "default", "status.sock"))
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(state, "scratch.vhdx")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	answers := map[string]string{
		"query-status": `{"status": "io-error"}`,
		"query-block":  fmt.Sprintf(`[{"io-status": "nospace", "inserted": {"node-name": "n", "file": %q}}]`, disk),
	}
	var work sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		work.Wait()
	})
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			answerQMP(conn, answers)
		}
	})
}

// answerQMP is QEMU's side of a control connection until the other one closes it. What is not in answers returns
// nothing.
func answerQMP(conn net.Conn, answers map[string]string) {
	defer conn.Close()
	fmt.Fprintln(conn,
		`{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}`)
	for in := json.NewDecoder(conn); ; {
		var r struct {
			Execute string          `json:"execute"`
			ID      json.RawMessage `json:"id"`
		}
		if in.Decode(&r) != nil {
			return
		}
		answer := cmp.Or(answers[r.Execute], "{}")
		fmt.Fprintf(conn, "{\"return\": %s, \"id\": %s}\n", answer, cmp.Or(string(r.ID), "null"))
	}
}

// TestPausedIsShown: whoever lists VMs or containers sees that a VM waits for room on the host, and for which disk.
func TestPausedIsShown(t *testing.T) {
	leaktest.Check(t)
	state, _ := silentVM(t)
	fullHost(t, state)
	for _, tt := range []struct {
		args []string
		want string // besides the disk, which vm ls has no room for
	}{
		{[]string{"ls"}, `VM "default" is paused: the host's disk is full`},
		{[]string{"vm", "inspect"}, "the host's disk is full"},
		{[]string{"vm", "ls"}, "paused"},
	} {
		var out bytes.Buffer
		e := &env{stdin: strings.NewReader(""), stdout: &out, stderr: &out, getenv: os.Getenv, lookupEnv: os.LookupEnv,
			silence: time.Minute, grace: grace}
		code := e.run(t.Context(), append([]string{"strata", "--state-dir", state}, tt.args...))
		said := out.String()
		if code != 0 || !strings.Contains(said, tt.want) || tt.want != "paused" && !strings.Contains(said, "scratch.vhdx") {
			t.Errorf("strata %q: exit code %d, %s", tt.args, code, said)
		}
	}
}

// layerFolder creates what looks like a layer until it is read.
func layerFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "layer.erofs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestSilentVM: no command waits for ever for a VM that says nothing, and stop ends it.
func TestSilentVM(t *testing.T) {
	leaktest.Check(t)
	state, qemu := silentVM(t)
	layer := layerFolder(t)
	run := func(silence time.Duration, args ...string) (code int, said string) {
		var out bytes.Buffer
		e := &env{stdin: strings.NewReader(""), stdout: &out, stderr: &out, getenv: os.Getenv, lookupEnv: os.LookupEnv,
			silence: silence, grace: grace}
		code = e.run(t.Context(), append([]string{"strata", "--state-dir", state}, args...))
		return code, out.String()
	}
	for _, args := range [][]string{{"mount", "web", layer}, {"unmount", "web"}, {"recover"}, {"exec", "--in-vm", "true"},
		{"run", "--vm", "default", layer, "--", "true"}} {
		start := time.Now()
		code, said := run(50*time.Millisecond, args...)
		t.Log(args, time.Since(start))
		if code == 0 || !strings.Contains(said, "does not answer for 50ms; end it with: strata vm stop --force default") {
			t.Errorf("strata %q: exit code %d, %s", args, code, said)
		}
	}
	// Longer than commands wait for each other, which nobody does here.
	if _, said := run(patience*3/2, "unmount", "web"); strings.Contains(said, "another command") {
		t.Errorf("there is no other command: %s", said)
	}
	code, said := run(time.Hour, "vm", "stop", "--timeout", "50ms")
	if code != 0 || !strings.Contains(said, "default: stopped") {
		t.Errorf("stop: exit code %d, %s", code, said)
	}
	_ = qemu.Wait() // it has ended, or this takes very long
	if exists(filepath.Join(state, "vms", "default")) {
		t.Error("the state of the VM is left")
	}
}

// TestDyingVM: a VM whose connections have broken and whose process is about to go has ended, for who comes to run a
// program and for who runs one; one that lives on has not.
func TestDyingVM(t *testing.T) {
	leaktest.Check(t)
	var out bytes.Buffer
	for _, dies := range []bool{true, false} {
		e := &env{stdin: strings.NewReader(""), stdout: &out, stderr: &out, getenv: os.Getenv, lookupEnv: os.LookupEnv,
			silence: time.Minute, grace: time.Minute}
		end := func(qemu *exec.Cmd) func() {
			if !dies {
				e.grace = 100 * time.Millisecond
				return func() {}
			}
			timer := time.AfterFunc(100*time.Millisecond, func() { _ = qemu.Process.Kill() }) // it runs
			return func() { timer.Stop() }
		}
		state, qemu := silentVM(t)
		dir := filepath.Join(state, "vms", "default")
		if err := os.Remove(filepath.Join(dir, "gcs.1.sock")); err != nil {
			t.Fatal(err)
		}
		out.Reset()
		stop := end(qemu)
		code := e.run(t.Context(), []string{"strata", "--state-dir", state, "exec", "--in-vm", "true"})
		stop()
		const gone = `VM "default" does not run any more`
		if said := out.String(); code != exitNotRun || strings.Contains(said, gone) != dies {
			t.Errorf("who comes, the VM dies: %t: exit code %d, %s", dies, code, said)
		}

		state, qemu = silentVM(t)
		stop = end(qemu)
		broke := &exitError{exitNotRun, fmt.Errorf("wait: %w", vmm.ErrGuestUnreachable)}
		err := e.explainEnd(t.Context(), filepath.Join(state, "vms", "default"), "default", broke)
		stop()
		const ended = `VM "default" has ended while the program ran: `
		if !errors.Is(err, vmm.ErrGuestUnreachable) || strings.Contains(err.Error(), ended) != dies {
			t.Errorf("who is there, the VM dies: %t: %v", dies, err)
		}
	}
}
