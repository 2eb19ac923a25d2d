package nsthread

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Run calls do in an open network namespace. Goroutines that do starts are not in the namespace.
func Run(namespace *os.File, do func() error) error {
	return run(func() error { return unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET) }, do)
}

// RunNew calls do in a new network namespace.
func RunNew(do func() error) error {
	return run(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, do)
}

// Handle returns a netlink handle in an open network namespace.
func Handle(namespace *os.File) (h *netlink.Handle, err error) {
	err = Run(namespace, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil && h != nil {
		h.Close()
		h = nil
	}
	return h, err
}

func run(enter, do func() error) error {
	result := make(chan error, 1)
	go func() { result <- runHere(enter, do) }()
	return <-result
}

// runHere must be called in a goroutine of its own. Its thread returns to the original namespace. A thread that may
// not, because that belongs to another user namespace, stays locked and ends with the goroutine. The main thread would
// not end and would keep the namespace: it is kept busy while another thread does this.
func runHere(enter, do func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		defer runtime.UnlockOSThread()
		return run(enter, do)
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	err = do()
	switch back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); {
	case back == nil:
		runtime.UnlockOSThread()
	case !errors.Is(back, unix.EPERM):
		err = errors.Join(err, fmt.Errorf("go back to the own network namespace: %w", back))
	}
	return err
}
