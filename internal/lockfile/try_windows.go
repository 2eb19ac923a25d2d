package lockfile

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// open is os.OpenFile with FILE_SHARE_DELETE: the file can be renamed and removed while it is open.
func open(path string, flags int) (*os.File, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	access, create := uint32(windows.GENERIC_READ), uint32(windows.OPEN_EXISTING)
	if flags&os.O_RDWR != 0 {
		access |= windows.GENERIC_WRITE
	}
	switch flags & (os.O_CREATE | os.O_EXCL) {
	case os.O_CREATE:
		create = windows.OPEN_ALWAYS
	case os.O_CREATE | os.O_EXCL:
		create = windows.CREATE_NEW
	}
	h, err := windows.CreateFile(name, access, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE,
		nil, create, windows.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(h), path), nil
}

// try locks a byte far beyond the content, so that others can still read that.
func try(f *os.File, shared bool) (bool, error) {
	flags := uint32(windows.LOCKFILE_FAIL_IMMEDIATELY)
	if !shared {
		flags |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, &windows.Overlapped{Offset: 1 << 30})
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return false, nil
	}
	return err == nil, err
}

// remove renames the file before removing it: on Windows, a removed file may keep its name until all have closed it,
// and could then neither be opened nor created again.
func remove(path string) error {
	aside := filepath.Join(filepath.Dir(path), rand.Text()+filepath.Ext(path))
	if err := os.Rename(path, aside); err != nil {
		return err
	}
	return os.Remove(aside)
}
