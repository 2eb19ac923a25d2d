package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/vmm"
)

// guest is a connection to the guest agent.
type guest interface {
	Modify(ctx context.Context, req hcsschema.GuestRequest) error
	Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error)
	FindProcess(ctx context.Context, container string, pid uint32) (vmm.Process, error)
	DeleteContainerState(ctx context.Context, id string) error
	Stacks(ctx context.Context) (string, error)
	Mounts(ctx context.Context) ([]vmm.Mount, error)
	Shutdown(ctx context.Context) error
	Done() <-chan struct{}
	Close() error
}

// connectFunc connects to the agent over conn, of which it takes ownership even on failure.
type connectFunc func(ctx context.Context, conn net.Conn, log *slog.Logger) (guest, error)

type gcsGuest struct{ *gcs.Client }

func connectGCS(ctx context.Context, conn net.Conn, log *slog.Logger) (guest, error) {
	c, err := gcs.Connect(ctx, conn, gcs.Options{Logger: log})
	if err != nil {
		return nil, err
	}
	return gcsGuest{c}, nil
}

// Mounts returns the guest's mounts with their devices, as far as the guest knows them.
func (g gcsGuest) Mounts(ctx context.Context) ([]vmm.Mount, error) {
	mounts, err := g.Observe(ctx)
	if err != nil {
		return nil, err
	}
	var out []vmm.Mount
	for _, m := range mounts {
		switch m.Kind {
		case "scsi":
			out = append(out, vmm.MappedDisk{MountPath: m.Path, Controller: m.Controller, LUN: m.Lun,
				Partition: m.Partition, ReadOnly: m.ReadOnly, BlockDev: m.BlockDev})
		case "pmem":
			out = append(out, vmm.MappedPMEM{MountPath: m.Path, Slot: m.Slot, Offset: m.Offset, Size: m.Size})
		case "directory":
			out = append(out, vmm.MappedDirectory{MountPath: m.Path, Share: m.Share, ReadOnly: m.ReadOnly})
		case "network":
			g := vmm.NetworkInterface{ContainerID: m.ContainerID, Slot: m.Slot}
			if m.Share != "" {
				g.Link = &vmm.Link{Name: m.Share}
			}
			out = append(out, g)
		case "virtiofs":
			g := vmm.MappedVirtioFS{MountPath: m.Path, ReadOnly: m.ReadOnly}
			if n, _ := fmt.Sscanf(m.Share, "strata%d", &g.Slot); n == 1 {
				out = append(out, g)
			}
		case "overlay":
			out = append(out, vmm.CombinedLayers{RootPath: m.Path, ContainerID: m.ContainerID, ScratchPath: m.ScratchPath})
		}
	}
	return out, nil
}

// errNoGuest says that there was no connection to an agent: the request had no effect.
var errNoGuest = fmt.Errorf("%w: %w", vmm.ErrGuestUnreachable, gcs.ErrNotSent)

// noGuest returns errNoGuest with its cause, unless the cause is a protocol violation of the guest.
func noGuest(cause error) error {
	if errors.Is(cause, vmm.ErrProtocol) {
		return fmt.Errorf("%w: %w", gcs.ErrNotSent, cause)
	}
	return fmt.Errorf("%w: %w", errNoGuest, cause)
}

// reachFunc opens a connection to the port on which the agent listens.
type reachFunc func(ctx context.Context) (net.Conn, error)

// reach returns the function that connects to the agent: over vsock, or by a serial port.
func (d description) reach(dir string, port int) reachFunc {
	if d.Transport == TransportVSock {
		return func(ctx context.Context) (net.Conn, error) { return gcs.DialVSock(ctx, d.CID, d.Token) }
	}
	return func(ctx context.Context) (net.Conn, error) { return dialSocket(ctx, dir, portSocket(port)) }
}

// guestPort holds the connection to the agent, and reconnects after the agent was restarted.
type guestPort struct {
	reach   reachFunc
	connect connectFunc
	log     *slog.Logger

	mu      sync.Mutex
	dialing chan struct{} // closed when the dial in progress has ended
	live    guest
	closed  bool
}

// get returns a connection to the agent, connecting if necessary until ctx ends. Errors match those of errNoGuest.
func (p *guestPort) get(ctx context.Context) (guest, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, noGuest(errors.New("the machine was closed"))
		}
		if p.live != nil {
			select {
			case <-p.live.Done():
				dead := p.live
				p.live = nil
				p.mu.Unlock()
				p.log.Warn("the connection to the guest agent was lost")
				_ = dead.Close() // it is lost already
				continue
			default:
				g := p.live
				p.mu.Unlock()
				return g, nil
			}
		}
		if wait := p.dialing; wait != nil {
			p.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, noGuest(context.Cause(ctx))
			}
		}
		done := make(chan struct{})
		p.dialing = done
		reach := p.reach
		p.mu.Unlock()

		g, err := p.dial(ctx, reach)
		p.mu.Lock()
		p.dialing = nil
		close(done)
		if err == nil && p.closed {
			err = errors.Join(errors.New("the machine was closed"), g.Close())
		}
		if err == nil {
			p.live = g
		}
		p.mu.Unlock()
		if err != nil {
			return nil, noGuest(err)
		}
		return g, nil
	}
}

func (p *guestPort) dial(ctx context.Context, reach reachFunc) (guest, error) {
	conn, err := reach(ctx)
	if err != nil {
		return nil, err
	}
	return p.connect(ctx, conn, p.log)
}

// move switches to another way to reach the agent, if the agent responds on conn.
func (p *guestPort) move(ctx context.Context, conn net.Conn, reach reachFunc) error {
	g, err := p.connect(ctx, conn, p.log)
	if err != nil {
		return err
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return errors.Join(errors.New("the machine was closed"), g.Close())
	}
	old := p.live
	p.live, p.reach = g, reach
	p.mu.Unlock()
	if old != nil {
		_ = old.Close() // nothing is under way on it
	}
	return nil
}

// close closes the connection for good and cancels calls in progress.
func (p *guestPort) close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	return p.hangUp()
}

// hangUp closes the connection. The next get opens a new one.
func (p *guestPort) hangUp() error {
	p.mu.Lock()
	g := p.live
	p.live = nil
	p.mu.Unlock()
	if g == nil {
		return nil
	}
	return g.Close()
}
