package local

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest"
	"github.com/stratavm/strata/internal/guest/gcsserver"
	"github.com/stratavm/strata/vmm"
)

// Exec implements vmm.Machine. The first process of a container starts the container, with crun or runc. When it exits,
// the other processes that were started in the container end, and the next first process starts it anew. If neither
// crun nor runc is installed, the error matches crun.ErrNoRuntime of internal/crun and says what to install.
func (m *Machine) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	p, err := m.exec(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start %q on host machine %s: %w", spec.Args, m.id, err)
	}
	return p, nil
}

func (m *Machine) exec(ctx context.Context, spec vmm.ProcessSpec) (*process, error) {
	switch {
	case m.Err() != nil:
		return nil, m.Err()
	case len(spec.Args) == 0:
		return nil, errors.New("no program is given")
	case (spec.ContainerID == "") != (spec.Root == ""):
		return nil, errors.New("a container needs an id and a root, the machine itself neither")
	}
	run, err := m.runtime()
	if err != nil {
		return nil, err
	}
	instance := ""
	if spec.ContainerID != "" {
		if instance, err = m.container(ctx, run, spec); err != nil {
			return nil, err
		}
	}
	p := &process{run: run, container: spec.ContainerID}
	var streams [3]net.Conn
	connect := func(i int, copy func(conn net.Conn)) {
		ours, theirs := net.Pipe()
		streams[i] = theirs
		p.conns = append(p.conns, ours)
		if i == 0 { // not waited for: the process may not read its input
			go copy(ours)
			return
		}
		p.output.Go(func() { copy(ours) })
	}
	// An error of a stream does not concern the process, which goes on.
	if spec.Stdin != nil {
		connect(0, func(c net.Conn) { _, _ = io.Copy(c, spec.Stdin); _ = c.Close() })
	}
	for i, w := range []io.Writer{1: spec.Stdout, 2: spec.Stderr} {
		if w != nil {
			connect(i, func(c net.Conn) {
				if _, err := io.Copy(w, c); err != nil {
					_, _ = io.Copy(io.Discard, c)
				}
			})
		}
	}
	pid, err := run.Exec(ctx, gcsserver.Process{Container: spec.ContainerID, Args: spec.Args, Env: spec.Env,
		Dir: spec.Dir, MakeDir: spec.MakeDir, User: spec.User, First: spec.First, Instance: instance,
		Terminal: spec.Terminal, Width: spec.Width, Height: spec.Height, Streams: streams})
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	p.pid = pid
	return p, nil
}

// FindProcess implements vmm.Machine. Only the program that started a process, as its parent, can wait for it.
func (m *Machine) FindProcess(_ context.Context, _ string, pid uint32) (vmm.Process, error) {
	if err := m.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("find process %d on host machine %s: %w", pid, m.id, errors.ErrUnsupported)
}

// runtime returns the container runtime, which it creates on the first call.
func (m *Machine) runtime() (guest.Containers, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run == nil {
		run, err := m.containersOf()
		if err != nil {
			return nil, err
		}
		m.run = run
	}
	return m.run, nil
}

// container makes the container known to the runtime. For the first process of a container it returns a new instance
// name.
func (m *Machine) container(ctx context.Context, run gcsserver.Runtime, spec vmm.ProcessSpec) (instance string,
	err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	root := m.HostPath(spec.Root)
	switch have, ok := m.roots[spec.ContainerID]; {
	case ok && have != root:
		return "", fmt.Errorf("container %s has another root than %s: %w", spec.ContainerID, spec.Root, vmm.ErrOccupied)
	case ok && !spec.First:
		return "", nil
	case spec.First:
		instance = rand.Text()
	}
	doc := gcs.Document(&spec)
	doc.Root.Path = root
	err = run.Create(ctx, spec.ContainerID, gcs.ContainerConfig{OciSpecification: doc, StrataInstance: instance})
	if errors.Is(err, gcsserver.ErrContainer) {
		return "", fmt.Errorf("%w: %w", vmm.ErrOccupied, err)
	}
	if err == nil {
		m.roots[spec.ContainerID] = root
	}
	return instance, err
}

func (m *Machine) containers() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.roots)
}

// DeleteContainerState implements vmm.Machine.
func (m *Machine) DeleteContainerState(ctx context.Context, id string) error {
	if err := m.Err(); err != nil {
		return err
	}
	if m.noPrograms() {
		return nil
	}
	run, err := m.runtime()
	if err != nil {
		return fmt.Errorf("end container %s on host machine %s: %w", id, m.id, err)
	}
	if err := run.Delete(ctx, id); err != nil {
		return fmt.Errorf("end container %s on host machine %s: %w", id, m.id, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.roots, id)
	return nil
}

// ContainerStats implements vmm.ContainerStatist, for containers that this process runs.
func (m *Machine) ContainerStats(_ context.Context, id string) (vmm.ContainerStats, error) {
	run, err := m.runtime()
	if err != nil {
		return vmm.ContainerStats{}, fmt.Errorf("statistics of container %s: %w", id, err)
	}
	return run.Stats(id)
}

// PauseContainer implements vmm.ContainerController, for containers that this process runs.
func (m *Machine) PauseContainer(ctx context.Context, id string) error {
	return m.change("pause", id, func(run guest.Containers) error { return run.Pause(ctx, id) })
}

// ResumeContainer implements vmm.ContainerController.
func (m *Machine) ResumeContainer(ctx context.Context, id string) error {
	return m.change("resume", id, func(run guest.Containers) error { return run.Resume(ctx, id) })
}

// UpdateContainer implements vmm.ContainerController.
func (m *Machine) UpdateContainer(ctx context.Context, id string, r specs.LinuxResources) error {
	return m.change("update", id, func(run guest.Containers) error { return run.Update(ctx, id, r) })
}

// change calls do and adds the operation and the container to its error.
func (m *Machine) change(verb, id string, do func(guest.Containers) error) error {
	run, err := m.runtime()
	if err == nil {
		err = do(run)
	}
	if errors.Is(err, gcsserver.ErrUnsupported) {
		err = fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("%s container %s on host machine %s: %w", verb, id, m.id, err)
	}
	return nil
}

// noPrograms reports whether no program runs in any container, by whichever process, and this process has started none.
func (m *Machine) noPrograms() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run != nil {
		return false
	}
	entries, err := os.ReadDir(filepath.Join(m.dir, containersDir))
	return len(entries) == 0 && (err == nil || errors.Is(err, os.ErrNotExist))
}

// checkPrograms ends programs in a root whose starter was killed, and returns an error if other programs run in it. The
// kernel would allow the unmount, and the mounts below would stay in use.
func (m *Machine) checkPrograms(ctx context.Context, root string) error {
	if m.noPrograms() {
		return nil
	}
	run, err := m.runtime()
	if err != nil {
		return err
	}
	if err := run.InUse(ctx, root); errors.Is(err, gcsserver.ErrBusy) {
		return fmt.Errorf("%w: %w", vmm.ErrBusy, err)
	} else if err != nil {
		return err
	}
	return nil
}

// process is a process that Exec has started.
type process struct {
	run       gcsserver.Runtime
	container string
	pid       uint32
	conns     []net.Conn
	output    sync.WaitGroup
}

// Pid implements vmm.Process.
func (p *process) Pid() uint32 { return p.pid }

// Wait implements vmm.Process.
func (p *process) Wait(ctx context.Context) (int, error) {
	code, err := p.run.Wait(ctx, p.container, p.pid)
	if err != nil {
		return 0, err
	}
	done := make(chan struct{})
	go func() { p.output.Wait(); close(done) }()
	select {
	case <-done:
		return code, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// OutOfMemory implements vmm.OutOfMemory.
func (p *process) OutOfMemory() bool {
	o, ok := p.run.(interface{ OutOfMemory(string, uint32) bool })
	return ok && o.OutOfMemory(p.container, p.pid)
}

// Signal implements vmm.Process.
func (p *process) Signal(ctx context.Context, sig int) error {
	if err := p.run.Signal(ctx, p.container, p.pid, sig); !errors.Is(err, gcsserver.ErrNotFound) {
		return err
	}
	return nil // it has exited
}

// Resize implements vmm.Process.
func (p *process) Resize(ctx context.Context, width, height uint16) error {
	return p.run.Resize(ctx, p.container, p.pid, width, height)
}

// closeTime bounds how long Close waits for a writer that blocks.
const closeTime = 10 * time.Second

// Close implements vmm.Process. After it returns, nothing is written to the writers of the ProcessSpec. If one blocks
// for longer than 10 seconds, that is an error.
func (p *process) Close() error {
	var errs []error
	for _, c := range p.conns {
		errs = append(errs, c.Close())
	}
	done := make(chan struct{})
	go func() { p.output.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(closeTime):
		errs = append(errs, fmt.Errorf("close process %d: a write of its output has blocked for %v", p.pid, closeTime))
	}
	return errors.Join(errs...)
}

var (
	_ vmm.ContainerStatist    = (*Machine)(nil)
	_ vmm.ContainerController = (*Machine)(nil)
)
