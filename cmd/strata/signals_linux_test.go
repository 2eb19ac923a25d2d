package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
)

// deadline is long enough for any command on any machine, and short next to "for ever".
const deadline = 2 * time.Minute

// waitEnd waits for a command, and kills it after the deadline. It returns the exit code.
func waitEnd(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	timer := time.AfterFunc(deadline, func() {
		t.Error("it does not end")
		_ = cmd.Process.Kill()
	})
	defer timer.Stop()
	err := cmd.Wait()
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		return ee.ExitCode()
	}
	if err != nil {
		t.Error(err)
	}
	return 0
}

// left lists what is in the folders of runs and VMs.
func left(t *testing.T, state string) (names []string) {
	t.Helper()
	for _, dir := range []string{"run", "vms"} {
		entries, err := os.ReadDir(filepath.Join(state, dir))
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		for _, d := range entries {
			names = append(names, dir+"/"+d.Name())
		}
	}
	return names
}

// busyboxTar creates the tar of a root with busybox and sh in it.
func busyboxTar(t *testing.T) string {
	t.Helper()
	busybox, err := os.ReadFile(need(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(path, treetest.Tar(t, treetest.Entry{Name: "bin/busybox", Mode: 0o755, Body: string(busybox)}),
		0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// signalCase is one way in which a run is told to end, and the exit codes that say so.
type signalCase struct {
	name  string
	sig   syscall.Signal // 0: its standard output is closed
	codes []int
}

var signalCases = []signalCase{
	{"INT", syscall.SIGINT, []int{143}}, // the program is told to terminate
	{"TERM", syscall.SIGTERM, []int{143}},
	{"HUP", syscall.SIGHUP, []int{143}},
	{"QUIT", syscall.SIGQUIT, []int{131}}, // it goes to the program
	{"the reader of its output has gone", 0, []int{141, 143}},
}

// interruptRun starts a run whose program writes for ever, interrupts it, and says what is left.
func (c cliBox) interruptRun(tt signalCase, flags []string, tarball string, prepare func(pid int)) {
	c.t.Helper()
	// The tests may run under nohup, with HUP ignored. What this process catches its children do not ignore.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP)
	defer signal.Stop(caught)
	cmd := c.cmd(append(append([]string{"run", "--id", "told"}, flags...), tarball, "--", "/bin/busybox", "sh", "-c",
		"echo up; exec /bin/busybox yes")...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, w, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	cmd.Stdout = w
	err = cmd.Start()
	_ = w.Close() // the command has its own
	if err != nil {
		c.t.Fatal(err)
	}
	defer out.Close()
	reader := bufio.NewReader(out)
	for _, want := range []string{"up\n", "y\n"} { // with the second one the shell is gone, which ignores QUIT
		if line, err := reader.ReadString('\n'); line != want {
			c.t.Errorf("the program says %q, %v, want %q", line, err, want)
		}
	}
	if prepare != nil {
		prepare(cmd.Process.Pid)
	}
	if tt.sig == 0 {
		_ = out.Close()
	} else {
		go func() { _, _ = io.Copy(io.Discard, reader) }() // it is not held up
		if err := cmd.Process.Signal(tt.sig); err != nil {
			c.t.Error(err)
		}
	}
	code := waitEnd(c.t, cmd)
	if !slices.Contains(tt.codes, code) || strings.Contains(errs.String(), "goroutine") {
		c.t.Errorf("exit code %d, want one of %v\n%s", code, tt.codes, errs.String())
	}
	if names := left(c.t, c.state); len(names) > 0 {
		c.t.Errorf("left: %v\n%s", names, errs.String())
	}
}

// TestRunIsToldToEnd: whatever ends a run on this system, nothing stays of it.
func TestRunIsToldToEnd(t *testing.T) {
	treetest.NeedRoot(t, "to mount")
	strata, tarball := bootimagetest.Strata(t), busyboxTar(t)
	for _, tt := range signalCases {
		t.Run(tt.name, func(t *testing.T) {
			leaktest.Check(t)
			c := cliBox{t: t, strata: strata, state: filepath.Join(t.TempDir(), "state")}
			t.Cleanup(func() { stopAll(t, c.state, c.strata) })
			c.interruptRun(tt, []string{"--isolation=process"}, tarball, nil)
		})
	}
}

// TestRunInVMIsToldToEnd is the same in a VM of the run's own, which goes with it, also when its QEMU is stopped.
func TestRunInVMIsToldToEnd(t *testing.T) {
	strata, tarball := bootimagetest.Strata(t), busyboxTar(t)
	needVM(t, strata)
	stopped := func(c cliBox) func(int) {
		return func(int) {
			pid, err := os.ReadFile(filepath.Join(c.state, "vms", "told", "pid"))
			if err != nil {
				c.t.Fatal(err)
			}
			c.signalPID(string(pid), syscall.SIGSTOP)
		}
	}
	for _, tt := range []struct {
		signalCase
		stop bool // QEMU, before
	}{
		{signalCases[2], false}, {signalCases[4], false},
		{signalCase{"TERM, with a QEMU that is stopped", syscall.SIGTERM, []int{143}}, true},
		{signalCase{"INT, with a QEMU that is stopped", syscall.SIGINT, []int{130}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaktest.Check(t)
			c := cliBox{t: t, strata: strata, state: filepath.Join(t.TempDir(), "state")}
			t.Cleanup(func() { stopAll(t, c.state, c.strata) })
			var prepare func(int)
			if tt.stop {
				prepare = stopped(c)
			}
			c.interruptRun(tt.signalCase, nil, tarball, prepare)
		})
	}
}

// signalPID sends a signal to the process whose id is the first word of a pid file.
func (c cliBox) signalPID(file string, sig syscall.Signal) {
	c.t.Helper()
	pid, err := strconv.Atoi(strings.Fields(file)[0])
	if err == nil {
		err = syscall.Kill(pid, sig)
	}
	if err != nil && !errors.Is(err, syscall.ESRCH) {
		c.t.Fatal(err)
	}
}

// TestCommandsAreToldToEnd: a VM that says nothing keeps no command that is told to end.
func TestCommandsAreToldToEnd(t *testing.T) {
	strata := bootimagetest.Strata(t)
	layer := layerFolder(t)
	for _, args := range [][]string{
		{"mount", "web", layer}, {"unmount", "web"}, {"recover"}, {"exec", "--in-vm", "true"},
		{"vm", "stop", "--timeout", "1h"}, {"run", "--vm", "default", layer, "--", "true"},
	} {
		t.Run(strings.Join(args[:1], " "), func(t *testing.T) {
			leaktest.Check(t)
			state, _ := silentVM(t)
			c := cliBox{t: t, strata: strata, state: state}
			cmd := c.cmd(append([]string{"-v"}, args...)...)
			var errs bytes.Buffer
			cmd.Stderr = &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond) // by then it waits for the VM; where it is does not matter
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			if code := waitEnd(t, cmd); code != 143 {
				t.Errorf("exit code %d: %s", code, errs.String())
			}
			if entries, err := os.ReadDir(filepath.Join(state, "run")); err == nil && len(entries) > 0 {
				t.Errorf("left: %v", entries)
			}
		})
	}
}

// TestInputIsNotWaitedFor: input that does not come keeps no command that is told to end.
func TestInputIsNotWaitedFor(t *testing.T) {
	strata := bootimagetest.Strata(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, from string
		open       int // how the other end of the FIFO is open; -1: it is not
	}{
		{"standard input", "-", -1}, {"a FIFO that nobody writes to", fifo, -1}, {"a FIFO whose writer hangs", fifo,
			os.O_RDWR},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaktest.Check(t)
			if tt.open >= 0 {
				other, err := os.OpenFile(fifo, tt.open, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
			}
			in, silent, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer silent.Close()
			defer in.Close()
			work := t.TempDir()
			c := cliBox{t: t, strata: strata, state: filepath.Join(work, "state")}
			cmd := c.cmd("import", tt.from, filepath.Join(work, "layer"))
			var errs bytes.Buffer
			cmd.Stdin, cmd.Stderr = in, &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond) // by then it waits for input; where it is does not matter
			c.tell(cmd, syscall.SIGTERM, 143, &errs)
			if exists(filepath.Join(work, "layer")) {
				t.Error("a layer is left")
			}
		})
	}
}

// TestOptionFilesAreNotWaitedFor: a FIFO for a file that an option names is waited for, but not for ever.
func TestOptionFilesAreNotWaitedFor(t *testing.T) {
	leaktest.Check(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	defer func(before time.Duration) { inputTime = before }(inputTime)
	inputTime = 50 * time.Millisecond
	for name, read := range map[string]func() error{
		"a small file": func() error { _, err := readSmall(fifo, 10); return err },
		"a document":   func() error { _, err := readSpec(fifo); return err },
	} {
		if err := read(); err == nil || !strings.Contains(err.Error(), fifo+": nothing comes from it for 50ms") {
			t.Errorf("%s: error %v", name, err)
		}
	}
	inputTime = time.Minute
	if _, err := other.WriteString("0123456789x"); err != nil {
		t.Fatal(err)
	}
	if b, err := readSmall(fifo, 10); err == nil || !strings.Contains(err.Error(), "more than 10 bytes") {
		t.Errorf("%q, %v: want an error about its size", b, err)
	}
}
