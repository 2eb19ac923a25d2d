package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stratavm/strata/vmm"
)

// Observe implements vmm.Machine: the devices are those that QEMU reports, the mounts those that the guest reports.
func (m *Machine) Observe(ctx context.Context) (vmm.Observation, error) {
	var obs vmm.Observation
	err := m.withGuest(ctx, func(ctx context.Context, g guest) (err error) {
		obs.Mounts, err = g.Mounts(ctx)
		if err == nil {
			obs.Devices, err = m.devices(ctx)
		}
		return err
	})
	if err != nil {
		return vmm.Observation{}, fmt.Errorf("observe machine %s: %w", m.desc.ID, err)
	}
	return obs, nil
}

// devices returns the plugged devices, as QEMU reports them.
func (m *Machine) devices(ctx context.Context) ([]vmm.Device, error) {
	disks, err := m.disks(ctx)
	if err != nil {
		return nil, err
	}
	pmem, err := m.pmem(ctx)
	if err != nil {
		return nil, err
	}
	nics, err := m.nics(ctx)
	if err != nil {
		return nil, err
	}
	shares, err := m.shares(ctx)
	return slices.Concat(disks, pmem, nics, shares), err
}

func (m *Machine) disks(ctx context.Context) ([]vmm.Device, error) {
	var blocks []struct {
		QDev     string `json:"qdev"`
		Inserted *struct {
			Name     string `json:"node-name"`
			ReadOnly bool   `json:"ro"`
			File     string `json:"file"`
		} `json:"inserted"`
	}
	if err := m.qmp.do(ctx, "query-block", nil, &blocks); err != nil {
		return nil, err
	}
	var out []vmm.Device
	for _, b := range blocks {
		var d vmm.SCSIDisk
		if n, _ := fmt.Sscanf(b.QDev, "scsi%d-%d", &d.Controller, &d.LUN); n != 2 {
			continue
		}
		if b.Inserted != nil {
			if rec := recorded(m.attachedDir(), b.QDev, b.Inserted.Name); rec != nil {
				out = append(out, rec)
				continue
			}
			d.Path, d.ReadOnly = b.Inserted.File, b.Inserted.ReadOnly
		}
		out = append(out, d)
	}
	return out, nil
}

func (m *Machine) pmem(ctx context.Context) ([]vmm.Device, error) {
	var mems []struct {
		Data struct {
			ID     string `json:"id"`
			MemDev string `json:"memdev"`
		} `json:"data"`
	}
	if err := m.qmp.do(ctx, "query-memory-devices", nil, &mems); err != nil {
		return nil, err
	}
	var out []vmm.Device
	for _, mem := range mems {
		var d vmm.VPMEMDevice
		if n, _ := fmt.Sscanf(mem.Data.ID, "vpmem%d", &d.Slot); n != 1 {
			continue
		}
		if rec := recorded(m.attachedDir(), mem.Data.ID, strings.TrimPrefix(mem.Data.MemDev, "/objects/")); rec != nil {
			out = append(out, rec)
			continue
		}
		if err := m.qmp.do(ctx, "qom-get", map[string]any{"path": mem.Data.MemDev, "property": "mem-path"},
			&d.Path); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// nodes returns the block nodes whose names begin with prefix.
func (m *Machine) nodes(ctx context.Context, prefix string) ([]string, error) {
	var all []struct {
		Name string `json:"node-name"`
	}
	if err := m.qmp.do(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &all); err != nil {
		return nil, err
	}
	var out []string
	for _, n := range all {
		// The node of the file below a node is deleted with it.
		if strings.HasPrefix(n.Name, prefix) {
			out = append(out, n.Name)
		}
	}
	return out, nil
}

// inventory returns the attached devices, after removing backends without a device that a process has left in QEMU when
// it died during a change.
func (m *Machine) inventory(ctx context.Context) ([]vmm.Device, error) {
	devices, err := m.devices(ctx)
	if err != nil {
		return nil, err
	}
	plugged := map[string]bool{}
	for _, d := range devices {
		switch d := d.(type) {
		case vmm.SCSIDisk:
			plugged[scsiID(d.Controller, d.LUN)] = true
		case vmm.VPMEMDevice:
			plugged[pmemID(d.Slot)] = true
		case vmm.NIC:
			plugged[nicID(d.Slot)] = true
		case vmm.VirtioFSShare:
			plugged[shareID(d.Slot)] = true
		}
	}
	stale := func(name string) (id string, ok bool) {
		i := strings.LastIndexByte(name, '-')
		if i < 0 || !strings.HasPrefix(name, "scsi") && !strings.HasPrefix(name, "vpmem") || plugged[name[:i]] {
			return "", false
		}
		return name[:i], true
	}
	nodes, err := m.nodes(ctx, "scsi")
	if err != nil {
		return nil, err
	}
	errs := []error{m.staleNICs(ctx, plugged)}
	for _, n := range nodes {
		if id, ok := stale(n); ok {
			errs = append(errs, m.deleteNode(ctx, n), m.forget(id))
		}
	}
	var objects []struct {
		Name string `json:"name"`
	}
	if err := m.qmp.do(ctx, "qom-list", map[string]any{"path": "/objects"}, &objects); err != nil {
		return nil, err
	}
	for _, o := range objects {
		if id, ok := stale(o.Name); ok {
			errs = append(errs, m.qmp.do(ctx, "object-del", map[string]any{"id": o.Name}, nil), m.forget(id))
		}
	}
	errs = append(errs, m.clearShares(ctx, plugged))
	return devices, errors.Join(errs...)
}
