package test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// strata is a call of the command line on the VMs of containerd's default namespace.
func (d *daemon) strata(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.bin+"/strata", append([]string{"--state-dir", d.vms() + "/default"}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+d.bin+":"+os.Getenv("PATH"))
	return cmd
}

// TestStrataSees: strata lists the VM of a container, and what would change it waits for the shim, says for which
// process, and leaves all as it is when it is interrupted.
func TestStrataSees(t *testing.T) {
	d := need(t)
	defer d.clean(t)
	if err := build(d.bin, "../..", "./cmd/strata"); err != nil {
		t.Fatal(err)
	}
	d.must(t, 0, run("--detach", image, "seen", "sleep", "1000")...)
	shims := d.shims(t)
	if len(shims) != 1 {
		t.Fatalf("the shims are %v, want one", shims)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	says := func(want string, args ...string) {
		t.Helper()
		if out, err := d.strata(ctx, args...).CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("strata %q: %v, want %q: %s", args, err, want, out)
		}
	}
	says("seen", "vm", "ls")
	says("seen", "vm", "inspect", "seen")
	says("seen", "ls", "--vm", "seen")
	says("NAME", "ps", "--all") // no container of strata's own
	says(d.bin+"/containerd-shim-strata-v1", "doctor", "--containerd")
	for _, args := range [][]string{{"recover", "seen"}, {"unmount", "--vm", "seen", "seen"}} {
		wait := time.Second // for it to come to the lock
		until(t, func() error {
			cmd := d.strata(ctx, args...)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(wait)
			wait *= 2
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if cmd.ProcessState.Success() || !strings.Contains(out.String(), fmt.Sprintf("process %d", shims[0])) {
				return fmt.Errorf("strata %q, interrupted: %v, want an error that names process %d: %s", args, cmd.ProcessState,
					shims[0], out.String())
			}
			return nil
		})
	}
	if r := d.must(t, 0, "task", "exec", "--exec-id", "e", "seen", "echo", "lives"); r.stdout != "lives\n" {
		t.Errorf("the container says %q", r.stdout)
	}
	d.end(t, "seen")
	d.must(t, 0, "container", "rm", "seen")
}

// TestStrataSeesOrphan: containerd and its shim are killed. The VM can be opened by strata, which leaves it as it is, and is
// taken away when containerd is back.
func TestStrataSeesOrphan(t *testing.T) {
	d := need(t)
	if err := build(d.bin, "../..", "./cmd/strata"); err != nil {
		t.Fatal(err)
	}
	d.must(t, 0, run("--detach", image, "node", "sleep", "1000")...)
	launch := sync.OnceValue(d.launch)
	defer launch() // however this test ends: others use it
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = d.cmd.Wait() // which says that it was killed
	for _, pid := range d.shims(t) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	out, err := d.strata(ctx, "recover").CombinedOutput()
	if err != nil || string(out) != "node: in order, 1 container\n" {
		t.Errorf("strata recover: %v: %s", err, out)
	}
	if err := launch(); err != nil {
		t.Fatal(err)
	}
	d.clean(t)
	d.must(t, 0, "container", "rm", "node")
}
