package mounts

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// dialTimeout bounds dialling the host's port.
const dialTimeout = 20 * time.Second

// addDirectory mounts a Plan9 share that the host serves on a port. The kernel needs a file descriptor, but the
// connection may be a stream of a multiplexer, so its bytes are relayed over a socket pair. When the host's session
// ends, the mount stays, but its operations fail.
func (t *Table) addDirectory(ctx context.Context, s hcsschema.LCOWMappedDirectory, dial gcsserver.Dialer) error {
	if err := t.CheckPath(s.MountPath); err != nil {
		return err
	}
	if same, err := t.have(s.MountPath, s); same || err != nil {
		return err
	}
	for _, c := range s.ShareName {
		if c <= ' ' || c == ',' || c == '\\' || c == 0x7f {
			return fmt.Errorf("share name %q: %w", s.ShareName, gcsserver.ErrInvalid)
		}
	}
	port := uint32(s.Port)
	if s.Port <= 0 {
		port = gcs.PortPlan9
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	t.load("9p")
	t.load("9pnet_fd")
	conn, err := dial(ctx, port)
	if err != nil {
		return fmt.Errorf("reach the Plan9 server: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		conn.Close()
		return err
	}
	kernel := os.NewFile(uintptr(pair[0]), "9p")
	defer kernel.Close()
	if err := unix.SetNonblock(pair[1], true); err != nil {
		unix.Close(pair[1])
		conn.Close()
		return err
	}
	ours := os.NewFile(uintptr(pair[1]), "9p")
	go func() {
		_, _ = io.Copy(conn, ours)
		conn.Close()
	}()
	go func() {
		_, _ = io.Copy(ours, conn)
		_ = unix.Shutdown(pair[1], unix.SHUT_RDWR)
		ours.Close()
	}()
	data := fmt.Sprintf("trans=fd,rfdno=%d,wfdno=%d,msize=65536,aname=%s", pair[0], pair[0], s.ShareName)
	if err := t.mountAt(s.ShareName, s.MountPath, "9p", s.ReadOnly, data, nil); err != nil {
		conn.Close()
		return err
	}
	t.note(s.MountPath, mounted{settings: s, what: gcs.Mount{Kind: "directory", Share: s.ShareName, ReadOnly: s.ReadOnly}})
	return nil
}
