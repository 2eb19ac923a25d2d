package nsthread

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Run calls do, which must not begin goroutines that are to be in the namespace, in a network namespace whose file is
// open.
func Run(namespace *os.File, do func() error) error {
	return run(func() error { return unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET) }, do)
}

// RunNew calls do in a network namespace that is made for it.
func RunNew(do func() error) error {
	return run(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, do)
}

// Handle returns a handle by which a network namespace whose file is open is looked at and changed.
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

// runHere runs in a goroutine of its own. Its thread goes back: where it is the first one of the process it does not
// end with the goroutine, and would keep the namespace. One that cannot go back is not used by others: it stays locked.
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
