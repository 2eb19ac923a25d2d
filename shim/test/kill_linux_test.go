package test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/vmm"
)

// vmName is how the process of a VM calls itself.
const vmName = "strata-"

// killed kills those of a name among what containerd has started, and reports whether there were any. Those that
// ended by themselves do not count, nor a virtiofsd that only says its options: the container runs without it.
func (d *daemon) killed(t *testing.T, name string) (any bool) {
	t.Helper()
	for pid, comm := range d.processes(t) {
		arguments := about(pid, "cmdline") // of a zombie: none
		if !strings.HasPrefix(comm, name) || arguments == "" || strings.Contains(arguments, "\x00--help\x00") {
			continue
		}
		if syscall.Kill(pid, syscall.SIGKILL) == nil { // one may end with another
			any = true
		}
	}
	return any
}

// killAgent kills the agent of the VM of a container, from inside.
func (d *daemon) killAgent(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	vm, err := strata.OpenRunner(ctx, d.vms()+"/default/vms/"+id, strata.OpenOptions{ResponseTimeout: limit})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	p, err := vm.Exec(ctx, vmm.ProcessSpec{Args: []string{"/run/gcs/c/" + id + "/rootfs/bin/busybox", "kill", "-ABRT", "1"}})
	if err == nil { // its end may be faster than the answer
		_ = p.Close()
	}
}

// TestKilledRunning kills what serves a container that runs: it ends with 137, nothing is left, and the next run works.
func TestKilledRunning(t *testing.T) {
	d := need(t)
	for _, tt := range []struct{ who, snapshotter string }{{vmName, "overlayfs"}, {"virtiofsd", "overlayfs"},
		{"agent", "overlayfs"}, {"agent", "erofs"}} {
		t.Run(tt.who+" "+tt.snapshotter, func(t *testing.T) {
			defer d.clean(t)
			flags := []string{"--snapshotter", tt.snapshotter}
			d.must(t, 0, run(append(flags, "--detach", image, "victim", "sleep", "1000")...)...)
			if tt.who == "agent" {
				d.killAgent(t, "victim")
			} else if !d.killed(t, tt.who) {
				t.Fatal("there is none")
			}
			until(t, func() error {
				if r := d.ctr(nil, "task", "ls"); !strings.Contains(r.stdout, "STOPPED") {
					return fmt.Errorf("task ls: %s%s", r.stdout, r.stderr)
				}
				return nil
			})
			if r := d.must(t, 0, "task", "rm", "victim"); !strings.Contains(r.stderr, "exit code 137") {
				t.Errorf("task rm: %s", r.stderr)
			}
			if _, err := os.Lstat(d.socket("victim")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the shim's socket is left: %v", err)
			}
			d.must(t, 0, "container", "rm", "victim")
			if tt.who != "agent" {
				return
			}
			if r := d.must(t, 0, run(append(flags, "--rm", image, "next", "echo", "hello")...)...); r.stdout != "hello\n" {
				t.Errorf("the next run says %q", r.stdout)
			}
		})
	}
}

// TestContainerdKilled kills containerd, whose containers run on and are found again.
func TestContainerdKilled(t *testing.T) {
	d := need(t)
	defer d.clean(t)
	d.must(t, 0, run("--detach", image, "stays", "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.1; done")...)
	d.restart(t)
	if r := d.must(t, 0, "task", "ls"); !strings.Contains(r.stdout, "RUNNING") {
		t.Errorf("task ls: %s", r.stdout)
	}
	if r := d.must(t, 5, "task", "exec", "--exec-id", "x", "stays", "sh", "-c", "echo here; exit 5"); r.stdout != "here\n" {
		t.Errorf("exec: %q", r.stdout)
	}
	d.must(t, 0, "task", "kill", "--signal", "TERM", "stays")
	until(t, func() error {
		if r := d.ctr(nil, "task", "rm", "stays"); !strings.Contains(r.stderr, "exit code 9") {
			return fmt.Errorf("task rm: %s", r.stderr)
		}
		return nil
	})
	d.must(t, 0, "container", "rm", "stays")
}

// TestShimStopped: a shim that was stopped is found to be of no use when containerd is started anew, and is ended with its
// VM.
func TestShimStopped(t *testing.T) {
	d := need(t)
	d.must(t, 0, run("--detach", image, "stopped", "sleep", "1000")...)
	pids := d.shims(t)
	if len(pids) != 1 {
		t.Fatalf("the shims are %v, want one", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(pids[0], syscall.SIGCONT) }() // it is gone
	d.restart(t)
	d.clean(t)
	if left := d.shims(t); len(left) > 0 {
		t.Errorf("the shims %v are left", left)
	}
	d.must(t, 0, "container", "rm", "stopped")
}

// TestKilledCreating kills what takes part while a container is being created: nothing is left, and the next run works.
func TestKilledCreating(t *testing.T) {
	d := need(t)
	for _, tt := range []struct{ who, snapshotter string }{{vmName, "overlayfs"}, {"virtiofsd", "overlayfs"},
		{"containerd-shim", "overlayfs"}, {"containerd-shim", "erofs"}, {"containerd", "overlayfs"}} {
		who := tt.who
		t.Run(who+" "+tt.snapshotter, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			cmd := d.command(ctx, run("--snapshotter", tt.snapshotter, image, "victim", "sleep", "1000")...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { _ = cmd.Wait(); close(ended) }()
			kill := func() bool {
				switch who {
				case vmName, "virtiofsd":
					return d.killed(t, who)
				}
				if !slices.ContainsFunc(slices.Collect(maps.Values(d.processes(t))), func(comm string) bool {
					return strings.HasPrefix(comm, vmName)
				}) {
					return false // too early
				}
				if who == "containerd" {
					d.restart(t)
					return true
				}
				return d.killed(t, who)
			}
			for ; !kill(); time.Sleep(time.Millisecond) {
				select {
				case <-ended:
					t.Fatalf("ctr ended before anything was killed\n%s", d.tail())
				default:
				}
			}
			<-ended
			if ctx.Err() != nil || cmd.ProcessState.Success() {
				t.Errorf("ctr ended with %v, %v", cmd.ProcessState, ctx.Err())
			}
			d.ctr(nil, "task", "rm", "--force", "victim") // where it came so far
			d.must(t, 0, "container", "rm", "victim")
			d.clean(t)
		})
	}
	if r := d.must(t, 0, run("--rm", image, "next", "echo", "hello")...); r.stdout != "hello\n" {
		t.Errorf("the next run says %q", r.stdout)
	}
	d.clean(t)
}
