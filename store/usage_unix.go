//go:build unix

package store

import (
	"io/fs"
	"syscall"
)

// allocated returns the disk space of a file in bytes, divided by its number of hard links.
func allocated(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return int64(st.Blocks) * 512 / max(int64(st.Nlink), 1)
	}
	return fi.Size()
}
