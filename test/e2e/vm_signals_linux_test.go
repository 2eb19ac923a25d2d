package e2e

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// onMessage is a log handler that calls f when a message is logged for the n-th time from its arming on.
type onMessage struct {
	slog.Handler
	message string
	left    *atomic.Int32
	f       func()
}

func (h onMessage) Enabled(context.Context, slog.Level) bool { return true }

func (h onMessage) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.message && h.left.Add(-1) == 0 {
		h.f()
	}
	return nil
}

func (h onMessage) WithAttrs([]slog.Attr) slog.Handler { return h }

// signalled starts a VM whose QEMU gets a signal after the n-th Change that follows arm(n).
func signalled(t *testing.T, sig syscall.Signal) (vm *uvm.UtilityVM, dir string, pid func() int, arm func(n int32)) {
	t.Helper()
	need(t, "qemu-system-x86_64", "qemu-system-x86")
	dir = filepath.Join(t.TempDir(), "vm")
	pid = func() int {
		info, err := strata.InspectVM(t.Context(), dir)
		if err != nil {
			t.Error(err)
		}
		return info.PID
	}
	var left atomic.Int32
	left.Store(-1)
	h := onMessage{Handler: slog.DiscardHandler, message: "change", left: &left, f: func() {
		if err := syscall.Kill(pid(), sig); err != nil {
			t.Error(err)
		}
	}}
	vm, err := strata.StartVM(t.Context(), strata.VMOptions{Dir: dir, Image: bootimagetest.Image(t),
		Logger: slog.New(h), RollbackTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := errors.Join(vm.Close(), strata.KillVM(context.Background(), dir))
		if err != nil && !errors.Is(err, strata.ErrNoVM) {
			t.Errorf("ending the VM: %v", err)
		}
	})
	return vm, dir, pid, left.Store
}

// TestRealQEMUKilledWhileMounting: the mount fails and says that the VM is gone, and so does everyone
// who opens it.
func TestRealQEMUKilledWhileMounting(t *testing.T) {
	leaktest.Check(t)
	vm, dir, _, arm := signalled(t, syscall.SIGKILL)
	top, _ := stack(t, 5)
	arm(2)
	_, err := layers.Mount(t.Context(),
		layers.Request{VM: vm, ID: "a", Layers: top, Scratch: scratch(t), Attach: layers.AttachSeparate})
	if !errors.Is(err, vmm.ErrGone) {
		t.Fatalf("Mount: %v, want %v", err, vmm.ErrGone)
	}
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := strata.OpenVM(t.Context(), dir, strata.OpenOptions{}); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("OpenVM: %v, want %v", err, vmm.ErrGone)
	}
	if s, err := uvm.ReadStatus(dir); err != nil || !s.Empty() {
		t.Errorf("the ledger of a VM that is gone: %+v, %v", s, err)
	}
}

// TestRealQEMUStoppedWhileMounting: a VM that does not move any more keeps nobody longer than the
// caller's deadline and the grace. When it moves again, what was begun is taken back.
func TestRealQEMUStoppedWhileMounting(t *testing.T) {
	leaktest.Check(t)
	vm, _, pid, arm := signalled(t, syscall.SIGSTOP)
	top, want := stack(t, 5)
	disk := scratch(t)
	r := layers.Request{VM: vm, ID: "a", Layers: top, Scratch: disk, Attach: layers.AttachSeparate}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	arm(3)
	_, err := layers.Mount(ctx, r)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Mount: %v, want %v", err, context.DeadlineExceeded)
	}
	arm(-1)
	if err := syscall.Kill(pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := vm.Recover(t.Context()); err != nil {
		t.Fatalf("Recover: %v", err)
	}
	empty(t, vm)
	m := mount(t, r)
	if d := cmp.Diff(want, parseData(sh(t, m, listData))); d != "" {
		t.Error(d)
	}
	release(t, m)
	empty(t, vm)
}

// TestRealAgentDies: when the guest's kernel panics, as it does without its agent, the VM is gone;
// everyone is told at once, and what was mounted counts as released.
func TestRealAgentDies(t *testing.T) {
	for name, script := range map[string]string{
		"the agent crashes":  "kill -ABRT 1",
		"the kernel crashes": "echo c > /proc/sysrq-trigger",
	} {
		t.Run(name, func(t *testing.T) { agentDies(t, script) })
	}
}

func agentDies(t *testing.T, script string) {
	leaktest.Check(t)
	vm, dir := startVM(t)
	top, _ := stack(t, 1)
	m := mount(t, layers.Request{VM: vm, ID: "doomed", Layers: top})
	p, err := vm.Exec(t.Context(), vmm.ProcessSpec{
		Args: []string{m.Root + "/bin/busybox", "sh", "-c", script},
	})
	if err == nil {
		defer p.Close()
	}
	select {
	case <-vm.Machine().Done():
	case <-time.After(time.Minute):
		t.Fatal("nobody noticed that the VM is gone")
	}
	if err := vm.Machine().Err(); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("the machine says %v, want %v", err, vmm.ErrGone)
	}
	release(t, m)
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
	if _, err := strata.OpenVM(t.Context(), dir, strata.OpenOptions{}); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("opening a VM that is gone: %v", err)
	}
}
