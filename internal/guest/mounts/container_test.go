//go:build linux

package mounts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// testContainer creates a root of busybox and registers a container for it.
func (r *testGuest) testContainer(t *testing.T, id string) string {
	t.Helper()
	box, err := exec.LookPath("busybox")
	if err != nil {
		lacking(t, "busybox is needed: apt-get install busybox-static")
	}
	b, err := os.ReadFile(box)
	if err != nil {
		t.Fatal(err)
	}
	layer := r.base + "/layers/" + id
	write(t, layer+"/bin/busybox", string(b), 0o755)
	for _, name := range []string{"sh", "cat", "id", "sleep", "hostname", "stty", "ls", "true", "ps", "kill", "test",
		"mknod"} {
		if err := os.Symlink("busybox", layer+"/bin/"+name); err != nil {
			t.Fatal(err)
		}
	}
	// Links for working directories: one within the root, one to a directory that only the system outside has.
	for link, to := range map[string]string{"in": "/etc", "out": r.base} {
		if err := os.Symlink(to, layer+"/"+link); err != nil {
			t.Fatal(err)
		}
	}
	write(t, layer+"/etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/srv:/bin/sh\n", 0o644)
	write(t, layer+"/etc/group", "root:x:0:\nstaff:x:50:\nlogs:x:77:web,root\n", 0o644)
	write(t, layer+"/locked/in/run", "#!/bin/sh\necho ran\n", 0o755)
	for dir, mode := range map[string]os.FileMode{"/locked/in": 0o711, "/locked": 0o700} {
		if err := os.Chmod(layer+dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	root := r.base + "/gcs/c/" + id + "/rootfs"
	r.must(t, "Add", "CombinedLayers", hcsschema.LCOWCombinedLayers{ContainerID: id, ContainerRootPath: root,
		Layers: []hcsschema.Layer{{Path: layer}}, ScratchPath: r.base + "/scratch/" + id})
	config := gcs.ContainerConfig{OciSpecification: &specs.Spec{Hostname: "host-of-" + id, Root: &specs.Root{Path: root}}}
	if err := r.Create(t.Context(), id, config); err != nil {
		t.Fatal(err)
	}
	if err := r.Create(t.Context(), id, config); !errors.Is(err, gcsserver.ErrContainer) {
		t.Fatalf("created twice: %v", err)
	}
	t.Cleanup(func() {
		if err := r.Delete(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	return root
}

// output runs a program to its end.
func (r *testGuest) output(t *testing.T, p gcsserver.Process, stdin string) (string, int) {
	t.Helper()
	host := make([]net.Conn, 3)
	for i := range p.Streams {
		host[i], p.Streams[i] = net.Pipe()
	}
	id, err := r.Exec(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.WriteString(host[0], stdin)
		host[0].Close()
	}()
	var errors bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(&errors, host[2])
	}()
	out, _ := io.ReadAll(host[1])
	<-done
	code, err := r.Wait(t.Context(), p.Container, id)
	if err != nil {
		t.Fatal(err)
	}
	return string(out) + errors.String(), code
}

func TestContainer(t *testing.T) {
	r := testRuntime(t)
	root := r.testContainer(t, "c1")
	sh := func(script string) []string { return []string{"sh", "-c", script} }
	for _, tc := range []struct {
		name string
		p    gcsserver.Process
		in   string
		want string
		code int
	}{
		{"echo", gcsserver.Process{Args: sh("cat; exit 3")}, "hello", "hello", 3},
		{"stderr", gcsserver.Process{Args: sh("echo wrong >&2")}, "", "wrong\n", 0},
		{"own hostname", gcsserver.Process{Args: []string{"hostname"}}, "", "host-of-c1\n", 0},
		{"own pids",
			gcsserver.Process{Args: sh("test -d /proc/1 && ls /proc/1/ns >/dev/null && echo yes; " +
				"ls -d /proc/[0-9]* | wc -l >/dev/null")}, "", "yes\n", 0},
		{"user by name", gcsserver.Process{Args: sh("id -u; id -g; id -G; echo $HOME"), User: "web"}, "",
			"1000\n1001\n1001 77\n/srv\n", 0},
		{"user and group", gcsserver.Process{Args: sh("id -u; id -g"), User: "web:staff"}, "", "1000\n50\n", 0},
		{"user by number", gcsserver.Process{Args: sh("id -u; id -g"), User: "7:8"}, "", "7\n8\n", 0},
		{"directory", gcsserver.Process{Args: sh("pwd"), Dir: "/etc"}, "", "/etc\n", 0},
		{"directory that is missing", gcsserver.Process{Args: sh("pwd; ls -ld . | cut -c1-10"), Dir: "/srv/a b/c",
			MakeDir: true, User: "web"}, "", "/srv/a b/c\ndrwxr-xr-x\n", 0},
		{"directory behind a link", gcsserver.Process{Args: sh("pwd; ls -d /etc/made"), Dir: "/in/made", MakeDir: true}, "",
			"/etc/made\n/etc/made\n", 0},
		{"directory that the user may not search", gcsserver.Process{Args: sh("pwd; id -u; ls 2>/dev/null || echo denied"),
			Dir: "/locked/in", User: "web"}, "", "/locked/in\n1000\ndenied\n", 0},
		{"program in such a directory", gcsserver.Process{Args: []string{"./run"}, Dir: "/locked/in", User: "web"}, "",
			"ran\n", 0},
		{"more groups", gcsserver.Process{Args: sh("id -G"), User: "web", Groups: []uint32{77, 4242}}, "", "1001 77 4242\n",
			0},
		{"groups of a number", gcsserver.Process{Args: sh("id -G"), User: "7:8", Groups: []uint32{9}}, "", "8 9\n", 0},
		{"limits", gcsserver.Process{Args: sh("ulimit -n; ulimit -Hn; ulimit -u")}, "", expectedLimits(t), 0},
		{"large arguments", gcsserver.Process{Args: append(sh("echo $# ${#1} ${#A}"),
			append([]string{"x"}, slices.Repeat([]string{strings.Repeat("y", 130_000)}, 12)...)...),
			Env: []string{"A=" + strings.Repeat("z", 131_000)}}, "", "12 130000 131000\n", 0},
		{"environment", gcsserver.Process{Args: sh("echo $A"), Env: []string{"A=b c"}}, "", "b c\n", 0},
		// In a shell of its own: the kernel keeps this signal from the first process of a container.
		{"killed", gcsserver.Process{Args: sh("exec 2>/dev/null; sh -c 'kill -9 $$'; exit $?")}, "", "", 137},
		{"devices", gcsserver.Process{Args: sh("echo x >/dev/null && test -c /dev/zero && test -d /dev/pts && echo ok")}, "",
			"ok\n", 0},
		{"no new devices", gcsserver.Process{Args: sh("mknod /tmp-sda b 8 0 2>/dev/null || echo refused")}, "", "refused\n",
			0},
		{"sysfs read-only", gcsserver.Process{Args: sh("echo 1 2>/dev/null >/sys/kernel/mm/ksm/run || echo refused")}, "",
			"refused\n", 0},
		{"background", gcsserver.Process{Args: sh("sleep 0.05 & echo started")}, "", "started\n", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.p.Container = "c1"
			out, code := r.output(t, tc.p, tc.in)
			if tc.name == "sysfs read-only" || tc.name == "background" {
				out = out[strings.LastIndex(strings.TrimRight(out, "\n"), "\n")+1:]
			}
			if out != tc.want || code != tc.code {
				t.Errorf("got %q, code %d; want %q, code %d", out, code, tc.want, tc.code)
			}
		})
	}
	for _, p := range []gcsserver.Process{{Args: []string{"no-such-program"}}, {Args: []string{"/bin"}},
		{Args: []string{"id"}, User: "nobody"},
		{Args: []string{"id", strings.Repeat("x", 1<<17)}},
		{Args: []string{"id"}, User: "web:nogroup"}, {Args: []string{"id"}, Dir: "/out/made", MakeDir: true},
		{Args: []string{"id"}, Dir: "/bin/sh"},
		{Args: []string{"id"}, Dir: "/bin/sh", MakeDir: true}, {Args: []string{"id"}, Dir: "/proc/made", MakeDir: true},
		{Args: []string{"id"}, Dir: "/nosuch"}} {
		p.Container = "c1"
		if _, err := r.Exec(t.Context(), p); err == nil {
			t.Errorf("%+v: no error", p)
		}
	}
	if _, err := os.Lstat(root + "/nosuch"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a working directory that nobody wanted was made: %v", err)
	}
	if _, err := os.Lstat(r.base + "/made"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a working directory was made outside of the root: %v", err)
	}
	// the background one ends by itself
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := r.try(t, "Remove", "CombinedLayers", hcsschema.LCOWCombinedLayers{ContainerRootPath: root})
		if err == nil {
			break
		}
		if !errors.Is(err, gcsserver.ErrBusy) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if _, err := r.Exec(t.Context(), gcsserver.Process{Container: "c1", Args: []string{"true"}}); !errors.Is(err,
		gcsserver.ErrNoContainer) {
		t.Errorf("a process in a root that is gone: %v", err)
	}
}

func TestTerminal(t *testing.T) {
	r := testRuntime(t)
	r.testContainer(t, "c1")
	host := make([]net.Conn, 2)
	p := gcsserver.Process{Container: "c1", Args: []string{"sh", "-c", "stty size; read x; stty size; exit 5"},
		Terminal: true, Width: 90, Height: 30}
	for i := range host {
		host[i], p.Streams[i] = net.Pipe()
	}
	id, err := r.Exec(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, _ := io.ReadAtLeast(host[1], buf, len("30 90\r\n"))
	if got := string(buf[:n]); got != "30 90\r\n" {
		t.Errorf("size %q", got)
	}
	if err := r.Resize(t.Context(), "c1", id, 100, 40); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(host[0], "\n"); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(host[1])
	if !strings.Contains(string(out), "40 100\r\n") {
		t.Errorf("size after resizing: %q", out)
	}
	if code, err := r.Wait(t.Context(), "c1", id); code != 5 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	host[0].Close()
}

// TestBusyNamesTheHolder: a process in the container, and one outside with a file open, are named; once
// they have gone the unmount succeeds.
func TestBusyNamesTheHolder(t *testing.T) {
	r := testRuntime(t)
	root := r.testContainer(t, "c1")
	id, err := r.Exec(t.Context(), gcsserver.Process{Container: "c1", Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	remove := func() error {
		return r.try(t, "Remove", "CombinedLayers", hcsschema.LCOWCombinedLayers{ContainerRootPath: root})
	}
	err = remove()
	for err != nil && strings.Contains(err.Error(), "(crun)") { // which the program has not taken the place of yet
		err = remove()
	}
	pid, _ := r.output(t, gcsserver.Process{Container: "c1", Args: []string{"busybox", "pidof", "sleep"}}, "")
	want := fmt.Sprintf("by container c1: process %s (sleep) in the container", strings.TrimSpace(pid))
	if !errors.Is(err, gcsserver.ErrBusy) || !strings.Contains(err.Error(), want) {
		t.Fatalf("while a process runs: %v, want %q", err, want)
	}
	if err := r.Signal(t.Context(), "c1", id, 9); err != nil {
		t.Fatal(err)
	}
	if code, err := r.Wait(t.Context(), "c1", id); code != 137 || err != nil {
		t.Fatalf("code %d, %v", code, err)
	}
	holder := exec.Command("sleep", "1000")
	f, err := os.Open(root + "/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	holder.ExtraFiles = []*os.File{f}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	err = remove()
	if !errors.Is(err, gcsserver.ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("process %d (sleep) by open file",
		holder.Process.Pid)) {
		t.Errorf("while a file is open: %v", err)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	if err := unix.Mount("tmpfs", root+"/etc", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := remove(); !errors.Is(err, gcsserver.ErrBusy) || !strings.Contains(err.Error(), root+"/etc") {
		t.Errorf("with a mount below: %v", err)
	}
	if err := unix.Unmount(root+"/etc", 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, ""); err != nil { // stacked on top
		t.Fatal(err)
	}
	if err := remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(root); !os.IsNotExist(err) {
		t.Errorf("the root is left: %v", err)
	}
	if _, err := os.Stat(r.base + "/scratch/c1/upper"); err != nil {
		t.Errorf("the scratch is not: %v", err)
	}
}

// TestExecAgainstUnmount: either the program runs or the root goes away, never both.
func TestExecAgainstUnmount(t *testing.T) {
	r := testRuntime(t)
	root := r.testContainer(t, "c1")
	add := hcsschema.LCOWCombinedLayers{ContainerID: "c1", ContainerRootPath: root,
		Layers: []hcsschema.Layer{{Path: r.base + "/layers/c1"}}, ScratchPath: r.base + "/scratch/c1"}
	for i := range 40 {
		var wg sync.WaitGroup
		var execErr, removeErr error
		wg.Go(func() {
			time.Sleep(time.Duration(i) * 500 * time.Microsecond) // wherever the other is by then
			_, execErr = r.Exec(t.Context(), gcsserver.Process{Container: "c1", Args: []string{"sleep", "100"}})
		})
		wg.Go(func() { removeErr = r.try(t, "Remove", "CombinedLayers", add) })
		wg.Wait()
		if execErr == nil && removeErr == nil {
			t.Fatal("a program runs in a root that has been unmounted")
		}
		if removeErr != nil && !errors.Is(removeErr, gcsserver.ErrBusy) {
			t.Error(removeErr)
		}
		if err := r.Delete(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
		r.must(t, "Add", "CombinedLayers", add)
		if err := r.Create(t.Context(), "c1",
			gcs.ContainerConfig{OciSpecification: &specs.Spec{Root: &specs.Root{Path: root}}}); err != nil {
			t.Fatal(err)
		}
	}
	r.setLeaving(root, true)
	if _, err := r.Exec(t.Context(), gcsserver.Process{Container: "c1", Args: []string{"true"}}); !errors.Is(err,
		gcsserver.ErrBusy) {
		t.Errorf("a program starts in a root that is being unmounted: %v", err)
	}
	r.must(t, "Remove", "CombinedLayers", add)
	if _, err := r.Exec(t.Context(), gcsserver.Process{Container: "c1", Args: []string{"true"}}); !errors.Is(err,
		gcsserver.ErrNoContainer) {
		t.Errorf("a program starts in a root that is not there: %v", err)
	}
}

// TestRootLeavesNothing: of a read-only root nothing is left, neither directory nor container.
func TestRootLeavesNothing(t *testing.T) {
	r := testRuntime(t)
	root := r.base + "/gcs/c/c1/rootfs"
	add := hcsschema.LCOWCombinedLayers{ContainerRootPath: root, Layers: r.layers(t, 2)}
	r.must(t, "Add", "CombinedLayers", add)
	if err := r.Create(t.Context(), "c1",
		gcs.ContainerConfig{OciSpecification: &specs.Spec{Root: &specs.Root{Path: root}}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r.must(t, "Remove", "CombinedLayers", add)
		if _, err := os.Stat(r.base + "/gcs/c/c1"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the container's directory is left: %v", err)
		}
		if _, err := r.Processes("c1"); !errors.Is(err, gcsserver.ErrNoContainer) {
			t.Errorf("the container is left: %v", err)
		}
	}
	// Others' files are not ours to remove.
	r.must(t, "Add", "CombinedLayers", add)
	write(t, r.base+"/gcs/c/c1/config.json", "{}", 0o600)
	r.must(t, "Remove", "CombinedLayers", add)
	if _, err := os.Stat(r.base + "/gcs/c/c1/config.json"); err != nil {
		t.Error(err)
	}
}

func TestDeleteKills(t *testing.T) {
	r := testRuntime(t)
	root := r.testContainer(t, "c1")
	id, err := r.Exec(t.Context(), gcsserver.Process{Container: "c1", Args: []string{"sh", "-c",
		"sleep 1000 & sleep 1000"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Delete(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
	}
	if code, err := r.Wait(t.Context(), "c1", id); code != 137 || err != nil {
		t.Fatalf("code %d, %v", code, err)
	}
	r.must(t, "Remove", "CombinedLayers", hcsschema.LCOWCombinedLayers{ContainerRootPath: root})
}

// TestNamespacesShared: processes of one container see each other, and none of another.
func TestNamespacesShared(t *testing.T) {
	r := testRuntime(t)
	r.testContainer(t, "c1")
	r.testContainer(t, "c2")
	if _, err := r.Exec(t.Context(), gcsserver.Process{Container: "c1", Args: []string{"sleep", "4711"}}); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"c1": true, "c2": false} {
		out, _ := r.output(t, gcsserver.Process{Container: id, Args: []string{"ps"}}, "")
		if strings.Contains(out, "sleep 4711") != want {
			t.Errorf("container %s sees:\n%s", id, out)
		}
	}
}

// TestUnmountWhileOthersStart: a container that starts programs, and so has a copy of all mounts for a
// moment, is no reason for another one's root to be in use.
func TestUnmountWhileOthersStart(t *testing.T) {
	const rounds, starters, unmounters = 40, 2, 2
	r := testRuntime(t)
	for i := range starters {
		r.testContainer(t, fmt.Sprintf("starter%d", i))
	}
	layers := r.layers(t, 2)
	var mounting, starting sync.WaitGroup
	stop := make(chan struct{})
	var started, refused atomic.Int64
	for i := range starters {
		starting.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprintf("starter%d", i)
				pid, err := r.Exec(t.Context(), gcsserver.Process{Container: id, Args: []string{"true"}})
				if err != nil {
					t.Error(err)
					return
				}
				if code, err := r.Wait(t.Context(), id, pid); code != 0 || err != nil {
					t.Errorf("code %d, %v", code, err)
				}
				started.Add(1)
			}
		})
	}
	for i := range unmounters {
		mounting.Go(func() {
			s := hcsschema.LCOWCombinedLayers{ContainerRootPath: fmt.Sprintf("%s/gcs/c/unmounted%d/rootfs", r.base, i),
				Layers: layers}
			for range rounds {
				if err := r.try(t, "Add", "CombinedLayers", s); err != nil {
					t.Error(err)
					return
				}
				for err := r.try(t, "Remove", "CombinedLayers", s); err != nil; err = r.try(t, "Remove", "CombinedLayers", s) {
					if refused.Add(1); !errors.Is(err, gcsserver.ErrBusy) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	mounting.Wait()
	close(stop)
	starting.Wait()
	t.Logf("%d unmounts while %d programs started", rounds*unmounters, started.Load())
	if n := refused.Load(); n > 0 {
		t.Errorf("%d of %d unmounts were refused as in use", n, rounds*unmounters)
	}
}

// expectedLimits is what "ulimit -n; ulimit -Hn; ulimit -u" prints in a container of this system, which may
// not be allowed to raise its own.
func expectedLimits(t *testing.T) string {
	t.Helper()
	limit := func(resource int, want uint64) string {
		var old unix.Rlimit
		if err := unix.Getrlimit(resource, &old); err != nil {
			t.Fatal(err)
		}
		got := unix.Rlimit{Cur: want, Max: want}
		if unix.Setrlimit(resource, &got) != nil {
			got = unix.Rlimit{Cur: old.Max, Max: old.Max}
		} else if err := unix.Setrlimit(resource, &old); err != nil {
			t.Fatal(err)
		}
		if got.Cur == unix.RLIM_INFINITY {
			return "unlimited\n"
		}
		return fmt.Sprintln(got.Cur)
	}
	files := limit(unix.RLIMIT_NOFILE, 1<<20)
	return files + files + limit(unix.RLIMIT_NPROC, unix.RLIM_INFINITY)
}
