// Package stdio connects the standard streams of a process in a VM to the FIFOs, files and loggers that containerd
// names.
package stdio

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/stratavm/strata/internal/regfile"
)

// Names are the paths or URIs that containerd gives for a process's streams. An empty one is not connected.
type Names struct {
	Stdin, Stdout, Stderr string
	Terminal              bool // Stderr is ignored
	// Namespace and ID are passed to loggers.
	Namespace, ID string
}

// Streams are the streams of one process.
type Streams struct {
	in       *input
	out, err *output
	loggers  map[string]*logger // by URI
}

// Open opens the streams and starts the loggers. FIFOs are held open in both directions, stdin from Begin on: no writer
// that closes stdin ends the input, and no reader that closes an output breaks it.
func Open(n Names) (_ *Streams, err error) {
	s := &Streams{loggers: map[string]*logger{}}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if n.Stdin != "" {
		if s.in, err = openInput(n.Stdin); err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
	}
	if s.out, err = s.openOutput(n, n.Stdout, func(l *logger) *os.File { return l.out }); err != nil {
		return nil, fmt.Errorf("standard output: %w", err)
	}
	if !n.Terminal { // a terminal has one output
		if s.err, err = s.openOutput(n, n.Stderr, func(l *logger) *os.File { return l.err }); err != nil {
			return nil, fmt.Errorf("standard error: %w", err)
		}
	}
	for _, l := range s.loggers { // close unused pipes, so that the logger reads EOF
		for _, f := range []*os.File{l.out, l.err} {
			if (s.out == nil || s.out.f != f) && (s.err == nil || s.err.f != f) {
				_ = f.Close()
			}
		}
	}
	return s, nil
}

func (s *Streams) openOutput(n Names, name string, of func(*logger) *os.File) (*output, error) {
	if name == "" {
		return nil, nil
	}
	if isLogger(name) {
		if s.loggers[name] == nil {
			l, err := startLogger(name, n)
			if err != nil {
				return nil, err
			}
			s.loggers[name] = l
		}
		return &output{f: of(s.loggers[name])}, nil
	}
	if u, err := url.Parse(name); err == nil && u.Scheme != "" {
		if u.Scheme != "file" {
			return nil, fmt.Errorf("%q: output by %s:// is not supported, only a FIFO, file:// and binary://: %w", name, u.Scheme,
				errdefs.ErrNotImplemented)
		}
		if name = u.Path; !filepath.IsAbs(name) || u.Host != "" || u.RawQuery != "" {
			return nil, fmt.Errorf("%q: give file:// and an absolute path: %w", u, errdefs.ErrInvalidArgument)
		}
		f, err := regfile.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if errors.Is(err, regfile.ErrNotRegular) {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return nil, err
		}
		return &output{f: f}, nil
	}
	f, err := openFIFO(name, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	return &output{f: f}, nil
}

// openFIFO opens a FIFO by O_RDONLY or O_RDWR without blocking.
func openFIFO(name string, how int) (*os.File, error) {
	if !filepath.IsAbs(name) || strings.ContainsRune(name, 0) {
		return nil, fmt.Errorf("%q: give the absolute path of a FIFO: %w", name, errdefs.ErrInvalidArgument)
	}
	f, err := os.OpenFile(name, how|nonblock, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && fi.Mode()&os.ModeNamedPipe == 0 {
		err = fmt.Errorf("%q is not a FIFO: %w", name, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Begin must be called before the process is started. If all writers of stdin have closed it by then, the input ends
// after what they wrote.
func (s *Streams) Begin() error {
	if s.in == nil {
		return nil
	}
	if err := s.in.begin(); err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	return nil
}

// Stdin returns what the process reads, or nil.
func (s *Streams) Stdin() io.Reader {
	if s.in == nil {
		return nil
	}
	return s.in
}

// Stdout returns where the process writes, or nil.
func (s *Streams) Stdout() io.Writer { return s.out.writer() }

// Stderr returns where the process writes, or nil.
func (s *Streams) Stderr() io.Writer { return s.err.writer() }

// EndInput makes the process read EOF after what was written so far.
func (s *Streams) EndInput() {
	if s.in != nil {
		s.in.end()
	}
}

// GiveUp sets how long a write to an output may block; after that the output is discarded. A later call can only
// shorten the limit.
func (s *Streams) GiveUp(limit time.Duration) {
	s.out.giveUp(limit)
	s.err.giveUp(limit)
}

// Close closes all streams and ends the loggers. It is idempotent.
func (s *Streams) Close() {
	if s.in != nil {
		s.in.close()
	}
	s.out.close()
	s.err.close()
	for _, l := range s.loggers {
		_, _ = l.out.Close(), l.err.Close() // those that no output has
		l.close()
	}
}
