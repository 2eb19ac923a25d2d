// Package stdio connects the streams of a program in a VM with what containerd names for them: FIFOs and files.
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

// Names are what containerd names for the streams of a process. An empty one is not connected.
type Names struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
	// Namespace and ID are what loggers are told of the process.
	Namespace, ID string
}

// Streams are the streams of one process.
type Streams struct {
	in       *input
	out, err *output
	loggers  map[string]*logger // by URI
}

// Open opens the streams. Others may open and close the other ends of FIFOs as they like: each is held open here for
// both directions, so that neither a writer that goes away after Begin ends the input nor a reader that goes away the
// output.
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
	if !n.Terminal { // which has one output
		if s.err, err = s.openOutput(n, n.Stderr, func(l *logger) *os.File { return l.err }); err != nil {
			return nil, fmt.Errorf("standard error: %w", err)
		}
	}
	for _, l := range s.loggers { // what nothing is written to ends
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

// openFIFO opens a FIFO to read, or for both directions, which never blocks.
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
		err = fmt.Errorf("%q is no FIFO: %w", name, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Begin is called before the process is started. An input whose writers have come and gone ends behind what they wrote.
func (s *Streams) Begin() error {
	if s.in == nil {
		return nil
	}
	if err := s.in.begin(); err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	return nil
}

// Stdin is what the process reads, or nil.
func (s *Streams) Stdin() io.Reader {
	if s.in == nil {
		return nil
	}
	return s.in
}

// Stdout is where the process writes, or nil.
func (s *Streams) Stdout() io.Writer { return s.out.writer() }

// Stderr is where the process writes, or nil.
func (s *Streams) Stderr() io.Writer { return s.err.writer() }

// EndInput ends the input behind what has been written to it.
func (s *Streams) EndInput() {
	if s.in != nil {
		s.in.end()
	}
}

// GiveUp gives up outputs that nobody reads: one that takes nothing for the time of limit is thrown away from then on.
// Called again only a shorter limit counts.
func (s *Streams) GiveUp(limit time.Duration) {
	s.out.giveUp(limit)
	s.err.giveUp(limit)
}

// Close closes all streams. It may be called again.
func (s *Streams) Close() {
	if s.in != nil {
		s.in.close()
	}
	s.out.close()
	s.err.close()
	for _, l := range s.loggers {
		_, _ = l.out.Close(), l.err.Close() // where one was not connected
		l.close()
	}
}
