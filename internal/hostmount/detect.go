package hostmount

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Detect tells the file system at an offset of r: "erofs" or "ext4". What else it finds is named in
// the error, which matches ErrNoFilesystem.
func Detect(r io.ReaderAt, offset int64) (string, error) {
	b := make([]byte, 2048)
	n, err := r.ReadAt(b, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	b = b[:n]
	le := binary.LittleEndian
	switch {
	case len(b) >= 1028 && le.Uint32(b[1024:]) == 0xe0f5e1e2:
		return "erofs", nil
	case len(b) >= 1082 && le.Uint16(b[1080:]) == 0xef53:
		return "ext4", nil
	}
	for _, f := range [...]struct{ magic, name string }{
		{"vhdxfile", "a VHDX disk, which the kernel cannot open: use a folder or a raw file as scratch, or a virtual machine"},
		{"conectix", "a dynamic VHD"}, {"QFI\xfb", "a qcow2 disk"}, {"hsqs", "squashfs"}, {"XFSB", "XFS"},
	} {
		if len(b) >= len(f.magic) && string(b[:len(f.magic)]) == f.magic {
			return "", fmt.Errorf("%w: it is %s", ErrNoFilesystem, f.name)
		}
	}
	if n == 0 {
		return "", fmt.Errorf("%w: it is empty", ErrNoFilesystem)
	}
	return "", ErrNoFilesystem
}
