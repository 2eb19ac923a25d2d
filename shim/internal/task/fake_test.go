package task

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	ctrdevents "github.com/containerd/containerd/v2/core/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/shim/internal/events"
	"github.com/stratavm/strata/shim/internal/pod"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// machine is a VM in memory. Its programs end when they are told.
type machine struct {
	fake *vmmtest.Fake
	vm   *uvm.UtilityVM
	lost chan error // what Watch returns

	mu        sync.Mutex
	procs     []*program
	execs     error               // what Exec fails with
	connects  error               // and Connect
	connected []string            // by Connect
	silent    bool                // nothing is answered
	asked     int                 // how often meanwhile
	burst     int                 // how much programs write
	stats     *vmm.ContainerStats // what is said instead of the truth
	begin     chan struct{}       // programs begin when it is closed; nil: at once
	ends      int
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{fake: vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits()), lost: make(chan error, 1)}
	vm, err := uvm.Open(t.Context(), t.TempDir(), func(context.Context) (vmm.Machine, error) { return m.fake, nil },
		uvm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = vm.Close() })
	m.vm = vm
	return m
}

func (m *machine) PID() int { return 4711 }

func (m *machine) Mount(ctx context.Context, r layers.Request) (*layers.Mounted, error) {
	r.VM = m.vm
	return layers.Mount(ctx, r)
}

func (m *machine) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	if err := m.answer(ctx); err != nil {
		return nil, err
	}
	m.mu.Lock()
	begin := m.begin
	m.mu.Unlock()
	if begin != nil {
		<-begin
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.execs != nil {
		return nil, m.execs
	}
	if _, err := m.fake.Exec(ctx, spec); err != nil {
		return nil, err
	}
	p := &program{m: m, spec: spec, exited: make(chan struct{}), done: make(chan struct{})}
	if n := m.burst; n > 0 {
		p.output.Go(func() {
			for b := make([]byte, 32<<10); n > 0; n -= len(b) {
				_, _ = spec.Stdout.Write(b)
			}
		})
	}
	m.procs = append(m.procs, p)
	return p, nil
}

func (m *machine) Connect(_ context.Context, id string) error {
	m.connected = append(m.connected, id)
	return m.connects
}

// answer waits for ever when the machine is silent.
func (m *machine) answer(ctx context.Context) error {
	m.mu.Lock()
	silent := m.silent
	if silent {
		m.asked++
	}
	m.mu.Unlock()
	if !silent {
		return nil
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (m *machine) beSilent(silent bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.silent = silent
}

func (m *machine) Stats(ctx context.Context, _ string) (vmm.ContainerStats, error) {
	if err := m.answer(ctx); err != nil {
		return vmm.ContainerStats{}, err
	}
	if m.stats != nil {
		return *m.stats, nil
	}
	return vmm.ContainerStats{Memory: 5, MemoryLimit: 7, Processes: []vmm.ContainerProcess{{PID: 12}, {PID: 13}}}, nil
}

func (m *machine) Pause(ctx context.Context, id string) error {
	if err := m.answer(ctx); err != nil {
		return err
	}
	return m.fake.PauseContainer(ctx, id)
}

func (m *machine) Resume(ctx context.Context, id string) error {
	if err := m.answer(ctx); err != nil {
		return err
	}
	return m.fake.ResumeContainer(ctx, id)
}

func (m *machine) Update(ctx context.Context, id string, r specs.LinuxResources) error {
	if err := m.answer(ctx); err != nil {
		return err
	}
	return m.fake.UpdateContainer(ctx, id, r)
}

func (m *machine) Watch(ctx context.Context, _ *layers.Mounted) error {
	select {
	case err := <-m.lost:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *machine) End(context.Context) error {
	m.fake.Kill()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ends++
	for _, p := range m.procs {
		p.exit(0, vmm.ErrGone)
	}
	return nil
}

func (m *machine) program(i int) *program {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.procs[i]
}

// program is a process of a machine.
type program struct {
	m      *machine
	spec   vmm.ProcessSpec
	output sync.WaitGroup
	exited chan struct{}
	done   chan struct{} // and all output is out
	once   sync.Once
	code   int
	err    error

	mu            sync.Mutex
	memory        bool
	signals       []int
	width, height uint16
}

func (p *program) exit(code int, err error) {
	p.once.Do(func() {
		p.code, p.err = code, err
		close(p.exited)
		go func() {
			p.output.Wait()
			close(p.done)
		}()
	})
}

func (p *program) Exited() <-chan struct{} { return p.exited }

func (p *program) OutOfMemory() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.memory
}

func (p *program) Pid() uint32 { return 1001 }

func (p *program) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.code, p.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func (p *program) Signal(ctx context.Context, sig int) error {
	if err := p.m.answer(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	p.signals = append(p.signals, sig)
	p.mu.Unlock()
	p.exit(128+sig, nil)
	return nil
}

func (p *program) Resize(ctx context.Context, width, height uint16) error {
	if err := p.m.answer(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.width, p.height = width, height
	return nil
}

func (p *program) Close() error { return nil }

// fixture is a service with a machine for each container that is created.
type fixture struct {
	*Service
	t      *testing.T
	m      *machine
	sizes  pod.Options
	vms    int   // that were started
	starts error // what the start of a VM fails with
	ended  bool

	mu     sync.Mutex
	events []any
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, m: newMachine(t)}
	log := slog.New(slog.DiscardHandler)
	queue := events.New(t.Context(), f, log)
	t.Cleanup(func() { _ = queue.Close(context.Background()) })
	f.Service = New(Config{Namespace: "ns", Events: queue, Logger: log, End: func() { f.ended = true },
		StartVM: func(_ context.Context, o pod.Options) (Machine, error) {
			f.sizes = o
			f.vms++
			return f.m, f.starts
		}})
	return f
}

func (f *fixture) Publish(_ context.Context, _ string, e ctrdevents.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch e := e.(type) {
	case *eventsapi.TaskExit: // the times differ
		f.events = append(f.events, [3]any{"exit", e.ID, e.ExitStatus})
	case *eventsapi.TaskDelete:
		f.events = append(f.events, [2]any{"delete", e.ExitStatus})
	case *eventsapi.TaskCreate:
		f.events = append(f.events, "create")
	case *eventsapi.TaskStart:
		f.events = append(f.events, "start")
	case *eventsapi.TaskPaused:
		f.events = append(f.events, "paused")
	case *eventsapi.TaskResumed:
		f.events = append(f.events, "resumed")
	case *eventsapi.TaskOOM:
		f.events = append(f.events, "out of memory")
	case *eventsapi.TaskExecAdded:
		f.events = append(f.events, "added "+e.ExecID)
	case *eventsapi.TaskExecStarted:
		f.events = append(f.events, "started "+e.ExecID)
	}
	return nil
}

// published waits until all events are published.
func (f *fixture) published() []any {
	f.t.Helper()
	if err := f.Events.Close(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.events
}

// spec is a document as ctr makes them.
func spec() *specs.Spec {
	return &specs.Spec{Version: "1.3.0", Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/sh"}, Cwd: "/", Capabilities: &specs.LinuxCapabilities{
			Bounding: []string{"CAP_KILL"}}, User: specs.User{UID: 5, GID: 6}},
		Linux: &specs.Linux{CgroupsPath: "/default/a", Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}}}}
}

// bundle writes a bundle with a root and FIFOs.
func bundle(t *testing.T, s *specs.Spec) *taskapi.CreateTaskRequest {
	t.Helper()
	dir := t.TempDir()
	b, err := json.Marshal(s)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600)
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, "rootfs"), 0o700)
	}
	r := &taskapi.CreateTaskRequest{ID: "a", Bundle: dir, Stdin: dir + "/0", Stdout: dir + "/1", Stderr: dir + "/2"}
	for _, name := range []string{r.Stdin, r.Stdout, r.Stderr} {
		err = errors.Join(err, unix.Mkfifo(name, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// made is a fixture with a container that is created.
func made(t *testing.T) *fixture {
	t.Helper()
	f := newFixture(t)
	if _, err := f.Create(t.Context(), bundle(t, spec())); err != nil {
		t.Fatal(err)
	}
	return f
}

// running is a fixture with a container that runs.
func running(t *testing.T) *fixture {
	t.Helper()
	f := made(t)
	if _, err := f.Service.Start(t.Context(), &taskapi.StartRequest{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	return f
}

// exit ends the container's program, and waits until everybody knows.
func (f *fixture) exit() {
	f.t.Helper()
	f.m.program(0).exit(0, nil)
	if _, err := f.Wait(f.t.Context(), &taskapi.WaitRequest{ID: "a"}); err != nil {
		f.t.Error(err)
	}
}
