package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// deviceTime bounds the wait for a device to appear that the host has attached.
const deviceTime = 20 * time.Second

// rescanAfter is when a SCSI address is rescanned. That is needed if the disk was removed in the guest only and stayed
// attached on the host, so that no event announces it.
const rescanAfter = 300 * time.Millisecond

// Devices finds block devices by their address.
type Devices struct {
	Sys, Dev string // /sys and /dev
	Events   *Uevents
	PMEM     PMEMRule
}

// scsiHosts returns the SCSI host numbers of the controllers: those of virtio-scsi in the order of their
// PCI addresses.
func (d *Devices) scsiHosts() ([]int, error) {
	dir := filepath.Join(d.Sys, "class/scsi_host")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errAbsent
	}
	if err != nil {
		return nil, err
	}
	type host struct {
		path string
		n    int
	}
	var hosts []host
	for _, e := range entries {
		n, err := strconv.Atoi(strings.TrimPrefix(e.Name(), "host"))
		if err != nil {
			continue
		}
		name, err := os.ReadFile(filepath.Join(dir, e.Name(), "proc_name"))
		if err != nil || strings.TrimSpace(string(name)) != "virtio_scsi" {
			continue
		}
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		// The path down to the PCI function; what comes after it (virtioN, hostN) is numbered as found.
		path, _, _ := strings.Cut(link, "/virtio")
		hosts = append(hosts, host{path, n})
	}
	slices.SortFunc(hosts, func(a, b host) int { return strings.Compare(a.path, b.path) })
	out := make([]int, len(hosts))
	for i, h := range hosts {
		out[i] = h.n
	}
	return out, nil
}

// scsiDir returns the sysfs directory of a disk, which may not exist, and its SCSI host number.
func (d *Devices) scsiDir(controller, lun uint8) (string, int, error) {
	hosts, err := d.scsiHosts()
	if err != nil {
		return "", 0, err
	}
	if int(controller) >= len(hosts) {
		return "", 0, fmt.Errorf("SCSI controller %d of %d: %w", controller, len(hosts), errAbsent)
	}
	n := hosts[controller]
	return filepath.Join(d.Sys, "bus/scsi/devices", fmt.Sprintf("%d:0:0:%d", n, lun)), n, nil
}

func (d *Devices) lookDisk(controller, lun uint8, partition uint64) (string, error) {
	dir, _, err := d.scsiDir(controller, lun)
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(filepath.Join(dir, "block"))
	if err != nil || len(entries) == 0 {
		return "", errAbsent
	}
	if len(entries) > 1 {
		return "", fmt.Errorf("SCSI %d:%d has %d block devices: %w", controller, lun, len(entries), gcsserver.ErrInvalid)
	}
	name := entries[0].Name()
	if partition != 0 {
		if name, err = d.lookPartition(filepath.Join(dir, "block", name), partition); err != nil {
			return "", err
		}
	}
	return d.usable(name)
}

// usable returns the device node of a block device, or errAbsent until it can be opened: the device appears in sysfs
// before its node does. The node of a disk that is being removed still exists, but opening it fails with ENXIO or
// ENODEV.
func (d *Devices) usable(name string) (string, error) {
	node := filepath.Join(d.Dev, name)
	f, err := os.Open(node)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return "", errAbsent
	}
	if err != nil {
		return "", err
	}
	return node, f.Close()
}

func (d *Devices) lookPartition(disk string, partition uint64) (string, error) {
	entries, err := os.ReadDir(disk)
	if err != nil {
		return "", errAbsent
	}
	want := strconv.FormatUint(partition, 10)
	for _, e := range entries {
		if b, err := os.ReadFile(filepath.Join(disk, e.Name(), "partition")); err == nil &&
			strings.TrimSpace(string(b)) == want {
			return e.Name(), nil
		}
	}
	return "", errAbsent
}

// disk waits for a disk, or a partition of it, and returns its device node.
func (d *Devices) disk(ctx context.Context, controller, lun uint8, partition uint64) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, deviceTime)
	defer cancel()
	again := time.AfterFunc(rescanAfter, func() { d.rescan(controller, lun) })
	defer again.Stop()
	node, err := await(ctx, d.Events, func() (string, error) { return d.lookDisk(controller, lun, partition) })
	if err != nil {
		return "", fmt.Errorf("SCSI disk %d:%d partition %d: %w", controller, lun, partition, err)
	}
	return node, nil
}

func (d *Devices) rescan(controller, lun uint8) {
	_, host, err := d.scsiDir(controller, lun)
	if err != nil {
		return
	}
	scan := filepath.Join(d.Sys, "class/scsi_host", fmt.Sprintf("host%d", host), "scan")
	if os.WriteFile(scan, fmt.Appendf(nil, "0 0 %d", lun), 0) == nil {
		d.Events.notify()
	}
}

// eject removes a disk from the guest. A disk that does not exist is no error.
func (d *Devices) eject(controller, lun uint8) error {
	dir, _, err := d.scsiDir(controller, lun)
	if errors.Is(err, errAbsent) {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "delete"), os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("1\n"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("release SCSI disk %d:%d: %w", controller, lun, err)
	}
	return nil
}

// PMEMRule maps persistent-memory devices to slots. The kernel's numbers are of no use: they follow the order of
// discovery.
type PMEMRule struct {
	base, stride uint64 // if stride is not 0: slot = (physical address - base) / stride
	pci          string // else, if not empty: the PCI address of slot 0; slot n has the device number n higher
}

// ParsePMEM parses the kernel parameter strata.pmem: "BASE,STRIDE" in hex, or "pci:DOMAIN:BUS:DEVICE.FUNCTION".
func ParsePMEM(s string) (PMEMRule, error) {
	if s == "" {
		return PMEMRule{}, nil
	}
	if pci, ok := strings.CutPrefix(s, "pci:"); ok {
		if _, _, ok := pciDevice(pci); !ok {
			return PMEMRule{}, fmt.Errorf("strata.pmem=%q: no PCI address", s)
		}
		return PMEMRule{pci: pci}, nil
	}
	a, b, _ := strings.Cut(s, ",")
	base, err1 := strconv.ParseUint(strings.TrimPrefix(a, "0x"), 16, 64)
	stride, err2 := strconv.ParseUint(strings.TrimPrefix(b, "0x"), 16, 64)
	if err := errors.Join(err1, err2); err != nil || stride == 0 {
		return PMEMRule{}, fmt.Errorf("strata.pmem=%q: wanted are a base and a stride in hex", s)
	}
	return PMEMRule{base: base, stride: stride}, nil
}

// pciDevice splits "0000:00:1f.0" into the bus and the device number.
func pciDevice(addr string) (bus string, device uint64, ok bool) {
	i := strings.LastIndexByte(addr, ':')
	if i < 0 {
		return "", 0, false
	}
	dev, _, ok := strings.Cut(addr[i+1:], ".")
	device, err := strconv.ParseUint(dev, 16, 8)
	return addr[:i], device, ok && err == nil
}

// lookPMEM finds the block device of a slot.
func (d *Devices) lookPMEM(slot uint32) (string, error) {
	entries, err := filepath.Glob(filepath.Join(d.Sys, "block/pmem*"))
	if err != nil || len(entries) == 0 {
		return "", errAbsent
	}
	type device struct{ path, name string }
	var all []device
	for _, e := range entries {
		link, err := os.Readlink(e)
		if err != nil {
			continue
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(e), link)
		}
		all = append(all, device{link, filepath.Base(e)})
	}
	slices.SortFunc(all, func(a, b device) int { return strings.Compare(a.path, b.path) })
	for i, dev := range all {
		if !d.PMEM.matches(slot, i, dev.path) {
			continue
		}
		return d.usable(dev.name)
	}
	return "", errAbsent
}

// matches reports whether a device is in slot; path is its sysfs directory, and it is the nth in the order of these.
func (r PMEMRule) matches(slot uint32, nth int, path string) bool {
	switch {
	case r.stride != 0:
		// .../ndbusN/regionM/namespaceM.0/block/pmemX
		for dir := filepath.Dir(path); len(dir) > 1; dir = filepath.Dir(dir) {
			if !strings.HasPrefix(filepath.Base(dir), "region") {
				continue
			}
			b, err := os.ReadFile(filepath.Join(dir, "resource"))
			if err != nil {
				return false
			}
			at, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(string(b)), "0x"), 16, 64)
			return err == nil && at >= r.base && (at-r.base)/r.stride == uint64(slot)
		}
		return false
	case r.pci != "":
		bus, first, _ := pciDevice(r.pci)
		for part := range strings.SplitSeq(path, "/") {
			if b, dev, ok := pciDevice(part); ok && b == bus && dev >= first {
				return dev-first == uint64(slot)
			}
		}
		return false
	}
	return uint32(nth) == slot
}

// pmemDevice waits for the device of a slot and returns its node.
func (d *Devices) pmemDevice(ctx context.Context, slot uint32) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, deviceTime)
	defer cancel()
	node, err := await(ctx, d.Events, func() (string, error) { return d.lookPMEM(slot) })
	if err != nil {
		return "", fmt.Errorf("persistent memory slot %d: %w", slot, err)
	}
	return node, nil
}
