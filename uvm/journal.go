package uvm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/vmm"
)

// The journal is a text file. Each line is one record: eight hex digits with the CRC-32C of the rest, a space, and a
// JSON object with the new values of some entities. The last value of an entity wins. An incomplete last line is the
// result of a crash and is dropped. Records are not synced: they survive a crash of the process in the page cache, and
// a crash of the host ends the VM they are about.

const (
	journalName = "journal"
	// maxRecord bounds the length of a line, in bytes; a resource with a thousand extents fits.
	maxRecord = 4 << 20
	// compactAt is the number of superseded records from which on the journal is rewritten.
	compactAt = 4096
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// record is one line: the entities that changed together.
type record struct {
	Resources []resourceEntry `json:"r,omitempty"`
	Leases    []leaseEntry    `json:"l,omitempty"`
	Claims    []claimEntry    `json:"c,omitempty"`
}

// resourceEntry is a resource in the journal. State Free deletes it.
type resourceEntry struct {
	ID       int         `json:"id"`
	State    State       `json:"state"`
	Key      string      `json:"key,omitempty"`
	What     *vmm.Change `json:"what,omitempty"` // Add with exactly one half
	Parent   int         `json:"parent,omitempty"`
	Retained bool        `json:"retained,omitempty"`
}

// leaseEntry is a lease in the journal. Dropped deletes it.
type leaseEntry struct {
	ID       int    `json:"id"`
	Claim    string `json:"claim,omitempty"`
	Resource int    `json:"res,omitempty"`
	Role     string `json:"role,omitempty"`
	Path     string `json:"path,omitempty"`
	Dropped  bool   `json:"dropped,omitempty"`
}

// claimEntry is a claim in the journal. Phase ended deletes it.
type claimEntry struct {
	ID    string          `json:"id"`
	Phase Phase           `json:"phase"`
	Meta  json.RawMessage `json:"meta,omitempty"`
}

// journal appends records to a file; with a nil file it does nothing.
type journal struct {
	dir     string
	file    *os.File
	size    int64 // bytes of complete records
	records int   // number of complete records
	// stale: the results of recovery could not be written. The journal must be rewritten before the next record, which
	// would otherwise be replayed on top of the state before recovery.
	stale bool
}

// openJournal reads the journal of dir, truncates an incomplete last line and opens it for appending. With an empty
// dir it returns a journal that does nothing.
func openJournal(dir string) (*journal, []record, error) {
	if dir == "" {
		return &journal{}, nil, nil
	}
	path := filepath.Join(dir, journalName)
	f, err := regfile.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open journal: %w", err)
	}
	records, good, err := readRecords(f)
	if err == nil {
		err = f.Truncate(good)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("read journal %s: %w", path, err), f.Close())
	}
	return &journal{dir: dir, file: f, size: good, records: len(records)}, records, nil
}

// readRecords reads the complete records and returns their size in bytes. Only an incomplete last line may follow:
// complete records after an invalid one mean damage that a crash cannot cause.
func readRecords(r io.Reader) (records []record, good int64, err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := readLine(br)
		if errors.Is(err, io.EOF) {
			return records, good, nil // without its newline a line is incomplete
		}
		if err != nil {
			return nil, 0, err
		}
		rec, err := decodeRecord(line)
		if err != nil {
			rest, rerr := readLine(br)
			if rerr == nil || len(rest) > 0 {
				return nil, 0, fmt.Errorf("%w: record %d at byte %d: %w; stop the VM to discard it",
					ErrJournal, len(records)+1, good, err)
			}
			return records, good, nil
		}
		records = append(records, rec)
		good += int64(len(line)) + 1
	}
}

// readLine returns a line without its newline, or io.EOF with the incomplete last line.
func readLine(br *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := br.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxRecord {
			return nil, fmt.Errorf("%w: a record is longer than %d bytes", ErrJournal, maxRecord)
		}
		if err == nil {
			return line[:len(line)-1], nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

func decodeRecord(line []byte) (rec record, err error) {
	sum, body, ok := bytes.Cut(line, []byte(" "))
	if !ok || string(sum) != fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli)) {
		return rec, errors.New("wrong checksum")
	}
	return rec, json.Unmarshal(body, &rec)
}

func encodeRecord(rec record) ([]byte, error) {
	body, err := json.Marshal(rec)
	if err != nil {
		return nil, err
	}
	if len(body)+10 > maxRecord {
		return nil, fmt.Errorf("a journal record of %d bytes is too large", len(body))
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(body, castagnoli), body), nil
}

// write appends one record. On failure, such as a full disk, the journal is unchanged.
func (j *journal) write(rec record) error {
	if j.file == nil {
		return nil
	}
	line, err := encodeRecord(rec)
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if _, err := j.file.WriteAt(line, j.size); err != nil {
		return errors.Join(fmt.Errorf("write journal: %w", err), j.file.Truncate(j.size))
	}
	j.size += int64(len(line))
	j.records++
	return nil
}

// createFile is replaced by tests that simulate a full disk.
var createFile = atomicfile.Create

// compact replaces the journal by one with only the given records. On failure, such as a full disk, the old journal
// remains in use.
func (j *journal) compact(live []record) error {
	if j.file == nil {
		return nil
	}
	if err := j.rewrite(live); err != nil {
		return fmt.Errorf("compact journal: %w", err)
	}
	return nil
}

func (j *journal) rewrite(live []record) error {
	var buf bytes.Buffer
	for _, rec := range live {
		line, err := encodeRecord(rec)
		if err != nil {
			return err
		}
		buf.Write(line)
	}
	path := filepath.Join(j.dir, journalName)
	fresh, err := createFile(path, atomicfile.Options{})
	if err != nil {
		return err
	}
	if _, err := fresh.Write(buf.Bytes()); err != nil {
		return errors.Join(err, fresh.Abandon())
	}
	// Windows cannot replace an open file.
	err = errors.Join(j.file.Close(), fresh.Commit())
	f, oerr := regfile.OpenFile(path, os.O_RDWR, 0)
	if oerr == nil {
		j.file = f
	}
	if err = errors.Join(err, oerr); err != nil {
		return err
	}
	j.size, j.records, j.stale = int64(buf.Len()), len(live), false
	return nil
}

func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	f := j.file
	j.file = nil
	return f.Close()
}
