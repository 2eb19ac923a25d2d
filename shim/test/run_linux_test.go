package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
)

// TestRun runs one program to its end, and nothing is left.
func TestRun(t *testing.T) {
	d := need(t)
	for _, tt := range []struct {
		name, stdin, script, stdout, stderr string
		flags                               []string
		code                                int
	}{
		{name: "overlay", stdin: "typed\n", script: "echo hello; cat; echo oops >&2; exit 42",
			stdout: "hello\ntyped\n", stderr: "oops\n", code: 42},
		{name: "native", flags: []string{"--snapshotter", "native"},
			script: "dd if=/dev/zero bs=1024 count=8192 2>/dev/null | tr '\\0' x; echo written >/tmp/f; cat /tmp/f >&2",
			stdout: strings.Repeat("x", 8<<20), stderr: "written\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer d.clean(t)
			args := append(run("--rm"), tt.flags...)
			r := d.ctr(strings.NewReader(tt.stdin), append(args, image, "r-"+tt.name, "sh", "-c", tt.script)...)
			if r.code != tt.code || r.stderr != tt.stderr {
				t.Errorf("exit code %d and standard error %q, want %d and %q\n%s", r.code, r.stderr, tt.code, tt.stderr, d.tail())
			}
			if r.stdout != tt.stdout {
				t.Errorf("%d bytes of output, %.100q; want %d, %.100q", len(r.stdout), r.stdout, len(tt.stdout), tt.stdout)
			}
		})
	}
}

// TestRefused lists what is an error at once, without a VM.
func TestRefused(t *testing.T) {
	d := need(t)
	defer d.clean(t)
	for i, tt := range []struct {
		want  string
		flags []string
	}{
		{"network namespace", []string{"--net-host"}},
		{"this system itself", []string{"--with-ns", "network:/proc/self/ns/net"}},
		{"no such file", []string{"--with-ns", "network:/run/netns/none-such"}},
		{"linux.namespaces[", []string{"--with-ns", "ipc:/proc/1/ns/ipc"}},
		{"io.stratavm.memory", []string{"--label", "io.stratavm.memory=much"}},
		{"/none/such", []string{"--runtime-config-path", "/none/such"}},
		{"source", []string{"--mount", "type=bind,src=/none/such,dst=/x,options=rbind"}},
		{"hostPath", []string{"--mount", "type=bind,src=/proc/sys,dst=/x,options=rbind"}},
		{"where the kernel shows this host", []string{"--mount", "type=bind,src=/,dst=/x,options=rbind:ro"}},
		{"mountPropagation", []string{"--mount", "type=bind,src=/srv,dst=/x,options=rbind:rshared"}},
		{`"io.stratavm.disk" is not known`, []string{"--label", "io.stratavm.disk=much"}},
		{"privileged_without_host_devices", []string{"--privileged"}},
		{"no VM is so large", []string{"--memory-limit", fmt.Sprint(1 << 50)}},
	} {
		r := d.ctr(nil, slices.Concat(run("--rm"), tt.flags, []string{image, fmt.Sprint("refused", i), "echo", "ran"})...)
		if r.code == 0 || r.stdout != "" || !strings.Contains(r.stderr, tt.want) {
			t.Errorf("%q: exit code %d, output %q, want an error with %q: %s", tt.flags, r.code, r.stdout, tt.want, r.stderr)
		}
	}
}

// TestLife leads a container through its life, with everything that is done to it meanwhile.
func TestLife(t *testing.T) {
	d := need(t)
	seen := d.events(t)
	shared := t.TempDir()
	if err := os.WriteFile(shared+"/in", []byte("from the host\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.must(t, 0, run("--detach", "--mount", "type=bind,src="+shared+",dst=/shared,options=rbind:rw",
		"--memory-limit", strconv.Itoa(64<<20), image, "life", "sh", "-c",
		"trap 'exit 143' TERM; echo alive >/tmp/alive; while :; do sleep 0.1; done")...)
	if r := d.must(t, 0, "task", "ls"); !strings.Contains(r.stdout, "RUNNING") {
		t.Errorf("task ls: %s", r.stdout)
	}
	exec := func(code int, id string, args ...string) result {
		t.Helper()
		return d.must(t, code, append([]string{"task", "exec", "--exec-id", id, "life"}, args...)...)
	}
	if r := exec(7, "e1", "sh", "-c", "cat /shared/in /tmp/alive && echo back >/shared/out; exit 7"); r.stdout !=
		"from the host\nalive\n" {
		t.Errorf("exec: %q", r.stdout)
	}
	if b, err := os.ReadFile(shared + "/out"); string(b) != "back\n" {
		t.Errorf("the host sees %q of what was written, %v", b, err)
	}
	if r := exec(1, "e2", "/no/such"); !strings.Contains(r.stderr, "/no/such") {
		t.Errorf("a program that does not exist: %s", r.stderr)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	terminal(ctx, t, d.command(ctx, "task", "exec", "--exec-id", "tty", "--tty", "life", "sh"), 3)
	if r := d.must(t, 0, "task", "ps", "life"); strings.Count(r.stdout, "\n") < 3 { // the VM, and a program at least
		t.Errorf("task ps: %s", r.stdout)
	}
	if r := d.must(t, 0, "task", "metrics", "life"); !strings.Contains(r.stdout, "memory.usage_limit") ||
		!strings.Contains(r.stdout, strconv.Itoa(64<<20)) {
		t.Errorf("task metrics: %s", r.stdout)
	}
	d.must(t, 0, "task", "kill", "--signal", "TERM", "life")
	want := []string{"/tasks/create", "/tasks/start", "/tasks/exec-added e1", "/tasks/exec-started e1", "/tasks/exit e1 7",
		"/tasks/exec-added e2", "/tasks/exec-added tty", "/tasks/exec-started tty", "/tasks/exit tty 3",
		"/tasks/exit life 143"}
	until(t, func() error {
		if got := seen("life"); !slices.Equal(got, want) {
			return fmt.Errorf("events %q, want %q", got, want)
		}
		return nil
	})
	if r := d.must(t, 0, "task", "rm", "life"); !strings.Contains(r.stderr, "exit code 143") {
		t.Errorf("task rm: %s", r.stderr)
	}
	until(t, func() error {
		if got := seen("life"); !slices.Equal(got, append(want, "/tasks/delete 143")) {
			return fmt.Errorf("events %q, want %q and a delete", got, want)
		}
		return nil
	})
	d.clean(t)
	// What the program wrote is in the snapshot.
	if found, _ := filepath.Glob(d.dir + "/root/*overlayfs/snapshots/*/fs/tmp/alive"); len(found) != 1 {
		t.Errorf("what was written is in %q, want it in one snapshot", found)
	}
	d.must(t, 0, "container", "rm", "life")
}

// terminal talks to a shell of a container by a command's terminal, whose size it changes; the command ends with a code
// where the shell does with 3.
func terminal(ctx context.Context, t *testing.T, cmd *exec.Cmd, code int) {
	t.Helper()
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := master.Resize(console.WinSize{Width: 91, Height: 33}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	slave.Close()
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		var got bytes.Buffer
		b := make([]byte, 1000)
		for {
			n, err := master.Read(b)
			got.Write(b[:n])
			lines <- got.String()
			if err != nil {
				return
			}
		}
	}()
	all := ""
	expect := func(want string) {
		t.Helper()
		for !strings.Contains(all, want) {
			select {
			case text, ok := <-lines:
				if all = text; !ok {
					t.Fatalf("the terminal ended without %q", want)
				}
			case <-ctx.Done():
				t.Fatalf("the terminal shows %q, want %q", all, want)
			}
		}
	}
	say := func(text string) {
		t.Helper()
		if _, err := master.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	// The size is told after the start: the program asks until it is there.
	say("until stty size | grep '33 91'; do sleep 0.1; done; echo is-\"set\"\n")
	expect("is-set")
	if err := master.Resize(console.WinSize{Width: 77, Height: 22}); err != nil {
		t.Fatal(err)
	}
	say("until stty size | grep '22 77'; do sleep 0.1; done; echo is-\"changed\"\n")
	expect("is-changed")
	say("exit 3\n")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != code {
		t.Errorf("the end of the shell: %v, want exit code %d: %q", err, code, all)
	}
}

// until waits for something that is about to happen.
func until(t *testing.T, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestMissingProgram is an error of the start, and nothing is left.
func TestMissingProgram(t *testing.T) {
	d := need(t)
	defer d.clean(t)
	r := d.must(t, 1, run("--rm", image, "missing", "/no/such")...)
	if !strings.Contains(r.stderr, "/no/such") {
		t.Errorf("%s", r.stderr)
	}
}

// TestShimKilled kills the shim: containerd takes away what it left, and the next run works.
func TestShimKilled(t *testing.T) {
	d := need(t)
	seen := d.events(t)
	d.must(t, 0, run("--detach", image, "orphan", "sleep", "1000")...)
	pids := d.shims(t)
	if len(pids) != 1 {
		t.Fatalf("the shims are %v, want one", pids)
	}
	if _, err := os.Lstat(d.socket("orphan")); err != nil {
		t.Errorf("the shim's socket: %v", err)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.clean(t)
	if _, err := os.Lstat(d.socket("orphan")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the shim's socket is left: %v", err)
	}
	until(t, func() error {
		if got := seen("orphan"); !slices.Contains(got, "/tasks/exit orphan 137") {
			return fmt.Errorf("events %q, want an exit with 137", got)
		}
		return nil
	})
	d.must(t, 0, "container", "rm", "orphan")
}
