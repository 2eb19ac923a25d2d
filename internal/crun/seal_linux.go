package crun

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// seals are the memfd seals by which crun and runc recognise that they run from an immutable copy.
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// Seal makes r execute the program from a sealed memfd, which nothing can modify, not even a container that reaches it
// through /proc. It spares the program from making such a copy at each call. The copy lives as long as r.
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
