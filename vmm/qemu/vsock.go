package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// vsockDevice is a vsock context id (CID) reserved for a guest, until f and QEMU's copy of f are closed.
type vsockDevice struct {
	f     *os.File
	cid   uint32
	token string
}

// vsock returns the vsock device for a machine, or nil if the machine is to use only serial ports.
func (c Config) vsock() (*vsockDevice, error) {
	if c.Transport == TransportSerial || c.memory != nil || c.Transport == TransportAuto && c.Kernel == "" {
		return nil, nil
	}
	dev, err := openVSock()
	if err != nil && c.Transport == TransportAuto {
		c.Logger.Debug("the guest is reached by serial ports", "reason", err)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("vsock: %w; load the module vhost_vsock, or use the transport serial", err)
	}
	return dev, nil
}

// vsockTrial bounds connecting to a ready guest over vsock with TransportAuto, which then falls back to serial ports:
// the guest's kernel may have no driver, which cannot be detected otherwise.
const vsockTrial = 10 * time.Second

// overVSock switches the connection to a ready guest to vsock, for all processes that open the machine. The agent
// listens there before it answers on a serial port.
func (m *Machine) overVSock(ctx context.Context, c Config, desc description) error {
	desc.Transport = TransportVSock
	reach := desc.reach(m.dir, controlPort)
	err := m.withGuest(ctx, func(ctx context.Context, _ guest) error {
		trial, cancel := ctx, func() {}
		if c.Transport == TransportAuto {
			trial, cancel = context.WithTimeoutCause(ctx, vsockTrial,
				fmt.Errorf("nothing within %s: %w", vsockTrial, context.DeadlineExceeded))
		}
		defer cancel()
		conn, err := reach(trial)
		if err != nil {
			return err
		}
		return m.port.move(ctx, conn, reach)
	})
	switch {
	case err == nil:
		err = desc.write(m.dir)
	case c.Transport == TransportAuto && m.Err() == nil && ctx.Err() == nil:
		m.log.Warn("the guest is reached by serial ports, since vsock does not work", "error", err)
		return nil
	case m.Err() == nil:
		err = errors.Join(err, errors.New("the guest's kernel may lack vmw_vsock_virtio_transport; the transport serial "+
			"needs none"))
	}
	if err != nil {
		return fmt.Errorf("machine %s: %w", m.desc.ID, err)
	}
	return nil
}
