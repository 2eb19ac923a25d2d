package supervise

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/stratavm/strata/internal/regfile"
)

// The log of a container: the current file, and one older file.
const (
	logName    = "log.json"
	oldLogName = "log.json.1"
	// maxLogFile is the size in bytes from which the file is rotated.
	maxLogFile = 8 << 20
	// maxLine is the length in bytes from which a line is split.
	maxLine = 16 << 10
)

// Line is a line of a log, in the format of docker's json-file. If the program's line was split or is incomplete, Log
// does not end with a newline.
type Line struct {
	Log    string    `json:"log"`
	Stream string    `json:"stream"` // stdout or stderr
	Time   time.Time `json:"time"`
}

// Log is a log open for writing. Its methods may be called concurrently.
type Log struct {
	dir string
	max int64
	now func() time.Time

	mu   sync.Mutex
	f    *os.File
	size int64
	lost error // the error by which lines were lost
}

// OpenLog opens the log in a directory for appending. It creates the log if there is none.
func OpenLog(dir string) (*Log, error) {
	f, err := regfile.OpenFile(filepath.Join(dir, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the log: %w", err), f.Close())
	}
	l := &Log{dir: dir, max: maxLogFile, now: time.Now, f: f, size: fi.Size()}
	if fi.Size() > 0 { // a killed writer may have left an incomplete line
		l.append([]byte("\n"))
	}
	return l, nil
}

// Close closes the log. It returns the error by which lines were lost, if any.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.lost
	if l.f != nil {
		err = errors.Join(err, l.f.Close())
		l.f = nil
	}
	return err
}

// append writes whole lines. If that fails, such as on a full disk, the lines are lost and the program goes on.
func (l *Log) append(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil && l.size > 0 && l.size+int64(len(b)) > l.max {
		l.rotate()
	}
	if l.f == nil {
		return
	}
	n, err := l.f.Write(b)
	l.size += int64(n)
	if err != nil && l.lost == nil {
		l.lost = fmt.Errorf("the log: lines are missing: %w", err)
	}
}

// rotate renames the file to the older one, which it replaces, and creates a new file.
func (l *Log) rotate() {
	path := filepath.Join(l.dir, logName)
	err := os.Rename(path, filepath.Join(l.dir, oldLogName))
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	}
	if err == nil {
		err = l.f.Close()
		l.f, l.size = f, 0
	} else if terr := l.f.Truncate(0); terr == nil { // keep the size bounded
		l.size = 0
	}
	if err != nil && l.lost == nil {
		l.lost = fmt.Errorf("the log: %w", err)
	}
}

// Stream returns the writer for a stream, "stdout" or "stderr". Its Close writes an incomplete last line.
func (l *Log) Stream(name string) *LogStream { return &LogStream{log: l, name: name} }

// LogStream is one stream of a log. Its methods may not be called concurrently.
type LogStream struct {
	log  *Log
	name string
	part []byte
}

// Write implements io.Writer. It does not fail: see [Log.Close].
func (s *LogStream) Write(b []byte) (int, error) {
	n := len(b)
	var out bytes.Buffer
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n') + 1
		whole := end > 0
		if !whole {
			end = len(b)
		}
		if room := maxLine - len(s.part); end > room {
			end, whole = room, true
		}
		s.part = append(s.part, b[:end]...)
		b = b[end:]
		if whole {
			s.line(&out)
		}
	}
	if out.Len() > 0 {
		s.log.append(out.Bytes())
	}
	return n, nil
}

// line moves the current line to out.
func (s *LogStream) line(out *bytes.Buffer) {
	text, err := json.Marshal(Line{Log: string(s.part), Stream: s.name, Time: s.log.now().UTC()})
	s.part = s.part[:0]
	if err == nil { // always
		out.Write(text)
		out.WriteByte('\n')
	}
}

// Close implements io.Closer.
func (s *LogStream) Close() error {
	if len(s.part) > 0 {
		var out bytes.Buffer
		s.line(&out)
		s.log.append(out.Bytes())
	}
	return nil
}
