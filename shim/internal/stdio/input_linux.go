package stdio

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const nonblock = syscall.O_NONBLOCK

// input is a FIFO that a process reads. After begin, only end causes EOF, not the last writer's close.
type input struct {
	f     *os.File
	keep  *os.File // a write end, which keeps f from EOF; nil before begin
	ended chan struct{}
	once  sync.Once
}

func openInput(name string) (*input, error) {
	f, err := openFIFO(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return &input{f: f, ended: make(chan struct{})}, nil
}

// begin must be called before the process is started. If all writers have already closed the FIFO, the input ends after
// what they wrote: ctr does not call CloseIO if its own input has ended before it creates the task.
func (i *input) begin() error {
	gone, err := i.writersGone()
	switch {
	case err != nil:
		return err
	case gone:
		i.end()
		return nil
	case i.keep != nil: // an earlier start failed
		return nil
	}
	i.keep, err = openFIFO(i.f.Name(), os.O_RDWR)
	return err
}

// writersGone reports whether the FIFO had writers and all have closed it.
func (i *input) writersGone() (gone bool, err error) {
	raw, err := i.f.SyscallConn()
	if err != nil {
		return false, err
	}
	cerr := raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if _, err = unix.Poll(fds, 0); !errors.Is(err, unix.EINTR) {
				gone = fds[0].Revents&unix.POLLHUP != 0
				return
			}
		}
	})
	return gone, errors.Join(cerr, err)
}

// Read implements io.Reader.
func (i *input) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	select {
	case <-i.ended:
		return i.rest(b)
	default:
	}
	n, err := i.f.Read(b)
	switch {
	case n > 0:
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return i.rest(b)
	case errors.Is(err, os.ErrClosed):
		return 0, io.EOF
	}
	return 0, err
}

// rest reads what was written before the end.
func (i *input) rest(b []byte) (n int, err error) {
	<-i.ended // after that end does not set the deadline again
	if err := i.f.SetReadDeadline(time.Time{}); err != nil {
		return 0, io.EOF // f is closed
	}
	raw, err := i.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	rerr := raw.Read(func(fd uintptr) bool {
		for {
			if n, err = unix.Read(int(fd), b); !errors.Is(err, unix.EINTR) {
				return true
			}
		}
	})
	if n <= 0 || err != nil || rerr != nil { // EAGAIN: there is no more
		return 0, io.EOF
	}
	return n, nil
}

func (i *input) end() {
	i.once.Do(func() {
		_ = i.f.SetReadDeadline(time.Unix(1, 0)) // unblocks a pending Read
		close(i.ended)
	})
}

// close is idempotent.
func (i *input) close() {
	_ = i.f.Close()
	if i.keep != nil {
		_ = i.keep.Close()
	}
}
