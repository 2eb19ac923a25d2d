package crun

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// seals are those by which crun and runc know that they run from a copy that nobody can write.
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// Seal has the program executed from a copy in memory that nobody can write, also not a process in a container that
// finds it there. The program then need not make such a copy of itself each time. The copy lives as long as r.
func (r *Runtime) Seal() error {
	to, err := r.copy()
	if err != nil {
		return fmt.Errorf("copy %s to memory: %w", r.Path, err)
	}
	r.sealed = to
	return nil
}

func (r *Runtime) copy() (*os.File, error) {
	from, err := os.Open(r.Path)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	fd, err := unix.MemfdCreate(r.name()+"_strata", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	to := os.NewFile(uintptr(fd), "copy of "+r.Path)
	if _, err = io.Copy(to, from); err == nil {
		_, err = unix.FcntlInt(to.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		to.Close()
		return nil, err
	}
	return to, nil
}
