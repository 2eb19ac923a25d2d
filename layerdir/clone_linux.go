package layerdir

import (
	"errors"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

func reflink(dst, src *os.File) error {
	return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
}

// nextData returns the first offset at or after off that is not in a hole.
func nextData(f *os.File, off int64) int64 {
	n, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return math.MaxInt64 // nothing but a hole is left
	}
	if err != nil {
		return off
	}
	return n
}
