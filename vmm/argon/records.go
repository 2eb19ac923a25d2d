package argon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"sync"

	"github.com/stratavm/strata/internal/bootid"
	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/vmm"
)

// machineName is the name of the file with a machine's records.
const machineName = "machine.json"

// maxRecords bounds the size of that file, in bytes.
const maxRecords = 64 << 20

// knowledge is the recorded state of an addition.
type knowledge uint8

const (
	absent   knowledge = iota
	doubtful           // the addition was started; it may exist
	certain
)

// record is an addition to the host.
type record struct {
	What     vmm.Change `json:"what"` // Add with exactly one half
	Doubtful bool       `json:"doubtful,omitempty"`
}

// machineFile is the content of the file.
type machineFile struct {
	Boot    string   `json:"boot"`
	Records []record `json:"records"` // in the order of addition
}

// records are the records of a machine. Methods may be called concurrently.
type records struct {
	path string // empty: in memory only

	mu     sync.Mutex
	closed bool
	file   machineFile
}

// openRecords reads the records in dir. It drops those of an earlier boot, of which nothing is mounted any more.
func openRecords(dir, boot string) (*records, error) {
	if dir == "" {
		return &records{}, nil
	}
	if boot == "" {
		var err error
		if boot, err = bootid.Read(); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, machineName)
	file, err := readRecords(path)
	if err != nil {
		return nil, err
	}
	r := &records{path: path, file: file}
	if file.Boot != boot {
		r.file = machineFile{Boot: boot}
		if err := r.write(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// readRecords reads a file of records. If it does not exist, there are no records.
func readRecords(path string) (file machineFile, err error) {
	b, err := regfile.Read(path, maxRecords)
	if errors.Is(err, fs.ErrNotExist) {
		return file, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err != nil {
		return file, fmt.Errorf("records of what is mounted, %s: %w", path, err)
	}
	return file, nil
}

// write replaces the file atomically. It does not sync: a crash of the system that loses it also ends the mounts.
func (r *records) write() error {
	if r.path == "" {
		return nil
	}
	b, err := json.Marshal(r.file)
	if err == nil {
		err = os.WriteFile(r.path+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(r.path+".new", r.path)
	}
	if err != nil {
		return fmt.Errorf("record what is mounted: %w", err)
	}
	return nil
}

// close makes put fail from now on, as another Machine may own the file.
func (r *records) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
}

// same reports whether two changes, of one half each, concern the same address or path.
func same(a, b vmm.Change) bool {
	if (a.Device == nil) != (b.Device == nil) {
		return false
	}
	if a.Device != nil {
		return hostpath.Identity(a.Device.Addr()) == hostpath.Identity(b.Device.Addr())
	}
	return hostpath.Identity(a.Mount.Key(vmm.Windows)) == hostpath.Identity(b.Mount.Key(vmm.Windows))
}

func (r *records) index(c vmm.Change) int {
	for i, rec := range r.file.Records {
		if same(rec.What, c) {
			return i
		}
	}
	return -1
}

// find returns the recorded state of c. If something else is recorded at its address, that is an error.
func (r *records) find(c vmm.Change) (knowledge, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.index(c)
	if i < 0 {
		return absent, nil
	}
	rec := r.file.Records[i]
	if c.Op = vmm.Add; !reflect.DeepEqual(rec.What, c) {
		return absent, fmt.Errorf("%w by %s", vmm.ErrOccupied, rec.What)
	}
	if rec.Doubtful {
		return doubtful, nil
	}
	return certain, nil
}

// gone reports whether the records say that what c removes does not exist.
func (r *records) gone(c vmm.Change) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.path != "" && r.index(c) < 0
}

// put records the state of c, which has one half.
func (r *records) put(c vmm.Change, k knowledge) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("record what is mounted: the machine was closed meanwhile")
	}
	c.Op = vmm.Add
	i := r.index(c)
	switch {
	case k == absent && i >= 0:
		r.file.Records = append(r.file.Records[:i:i], r.file.Records[i+1:]...)
	case k == absent:
	case i < 0:
		r.file.Records = append(r.file.Records, record{What: c, Doubtful: k == doubtful})
	default:
		r.file.Records[i] = record{What: c, Doubtful: k == doubtful}
	}
	return r.write()
}

// changes returns the recorded additions, in their order.
func (r *records) changes() []vmm.Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]vmm.Change, len(r.file.Records))
	for i, rec := range r.file.Records {
		out[i] = rec.What
	}
	return out
}

func (r *records) observation() (o vmm.Observation) {
	for _, c := range r.changes() {
		if c.Device != nil {
			o.Devices = append(o.Devices, c.Device)
		} else {
			o.Mounts = append(o.Mounts, c.Mount)
		}
	}
	return o
}
