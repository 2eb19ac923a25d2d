package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// socketName is the control socket in a container's directory.
const socketName = "control.sock"

// inDir calls do with a short path for a directory: the path of a socket is limited to 107 bytes.
func inDir(dir string, do func(short string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return do(fmt.Sprintf("/proc/self/fd/%d", d.Fd()))
}

// listen creates the socket, accessible to its owner only. It replaces one that a killed supervisor left.
func listen(dir string) (l *net.UnixListener, err error) {
	path := filepath.Join(dir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	err = inDir(dir, func(short string) error {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: short + "/" + socketName})
		return err
	})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the path, which has a file descriptor number, is not valid then
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func unlisten(dir string, l *net.UnixListener) error {
	err := os.Remove(filepath.Join(dir, socketName))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, l.Close())
}

func dial(ctx context.Context, dir string) (conn net.Conn, err error) {
	err = inDir(dir, func(short string) error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "unix", short+"/"+socketName)
		return err
	})
	return conn, err
}
