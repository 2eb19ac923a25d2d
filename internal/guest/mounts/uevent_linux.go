package mounts

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// Uevents wakes up waiters at each event by which the kernel announces a device added, removed or changed.
type Uevents struct {
	mu   sync.Mutex
	wake chan struct{} // closed and replaced at every event
}

// ListenUevents starts listening to the kernel's uevents.
func ListenUevents() (*Uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen to the kernel's device events: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen to the kernel's device events: %w", err)
	}
	u := &Uevents{wake: make(chan struct{})}
	go func() {
		defer unix.Close(fd)
		buf := make([]byte, 16<<10)
		for {
			_, _, err := unix.Recvfrom(fd, buf, 0)
			// Lost events (ENOBUFS) count as an event: waiters look for their device themselves.
			if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
				return
			}
			u.notify()
		}
	}()
	return u, nil
}

func (u *Uevents) notify() {
	u.mu.Lock()
	defer u.mu.Unlock()
	close(u.wake)
	u.wake = make(chan struct{})
}

// Next returns a channel that is closed at the next event.
func (u *Uevents) Next() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.wake
}

// errAbsent is returned by a look-up that await is to repeat after the next event.
var errAbsent = fmt.Errorf("the device is not there: %w", gcsserver.ErrNotFound)

// await calls look now and after each event, until it returns another error than errAbsent, or none, or ctx ends.
func await[T any](ctx context.Context, u *Uevents, look func() (T, error)) (T, error) {
	for {
		next := u.Next() // before the look, so that no event falls in between
		v, err := look()
		if !errors.Is(err, errAbsent) {
			return v, err
		}
		select {
		case <-next:
		case <-ctx.Done():
			return v, err
		}
	}
}
