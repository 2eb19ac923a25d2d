package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
)

func TestKilledQEMU(t *testing.T) {
	leaktest.Check(t)
	m, _, _ := bare(t)
	if err := unix.Kill(m.proc.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	if err := m.Err(); !errors.Is(err, vmm.ErrGone) || !strings.Contains(err.Error(), "killed or crashed") {
		t.Errorf("reason: %v", err)
	}
	if err := m.Apply(t.Context(), add(vmm.SCSIDisk{Path: "/x"})); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("Apply: %v", err)
	}
	if _, err := m.Observe(t.Context()); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("Observe: %v", err)
	}
	if info, err := Inspect(m.dir); err != nil || info.Running {
		t.Errorf("Inspect: %+v %v", info, err)
	}
	if err := m.Terminate(t.Context()); err != nil {
		t.Errorf("Terminate: %v", err)
	}
	if _, err := os.Stat(m.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory is left: %v", err)
	}
}

func TestStoppedQEMU(t *testing.T) {
	leaktest.Check(t)
	m, _, _ := bare(t)
	if err := unix.Kill(m.proc.pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	d := vmm.SCSIDisk{LUN: 1, Path: diskFile(t, t.TempDir(), "layer.vhd", 1<<20), ReadOnly: true}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // in which the call begins, also on a busy host
	defer cancel()
	err := m.Apply(ctx, add(d))
	if host, _ := vmm.Outcomes(add(d), err); host != vmm.Unknown || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("host %s, %v", host, err)
	}
	if _, err := m.Observe(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Observe: %v", err)
	}
	// It goes on: the abandoned call comes to rest, and the next one sees what it did.
	if err := unix.Kill(m.proc.pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	apply(t, m, remove(d))
	if got := devices(t, m); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	if err := unix.Kill(m.proc.pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := m.Terminate(t.Context()); err != nil {
		t.Errorf("Terminate: %v", err)
	}
	if err := m.Err(); !errors.Is(err, vmm.ErrGone) || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("reason: %v", err)
	}
}

// TestLostControl: a QEMU that runs on when its control connection breaks is not taken for gone, and
// Shutdown ends it.
func TestLostControl(t *testing.T) {
	leaktest.Check(t)
	m, _, _ := bare(t)
	m.qmp.close()
	<-m.Done()
	if err := m.Err(); errors.Is(err, vmm.ErrGone) || !strings.Contains(err.Error(), "runs on") {
		t.Errorf("reason: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := m.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := unix.Kill(m.proc.pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d is left running: %v", m.proc.pid, err)
	}
	if err := m.Err(); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("afterwards: %v", err)
	}
}

func TestStateDirectories(t *testing.T) {
	needQEMU(t)
	for _, name := range []string{strings.Repeat("deep/", 50) + "vm", "comma,quote\"new\nline %s"} {
		t.Run("", func(t *testing.T) {
			g := &fakeGuest{}
			c := Config{Dir: filepath.Join(t.TempDir(), name), Accel: AccelTCG, connect: g.connect}
			m, err := Start(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			defer end(t, m)
			if _, err := Start(t.Context(), c); !errors.Is(err, vmm.ErrRunning) {
				t.Errorf("a second machine in the same directory: %v", err)
			}
			fi, err := os.Stat(c.Dir)
			if err != nil || fi.Mode().Perm() != 0o700 {
				t.Errorf("the directory has mode %v %v", fi.Mode(), err)
			}
			apply(t, m, add(vmm.SCSIDisk{ReadOnly: true, Extents: []vmm.Extent{{Length: 512}}}))
			if info, err := Inspect(c.Dir); err != nil || !info.Running || info.PID != m.proc.pid || info.Accel != AccelTCG {
				t.Errorf("Inspect: %+v %v", info, err)
			}
		})
	}
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	needQEMU(t)
	dir := t.TempDir()
	leaktest.Check(t, dir)
	g := &fakeGuest{}
	c := Config{Dir: filepath.Join(dir, "vm"), Accel: AccelTCG, connect: g.connect, rewrite: func(args []string) []string {
		return append(args, "-device", "no-such-device")
	}}
	if _, err := Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), "no-such-device") {
		t.Errorf("QEMU's reason is missing: %v", err)
	}
	// A guest that never answers.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.rewrite, c.connect = nil, func(ctx context.Context, conn net.Conn, log *slog.Logger) (guest, error) {
		time.AfterFunc(100*time.Millisecond, cancel)
		return connectGCS(ctx, conn, log)
	}
	if _, err := Start(ctx, c); !errors.Is(err, vmm.ErrGuestUnreachable) {
		t.Errorf("silent guest: %v", err)
	}
	c.BootTime, c.connect = 100*time.Millisecond, connectGCS
	if _, err := Start(t.Context(), c); !errors.Is(err, vmm.ErrGuestUnreachable) || !errors.Is(err,
		context.DeadlineExceeded) || !strings.Contains(err.Error(), "not ready within 100ms") {
		t.Errorf("a guest that is given up: %v", err)
	}
	if _, err := Open(t.Context(), c.Dir, nil); !errors.Is(err, vmm.ErrNoVM) {
		t.Errorf("Open: %v", err)
	}
}

func TestPortsForPrograms(t *testing.T) {
	m, g, c := bare(t)
	var open []*ExecSession
	for range c.ExecPorts {
		g := &fakeGuest{}
		s, err := openExec(t.Context(), m.dir, nil, g.connect)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, s)
	}
	impatient, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := openExec(impatient, m.dir, nil, g.connect); !errors.Is(err, ErrPortsTaken) {
		t.Errorf("one too many: %v", err)
	}
	// One that waits gets the port that another gives back.
	time.AfterFunc(50*time.Millisecond, func() {
		if err := open[0].Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := openExec(t.Context(), m.dir, nil, (&fakeGuest{}).connect)
	if err != nil {
		t.Fatalf("a port that was given back: %v", err)
	}
	for _, s := range append(open[1:], s) {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestReusedProcessIDIsNotKilled(t *testing.T) {
	dir := t.TempDir()
	desc := description{ID: "x", MemoryMiB: 256, CPUs: 1}
	if err := desc.write(dir); err != nil {
		t.Fatal(err)
	}
	start, err := processStart(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Our own number, but of a process that began at another time.
	if err := os.WriteFile(filepath.Join(dir, "pid"), fmt.Appendf(nil, "%d %d\n", os.Getpid(), start-1),
		0o600); err != nil {
		t.Fatal(err)
	}
	if err := Kill(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := readDescription(dir); err != nil {
		t.Errorf("the files are gone, which may have been those of the next machine: %v", err)
	}
}

// TestOpenOfDyingQEMU connects to a QEMU that takes no connections any more and has not ended yet.
func TestOpenOfDyingQEMU(t *testing.T) {
	leaktest.Check(t)
	dir := t.TempDir()
	qemu := exec.Command("sh", "-c", "read x")
	life, err := qemu.StdinPipe()
	if err == nil {
		err = qemu.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		life.Close()
		_ = qemu.Wait() // its status may be taken already
	}()
	start, err := processStart(qemu.Process.Pid)
	socket, serr := listenSocket(dir, qmpSocket)
	if err := errors.Join(err, serr); err != nil {
		t.Fatal(err)
	}
	socket.Close()
	open := func(ctx context.Context) func() error {
		proc, err := openProcess(qemu.Process.Pid, start, "")
		if err != nil {
			t.Fatal(err)
		}
		lock, err := tryLockPort(dir, controlPort)
		if err != nil {
			t.Fatal(err)
		}
		return func() error {
			_, err := connect(ctx, dir, description{ID: "dying", MemoryMiB: 256}, proc, lock,
				Config{Logger: slog.New(slog.DiscardHandler)})
			return err
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*dialPause)
	defer cancel()
	if err := open(ctx)(); !errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, vmm.ErrGone) {
		t.Errorf("while it lives: %v", err)
	}
	again := open(t.Context())
	life.Close()
	if err := again(); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("when it ends: %v", err)
	}
}
