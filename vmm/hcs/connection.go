package hcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
)

// guestConn is the connection to the guest of a machine: serviceConn, ownConn, or noConn if the options disable it.
type guestConn interface {
	// listen listens for the guest's connections. It is called before the guest boots.
	listen(m *Machine) error
	// needsListener reports whether Host.Listen is required.
	needsListener() bool
	// connect waits until the guest's agent answers.
	connect(ctx context.Context, m *Machine) error
	// carries reports whether a request to the service can include the guest's half of a Change.
	carries() bool
	// asks reports whether there is an agent for requests.
	asks() bool
	// modify sends a request to the guest.
	modify(ctx context.Context, m *Machine, r hcsschema.GuestRequest) error
	exec(ctx context.Context, m *Machine, spec vmm.ProcessSpec) (vmm.Process, error)
	findProcess(ctx context.Context, m *Machine, containerID string, pid uint32) (vmm.Process, error)
	deleteContainerState(ctx context.Context, m *Machine, containerID string) error
	stacks(ctx context.Context, m *Machine) (string, error)
	// shutdown makes the guest power off and waits for the exit of the VM.
	shutdown(ctx context.Context, m *Machine) error
	close() error
}

// newConn returns the connection that the options configure.
func newConn(o *Options) guestConn {
	if o.ExternalGuestConnection {
		return &ownConn{}
	}
	return serviceConn{}
}

// serviceConn is a connection that the service owns ("internal").
type serviceConn struct{}

func (serviceConn) listen(*Machine) error { return nil }
func (serviceConn) needsListener() bool   { return false }
func (serviceConn) carries() bool         { return true }
func (serviceConn) asks() bool            { return true }
func (serviceConn) close() error          { return nil }

func (serviceConn) connect(ctx context.Context, m *Machine) error {
	// The reported capabilities of the guest are ignored, as no request depends on them.
	_, err := m.sys.properties(ctx, hcsschema.PropertyGuestConnection)
	return err
}

func (serviceConn) modify(_ context.Context, m *Machine, r hcsschema.GuestRequest) error {
	return m.sys.modify(hcsschema.ModifySettingRequest{GuestRequest: &r})
}

// exec starts a process through the service: in the VM itself, or in a container, which is a compute system.
func (serviceConn) exec(ctx context.Context, m *Machine, spec vmm.ProcessSpec) (vmm.Process, error) {
	if spec.ContainerID != "" || spec.Root != "" {
		return m.execInContainer(ctx, spec)
	}
	parameters, err := json.Marshal(processParameters(spec, m.enc.os))
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Args[0], err)
	}
	p, err := m.startProcess(ctx, m.sys, spec, string(parameters))
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (serviceConn) findProcess(_ context.Context, _ *Machine, _ string, pid uint32) (vmm.Process, error) {
	return nil, fmt.Errorf("find process %d over the service's own connection: %w", pid, ErrNotSupported)
}

// deleteContainerState does nothing: the service tells the guest when a container's compute system is closed.
func (serviceConn) deleteContainerState(context.Context, *Machine, string) error { return nil }

func (serviceConn) stacks(context.Context, *Machine) (string, error) {
	return "", fmt.Errorf("stacks of the guest agent over the service's own connection: %w", ErrNotSupported)
}

func (serviceConn) shutdown(ctx context.Context, m *Machine) error { return m.sys.shutdown(ctx) }

// noConn is for a guest without an agent. Nothing waits for the agent, and the service refuses requests to it.
type noConn struct{ serviceConn }

func (noConn) asks() bool                              { return false }
func (noConn) connect(context.Context, *Machine) error { return nil }

// ownConn is a connection that we own ("external"): the guest connects to us after it has booted.
type ownConn struct {
	utc bool // a Windows guest does not inherit the host's time zone

	mu    sync.Mutex
	l     net.Listener
	guest Guest
}

func (*ownConn) needsListener() bool { return true }
func (*ownConn) carries() bool       { return false }
func (*ownConn) asks() bool          { return true }

func (c *ownConn) listen(m *Machine) error {
	service := ServiceID(BridgePort)
	if m.enc.os == vmm.Windows {
		service = windowsBridge
	}
	l, err := m.services.listen(m, service)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.l = l
	return err
}

// connect waits for the guest to connect, and negotiates the protocol.
func (c *ownConn) connect(ctx context.Context, m *Machine) error {
	conn, err := c.accept(ctx, m)
	if err != nil {
		return fmt.Errorf("wait for the guest: %w", err)
	}
	zone, err := c.timeZone(m)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	guest, err := m.host.Connect(ctx, conn, GuestInfo{ID: m.ID(), RuntimeID: m.runtimeID, OS: m.enc.os, TimeZone: zone,
		Listen: func(service string) (net.Listener, error) { return m.host.Listen(m.runtimeID, service) }})
	if err != nil {
		conn.Close()
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.guest = guest
	return nil
}

func (c *ownConn) accept(ctx context.Context, m *Machine) (net.Conn, error) {
	c.mu.Lock()
	l := c.l
	c.mu.Unlock()
	if l == nil {
		return nil, vmm.ErrGuestUnreachable
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	conn, err := l.Accept()
	stop()
	l.Close()
	switch {
	case m.Err() != nil:
		err = m.Err()
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	if err != nil && conn != nil {
		conn.Close()
	}
	return conn, err
}

// timeZone returns the time zone to set in a Windows guest, or nil to set none.
func (c *ownConn) timeZone(m *Machine) (*hcsschema.TimeZoneInformation, error) {
	switch {
	case m.enc.os != vmm.Windows || !c.utc && m.host.TimeZone == nil:
		return nil, nil
	case c.utc:
		utc := hcsschema.UTC()
		return &utc, nil
	}
	zone, err := m.host.TimeZone()
	return &zone, err
}

// agent returns the connection to the agent.
func (c *ownConn) agent(m *Machine) (Guest, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.guest == nil {
		return nil, fmt.Errorf("utility VM %s has no guest connection: %w", m.ID(), vmm.ErrGuestUnreachable)
	}
	return c.guest, nil
}

// ask calls f with the connection to the agent.
func (c *ownConn) ask(m *Machine, f func(Guest) error) error {
	guest, err := c.agent(m)
	if err != nil {
		return err
	}
	return f(guest)
}

func (c *ownConn) modify(ctx context.Context, m *Machine, r hcsschema.GuestRequest) error {
	return c.ask(m, func(g Guest) error {
		if err := g.Modify(ctx, r); err != nil {
			return &guestError{err}
		}
		return nil
	})
}

func (c *ownConn) exec(ctx context.Context, m *Machine, spec vmm.ProcessSpec) (p vmm.Process, err error) {
	err = c.ask(m, func(g Guest) error {
		p, err = g.Exec(ctx, spec)
		return err
	})
	return p, err
}

func (c *ownConn) findProcess(ctx context.Context, m *Machine, containerID string, pid uint32) (vmm.Process, error) {
	var p vmm.Process
	err := c.ask(m, func(g Guest) (err error) {
		p, err = g.FindProcess(ctx, containerID, pid)
		return err
	})
	return p, err
}

func (c *ownConn) deleteContainerState(ctx context.Context, m *Machine, containerID string) error {
	return c.ask(m, func(g Guest) error { return g.DeleteContainerState(ctx, containerID) })
}

func (c *ownConn) stacks(ctx context.Context, m *Machine) (text string, err error) {
	err = c.ask(m, func(g Guest) error {
		text, err = g.Stacks(ctx)
		return err
	})
	return text, err
}

func (c *ownConn) shutdown(ctx context.Context, m *Machine) error {
	if err := c.ask(m, func(g Guest) error { return g.Shutdown(ctx) }); err != nil {
		return err
	}
	select {
	case <-m.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *ownConn) close() error {
	c.mu.Lock()
	guest := c.guest
	c.guest = nil
	c.mu.Unlock()
	if guest == nil {
		return nil
	}
	return guest.Close()
}
