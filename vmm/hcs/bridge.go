package hcs

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/vmm"
)

// ConnectGCS is the [Host].Connect for guests that speak the guest compute protocol: Microsoft's
// agents, and ours.
func ConnectGCS(ctx context.Context, conn net.Conn, info GuestInfo) (Guest, error) {
	windows := info.OS == vmm.Windows
	sockets := gcs.Sockets(func(port uint32) (net.Listener, error) { return info.Listen(ServiceID(port)) })
	client, err := gcs.NewClient(ctx, conn, sockets, gcs.Options{Windows: windows})
	if err != nil {
		return nil, err
	}
	g := &gcsGuest{client: client, windows: windows}
	if windows {
		// A Windows guest has to be told under which addresses it and its host are to be found.
		err := g.Modify(ctx, hcsschema.GuestRequest{RequestType: hcsschema.RequestUpdate,
			ResourceType: hcsschema.ResourceHvSocket, Settings: hcsschema.HvSocketAddress{
				LocalAddress: info.RuntimeID, ParentAddress: hcsschema.HvSocketParent}})
		if err != nil {
			return nil, errors.Join(err, client.Close())
		}
	}
	return g, nil
}

// gcsGuest is a Guest over the guest compute protocol.
type gcsGuest struct {
	client  *gcs.Client
	windows bool
}

func (g *gcsGuest) Modify(ctx context.Context, r hcsschema.GuestRequest) error {
	return guestCause(g.client.Modify(ctx, r))
}

func (g *gcsGuest) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	if g.windows {
		return nil, fmt.Errorf("start %s over an external connection to a Windows guest: %w", spec.Args[0], ErrNotSupported)
	}
	p, err := g.client.Exec(ctx, gcs.ProcessSpec(spec))
	if err != nil {
		return nil, guestCause(err)
	}
	return p, nil
}

func (g *gcsGuest) DeleteContainerState(ctx context.Context, containerID string) error {
	return guestCause(g.client.DeleteContainerState(ctx, containerID))
}

func (g *gcsGuest) Stacks(ctx context.Context) (string, error) {
	text, err := g.client.Stacks(ctx)
	return text, guestCause(err)
}

func (g *gcsGuest) Shutdown(ctx context.Context) error { return guestCause(g.client.Shutdown(ctx)) }
func (g *gcsGuest) Close() error                       { return g.client.Close() }

// guestSentinels tell which of vmm's sentinels stand for those of the protocol.
var guestSentinels = []struct{ from, to error }{
	{gcs.ErrBusy, vmm.ErrBusy},
	{gcs.ErrExists, vmm.ErrOccupied},
	{gcs.ErrInvalid, vmm.ErrInvalid},
	{gcs.ErrNotFound, ErrElementNotFound},
	{gcs.ErrUnsupported, ErrNotSupported},
	{gcs.ErrTimeout, ErrTimeout},
	{gcs.ErrClosed, vmm.ErrGuestUnreachable},
}

func guestCause(err error) error {
	for _, s := range guestSentinels {
		if err != nil && errors.Is(err, s.from) {
			return fmt.Errorf("%w: %w", s.to, err)
		}
	}
	return err
}

// refused reports whether an error of a guest means that the request had no effect.
func refused(err error) bool {
	_, answered := errors.AsType[*gcs.Error](err)
	return answered && !errors.Is(err, gcs.ErrTimeout) || errors.Is(err, gcs.ErrNotSent)
}
