package store

import (
	"errors"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// nextData returns the first offset from off on that is not in a hole.
func nextData(f *os.File, off int64) int64 {
	n, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return math.MaxInt64 // only a hole is left
	}
	if err != nil {
		return off
	}
	return n
}
