package slirp

import (
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAbandonFull: a server that takes no connections any more, as a hostile one may, is not waited for.
func TestAbandonFull(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, packetSocket)}),
		unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for { // each connection waits to be taken
		f, err := dialPackets(dir)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	Abandon(dir)
}
