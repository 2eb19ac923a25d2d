package guest

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// template is the state of a VM as a template, which hosts save once and load many times. While it is held, the agent
// serves no requests, neither in the saved VM nor in those loaded from it, until the host has renewed it with new
// entropy: so no two of them draw the same random numbers. The zero value is not held and cannot be.
type template struct {
	settle func() // blocks until the boot is complete
	renew  func(hcsschema.TemplateRenewal) error

	mu   sync.Mutex    // held while it is renewed
	held chan struct{} // closed when it is renewed; nil: not held
}

// callHooks installs the hooks of the configuration.
func (t *template) callHooks(c Config) {
	if settle := t.settle; c.Hold != nil {
		t.settle = func() { settle(); c.Hold() }
	}
	if really := t.renew; c.Renew != nil {
		t.renew = func(r hcsschema.TemplateRenewal) error { return c.Renew(func() error { return really(r) }) }
	}
}

// await blocks while the VM is held.
func (t *template) await(ctx context.Context) error {
	t.mu.Lock()
	held := t.held
	t.mu.Unlock()
	if held == nil {
		return nil
	}
	select {
	case <-held:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t *template) modify(m gcsserver.Modification) error {
	if t.settle == nil {
		return fmt.Errorf("a template of this guest: %w", gcsserver.ErrUnsupported)
	}
	switch m.RequestType {
	case hcsschema.RequestAdd:
		t.settle()
		debug.FreeOSMemory()
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.held == nil {
			t.held = make(chan struct{})
		}
		return nil
	case hcsschema.RequestUpdate:
		var r hcsschema.TemplateRenewal
		if err := gcsserver.Decode(m.Settings, &r); err != nil {
			return err
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.held == nil {
			return nil
		}
		if err := t.renew(r); err != nil {
			return err
		}
		close(t.held)
		t.held = nil
		return nil
	}
	return fmt.Errorf("%s of a template: %w", m.RequestType, gcsserver.ErrUnsupported)
}

// minEntropy is the least entropy, in bytes, that makes a VM's random numbers unique.
const minEntropy = 32

// renew seeds the kernel's random number generator and sets the clock.
func renew(r hcsschema.TemplateRenewal) error {
	if len(r.Entropy) < minEntropy || len(r.Entropy) > seedSize {
		return fmt.Errorf("%d bytes of entropy: %w", len(r.Entropy), gcsserver.ErrInvalid)
	}
	f, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info of linux/random.h: entropy in bits, length in bytes, data.
	info := binary.NativeEndian.AppendUint32(nil, uint32(8*len(r.Entropy)))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(r.Entropy)))
	info = append(info, r.Entropy...)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0])))
	if errno == 0 { // reseed, so that no CPU uses its state from before
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0)
	}
	if errno != 0 {
		return fmt.Errorf("new random numbers: %w", errno)
	}
	now := unix.NsecToTimeval(r.Time)
	if err := unix.Settimeofday(&now); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

// rndReseedCRNG is RNDRESEEDCRNG of linux/random.h.
const rndReseedCRNG = 0x5207
