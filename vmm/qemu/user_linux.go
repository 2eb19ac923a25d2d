package qemu

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/internal/userns"
)

// Users that QEMU runs as when root starts it: one of its own for each machine, so that a guest that breaks
// out of QEMU can neither act on the host nor on another machine. They are far above those of people and
// of the ranges that are given to user namespaces.
const (
	firstUID = 0x70000000
	uidRange = 0x0fffffff
)

// machineUser returns the user for the machine of a state directory; 0 where QEMU runs as who starts it.
// The number comes from the directory, of which the machine is the only one.
func machineUser(dir string) (int, error) {
	if os.Geteuid() != 0 || userns.Inside() {
		return 0, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fmt.Errorf("state directory %s: %w", dir, err)
	}
	return firstUID + int(st.Ino%uidRange), nil
}

// credentials are those of a process that runs as uid; nil for our own. The group of /dev/kvm is what
// it takes to use that.
func credentials(uid int) *syscall.Credential {
	if uid == 0 {
		return nil
	}
	c := &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	var st unix.Stat_t
	if unix.Stat("/dev/kvm", &st) == nil && st.Mode&0o060 == 0o060 {
		c.Groups = []uint32{st.Gid}
	}
	return c
}

// readableBy opens a file that QEMU reads by its descriptor, which takes the right to read it: for a user
// that lacks it this is a copy in memory.
func readableBy(uid int, path string) (_ *os.File, err error) {
	f, _, err := regfile.Open(path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && (uid == 0 || fi.Mode()&0o004 != 0) {
		return f, nil
	}
	defer f.Close()
	if err != nil {
		return nil, err
	}
	to, err := memoryFile(path, io.LimitReader(f, fi.Size()), 0)
	if err != nil {
		return nil, fmt.Errorf("copy %s for QEMU: %w", path, err)
	}
	if err := to.Chown(uid, uid); err != nil {
		return nil, errors.Join(fmt.Errorf("copy %s for QEMU: %w", path, err), to.Close())
	}
	return to, nil
}

// inherited opens what QEMU inherits, in the order of the constants from firstFD on. Whoever calls closes
// the files, also those that come with an error.
func inherited(c Config, uid int, v *vsockDevice) (files []*os.File, err error) {
	listen := func(name string) (*os.File, error) { return listenSocket(c.Dir, name) }
	opens := []func() (*os.File, error){
		qmpFD - firstFD:    func() (*os.File, error) { return listen(qmpSocket) },
		statusFD - firstFD: func() (*os.File, error) { return listen(statusSocket) },
		pidFD - firstFD:    func() (*os.File, error) { return createPidfile(c.Dir) },
		kernelFD - firstFD: func() (*os.File, error) { return bootFile(uid, c.Kernel) },
		initrdFD - firstFD: func() (*os.File, error) { return bootFile(uid, c.Initrd) },
	}
	for i := range c.ExecPorts + 1 {
		opens = append(opens, func() (*os.File, error) { return listen(portSocket(i)) })
	}
	if v != nil {
		opens = append(opens, func() (*os.File, error) { return duplicate(v.f) })
	}
	if c.memory != nil {
		opens = append(opens, func() (*os.File, error) { return duplicate(c.memory.f) })
	}
	for _, open := range opens {
		f, err := open()
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// bootFile is readableBy, or for no path a file that keeps its place.
func bootFile(uid int, path string) (*os.File, error) {
	if path == "" {
		return os.Open(os.DevNull)
	}
	return readableBy(uid, path)
}

// createPidfile creates the file that tells a QEMU by its having it open, while its number is not noted.
func createPidfile(dir string) (*os.File, error) {
	return regfile.OpenFile(pidfile(dir), os.O_CREATE|os.O_RDONLY|os.O_TRUNC, 0o600)
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
