package hcs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"sync"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/applyengine"
	"github.com/stratavm/strata/vmm"
)

// Host is what a VM needs of the Windows host it runs on.
type Host struct {
	API API
	// Grant gives the VM (its identifier) the right to open a file of the host.
	Grant func(ctx context.Context, vmID, path string) error
	// GrantGroup gives all VMs that right; nil where it is not to be had.
	GrantGroup func(ctx context.Context, path string) error
	// FS is where boot files and templates are; nil is the host's own.
	FS FS
	// FileID asks for the identity of a folder; shares of file systems that have none cannot be mapped
	// directly on some builds. Nil: all have.
	FileID func(path string) error
	// TimeZone is the host's, which Windows guests inherit over an external connection. Nil: they are not told.
	TimeZone func() (hcsschema.TimeZoneInformation, error)
	// Build is the Windows build number.
	Build uint32
	// Listen listens on a Hyper-V socket service of the host for connections from the VM with the
	// runtime id given. Nil: nothing is served, which an external guest connection does not allow.
	Listen func(runtimeID, serviceID string) (net.Listener, error)
	// Connect speaks the guest protocol on a connection that the guest has made: it negotiates and
	// returns when the guest is ready. Needed for external guest connections.
	Connect func(ctx context.Context, conn net.Conn, info GuestInfo) (Guest, error)
	// Probed, when set, is told what a guest was found out to be whose generation is GuestProbe. Who stores the
	// options puts it there, so that the next process need not find out again. It may be called more than once.
	Probed func(GuestGeneration)
	Logger *slog.Logger // nil: silent
}

// NativeHost is this Windows host, without the right to grant access, which package wclayer has: set
// Grant and GrantGroup. It fails elsewhere, and where the service is not installed.
func NativeHost() (Host, error) {
	api, err := Native()
	if err != nil {
		return Host{}, err
	}
	return Host{API: api, FileID: FileID, TimeZone: TimeZone, Build: Build(), Listen: Listen, Connect: ConnectGCS}, nil
}

// FS is the part of a file system that creating a VM needs. Paths are Windows paths.
type FS interface {
	Stat(path string) (fs.FileInfo, error)
	// CopyFile makes dst a copy of src; parent folders of dst are made.
	CopyFile(dst, src string) error
}

// GuestInfo tells Connect whom it is going to speak with.
type GuestInfo struct {
	ID        string // of the compute system
	RuntimeID string // address for Hyper-V sockets
	OS        vmm.OS
	TimeZone  *hcsschema.TimeZoneInformation // for a Windows guest; nil: it is not told
	// Listen listens for connections of this VM, for the streams of processes.
	Listen func(serviceID string) (net.Listener, error)
}

// Guest is our end of an external guest connection.
type Guest interface {
	// Modify makes the guest act. The effect of a request is taken to be unknown when it fails, unless
	// the error is a *gcs.Error (the guest refused) or matches gcs.ErrNotSent.
	Modify(ctx context.Context, r hcsschema.GuestRequest) error
	Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error)
	FindProcess(ctx context.Context, containerID string, pid uint32) (vmm.Process, error)
	DeleteContainerState(ctx context.Context, containerID string) error
	Stacks(ctx context.Context) (string, error)
	Shutdown(ctx context.Context) error
	Close() error
}

// Machine is a utility VM. After Create it has to be started; from then on it is a vmm.Machine. All
// methods may be called concurrently.
type Machine struct {
	host       Host
	sys        *system
	enc        encoder
	limits     vmm.Limits
	conn       guestConn
	persistent bool
	owner      string // of the VM and its containers
	processors int32
	forward    bool // the agent's output comes to the log port
	runtimeID  string
	engine     *applyengine.Engine
	known      *applyengine.Known // what this process applied
	services   services
	watching   sync.WaitGroup // for the end of the system

	mu      sync.Mutex
	refused map[string]bool // by address: the guest refused the mount that came with this device
	life    context.Context // ends with the machine
	end     context.CancelCauseFunc
}

var _ vmm.Machine = (*Machine)(nil)

// ID implements vmm.Machine: the identifier of the compute system.
func (m *Machine) ID() string { return m.sys.id }

// RuntimeID is the VM's address for Hyper-V sockets.
func (m *Machine) RuntimeID() string { return m.runtimeID }

// ProcessorCount is how many processors the VM really has.
func (m *Machine) ProcessorCount() int32 { return m.processors }

// OS implements vmm.Machine.
func (m *Machine) OS() vmm.OS { return m.enc.os }

// Limits implements vmm.Machine.
func (m *Machine) Limits() vmm.Limits { return m.limits }

// Done implements vmm.Machine.
func (m *Machine) Done() <-chan struct{} { return m.sys.exited }

// Err implements vmm.Machine.
func (m *Machine) Err() error { return m.sys.err() }

// newMachine is what creating and opening have in common.
func newMachine(host Host, o *Options, os vmm.OS, limits vmm.Limits) *Machine {
	m := &Machine{host: host, limits: limits, persistent: o.Persistent, owner: o.Owner,
		conn: newConn(o), enc: encoder{os: os, byGUID: o.SCSIControllerGUIDs}}
	m.life, m.end = context.WithCancelCause(context.Background())
	m.refused, m.known = map[string]bool{}, applyengine.NewKnown(true)
	m.engine = applyengine.New(m.life, os, m.known, nil) // Close waits for no call into the service
	return m
}

func (h *Host) complete() error {
	if h.API == nil {
		return fmt.Errorf("the Host Compute Service: %w on this system", errors.ErrUnsupported)
	}
	if h.Logger == nil {
		h.Logger = slog.New(slog.DiscardHandler)
	}
	if h.FS == nil {
		h.FS = hostFiles{}
	}
	return nil
}

// attach makes the machine the owner of a system and watches over its end.
func (m *Machine) attach(ctx context.Context, s *system) error {
	m.sys = s
	p, err := s.properties(ctx)
	if err != nil {
		return err
	}
	m.runtimeID = p.RuntimeId
	m.watching.Go(func() {
		select {
		case <-s.exited:
			m.host.Logger.Debug("utility VM is gone", "vm", s.id, "reason", s.err())
			m.end(s.err())
		case <-m.life.Done():
		}
		m.services.close()
	})
	return nil
}

// rest ends what this process does for the machine, and waits for it: nothing is logged any more.
func (m *Machine) rest() {
	m.end(fmt.Errorf("utility VM %s: %w", m.ID(), ErrClosed))
	m.services.close()
	m.watching.Wait()
	m.services.wait()
}

// processorCount limits what is asked for to what the host has.
func processorCount(ctx context.Context, host *Host, o *Options) (int32, error) {
	n, err := processors(ctx, host.API)
	if err != nil {
		return 0, fmt.Errorf("create utility VM %s: %w", o.ID, err)
	}
	if int64(o.ProcessorCount) > int64(n) {
		host.Logger.Warn("fewer processors than asked for", "vm", o.ID, "asked", o.ProcessorCount, "host", n)
		return int32(n), nil
	}
	return o.ProcessorCount, nil
}

// create creates the system; when it fails nothing is left.
func (m *Machine) create(ctx context.Context, o *Options, doc *hcsschema.ComputeSystem) error {
	text, err := o.encode(doc)
	if err != nil {
		return err
	}
	m.processors = doc.VirtualMachine.ComputeTopology.Processor.Count
	m.host.Logger.Debug("create utility VM", "vm", o.ID, "document", text)
	s, err := createSystem(ctx, m.host.API, o.ID, text)
	if err == nil {
		if err = m.attach(ctx, s); err != nil {
			m.rest()
			s.discard(ctx, true)
		}
	}
	if err != nil {
		return fmt.Errorf("create utility VM: %w", err)
	}
	return nil
}

// Start boots the VM and waits until its guest agent answers. When the agent's connection fails the
// VM is ended; when the boot is refused it stays as created. In either case Close it.
func (m *Machine) Start(ctx context.Context) error {
	if err := m.serve(); err != nil {
		return fmt.Errorf("start utility VM %s: %w", m.ID(), err)
	}
	if err := m.sys.start(ctx); err != nil {
		return fmt.Errorf("start utility VM: %w", err)
	}
	if err := m.conn.connect(ctx, m); err != nil {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyGrace)
		defer cancel()
		return fmt.Errorf("start utility VM %s: guest connection: %w", m.ID(), errors.Join(err, m.sys.terminate(grace)))
	}
	return nil
}

// Observe implements vmm.Machine. The service tells whether the VM is there but not what is in it, so
// the answer is what this process applied.
func (m *Machine) Observe(ctx context.Context) (vmm.Observation, error) {
	if err := m.Err(); err != nil {
		return vmm.Observation{}, err
	}
	p, err := m.sys.properties(ctx)
	switch {
	case err != nil && (IsNotExist(err) || IsAlreadyStopped(err)), err == nil && p.Stopped:
		m.sys.exit(fmt.Errorf("%w: it has stopped", vmm.ErrGone))
		return vmm.Observation{}, m.Err()
	case err != nil:
		return vmm.Observation{}, fmt.Errorf("observe: %w", err)
	}
	return m.known.Observation(), nil
}

// DeleteContainerState implements vmm.Machine. Over an internal connection the service itself tells
// the guest when a container's compute system is closed, and there is nothing to do.
func (m *Machine) DeleteContainerState(ctx context.Context, containerID string) error {
	if err := m.Err(); err != nil {
		return err
	}
	return m.conn.deleteContainerState(ctx, m, containerID)
}

// Stacks implements vmm.Machine. Only an external connection can ask.
func (m *Machine) Stacks(ctx context.Context) (string, error) {
	if err := m.Err(); err != nil {
		return "", err
	}
	return m.conn.stacks(ctx, m)
}

// Shutdown implements vmm.Machine.
func (m *Machine) Shutdown(ctx context.Context) error {
	err := m.conn.shutdown(ctx, m)
	if err == nil || m.Err() != nil {
		return nil
	}
	m.host.Logger.Warn("the guest did not power off; it is terminated", "vm", m.ID(), "error", err)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyGrace)
	defer cancel()
	return m.Terminate(grace)
}

// Terminate implements vmm.Machine.
func (m *Machine) Terminate(ctx context.Context) error {
	if m.Err() != nil {
		return nil
	}
	return m.sys.terminate(ctx)
}

// Close implements vmm.Machine. A VM that is not persistent ends with it. It returns when everything has
// ended that Create, Open and Start began; for a call to the service that hangs it waits 30 seconds, for a
// Host.Logger that hangs for ever.
func (m *Machine) Close() error {
	if m.sys.usable() != nil {
		m.rest()
		return nil
	}
	var errs []error
	ctx, cancel := context.WithTimeout(context.Background(), tidyGrace)
	defer cancel()
	if !m.persistent {
		errs = append(errs, m.sys.terminate(ctx))
	}
	if err := m.conn.close(); err != nil && m.Err() == nil {
		errs = append(errs, err)
	}
	m.rest()
	errs = append(errs, m.sys.close(ctx))
	return errors.Join(errs...)
}
