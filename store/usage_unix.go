//go:build unix

package store

import (
	"io/fs"
	"syscall"
)

// allocated is what a file takes on the disk, or of one with several names the share of each.
func allocated(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return int64(st.Blocks) * 512 / max(int64(st.Nlink), 1)
	}
	return fi.Size()
}
