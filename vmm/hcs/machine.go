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

// Host is the interface of a VM to its Windows host.
type Host struct {
	API API
	// Grant grants the VM with an identifier access to a file of the host.
	Grant func(ctx context.Context, vmID, path string) error
	// GrantGroup grants all VMs access to a file. Nil: not supported.
	GrantGroup func(ctx context.Context, path string) error
	// FS has the boot files and templates. Nil: the host's file system.
	FS FS
	// FileID fails if a folder has no file identity. Some builds cannot map shares of such folders directly. Nil: all
	// have one.
	FileID func(path string) error
	// TimeZone returns the host's time zone, for Windows guests with an external connection. Nil: theirs is not set.
	TimeZone func() (hcsschema.TimeZoneInformation, error)
	// Build is the Windows build number.
	Build uint32
	// Listen listens on a Hyper-V socket service of the host for connections from the VM with a runtime id. Nil:
	// nothing is served. An external guest connection requires it.
	Listen func(runtimeID, serviceID string) (net.Listener, error)
	// Connect negotiates the guest protocol on a connection that the guest has made, and returns when the guest is
	// ready. An external guest connection requires it.
	Connect func(ctx context.Context, conn net.Conn, info GuestInfo) (Guest, error)
	// Probed, if set, is called when the generation of a guest with GuestProbe was detected, possibly more than once. A
	// caller that stores the options updates them, so that the next process need not detect it again.
	Probed func(GuestGeneration)
	Logger *slog.Logger // nil: nothing is logged
}

// NativeHost returns this Windows host without Grant and GrantGroup, which package wclayer implements. It fails on
// other systems, and if the service is not installed.
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
	// CopyFile copies src to dst and creates the parent folders of dst.
	CopyFile(dst, src string) error
}

// GuestInfo describes the guest for Connect.
type GuestInfo struct {
	ID        string // of the compute system
	RuntimeID string // its address for Hyper-V sockets
	OS        vmm.OS
	TimeZone  *hcsschema.TimeZoneInformation // for a Windows guest; nil: it is not set
	// Listen listens for connections of this VM, for the streams of processes.
	Listen func(serviceID string) (net.Listener, error)
}

// Guest is our end of an external guest connection.
type Guest interface {
	// Modify sends a request. If it fails, its effect is unknown unless the error is a *gcs.Error (the guest refused
	// it) or matches gcs.ErrNotSent.
	Modify(ctx context.Context, r hcsschema.GuestRequest) error
	Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error)
	FindProcess(ctx context.Context, containerID string, pid uint32) (vmm.Process, error)
	DeleteContainerState(ctx context.Context, containerID string) error
	Stacks(ctx context.Context) (string, error)
	Shutdown(ctx context.Context) error
	Close() error
}

// Machine is a utility VM. It is created or opened; after creation Start must be called first. All methods may be
// called concurrently.
type Machine struct {
	host       Host
	sys        *system
	enc        encoder
	limits     vmm.Limits
	conn       guestConn
	persistent bool
	owner      string // of the VM and its containers
	processors int32
	forward    bool // the agent sends its output to the log port
	runtimeID  string
	engine     *applyengine.Engine
	known      *applyengine.Known // what this process has applied
	services   services
	watching   sync.WaitGroup // for the exit of the system

	mu      sync.Mutex
	refused map[string]bool // by device address: the guest has refused its mount
	life    context.Context // ends with the machine
	end     context.CancelCauseFunc
}

var _ vmm.Machine = (*Machine)(nil)

// ID implements vmm.Machine: the identifier of the compute system.
func (m *Machine) ID() string { return m.sys.id }

// RuntimeID returns the VM's address for Hyper-V sockets.
func (m *Machine) RuntimeID() string { return m.runtimeID }

// ProcessorCount returns the number of processors that the VM was created with; 0 if this process has opened it.
func (m *Machine) ProcessorCount() int32 { return m.processors }

// OS implements vmm.Machine.
func (m *Machine) OS() vmm.OS { return m.enc.os }

// Limits implements vmm.Machine.
func (m *Machine) Limits() vmm.Limits { return m.limits }

// Done implements vmm.Machine.
func (m *Machine) Done() <-chan struct{} { return m.sys.exited }

// Err implements vmm.Machine.
func (m *Machine) Err() error { return m.sys.err() }

// newMachine does what creating and opening have in common.
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

// attach makes the machine the owner of a system and waits for its exit in the background.
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

// rest ends the background work of the machine, and waits for it: afterwards nothing is logged.
func (m *Machine) rest() {
	m.end(fmt.Errorf("utility VM %s: %w", m.ID(), ErrClosed))
	m.services.close()
	m.watching.Wait()
	m.services.wait()
}

// processorCount returns the requested number of processors, but at most that of the host.
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

// create creates the system. On error nothing of it remains.
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

// Start boots the VM and waits until its guest agent answers. If the connection to the agent fails, it terminates the
// VM; if the boot fails, the VM remains as created. In both cases call Close.
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

// Observe implements vmm.Machine. The service reports whether the VM exists but not what is attached to it, so the
// observation is what this process has applied.
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

// DeleteContainerState implements vmm.Machine. With an internal connection it does nothing: the service tells the guest
// when a container's compute system is closed.
func (m *Machine) DeleteContainerState(ctx context.Context, containerID string) error {
	if err := m.Err(); err != nil {
		return err
	}
	return m.conn.deleteContainerState(ctx, m, containerID)
}

// Stacks implements vmm.Machine. It requires an external connection.
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

// Close implements vmm.Machine. It ends a VM that is not persistent, and waits for all that Create, Open and Start
// began: 30 seconds for a call to the service that hangs, without limit for a Host.Logger that hangs.
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
