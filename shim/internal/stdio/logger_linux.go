package stdio

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

const (
	readyTimeout = 10 * time.Second // until a logger is ready
	drainTimeout = 3 * time.Second  // to exit after all output was written
	termTimeout  = time.Second      // to exit after SIGTERM, and after SIGKILL
)

// logger is a program that reads a process's stdout and stderr at file descriptors 3 and 4, as containerd defines it.
// It closes descriptor 5 when it is ready.
type logger struct {
	cmd      *exec.Cmd
	out, err *os.File // the write ends of its pipes
	exited   chan struct{}
	once     sync.Once
}

// isLogger reports whether an output is named by the URI of a logger.
func isLogger(name string) bool {
	return strings.HasPrefix(name, "binary://") || strings.HasPrefix(name, "binary-v2://")
}

// startLogger starts the program of a URI such as binary:///usr/bin/logger?NAME=VALUE, with the arguments NAME and
// VALUE, and waits until it is ready. A binary-v2 logger must write a byte to descriptor 5; others may just close it.
func startLogger(name string, n Names) (_ *logger, err error) {
	u, err := url.Parse(name)
	if err != nil || !filepath.IsAbs(u.Path) || u.Host != "" {
		return nil, fmt.Errorf("%q: give %s and an absolute path: %w", name, "binary://", errdefs.ErrInvalidArgument)
	}
	cmd := exec.Command(u.Path)
	for pair := range strings.SplitSeq(u.RawQuery, "&") { // in the order given
		key, value, _ := strings.Cut(pair, "=")
		for _, word := range []string{key, value} {
			if word, err = url.QueryUnescape(word); err != nil {
				return nil, fmt.Errorf("%q: %w: %w", name, errdefs.ErrInvalidArgument, err)
			}
			if word != "" {
				cmd.Args = append(cmd.Args, word)
			}
		}
	}
	cmd.Env = []string{"CONTAINER_ID=" + n.ID, "CONTAINER_NAMESPACE=" + n.Namespace}
	var pipes [3][2]*os.File
	keep := map[*os.File]bool{}
	defer func() {
		for _, p := range pipes {
			for _, f := range p {
				if f != nil && !keep[f] {
					_ = f.Close()
				}
			}
		}
	}()
	for i := range pipes {
		if pipes[i][0], pipes[i][1], err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	ready := pipes[2][0]
	cmd.ExtraFiles = []*os.File{pipes[0][0], pipes[1][0], pipes[2][1]}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("logger: %w", err)
	}
	l := &logger{cmd: cmd, out: pipes[0][1], err: pipes[1][1], exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // its exit status does not matter
		close(l.exited)
	}()
	_ = pipes[2][1].Close() // leaves the logger's as the only write end
	_ = ready.SetReadDeadline(time.Now().Add(readyTimeout))
	said, err := ready.Read(make([]byte, 1))
	if err == nil || errors.Is(err, io.EOF) {
		err = nil
		if u.Scheme == "binary-v2" && said == 0 {
			err = errors.New("it ended before it was ready")
		}
	}
	if err != nil {
		_ = cmd.Process.Kill()
		<-l.exited
		return nil, fmt.Errorf("logger %s: %w", u.Path, err)
	}
	keep[l.out], keep[l.err] = true, true
	return l, nil
}

// close waits for the logger to exit, whose pipes must be closed; after drainTimeout it gets SIGTERM, then SIGKILL.
func (l *logger) close() {
	if l == nil {
		return
	}
	l.once.Do(func() {
		for _, how := range []struct {
			sig  os.Signal
			time time.Duration
		}{{nil, drainTimeout}, {syscall.SIGTERM, termTimeout}, {syscall.SIGKILL, termTimeout}} {
			if how.sig != nil {
				_ = l.cmd.Process.Signal(how.sig) // fails if it has just exited
			}
			select {
			case <-l.exited:
				return
			case <-time.After(how.time):
			}
		}
	})
}
