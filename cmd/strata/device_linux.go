package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata"
)

// statDevice fills in what kind of device a file is.
func statDevice(path string, d *strata.SpecDevice) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return fmt.Errorf("%s is no device", path)
	}
	d.Major, d.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	mode := os.FileMode(st.Mode & 0o777)
	d.FileMode, d.UID, d.GID = &mode, &st.Uid, &st.Gid
	return nil
}
