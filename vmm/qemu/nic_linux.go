package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/slirp"
	"github.com/stratavm/strata/vmm"
)

// network is the server of a NIC, with our ends of its connections until QEMU has them.
type network struct {
	*slirp.Server
	server *process
}

// handOver closes our copies of the descriptors that QEMU has.
func (n *network) handOver() {
	n.Socket.Close()
	n.Life.Close()
}

// startNetwork starts the server of a NIC, with all its port forwards.
func startNetwork(ctx context.Context, machineDir string, uid int, d vmm.NIC) (*network, error) {
	dir := filepath.Join(machineDir, networkDir(d.Slot))
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	defer os.RemoveAll(dir)
	s, err := slirp.Start(ctx, slirp.Config{Dir: dir, UID: uid, Ports: d.Ports, Subnet: d.Subnet})
	if err != nil {
		return nil, err
	}
	n := &network{Server: s}
	start, err := processStart(s.PID) // it is not reaped yet, so the pid is still its own
	if err == nil {
		n.server, err = openProcess(s.PID, start, "")
	}
	if err != nil {
		n.handOver() // which ends it
		return nil, fmt.Errorf("network: %w", err)
	}
	return n, nil
}

// endUnconnected ends servers whose starter was killed before it connected to them.
func endUnconnected(machineDir string) {
	for slot := range uint32(nics) {
		dir := filepath.Join(machineDir, networkDir(slot))
		slirp.Abandon(dir)
		_ = os.RemoveAll(dir) // removeFiles reports what prevents it
	}
}
