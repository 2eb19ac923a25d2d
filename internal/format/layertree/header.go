package layertree

import (
	"archive/tar"
	"fmt"
	"math"
	"strings"
	"time"
)

var nodeTypes = map[byte]uint32{
	tar.TypeReg: TypeRegular, 0: TypeRegular, tar.TypeCont: TypeRegular, tar.TypeGNUSparse: TypeRegular,
	tar.TypeSymlink: TypeSymlink, tar.TypeDir: TypeDir, tar.TypeChar: TypeChar, tar.TypeBlock: TypeBlock,
	tar.TypeFifo: TypeFifo, gnuDumpDir: TypeDir,
}

// Types of entries that GNU tar writes in addition. The body of either says nothing of the layer.
const (
	gnuDumpDir     = 'D' // a directory, with a list of what was in it (--incremental)
	gnuVolumeLabel = 'V' // the name of the archive (--label)
)

// node creates the node of an entry, without its content.
func (rd *reader) node(h *tar.Header) (*Node, error) {
	typ, ok := nodeTypes[h.Typeflag]
	if !ok {
		return nil, fmt.Errorf("entries of type %q are unknown: %w", h.Typeflag, ErrInvalid)
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > maxID || int64(h.Gid) > maxID {
		return nil, fmt.Errorf("owner %d:%d is no valid id: %w", h.Uid, h.Gid, ErrInvalid)
	}
	n := &Node{Mode: typ | uint32(h.Mode&PermMask), UID: uint32(h.Uid), GID: uint32(h.Gid)}
	n.Sec, n.Nsec = seconds(h.ModTime)
	switch typ {
	case TypeDir:
		n.Nlink = 2
	case TypeSymlink:
		n.Mode |= 0o777 // permissions of a symbolic link have no meaning, and this is what Linux shows
		n.Target = h.Linkname
		if n.Target == "" || len(n.Target) > maxTarget || strings.ContainsRune(n.Target, 0) {
			return nil, fmt.Errorf("a symbolic link with a target of %d bytes; 1 to %d are possible, without NUL: %w",
				len(n.Target), maxTarget, ErrInvalid)
		}
	case TypeChar, TypeBlock:
		if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
			return nil, fmt.Errorf("device %d:%d is no valid number: %w", h.Devmajor, h.Devminor, ErrInvalid)
		}
		n.Major, n.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	return n, rd.xattrs(n, h.PAXRecords)
}

// seconds splits a time. Times that int64 nanoseconds cannot hold are fine here.
func seconds(t time.Time) (int64, uint32) {
	if t.IsZero() {
		return 0, 0
	}
	return t.Unix(), uint32(t.Nanosecond())
}

// Seconds that ext4 inodes can hold; other file systems hold more.
const (
	MinSec = math.MinInt32
	MaxSec = 0x37fffffff
)
