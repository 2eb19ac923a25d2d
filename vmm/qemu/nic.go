package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/internal/tapnet"
	"github.com/stratavm/strata/vmm"
)

// Network interfaces use the PCI device numbers below those of persistent memory.
const (
	nics     = 6
	nicFirst = pmemFirst - nics
)

func nicID(slot uint32) string { return fmt.Sprintf("nic%d", slot) }

// networkDir is the name of the folder that has the sockets of a NIC's server while it starts.
func networkDir(slot uint32) string { return nicID(slot) + ".tmp" }

// lifeline is QEMU's name for the descriptor that keeps a NIC's server running: the server exits when it is closed.
func lifeline(name string) string { return name + ".life" }

// checkNIC returns an error unless d is valid as a NIC of this machine.
func checkNIC(d vmm.NIC) error {
	switch {
	case d.Slot >= nics:
		return fmt.Errorf("%s: there are %d slots", d.Addr(), nics)
	case (d.Namespace == "") != (d.Link == nil):
		return fmt.Errorf("%s: a network namespace and an interface there need each other", d.Addr())
	}
	return nil
}

// attachNIC starts the server of the network, or creates a tap device, and plugs a NIC that is connected to it.
func (m *Machine) attachNIC(ctx context.Context, d vmm.NIC) (vmm.Outcome, error) {
	id := nicID(d.Slot)
	name, err := m.record(id, d)
	if err != nil {
		return undone(err, m.forget(id))
	}
	if d.Namespace != "" {
		return m.attachTap(ctx, d, id, name)
	}
	n, err := startNetwork(ctx, m.dir, m.desc.UID, d)
	if err != nil {
		return undone(err, m.forget(id))
	}
	defer n.handOver()
	err = m.plugServed(ctx, d, id, name, n)
	if err == nil {
		m.watchNetwork(d.Slot, n.server)
		return vmm.Done, nil
	}
	n.server.close()
	if !known(err) {
		return vmm.Unknown, err
	}
	return undone(err, m.dropNIC(ctx, id, name))
}

// attachTap plugs a NIC that replaces an interface of a network namespace. The tap device is removed when QEMU closes
// its descriptor.
func (m *Machine) attachTap(ctx context.Context, d vmm.NIC, id, name string) (vmm.Outcome, error) {
	tap, err := tapnet.Connect(d.Namespace, *d.Link)
	if err != nil {
		return undone(fmt.Errorf("%s: %w", d.Addr(), err), m.forget(id))
	}
	defer tap.Close()
	if err = m.qmp.doWith(ctx, "getfd", map[string]any{"fdname": name}, nil, tap); err == nil {
		err = m.qmp.do(ctx, "netdev_add", map[string]any{"type": "tap", "id": name, "fd": name}, nil)
	}
	if err == nil {
		err = m.plugNIC(ctx, d, id, name)
	}
	if err == nil {
		return vmm.Done, nil
	}
	if !known(err) {
		return vmm.Unknown, err
	}
	tap.Close() // QEMU's copy is then the only one
	return undone(err, m.dropNIC(ctx, id, name))
}

// disconnectNIC restores the interface that a NIC has replaced in its namespace, after QEMU has closed the tap device.
func disconnectNIC(d vmm.NIC) error {
	if d.Namespace == "" || d.Link == nil {
		return nil
	}
	return tapnet.Disconnect(d.Namespace, *d.Link)
}

func (m *Machine) plugServed(ctx context.Context, d vmm.NIC, id, name string, n *network) error {
	for _, fd := range []struct {
		name string
		file *os.File
	}{{lifeline(name), n.Life}, {name, n.Socket}} {
		if err := m.qmp.doWith(ctx, "getfd", map[string]any{"fdname": fd.name}, nil, fd.file); err != nil {
			return err
		}
	}
	if err := m.qmp.do(ctx, "netdev_add", map[string]any{
		"type": "dgram", "id": name, "local": map[string]any{"type": "fd", "str": name},
	}, nil); err != nil {
		return fmt.Errorf("%w (networks need QEMU 7.2)", err)
	}
	return m.plugNIC(ctx, d, id, name)
}

func (m *Machine) plugNIC(ctx context.Context, d vmm.NIC, id, name string) error {
	return m.qmp.do(ctx, "device_add", map[string]any{
		"driver": "virtio-net-pci", "id": id, "netdev": name, "mac": d.MAC(),
		"bus": "pci.0", "addr": fmt.Sprintf("%x.0", nicFirst+d.Slot), "disable-legacy": "on", "romfile": "",
	}, nil)
}

// dropNetdev removes the backend of a NIC that is unplugged, which ends the NIC's server. What does not exist is not an
// error.
func (m *Machine) dropNetdev(ctx context.Context, name string) error {
	var errs []error
	for _, c := range []struct{ command, argument, value string }{
		{"netdev_del", "id", name}, {"closefd", "fdname", name}, {"closefd", "fdname", lifeline(name)},
	} {
		err := m.qmp.do(ctx, c.command, map[string]any{c.argument: c.value}, nil)
		if refusal, ok := errors.AsType[*QMPError](err); ok && strings.Contains(refusal.Desc, "not found") {
			err = nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (m *Machine) detachNIC(ctx context.Context, d vmm.NIC) (vmm.Outcome, error) {
	id := nicID(d.Slot)
	if m.known.Device(d.Addr()) == nil && m.recordedName(id) == "" { // otherwise parts of it may exist
		return vmm.Done, nil
	}
	name, err := m.netdevOf(ctx, id)
	if err != nil && !errors.Is(err, errNoDevice) {
		return vmm.NotDone, err
	}
	if err := m.unplug(ctx, id); err != nil {
		if known(err) {
			return vmm.NotDone, err
		}
		return vmm.Unknown, err
	}
	if name == "" { // it was unplugged before
		name = m.recordedName(id)
	}
	if err := m.dropNIC(ctx, id, name); err != nil {
		return vmm.Unknown, fmt.Errorf("%s is unplugged, but its network is still there: %w", d.Addr(), err)
	}
	if server := m.takeServer(id); server != nil { // otherwise it is the child of another process, which reaps it
		server.end(ctx)
	}
	return vmm.Done, nil
}

// netdevOf returns the id of the backend that a NIC is connected to.
func (m *Machine) netdevOf(ctx context.Context, id string) (name string, err error) {
	err = m.qmp.do(ctx, "qom-get", map[string]any{"path": "/machine/peripheral/" + id, "property": "netdev"}, &name)
	return name, err
}

// dropNIC removes the backend of a NIC that is unplugged, then restores its namespace, then removes its record. If a
// step fails, the record stays, so that it can be tried again.
func (m *Machine) dropNIC(ctx context.Context, id, name string) error {
	if err := m.dropNetdev(ctx, name); err != nil {
		return err
	}
	if err := disconnectRecorded(m.dir, id); err != nil {
		return err
	}
	return m.forget(id)
}

// disconnectRecorded calls disconnectNIC for a NIC by its record. If there is no record, it does nothing.
func disconnectRecorded(machineDir, id string) error {
	dir := filepath.Join(machineDir, attachedDir)
	b, err := regfile.ReadState(filepath.Join(dir, id+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if d, ok := recorded(dir, id, nodeName(id, b)).(vmm.NIC); ok {
		return disconnectNIC(d)
	}
	return nil
}

// disconnectAll calls disconnectRecorded for all NICs of a machine that is not running.
func disconnectAll(machineDir string) error {
	var errs []error
	for slot := range uint32(nics) {
		errs = append(errs, disconnectRecorded(machineDir, nicID(slot)))
	}
	return errors.Join(errs...)
}

// recordedName returns the name in the record of a device, or "" if there is none.
func (m *Machine) recordedName(id string) string {
	b, err := regfile.ReadState(filepath.Join(m.attachedDir(), id+".json"))
	if err != nil {
		return ""
	}
	return nodeName(id, b)
}

// nics returns the plugged network interfaces. It asks QEMU only about those with a record.
func (m *Machine) nics(ctx context.Context) (out []vmm.Device, err error) {
	for slot := range uint32(nics) {
		id := nicID(slot)
		if m.recordedName(id) == "" {
			continue
		}
		name, err := m.netdevOf(ctx, id)
		if errors.Is(err, errNoDevice) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if d := recorded(m.attachedDir(), id, name); d != nil {
			out = append(out, d)
		}
	}
	return out, nil
}

// staleNICs removes what is left of NICs that are recorded but not plugged.
func (m *Machine) staleNICs(ctx context.Context, plugged map[string]bool) error {
	endUnconnected(m.dir)
	var errs []error
	for slot := range uint32(nics) {
		id := nicID(slot)
		if name := m.recordedName(id); name != "" && !plugged[id] {
			errs = append(errs, m.dropNIC(ctx, id, name))
		}
	}
	return errors.Join(errs...)
}

// watchNetwork keeps the process that serves a NIC, and logs if it ends before the NIC is unplugged.
func (m *Machine) watchNetwork(slot uint32, server *process) {
	id := nicID(slot)
	m.holdServer(id, server)
	m.work.Go(func() {
		select {
		case <-server.exited:
		case <-m.base.Done():
			return
		}
		m.mu.Lock()
		lost := m.servers[id] == server
		m.mu.Unlock()
		if lost {
			m.log.Warn("the program that serves a network has ended: its container reaches nobody any more",
				"nic", slot, "ended", server.ending)
		}
	})
}
