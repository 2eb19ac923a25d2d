package hcs

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/vmm"
)

const (
	storedFile = "hcs.json"
	owner      = "strata"
)

// stored is the content of storedFile in a state directory: the options a VM was created with, needed to open it.
type stored struct {
	LCOW    *OptionsLCOW `json:"lcow,omitempty"`
	WCOW    *OptionsWCOW `json:"wcow,omitempty"`
	Started time.Time    `json:"started"`
}

// maxIDName bounds the part of a VM's name in the identifier of its compute system, which is followed by a unique
// suffix and, for containers, the container's name.
const maxIDName = 54

// newID creates the identifier of a compute system. Identifiers are unique on the host, but VMs of several state
// directories may have the same name.
func newID(name string) string {
	var unique [4]byte
	rand.Read(unique[:])
	return fmt.Sprintf("%.*s-%x", maxIDName, name, unique)
}

func newStored(o vmm.StartOptions, build uint32) stored {
	id := newID(cmp.Or(o.Name, filepath.Base(o.Dir)))
	common := func(c *Options) {
		c.Persistent, c.ExternalGuestConnection = true, false
		if o.MemoryMiB > 0 {
			c.MemorySizeInMB = uint64(o.MemoryMiB)
		}
		if o.CPUs > 0 {
			c.ProcessorCount = int32(min(o.CPUs, runtime.NumCPU()))
		}
	}
	if o.OS == vmm.Windows {
		w := DefaultWCOW(id, owner, append(slices.Clone(o.UVMLayers), filepath.Join(o.Dir, "scratch")))
		common(&w.Options)
		return stored{WCOW: &w, Started: time.Now()}
	}
	l := DefaultLCOW(id, owner, cmp.Or(o.BootFiles, DefaultBootFiles), build)
	common(&l.Options)
	// The agent outlives this process, and nothing else would read its output.
	l.ForwardStdout, l.ForwardStderr = false, false
	return stored{LCOW: &l, Started: time.Now()}
}

func (v stored) create(ctx context.Context, h Host) (*Machine, error) {
	if v.WCOW != nil {
		return CreateWCOW(ctx, h, *v.WCOW)
	}
	return CreateLCOW(ctx, h, *v.LCOW)
}

func (v stored) open(ctx context.Context, h Host) (*Machine, error) {
	if v.WCOW != nil {
		return OpenWCOW(ctx, h, *v.WCOW)
	}
	return OpenLCOW(ctx, h, *v.LCOW)
}

func (v stored) options() Options {
	if v.WCOW != nil {
		return v.WCOW.Options
	}
	return v.LCOW.Options
}

func readStored(dir string) (v stored, err error) {
	path := filepath.Join(dir, storedFile)
	b, err := regfile.ReadState(path)
	if errors.Is(err, fs.ErrNotExist) {
		return v, fmt.Errorf("%w in %s", vmm.ErrNoVM, dir)
	}
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err == nil && (v.LCOW == nil) == (v.WCOW == nil) {
		err = errors.New("it names no VM")
	}
	if err != nil {
		return v, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

// write replaces the file atomically, as other processes may be reading it.
func (v stored) write(dir string) error {
	b, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, storedFile), b, atomicfile.Options{})
}

// forget removes the file of a VM that does not exist.
func forget(dir string) error { return os.Remove(filepath.Join(dir, storedFile)) }

// remember makes h store what is detected about the guest, for later commands.
func (v stored) remember(h *Host, dir string) {
	if v.LCOW == nil {
		return
	}
	log, l := h.Logger, *v.LCOW
	v.LCOW = &l
	h.Probed = func(g GuestGeneration) {
		l.GuestGeneration = g
		if err := v.write(dir); err != nil {
			log.Warn("what was found out about the guest is not kept", "vm", l.ID, "error", err)
		}
	}
}
