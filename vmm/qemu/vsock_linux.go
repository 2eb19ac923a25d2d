package qemu

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/gcs"
)

// vhostVSockSetGuestCID is VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h.
const vhostVSockSetGuestCID = 0x4008af60

// Range of the context ids of guests: lower ones are reserved for hosts, the one above means any.
const minCID, maxCID = 3, 1<<32 - 2

// cidTries bounds the attempts to find a free context id.
const cidTries = 32

// openVSock reserves a context id that no other guest has. The kernel rejects ids in use, and keeps ours reserved for
// QEMU.
func openVSock() (*vsockDevice, error) {
	f, err := os.OpenFile("/dev/vhost-vsock", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	for range cidTries {
		cid := minCID + uint64(rand.Uint32N(maxCID-minCID+1))
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), vhostVSockSetGuestCID, uintptr(unsafe.Pointer(&cid)))
		switch {
		case errno == 0:
			return &vsockDevice{f: f, cid: uint32(cid), token: gcs.NewToken()}, nil
		case errno != unix.EADDRINUSE:
			return nil, errors.Join(fmt.Errorf("take context id %d: %w", cid, errno), f.Close())
		}
		err = errno
	}
	return nil, errors.Join(fmt.Errorf("take a context id: %w", err), f.Close())
}
