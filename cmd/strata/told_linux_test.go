package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/test/leaktest"
)

// TestBootIsToldToEnd: a command that is told to end while its VM boots ends, and leaves no VM, wherever the boot is.
func TestBootIsToldToEnd(t *testing.T) {
	strata, tarball := bootimagetest.Strata(t), busyboxTar(t)
	needVM(t, strata)
	exists := func(name string) func(cliBox) bool {
		return func(c cliBox) bool { return exists(filepath.Join(c.state, "vms", "told", name)) }
	}
	for _, tt := range []struct {
		name string
		args []string
		sig  syscall.Signal
		when func(cliBox) bool
		more time.Duration // after when
		code int
	}{
		{"start, before QEMU runs", []string{"vm", "start", "told"}, syscall.SIGINT, exists("lock"), 0, 130},
		{"start, QEMU runs", []string{"vm", "start", "told"}, syscall.SIGTERM, exists("pid"), 0, 143},
		{"start, the kernel runs", []string{"vm", "start", "told"}, syscall.SIGINT, exists("qmp.sock"), 2 * time.Second, 130},
		{"run, QEMU runs", []string{"run", "--id", "told", tarball, "--", "/bin/busybox", "true"}, syscall.SIGINT,
			exists("pid"), 0, 130},
		{"run, the kernel runs", []string{"run", "--id", "told", tarball, "--", "/bin/busybox", "sleep", "1000"},
			syscall.SIGHUP,
			exists("qmp.sock"), 2 * time.Second, 129},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaktest.Check(t)
			c := cliBox{t: t, strata: strata, state: filepath.Join(t.TempDir(), "state")}
			t.Cleanup(func() { stopAll(t, c.state, c.strata) })
			cmd := c.cmd(tt.args...)
			var errs bytes.Buffer
			cmd.Stderr = &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for late := time.Now().Add(deadline); !tt.when(c) && time.Now().Before(late); {
				time.Sleep(5 * time.Millisecond)
			}
			time.Sleep(tt.more) // where it hits exactly does not matter
			c.tell(cmd, tt.sig, tt.code, &errs)
			if names := left(t, c.state); len(names) > 0 {
				t.Errorf("left: %v\n%s", names, errs.String())
			}
		})
	}
}

// tell sends a command a signal. It must end with a code, and long before it would by itself.
func (c cliBox) tell(cmd *exec.Cmd, sig syscall.Signal, code int, errs *bytes.Buffer) {
	c.t.Helper()
	if err := cmd.Process.Signal(sig); err != nil {
		c.t.Error(err)
	}
	told := time.Now()
	got := waitEnd(c.t, cmd)
	took := time.Since(told)
	c.t.Logf("%q: exit code %d after %v\n%s", cmd.Args[1:], got, took.Round(time.Millisecond), errs.String())
	if got != code || took >= silence {
		c.t.Errorf("%q: exit code %d after %v, want %d", cmd.Args[1:], got, took, code)
	}
}

// TestStoppedVMIsToldToEnd: one signal ends each command that waits for a VM whose QEMU is stopped. When that goes on
// again, nothing is left of them, and the VM is as good as before.
func TestStoppedVMIsToldToEnd(t *testing.T) {
	strata, tarball := bootimagetest.Strata(t), busyboxTar(t)
	needVM(t, strata)
	leaktest.Check(t)
	work := t.TempDir()
	c := cliBox{t: t, strata: strata, state: filepath.Join(work, "state")}
	t.Cleanup(func() { stopAll(t, c.state, c.strata) })
	layer, scratch := filepath.Join(work, "layer"), filepath.Join(work, "scratch")
	c.run("import", tarball, layer)
	c.run("scratch", "create", "--size", "64M", scratch)
	c.run("vm", "start")
	c.run("mount", "--scratch", scratch, "web", layer)
	pid, err := os.ReadFile(filepath.Join(c.state, "vms", "default", "pid"))
	if err != nil {
		t.Fatal(err)
	}

	running, errs := c.cmd("exec", "web", "/bin/busybox", "sh", "-c", "echo up; exec /bin/busybox sleep 1000"),
		new(bytes.Buffer)
	running.Stderr = errs
	out, err := running.StdoutPipe()
	if err == nil {
		err = running.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		_ = running.Wait()
		t.Fatalf("the program says %q, %v: %s", line, err, errs.String())
	}
	c.signalPID(string(pid), syscall.SIGSTOP)
	c.tell(running, syscall.SIGINT, 130, errs)
	for _, args := range [][]string{
		{"exec", "web", "/bin/busybox", "true"}, {"exec", "--in-vm", "true"}, {"mount", "new", layer}, {"unmount", "web"},
		{"recover"}, {"run", "--vm", "default", layer, "--", "/bin/busybox", "true"}, {"vm", "stop", "--timeout", "1h"},
	} {
		cmd := c.cmd(args...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // by then it waits for the VM; where it is does not matter
		c.tell(cmd, syscall.SIGINT, 130, &errs)
	}
	c.signalPID(string(pid), syscall.SIGCONT)

	c.run("recover")
	c.run("exec", "web", "/bin/busybox", "true")
	if got := c.run("ls"); strings.Contains(got, "new") || !strings.Contains(got, "web") {
		t.Errorf("containers: %s", got)
	}
	c.run("unmount", "--force", "--all")
	c.run("run", "--vm", "default", layer, "--", "/bin/busybox", "true")
	c.run("vm", "stop")
	if names := left(t, c.state); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
}
