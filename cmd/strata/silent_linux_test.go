package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/test/leaktest"
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
