package local

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/vmm"
)

const (
	devicesDir = "devices"
	mountsDir  = "mounts"
	fsDir      = "fs"
	// containersDir has a folder for each running container; it is created for the first one.
	containersDir = "containers"
)

// recordPath returns the path of the record with a name.
func (m *Machine) recordPath(kind, name string) string {
	return filepath.Join(m.dir, kind, hex.EncodeToString([]byte(name))+".json")
}

// writeJSON writes a file atomically. It does not sync: a crash of the system that loses the record also ends the
// mounts.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, b, atomicfile.Options{})
}

func (m *Machine) writeRecord(kind, name string, c vmm.Change) error {
	c.Op = vmm.Add
	return writeJSON(m.recordPath(kind, name), c)
}

func (m *Machine) removeRecord(kind, name string) error {
	err := os.Remove(m.recordPath(kind, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// record reads a record. If there is none, the Change is empty.
func (m *Machine) record(kind, name string) (vmm.Change, error) {
	return readRecord(m.recordPath(kind, name))
}

func readRecord(path string) (vmm.Change, error) {
	var c vmm.Change
	b, err := regfile.ReadState(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("record %s: %w", path, err)
	}
	return c, nil
}

func (m *Machine) records(kind string) ([]vmm.Change, error) {
	files, err := os.ReadDir(filepath.Join(m.dir, kind))
	if err != nil {
		return nil, err
	}
	var out []vmm.Change
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".json") {
			continue
		}
		c, err := readRecord(filepath.Join(m.dir, kind, f.Name()))
		if err != nil {
			return nil, err
		}
		if !c.Empty() {
			out = append(out, c)
		}
	}
	return out, nil
}

func (m *Machine) devices() ([]vmm.Device, error) {
	records, err := m.records(devicesDir)
	var out []vmm.Device
	for _, c := range records {
		if c.Device != nil {
			out = append(out, c.Device)
		}
	}
	return out, err
}

func (m *Machine) mountRecords() ([]vmm.Mount, error) {
	records, err := m.records(mountsDir)
	var out []vmm.Mount
	for _, c := range records {
		if c.Mount != nil {
			out = append(out, c.Mount)
		}
	}
	return out, err
}

// mounted returns the set of paths in the machine that have something mounted.
func (m *Machine) mounted() (map[string]bool, error) {
	points, err := m.mount.Mounts(filepath.Join(m.dir, fsDir))
	out := make(map[string]bool, len(points))
	for _, p := range points {
		out[p] = true
	}
	return out, err
}

// liveMounts returns the recorded mounts that are mounted.
func (m *Machine) liveMounts() ([]vmm.Mount, error) {
	records, err := m.mountRecords()
	if err != nil {
		return nil, err
	}
	points, err := m.mounted()
	if err != nil {
		return nil, err
	}
	var out []vmm.Mount
	for _, g := range records {
		if points[m.HostPath(g.Target())] {
			out = append(out, g)
		}
	}
	return out, nil
}

// Tidy removes what processes that died have left of mounts that do not exist, because they were not made yet or
// already unmounted: directories, records, and incomplete records. The caller ensures that nobody else changes the
// machine.
func (m *Machine) Tidy() error {
	records, err := m.mountRecords()
	if err != nil {
		return fmt.Errorf("tidy host machine %s: %w", m.id, err)
	}
	points, err := m.mounted()
	if err != nil {
		return fmt.Errorf("tidy host machine %s: %w", m.id, err)
	}
	var errs []error
	for _, g := range records {
		if path := m.HostPath(g.Target()); !points[path] {
			if n, ok := g.(vmm.NetworkInterface); ok {
				errs = append(errs, m.endNetwork(context.Background(), n.ContainerID))
			}
			m.removeDirs(path) // first: a mount that still hangs in the kernel then has no mount point
			errs = append(errs, m.removeRecord(mountsDir, g.Target()))
		}
	}
	for _, kind := range []string{devicesDir, mountsDir} {
		errs = append(errs, atomicfile.Sweep(filepath.Join(m.dir, kind)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("tidy host machine %s: %w", m.id, err)
	}
	return nil
}

// Observe implements vmm.Machine.
func (m *Machine) Observe(ctx context.Context) (vmm.Observation, error) {
	if err := errors.Join(m.Err(), ctx.Err()); err != nil {
		return vmm.Observation{}, err
	}
	obs, err := m.observe()
	if err != nil {
		return vmm.Observation{}, fmt.Errorf("observe host machine %s: %w", m.id, err)
	}
	return obs, nil
}

// observe uses only the directory and the mounter of the machine.
func (m *Machine) observe() (obs vmm.Observation, err error) {
	if obs.Devices, err = m.devices(); err == nil {
		obs.Mounts, err = m.liveMounts()
	}
	return obs, err
}
