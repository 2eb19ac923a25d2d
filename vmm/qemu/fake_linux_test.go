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
	"sync"
	"testing"
	"time"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/vmm"
)

// needQEMU makes a test that runs QEMU fail in CI and skip elsewhere when there is none.
func needQEMU(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("it runs QEMU: run without -short")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v; install it with: apt-get install qemu-system-x86", err)
	}
}

// fakeGuest is an agent that believes everything and keeps a list of mounts. It stands in for the guest of a QEMU
// that has no kernel, so that the host's half is tried out on the real QEMU without booting.
type fakeGuest struct {
	mu     sync.Mutex
	log    []hcsschema.GuestRequest
	mounts map[string]vmm.MappedDisk
	answer func(hcsschema.GuestRequest) error
	conn   net.Conn
	done   chan struct{}
	once   sync.Once
}

func (g *fakeGuest) Modify(ctx context.Context, r hcsschema.GuestRequest) error {
	g.mu.Lock()
	g.log = append(g.log, r)
	answer := g.answer
	g.mu.Unlock()
	if answer == nil {
		return g.mount(r)
	}
	result := make(chan error, 1)
	go func() { result <- answer(r) }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-g.done:
		return gcs.ErrClosed
	}
}

func (g *fakeGuest) mount(r hcsschema.GuestRequest) error {
	s, ok := r.Settings.(hcsschema.LCOWMappedVirtualDisk)
	if !ok || s.MountPath == "" {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.RequestType == hcsschema.RequestRemove {
		delete(g.mounts, s.MountPath)
		return nil
	}
	d := vmm.MappedDisk{MountPath: s.MountPath, Controller: s.Controller, LUN: s.Lun, ReadOnly: s.ReadOnly}
	if old, taken := g.mounts[s.MountPath]; taken && (old.Controller != d.Controller || old.LUN != d.LUN) {
		return &gcs.Error{Op: "mount", Result: gcs.ResultExists, Message: s.MountPath}
	}
	if g.mounts == nil {
		g.mounts = map[string]vmm.MappedDisk{}
	}
	g.mounts[s.MountPath] = d
	return nil
}

func (g *fakeGuest) setAnswer(f func(hcsschema.GuestRequest) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answer = f
}

func (g *fakeGuest) requests() (out []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.log {
		out = append(out, string(r.RequestType)+" "+string(r.ResourceType))
	}
	return out
}

func (g *fakeGuest) Exec(context.Context, vmm.ProcessSpec) (vmm.Process, error) {
	return nil, errors.New("a fake guest runs no programs")
}
func (g *fakeGuest) FindProcess(_ context.Context, _ string, pid uint32) (vmm.Process, error) {
	return nil, fmt.Errorf("%w: process %d", vmm.ErrNoProcess, pid)
}
func (g *fakeGuest) DeleteContainerState(context.Context, string) error { return nil }
func (g *fakeGuest) Stacks(context.Context) (string, error)             { return "fake", nil }
func (g *fakeGuest) Mounts(context.Context) (out []vmm.Mount, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range g.mounts {
		out = append(out, d)
	}
	return out, nil
}
func (g *fakeGuest) Shutdown(context.Context) error { return errors.New("it has no power switch") }
func (g *fakeGuest) Done() <-chan struct{}          { return g.done }
func (g *fakeGuest) Close() error {
	g.once.Do(func() { close(g.done) })
	return g.conn.Close()
}

// bare starts a QEMU without a kernel, with fake as its guest, in a new directory.
func bare(t testing.TB) (*Machine, *fakeGuest, Config) {
	t.Helper()
	needQEMU(t)
	g := &fakeGuest{}
	// Paths of t.TempDir are long enough to need care with sockets where tests have long names.
	c := Config{Dir: filepath.Join(t.TempDir(), "vm"), Accel: AccelTCG, ExecPorts: 2, connect: g.connect}
	m, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, m) })
	return m, g, c
}

func (g *fakeGuest) connect(_ context.Context, conn net.Conn, _ *slog.Logger) (guest, error) {
	g.conn, g.done, g.once = conn, make(chan struct{}), sync.Once{}
	return g, nil
}

func end(t testing.TB, m *Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := Kill(ctx, m.dir); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// reopened closes m, and opens the machine as the next process does, which looks at what is there.
func reopened(t testing.TB, m *Machine) (*Machine, vmm.Observation) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := Open(t.Context(), m.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	obs, err := m.Observe(t.Context())
	if err != nil {
		t.Fatal(errors.Join(err, m.Close()))
	}
	return m, obs
}
