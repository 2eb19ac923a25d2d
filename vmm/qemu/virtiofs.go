package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/vmm"
)

// A folder or file of the host is shared with the machine through a virtiofs device. Each has a virtiofsd process of
// its own, a child of the process that plugged the device. It exits when QEMU, or before that its starter, closes the
// connection to it. QEMU 7.2 cannot reconnect to another virtiofsd: if one dies, requests of the guest to its share are
// never answered.

// The PCI devices of shares are behind bridges of their own, which do not use device number 0.
const (
	shareBridges = 2
	bridgeFirst  = 5 // the PCI device number of the first bridge
	bridgeShares = 31
	maxShares    = shareBridges * bridgeShares
)

func shareBus(bridge uint32) string { return fmt.Sprintf("shares%d", bridge) }

// shareAt returns the bus and the PCI address of the share in a slot.
func shareAt(slot uint32) (bus, addr string) {
	return shareBus(slot / bridgeShares), fmt.Sprintf("%x.0", 1+slot%bridgeShares)
}

func shareID(slot uint32) string { return fmt.Sprintf("virtiofs%d", slot) }

func (m *Machine) serverFile(id string) string { return serverFile(m.dir, id) }

// serverFile returns the path of the file with the pid and start time of a share's server.
func serverFile(dir, id string) string { return filepath.Join(dir, attachedDir, id+serverSuffix) }

const serverSuffix = ".server"

func (m *Machine) attachShare(ctx context.Context, d vmm.VirtioFSShare) (vmm.Outcome, error) {
	id := shareID(d.Slot)
	name, err := m.record(id, d)
	if err != nil {
		return undone(err, m.forget(id))
	}
	server, err := startServer(d, serverOptions{dir: m.dir, note: m.serverFile(id)})
	if err != nil {
		return undone(fmt.Errorf("share %s: %w", d.Path, err), m.forget(id))
	}
	defer server.conn.Close() // QEMU has a copy
	fail := func(err error, undo ...error) (vmm.Outcome, error) {
		if !known(err) {
			server.proc.close()
			return vmm.Unknown, err
		}
		_ = server.conn.Close()
		words := server.words(ctx)
		return undone(fmt.Errorf("share %s: %w%s", d.Path, err, words),
			append(undo, m.endFSServer(ctx, id), m.forget(id))...)
	}
	if err := m.qmp.doWith(ctx, "getfd", map[string]any{"fdname": name}, nil, server.conn); err != nil {
		return fail(err)
	}
	err = m.qmp.do(ctx, "chardev-add", socketBackend(name), nil)
	if err != nil {
		return fail(err, m.closeFD(ctx, name))
	}
	bus, addr := shareAt(d.Slot)
	// With event indexes, the virtiofsd of QEMU 7.2 checks its queue a last time without a memory barrier after it has
	// published from where on it wants notifications. If two CPUs of a guest send requests, it would occasionally miss
	// one and wait for ever.
	err = m.qmp.do(ctx, "device_add", map[string]any{"driver": "vhost-user-fs-pci", "id": id, "chardev": name,
		"tag": d.Tag(), "bus": bus, "addr": addr, "event_idx": false}, nil)
	if err != nil {
		return fail(err, m.removeChardev(ctx, name))
	}
	m.holdServer(id, server.proc)
	return vmm.Done, nil
}

// socketBackend returns the arguments of a character device on a connection that QEMU was given under name.
func socketBackend(name string) map[string]any {
	addr := map[string]any{"type": "fd", "data": map[string]any{"str": name}}
	return map[string]any{"id": name, "backend": map[string]any{"type": "socket",
		"data": map[string]any{"server": false, "addr": addr}}}
}

// closeFD closes a descriptor that QEMU was given under a name and has not used.
func (m *Machine) closeFD(ctx context.Context, name string) error {
	err := m.qmp.do(ctx, "closefd", map[string]any{"fdname": name}, nil)
	if errors.Is(err, errNoDevice) {
		return nil
	}
	return err
}

// removeChardev removes QEMU's connection to a server. QEMU may report it as busy for a moment after the device is
// unplugged.
func (m *Machine) removeChardev(ctx context.Context, name string) error {
	for {
		err := m.qmp.do(ctx, "chardev-remove", map[string]any{"id": name}, nil)
		if err == nil || errors.Is(err, errNoDevice) {
			return nil
		}
		if !errors.Is(err, vmm.ErrBusy) {
			return err
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

func (m *Machine) detachShare(ctx context.Context, d vmm.VirtioFSShare) (vmm.Outcome, error) {
	have, ok := m.known.Device(d.Addr()).(vmm.VirtioFSShare)
	if !ok {
		return vmm.Done, nil
	}
	id := shareID(d.Slot)
	if err := m.unplug(ctx, id); err != nil {
		if known(err) {
			return vmm.NotDone, err
		}
		return vmm.Unknown, err
	}
	name, err := m.shareName(id, have)
	if err == nil {
		err = m.removeChardev(ctx, name)
	}
	if err == nil {
		err = errors.Join(m.endFSServer(ctx, id), m.forget(id))
	}
	if err != nil {
		return vmm.Unknown, fmt.Errorf("the share is unplugged, but its server may run: %w", err)
	}
	return vmm.Done, nil
}

// shareName returns the name of the connection of a share.
func (m *Machine) shareName(id string, d vmm.Device) (string, error) {
	b, err := regfile.ReadState(filepath.Join(m.attachedDir(), id+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		b, err = json.Marshal(vmm.Change{Op: vmm.Add, Device: d})
	}
	return nodeName(id, b), err
}

// serverEndTime bounds the exit of a server after its connection was closed; then it is killed.
const serverEndTime = 5 * time.Second

// endFSServer waits until the server of a share, whose connection is closed, has ended.
func (m *Machine) endFSServer(ctx context.Context, id string) error {
	if p := m.takeServer(id); p != nil {
		p.close()
	}
	return endServer(ctx, m.serverFile(id))
}

func endServer(ctx context.Context, note string) error {
	p, err := notedServer(note)
	if errors.Is(err, errNoProcess) {
		err = os.Remove(note)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if err != nil {
		return err
	}
	defer p.close()
	limited, cancel := context.WithTimeout(ctx, serverEndTime)
	defer cancel()
	if p.waitExit(limited) != nil {
		if err := p.kill(); err != nil {
			return fmt.Errorf("end virtiofsd (process %d): %w", p.pid, err)
		}
		again, cancel := context.WithTimeout(context.WithoutCancel(ctx), serverEndTime)
		defer cancel()
		if err := p.waitExit(again); err != nil {
			return fmt.Errorf("virtiofsd (process %d) does not end: %w", p.pid, err)
		}
	}
	if err := os.Remove(note); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// notedServer opens the process of a server by its file. If it is not running, the error is errNoProcess.
func notedServer(note string) (*process, error) {
	b, err := regfile.ReadState(note)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoProcess
	}
	var pid int
	var start uint64
	if n, _ := fmt.Sscan(string(b), &pid, &start); err == nil && (n != 2 || pid <= 0 || start == 0) {
		return nil, errNoProcess // incomplete
	}
	if err != nil {
		return nil, err
	}
	return openProcess(pid, start, "")
}

// endServers waits for the servers of a machine that has ended.
func endServers(ctx context.Context, dir string) error {
	notes, err := filepath.Glob(filepath.Join(globEscape(filepath.Join(dir, attachedDir)), "*"+serverSuffix))
	for _, note := range notes {
		err = errors.Join(err, endServer(ctx, note))
	}
	return err
}

// globEscape returns a pattern that matches only path.
func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// ErrServerDied is matched by the error when virtiofsd, which serves a share, has exited while the machine runs.
var ErrServerDied = errors.New("its virtiofsd has ended: what is shared is lost, and what uses it waits until the VM ends")

// checkServed returns an error if the server of a share has exited: the guest would wait for it for ever.
func (m *Machine) checkServed(slot uint32) error {
	d, ok := m.known.Device(vmm.VirtioFSShare{Slot: slot}.Addr()).(vmm.VirtioFSShare)
	if !ok {
		return nil
	}
	p, err := notedServer(m.serverFile(shareID(slot)))
	if errors.Is(err, errNoProcess) {
		return fmt.Errorf("%s: %w", d, ErrServerDied)
	}
	if err == nil {
		p.close()
	}
	return err
}

// CheckShare implements vmm.ShareServer.
func (m *Machine) CheckShare(_ context.Context, slot uint32) error { return m.checkServed(slot) }

// served returns an error for a change that the guest would never complete, as the share's server has exited.
func (m *Machine) served(c vmm.Change) error {
	if g, ok := c.Mount.(vmm.MappedVirtioFS); ok {
		if c.Op == vmm.Add && c.Device != nil && m.known.Device(c.Device.Addr()) == nil {
			return nil // the change starts its server
		}
		return m.checkServed(g.Slot)
	}
	return nil
}

// shares returns the plugged shares.
func (m *Machine) shares(ctx context.Context) ([]vmm.Device, error) {
	var all []struct {
		Name string `json:"name"`
	}
	if err := m.qmp.do(ctx, "qom-list", map[string]any{"path": "/machine/peripheral"}, &all); err != nil {
		return nil, err
	}
	var out []vmm.Device
	for _, o := range all {
		var d vmm.VirtioFSShare
		if n, _ := fmt.Sscanf(o.Name, "virtiofs%d", &d.Slot); n != 1 || shareID(d.Slot) != o.Name {
			continue
		}
		var chardev string
		err := m.qmp.do(ctx, "qom-get",
			map[string]any{"path": "/machine/peripheral/" + o.Name, "property": "chardev"}, &chardev)
		if errors.Is(err, errNoDevice) {
			continue // unplugged meanwhile
		}
		if err != nil {
			return nil, err
		}
		if rec := recorded(m.attachedDir(), o.Name, chardev); rec != nil {
			out = append(out, rec)
			continue
		}
		out = append(out, d)
	}
	return out, nil
}

// clearShares removes what a process that died during a change has left of shares that are not plugged.
func (m *Machine) clearShares(ctx context.Context, plugged map[string]bool) error {
	var all []struct {
		Label string `json:"label"`
	}
	if err := m.qmp.do(ctx, "query-chardev", nil, &all); err != nil {
		return err
	}
	var errs []error
	for _, c := range all {
		if id, _, ok := strings.Cut(c.Label, "-"); ok && strings.HasPrefix(id, "virtiofs") && !plugged[id] {
			errs = append(errs, m.removeChardev(ctx, c.Label))
		}
	}
	for slot := range uint32(maxShares) {
		id := shareID(slot)
		b, err := regfile.ReadState(filepath.Join(m.attachedDir(), id+".json"))
		if plugged[id] || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = m.closeFD(ctx, nodeName(id, b))
		}
		errs = append(errs, err, m.endFSServer(ctx, id), m.forget(id))
	}
	return errors.Join(errs...)
}

// WatchShares implements vmm.ShareServer.
func (m *Machine) WatchShares(ctx context.Context, slots ...uint32) error {
	return watchShares(ctx, m.dir, slots)
}

// WatchShares implements vmm.ShareServer.
func (s *ExecSession) WatchShares(ctx context.Context, slots ...uint32) error {
	return watchShares(ctx, s.dir, slots)
}

// CheckShare implements vmm.ShareServer.
func (s *ExecSession) CheckShare(_ context.Context, slot uint32) error {
	p, err := notedServer(serverFile(s.dir, shareID(slot)))
	if errors.Is(err, errNoProcess) {
		return shareDied(s.dir, slot)
	}
	if err == nil {
		p.close()
	}
	return err
}

func watchShares(ctx context.Context, dir string, slots []uint32) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	held := make([]*process, 0, len(slots))
	defer func() {
		for _, p := range held {
			p.close()
		}
	}()
	for _, slot := range slots {
		p, err := notedServer(serverFile(dir, shareID(slot)))
		if errors.Is(err, errNoProcess) {
			return shareDied(dir, slot)
		}
		if err != nil {
			return err
		}
		held = append(held, p)
		go func() {
			if p.waitExit(ctx) == nil {
				cancel(shareDied(dir, slot))
			}
		}()
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// shareDied returns the error of a share whose server has exited.
func shareDied(dir string, slot uint32) error {
	what := vmm.Device(vmm.VirtioFSShare{Slot: slot})
	var c vmm.Change
	b, err := regfile.ReadState(filepath.Join(dir, attachedDir, shareID(slot)+".json"))
	if err == nil && json.Unmarshal(b, &c) == nil && c.Device != nil {
		what = c.Device
	}
	return fmt.Errorf("%s: %w", what, ErrServerDied)
}

// anyServerDied reports whether the server of any share has exited.
func (m *Machine) anyServerDied() bool {
	for slot := range uint32(maxShares) {
		if errors.Is(m.checkServed(slot), ErrServerDied) {
			return true
		}
	}
	return false
}
