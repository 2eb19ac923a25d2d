package supervise

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/stratavm/strata/internal/regfile"
)

// LogOptions selects the lines of a log.
type LogOptions struct {
	// Tail is the number of existing lines to read from the end; negative: all.
	Tail int
	// Since and Until, if set, bound the time of lines.
	Since, Until time.Time
	// Ended, if set, makes ReadLog follow the log until Ended returns true: nothing is written any more.
	Ended func() bool
}

// lookEvery is the poll interval for a log that is followed.
const lookEvery = 100 * time.Millisecond

// maxRecord is the maximum length of a line of the file in bytes: JSON may escape a byte by six.
const maxRecord = 6*maxLine + 1024

// ReadLog calls each for the lines of the log in a directory, oldest first, until it returns an error. A missing log is
// no error. Incomplete lines of a killed writer are skipped.
func ReadLog(ctx context.Context, dir string, o LogOptions, each func(Line) error) error {
	r := &logReader{dir: dir, o: o, each: each}
	defer r.close()
	if err := r.open(); err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if o.Tail >= 0 {
		r.ring = make([]Line, 0, min(o.Tail, 1024))
		r.each = r.keep
	}
	for {
		ended := o.Ended == nil || o.Ended()
		if err := r.read(); err != nil {
			return err
		}
		if o.Tail >= 0 && r.ring != nil {
			if err := r.last(each); err != nil {
				return err
			}
		}
		if ended {
			return nil
		}
		t := time.NewTimer(lookEvery)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

type logReader struct {
	dir  string
	o    LogOptions
	each func(Line) error
	old  *os.File // read before f
	f    *os.File // nil if it does not exist yet
	part []byte   // the beginning of an incomplete line
	long bool     // the line is longer than maxRecord and is skipped
	ring []Line
	next int
}

// open opens the files: the current one first, because it may become the older one meanwhile.
func (r *logReader) open() (err error) {
	if r.f, _, err = regfile.Open(filepath.Join(r.dir, logName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if r.old, _, err = regfile.Open(filepath.Join(r.dir, oldLogName)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	if r.f != nil && same(r.f, filepath.Join(r.dir, oldLogName)) {
		r.old.Close()
		r.old = nil
	}
	return nil
}

func (r *logReader) close() {
	for _, f := range []*os.File{r.old, r.f} {
		if f != nil {
			f.Close()
		}
	}
}

func same(f *os.File, path string) bool {
	ours, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(ours, there)
}

// read reads to the current end of the log.
func (r *logReader) read() error {
	if r.old != nil {
		if err := r.file(r.old); err != nil {
			return err
		}
		r.old.Close()
		r.old = nil
	}
	path := filepath.Join(r.dir, logName)
	for {
		moved := r.f != nil && !same(r.f, path) // rotated: nothing more is written to it
		if r.f != nil {
			if err := r.file(r.f); err != nil {
				return err
			}
			if !moved {
				return nil
			}
		}
		f, _, err := regfile.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it does not exist yet, or was removed
		}
		if err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		if r.f != nil {
			r.f.Close()
		}
		r.f, r.part, r.long = f, r.part[:0], false
	}
}

// file reads a file from its offset to its current end.
func (r *logReader) file(f *os.File) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		for b := buf[:n]; len(b) > 0; {
			i := bytes.IndexByte(b, '\n')
			end := i
			if i < 0 {
				end = len(b)
			}
			if r.long = r.long || len(r.part)+end > maxRecord; !r.long {
				r.part = append(r.part, b[:end]...)
			}
			if i < 0 {
				break
			}
			b = b[i+1:]
			if err := r.line(); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
	}
}

func (r *logReader) line() error {
	var l Line
	bad := r.long || json.Unmarshal(r.part, &l) != nil
	r.part, r.long = r.part[:0], false
	if bad || l.Time.Before(r.o.Since) || !r.o.Until.IsZero() && l.Time.After(r.o.Until) {
		return nil
	}
	return r.each(l)
}

// keep adds a line to the ring of the last o.Tail lines.
func (r *logReader) keep(l Line) error {
	switch {
	case r.o.Tail == 0:
	case len(r.ring) < r.o.Tail:
		r.ring = append(r.ring, l)
	default:
		r.ring[r.next] = l
		r.next = (r.next + 1) % r.o.Tail
	}
	return nil
}

// last passes the kept lines to each; after that, each line is passed at once.
func (r *logReader) last(each func(Line) error) error {
	lines := append(append([]Line(nil), r.ring[r.next:]...), r.ring[:r.next]...)
	r.ring, r.each = nil, each
	for _, l := range lines {
		if err := each(l); err != nil {
			return err
		}
	}
	return nil
}
