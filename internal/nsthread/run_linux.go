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

// runHere must be called in a goroutine of its own. Its thread returns to the original namespace, because the main
// thread does not end with a goroutine and would keep the namespace. A thread that cannot return stays locked, so that
// no other goroutine uses it.
func runHere(enter, do func() error) error {
	runtime.LockOSThread()
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
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("go back to the own network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}
