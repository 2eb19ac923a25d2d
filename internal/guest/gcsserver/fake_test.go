package gcsserver

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/vmm"
)

// memory is a Runtime with nothing behind it. Its programs are "cat" (stdin to stdout), "fail" (exit
// code 3) and "sleep" (until a signal).
type memory struct {
	mu         sync.Mutex
	mounts     map[string]gcs.Mount
	containers map[string]bool
	procs      map[uint32]*memoryProc
	requests   int
	paused     map[string]bool
	updates    []specs.LinuxResources
	begun      *sync.Cond    // guards the next two
	under      int           // changes that have begun
	asked      int           // calls of Mounts
	hold       chan struct{} // Modify waits for it when it is not nil
	off        chan struct{}
	gone       chan struct{} // PowerOff returns; a real one does not
}

type memoryProc struct {
	signal chan int
	done   chan struct{}
	code   int
}

func newMemory() *memory {
	return &memory{mounts: map[string]gcs.Mount{}, containers: map[string]bool{}, procs: map[uint32]*memoryProc{},
		paused: map[string]bool{}, begun: sync.NewCond(&sync.Mutex{}),
		off: make(chan struct{}, 1), gone: make(chan struct{})}
}

func (m *memory) Begin() (end func()) {
	m.begun.L.Lock()
	defer m.begun.L.Unlock()
	m.under++
	return func() {
		m.begun.L.Lock()
		defer m.begun.L.Unlock()
		m.under--
		m.begun.Broadcast()
	}
}

func (m *memory) Modify(ctx context.Context, r Modification, _ Dialer) error {
	m.mu.Lock()
	hold := m.hold
	m.requests++
	m.mu.Unlock()
	if hold != nil {
		<-hold
	}
	var s hcsschema.LCOWMappedVirtualDisk
	if err := json.Unmarshal(r.Settings, &s); err != nil {
		return fmt.Errorf("%w: %w", ErrJSON, err)
	}
	if r.ResourceType != hcsschema.ResourceMappedVirtualDisk {
		return ErrUnsupported
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case s.MountPath == "/busy":
		return fmt.Errorf("%s is %w by process 7 (vi)", s.MountPath, ErrBusy)
	case r.RequestType == hcsschema.RequestRemove:
		delete(m.mounts, s.MountPath)
	default:
		m.mounts[s.MountPath] = gcs.Mount{Path: s.MountPath, Kind: "scsi", Controller: s.Controller, Lun: s.Lun}
	}
	return nil
}

func (m *memory) Create(_ context.Context, id string, _ gcs.ContainerConfig) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.containers[id] {
		return ErrContainer
	}
	m.containers[id] = true
	return nil
}

func (m *memory) Exec(_ context.Context, p Process) (uint32, error) {
	pr := &memoryProc{signal: make(chan int, 8), done: make(chan struct{})}
	m.mu.Lock()
	id := uint32(len(m.procs) + 1)
	m.procs[id] = pr
	m.mu.Unlock()
	var run func() int
	switch p.Args[0] {
	case "cat":
		run = func() int {
			_, _ = io.Copy(p.Streams[1], p.Streams[0])
			return 0
		}
	case "both": // the same number of bytes on both outputs
		run = func() int {
			var wg sync.WaitGroup
			for i := 1; i < 3; i++ {
				wg.Go(func() {
					for range 1000 {
						_, _ = p.Streams[i].Write([]byte("0123456789"))
					}
				})
			}
			wg.Wait()
			return 0
		}
	case "fail":
		run = func() int { return 3 }
	case "sleep":
		run = func() int { return 128 + <-pr.signal }
	default:
		return 0, fmt.Errorf("program %q: %w", p.Args[0], ErrNotFound)
	}
	go func() {
		pr.code = run()
		for _, c := range p.Streams {
			if c != nil {
				c.Close()
			}
		}
		close(pr.done)
	}()
	return id, nil
}

func (m *memory) get(pid uint32) (*memoryProc, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.procs[pid]; p != nil {
		return p, nil
	}
	return nil, ErrNotFound
}

func (m *memory) Wait(ctx context.Context, _ string, pid uint32) (int, error) {
	p, err := m.get(pid)
	if err != nil {
		return 0, err
	}
	select {
	case <-p.done:
		return p.code, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func (m *memory) Signal(_ context.Context, _ string, pid uint32, sig int) error {
	p, err := m.get(pid)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
		return ErrNotFound
	default:
	}
	p.signal <- sig
	return nil
}

func (m *memory) Resize(context.Context, string, uint32, uint16, uint16) error { return nil }

func (m *memory) Mounts(context.Context) ([]gcs.Mount, error) {
	m.begun.L.Lock()
	for m.asked++; m.under > 0; {
		m.begun.Wait()
	}
	m.begun.L.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.mounts)), nil
}

func (m *memory) Processes(string) ([]uint32, error) { return nil, nil }
func (m *memory) Stats(string) (vmm.ContainerStats, error) {
	return vmm.ContainerStats{Memory: 7, Processes: []vmm.ContainerProcess{{PID: 1, Command: "sh"}}}, nil
}

func (m *memory) Pause(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paused[id] {
		return vmm.ErrPaused
	}
	m.paused[id] = true
	return nil
}

func (m *memory) Resume(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.paused[id] {
		return vmm.ErrNotPaused
	}
	delete(m.paused, id)
	return nil
}

func (m *memory) Update(_ context.Context, _ string, r specs.LinuxResources) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.updates = append(m.updates, r)
	return nil
}

func (m *memory) Ended(context.Context, string) (string, error) { return "", ErrNoContainer }
func (m *memory) Stop(context.Context, string, int) error       { return nil }

func (m *memory) Delete(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.containers, id)
	return nil
}

func (m *memory) PowerOff(context.Context) error {
	m.off <- struct{}{}
	<-m.gone
	return nil
}
