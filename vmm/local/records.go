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
	// containersDir has a folder for each container that runs; the first one makes it.
	containersDir = "containers"
)

// recordPath is the file of the record of something with a name.
func (m *Machine) recordPath(kind, name string) string {
	return filepath.Join(m.dir, kind, hex.EncodeToString([]byte(name))+".json")
}

// writeJSON writes a file in one step. It is not synced: a record that a crash of the system loses speaks of
// mounts that are lost as well.
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

// record reads one record; there being none returns an empty Change.
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

// mounted reports which of the machine's mount points have something mounted.
func (m *Machine) mounted() (map[string]bool, error) {
	points, err := m.mount.Mounts(filepath.Join(m.dir, fsDir))
	out := make(map[string]bool, len(points))
	for _, p := range points {
		out[p] = true
	}
	return out, err
}

// liveMounts returns the mounts that exist really.
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

// Tidy takes away what processes that died left of mounts that they did not come to make, or had
// unmounted already: directories, records, and records half written. The caller sees to it that nobody
// else changes the machine.
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
			m.removeDirs(path) // first: a mount that hangs in the kernel then has no place to appear at
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

// observe needs the directory and the mounter of the machine and nothing else of it.
func (m *Machine) observe() (obs vmm.Observation, err error) {
	if obs.Devices, err = m.devices(); err == nil {
		obs.Mounts, err = m.liveMounts()
	}
	return obs, err
}
