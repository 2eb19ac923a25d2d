package local_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/hostmount"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/local"
)

// memory mounts in memory, and when it is told so, not before it is released.
type memory struct {
	mu     sync.Mutex
	points []string
	hold   chan struct{} // nil: nothing hangs
}

func (m *memory) add(target string) error {
	m.mu.Lock()
	hold := m.hold
	m.mu.Unlock()
	if hold != nil {
		<-hold
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.points = append(m.points, target)
	return nil
}

func (m *memory) MountImage(_ context.Context, _ hostmount.Image, target string) error {
	return m.add(target)
}
func (m *memory) MountDirectory(_ context.Context, _, target string, _ bool) error {
	return m.add(target)
}
func (m *memory) MountOverlay(_ context.Context, _ hostmount.Overlay, target string) error {
	return m.add(target)
}
func (m *memory) Unmount(_ context.Context, target string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, p := range m.points {
		if p == target {
			m.points = append(m.points[:i:i], m.points[i+1:]...)
			break
		}
	}
	return nil
}
func (m *memory) Mounts(string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.points...), nil
}
func (m *memory) CanEROFS() bool { return true }
func (m *memory) CanDisks() bool { return true }

// TestHang: a mount that does not return keeps neither its caller nor others waiting, but holds its
// own address until it has come to rest.
func TestHang(t *testing.T) {
	file := filepath.Join(t.TempDir(), "layer.img")
	if err := os.WriteFile(file, make([]byte, 8192), 0o644); err != nil {
		t.Fatal(err)
	}
	change := func(lun uint8, path string) vmm.Change {
		return vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{LUN: lun, Path: file, ReadOnly: true},
			Mount: vmm.MappedDisk{LUN: lun, MountPath: path, ReadOnly: true}}
	}
	a, b := change(0, "/a"), change(1, "/b")
	mem := &memory{hold: make(chan struct{})}
	m, err := local.Open(local.Options{Dir: t.TempDir(), BootID: "boot", Mounter: mem})
	if err != nil {
		t.Fatal(err)
	}
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	err = m.Apply(short(), a)
	if _, guest := vmm.Outcomes(a, err); !errors.Is(err, context.DeadlineExceeded) || guest != vmm.Unknown {
		t.Fatalf("a mount that hangs: %v", err)
	}
	err = m.Apply(short(), a.Inverse())
	if h, g := vmm.Outcomes(a.Inverse(), err); !errors.Is(err, context.DeadlineExceeded) || h != vmm.NotDone ||
		g != vmm.NotDone {
		t.Errorf("the address of the abandoned call: %v", err)
	}
	mem.mu.Lock()
	hold := mem.hold
	mem.hold = nil
	mem.mu.Unlock()
	if err := m.Apply(t.Context(), b); err != nil {
		t.Errorf("another address: %v", err)
	}
	close(hold)
	for _, c := range []vmm.Change{a.Inverse(), b.Inverse()} {
		if err := m.Apply(t.Context(), c); err != nil {
			t.Error(err)
		}
	}
	if o, err := m.Observe(t.Context()); err != nil || len(o.Devices)+len(o.Mounts) != 0 {
		t.Errorf("left: %+v, %v", o, err)
	}
}
