package hostmount

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Probe returns the type of the file system at an offset of r: "erofs", "ext4", "xfs", "squashfs", or "" for any other.
func Probe(r io.ReaderAt, offset int64) (string, error) {
	b, err := head(r, offset)
	return probe(b), err
}

// head reads the bytes that are examined, or fewer at the end of r.
func head(r io.ReaderAt, offset int64) ([]byte, error) {
	b := make([]byte, 2048)
	n, err := r.ReadAt(b, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:n], nil
}

func probe(head []byte) string {
	le := binary.LittleEndian
	switch {
	case len(head) >= 1028 && le.Uint32(head[1024:]) == 0xe0f5e1e2:
		return "erofs"
	case len(head) >= 1082 && le.Uint16(head[1080:]) == 0xef53:
		return "ext4"
	case bytes.HasPrefix(head, []byte("XFSB")):
		return "xfs"
	case bytes.HasPrefix(head, []byte("hsqs")):
		return "squashfs"
	}
	return ""
}

// Detect returns the type of the file system at an offset of r, "erofs" or "ext4". Anything else is an error that
// matches ErrNoFilesystem and names the type.
func Detect(r io.ReaderAt, offset int64) (string, error) {
	b, err := head(r, offset)
	if err != nil {
		return "", err
	}
	switch fstype := probe(b); fstype {
	case "erofs", "ext4":
		return fstype, nil
	case "xfs":
		return "", fmt.Errorf("%w: it is XFS", ErrNoFilesystem)
	case "squashfs":
		return "", fmt.Errorf("%w: it is squashfs", ErrNoFilesystem)
	}
	for _, f := range [...]struct{ magic, name string }{
		{"vhdxfile", "a VHDX disk, which the kernel cannot open: use a folder or a raw file as scratch, " +
			"or a virtual machine"},
		{"conectix", "a dynamic VHD"}, {"QFI\xfb", "a qcow2 disk"},
	} {
		if bytes.HasPrefix(b, []byte(f.magic)) {
			return "", fmt.Errorf("%w: it is %s", ErrNoFilesystem, f.name)
		}
	}
	if len(b) == 0 {
		return "", fmt.Errorf("%w: it is empty", ErrNoFilesystem)
	}
	return "", ErrNoFilesystem
}
