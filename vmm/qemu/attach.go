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

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/vmm"
)

func scsiID(controller, lun uint8) string { return fmt.Sprintf("scsi%d-%d", controller, lun) }
func pmemID(slot uint32) string           { return fmt.Sprintf("vpmem%d", slot) }

func (m *Machine) attachedDir() string { return filepath.Join(m.dir, attachedDir) }

// record writes the record of a device before it is attached, as QEMU cannot report all of it.
func (m *Machine) record(id string, d vmm.Device) (name string, err error) {
	b, err := json.Marshal(vmm.Change{Op: vmm.Add, Device: d})
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(m.attachedDir(), 0o700); err != nil {
		return "", err
	}
	return nodeName(id, b), writeFile(filepath.Join(m.attachedDir(), id+".json"), b)
}

// namesOf returns the node names of a device, from its record. Without a record it asks QEMU for all nodes, of which
// there may be many.
func (m *Machine) namesOf(ctx context.Context, id string) ([]string, error) {
	b, err := regfile.ReadState(filepath.Join(m.attachedDir(), id+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return m.nodes(ctx, id+"-")
	}
	return []string{nodeName(id, b)}, err
}

// recorded reads the record of device id, if it is for the node called name. dir is the folder of the records.
func recorded(dir, id, name string) vmm.Device {
	b, err := regfile.ReadState(filepath.Join(dir, id+".json"))
	if err != nil || nodeName(id, b) != name {
		return nil
	}
	var c vmm.Change
	if json.Unmarshal(b, &c) != nil {
		return nil
	}
	return c.Device
}

// forget removes the record of a device.
func (m *Machine) forget(id string) error {
	err := os.Remove(filepath.Join(m.attachedDir(), id+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// undone returns the outcome of a failed half after rolling it back with undo.
func undone(err error, undo ...error) (vmm.Outcome, error) {
	if undoErr := errors.Join(undo...); undoErr != nil {
		return vmm.Unknown, errors.Join(err, fmt.Errorf("and it could not be taken back: %w", undoErr))
	}
	return vmm.NotDone, err
}

// known reports whether a failed command certainly had no effect.
func known(err error) bool {
	_, refused := errors.AsType[*QMPError](err)
	return refused || errors.Is(err, errNotSent)
}

func (m *Machine) attachSCSI(ctx context.Context, d vmm.SCSIDisk) (vmm.Outcome, error) {
	id := scsiID(d.Controller, d.LUN)
	if err := checkRoom(d); err != nil {
		return vmm.NotDone, err
	}
	name, err := m.record(id, d)
	if err != nil {
		return undone(err, m.forget(id))
	}
	// Descriptors that QEMU was passed but does not use are closed, at the latest, when this connection ends.
	node, err := diskNode(d, name, m.qmp.lender(ctx, name))
	if err != nil {
		return undone(err, m.qmp.takeBack(ctx, name), m.forget(id))
	}
	if err := m.qmp.do(ctx, "blockdev-add", node, nil); err != nil {
		if !known(err) {
			return vmm.Unknown, err
		}
		return undone(fmt.Errorf("open %s: %w", d.Path, err), m.qmp.takeBack(ctx, name), m.forget(id))
	}
	err = m.qmp.do(ctx, "device_add", map[string]any{
		"driver": "scsi-hd", "id": id, "bus": fmt.Sprintf("scsi%d.0", d.Controller),
		"channel": 0, "scsi-id": 0, "lun": d.LUN, "drive": name, "serial": name,
		"share-rw": d.ReadOnly, "rotation_rate": 1,
	}, nil)
	if err == nil {
		return vmm.Done, nil
	}
	if !known(err) {
		return vmm.Unknown, err
	}
	return undone(err, m.deleteNode(ctx, name), m.forget(id))
}

// deleteNode closes the file of a disk. The device may still use it for a moment after its removal.
func (m *Machine) deleteNode(ctx context.Context, name string) error {
	for {
		err := m.qmp.do(ctx, "blockdev-del", map[string]any{"node-name": name}, nil)
		if err == nil || errors.Is(err, errNoDevice) {
			return m.qmp.takeBack(ctx, name)
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

// ejectTime bounds how long a guest may take to release an unused disk. If it does not respond in time, the disk is
// detached nevertheless.
const ejectTime = 10 * time.Second

func (m *Machine) detachSCSI(ctx context.Context, controller, lun uint8) (vmm.Outcome, error) {
	if m.known.Device(vmm.SCSIAddr(controller, lun)) == nil {
		return vmm.Done, nil
	}
	if err := m.eject(ctx, controller, lun); err != nil {
		return vmm.NotDone, err
	}
	id := scsiID(controller, lun)
	if err := m.unplug(ctx, id); err != nil {
		if known(err) {
			return vmm.NotDone, err
		}
		return vmm.Unknown, err
	}
	names, err := m.namesOf(ctx, id)
	for _, n := range names {
		err = errors.Join(err, m.deleteNode(ctx, n))
	}
	if err == nil {
		err = m.forget(id)
	}
	if err != nil {
		return vmm.Unknown, fmt.Errorf("the disk is unplugged, but its file is still open: %w", err)
	}
	return vmm.Done, nil
}

// eject makes the guest release a disk. It fails only if the guest says that the disk is in use: a guest that does not
// support the request or does not respond must not keep the disk attached.
func (m *Machine) eject(ctx context.Context, controller, lun uint8) error {
	limited, cancel := context.WithTimeout(ctx, ejectTime)
	defer cancel()
	err := m.modify(limited, hcsschema.GuestRequest{
		RequestType: hcsschema.RequestRemove, ResourceType: hcsschema.ResourceSCSIDevice,
		Settings: hcsschema.SCSIDevice{Controller: controller, Lun: lun},
	})
	switch {
	case err == nil, errors.Is(err, gcs.ErrNotFound):
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, gcs.ErrBusy):
		return fmt.Errorf("eject %s: %w", vmm.SCSIAddr(controller, lun), err)
	}
	m.log.Warn("the guest was not told that a disk goes", "disk", vmm.SCSIAddr(controller, lun), "error", err)
	return nil
}

// unplug removes a device and waits for QEMU's DEVICE_DELETED event.
func (m *Machine) unplug(ctx context.Context, id string) error {
	gone := make(chan struct{})
	m.mu.Lock()
	m.unplugged[id] = gone
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.unplugged, id)
		m.mu.Unlock()
	}()
	err := m.qmp.do(ctx, "device_del", map[string]any{"id": id}, nil)
	if errors.Is(err, errNoDevice) {
		return nil
	}
	refusal, refused := errors.AsType[*QMPError](err)
	if err != nil && !(refused && strings.Contains(refusal.Desc, "already in the process of unplug")) {
		return err
	}
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("unplug %s: no answer: %w", id, context.Cause(ctx))
	case <-m.qmp.done:
		return fmt.Errorf("unplug %s: %w", id, m.qmp.closedErr())
	}
}

func (m *Machine) attachPMEM(ctx context.Context, d vmm.VPMEMDevice) (vmm.Outcome, error) {
	format := formatOf(d.Path, d.Format)
	if format == vmm.FormatVHDX {
		return vmm.NotDone, fmt.Errorf("%s: a VHDX file is no persistent memory: %w", d.Path, vmm.ErrNotPluggable)
	}
	f, err := openFile(d.Path, format, false)
	if err != nil {
		return vmm.NotDone, err
	}
	defer f.Close()
	if err := m.checkPMEM(d, f); err != nil {
		return vmm.NotDone, err
	}
	id := pmemID(d.Slot)
	name, err := m.record(id, d)
	if err != nil {
		return undone(err, m.forget(id))
	}
	fd, err := m.qmp.lendFile(ctx, name, f.File)
	if err != nil {
		return undone(err, m.qmp.takeBack(ctx, name), m.forget(id))
	}
	err = m.qmp.do(ctx, "object-add", map[string]any{
		"qom-type": "memory-backend-file", "id": name, "mem-path": fmt.Sprintf("/proc/self/fd/%d", fd.Number),
		"size": f.size, "align": pmemAlign, "share": true, "readonly": true,
	}, nil)
	if err != nil && !known(err) {
		return vmm.Unknown, err
	}
	back := m.qmp.takeBack(ctx, name) // it is mapped now
	if err != nil {
		return undone(fmt.Errorf("map %s: %w", d.Path, err), back, m.forget(id))
	}
	err = m.qmp.do(ctx, "device_add", map[string]any{
		"driver": "virtio-pmem-pci", "id": id, "memdev": name,
		"bus": "pci.0", "addr": fmt.Sprintf("%x.0", pmemFirst+d.Slot), "disable-legacy": "on",
	}, nil)
	if err == nil {
		return vmm.Done, nil
	}
	if !known(err) {
		return vmm.Unknown, err
	}
	return undone(err, m.qmp.do(ctx, "object-del", map[string]any{"id": name}, nil), m.forget(id))
}

// checkPMEM refuses files that cannot be used as persistent memory of this machine.
func (m *Machine) checkPMEM(d vmm.VPMEMDevice, f hostFile) error {
	switch {
	case f.isDevice:
		return fmt.Errorf("%s: a block device is no persistent memory: %w; attach it as a SCSI disk",
			d.Path, vmm.ErrNotPluggable)
	case f.size%pmemAlign != 0:
		return fmt.Errorf(
			"%s: its %d bytes are no multiple of %d, as persistent memory must be: %w; attach it as a SCSI disk",
			d.Path, f.size, int64(pmemAlign), vmm.ErrNotPluggable)
	case uint64(f.size) > m.Limits().VPMEMMaxBytes:
		return fmt.Errorf("%s: %d bytes are more than the %d that a device of this machine may have: %w; attach it as a "+
			"SCSI disk",
			d.Path, f.size, m.Limits().VPMEMMaxBytes, vmm.ErrNotPluggable)
	case m.desc.UID != 0 && f.mode&0o004 == 0: // QEMU reopens it by its descriptor
		return fmt.Errorf("%s: QEMU runs as user %d, who may not read it: %w; attach it as a SCSI disk",
			d.Path, m.desc.UID, vmm.ErrNotPluggable)
	}
	return nil
}

func (m *Machine) detachPMEM(d vmm.VPMEMDevice) (vmm.Outcome, error) {
	if m.known.Device(d.Addr()) == nil {
		return vmm.Done, nil
	}
	return vmm.NotDone, fmt.Errorf("QEMU cannot unplug persistent memory, the device stays in its slot until the "+
		"machine ends: %w", errors.ErrUnsupported)
}
