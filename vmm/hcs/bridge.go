package hcs

import (
	"context"
	"errors"
	"net"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/vmm"
)

// ConnectGCS is a [Host].Connect for guests with the guest compute protocol: Microsoft's agents and ours.
func ConnectGCS(ctx context.Context, conn net.Conn, info GuestInfo) (Guest, error) {
	windows := info.OS == vmm.Windows
	sockets := gcs.Sockets(func(port uint32) (net.Listener, error) { return info.Listen(ServiceID(port)) })
	client, err := gcs.NewClient(ctx, conn, sockets, gcs.Options{Windows: windows, TimeZone: info.TimeZone})
	if err != nil {
		return nil, err
	}
	if windows {
		// A Windows guest must be told its own address and that of the host.
		err := client.Modify(ctx, hcsschema.GuestRequest{RequestType: hcsschema.RequestUpdate,
			ResourceType: hcsschema.ResourceHvSocket, Settings: hcsschema.HvSocketAddress{
				LocalAddress: info.RuntimeID, ParentAddress: hcsschema.HvSocketParent}})
		if err != nil {
			return nil, errors.Join(err, client.Close())
		}
	}
	return client, nil
}
