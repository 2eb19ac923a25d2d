package vhd

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// FooterSize is the length in bytes of the footer that ends every VHD file.
const FooterSize = 512

const (
	cookie           = "conectix"
	featureReserved  = 2 // always set, by the specification
	formatVersion    = 0x00010000
	noDynamicHeader  = ^uint64(0) // "data offset" of a fixed disk
	creatorVersion   = 0x000a0000
	sectorSize       = 512
	checksumOffset   = 64
	diskTypeOffset   = 60
	currentSizeField = 48
)

// DiskType is the kind of a VHD.
type DiskType uint32

// The types in the specification.
const (
	Fixed        DiskType = 2
	Dynamic      DiskType = 3
	Differencing DiskType = 4
)

func (t DiskType) String() string {
	switch t {
	case Fixed:
		return "fixed"
	case Dynamic:
		return "dynamic"
	case Differencing:
		return "differencing"
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// Errors of this package. They are wrapped with what was found.
var (
	ErrNotVHD   = errors.New("not a VHD: no footer at the end of the file (is it truncated, or a raw image?)")
	ErrChecksum = errors.New("the VHD footer's checksum is wrong: the file is damaged")
	ErrNotFixed = errors.New("only fixed VHDs can be used as a layer (convert with: qemu-img convert -O vpc -o " +
		"subformat=fixed,force_size=on)")
	ErrWrongSize   = errors.New("the VHD's size does not match its file: it is truncated, or was appended to")
	ErrInvalidSize = errors.New("the size of a VHD must be a positive multiple of 512 bytes")
)

// Footer has the fields of a VHD's footer.
type Footer struct {
	Type     DiskType
	Size     int64 // of the disk in bytes, without the footer
	UniqueID [16]byte
}

// NewFooter creates the footer of a fixed disk of size bytes, with a random id.
func NewFooter(size int64) (Footer, error) {
	if size <= 0 || size%sectorSize != 0 {
		return Footer{}, fmt.Errorf("vhd: %d bytes: %w", size, ErrInvalidSize)
	}
	f := Footer{Type: Fixed, Size: size}
	// rand.Read never fails: it ends the program when there is no entropy.
	_, _ = rand.Read(f.UniqueID[:])
	return f, nil
}

// Marshal returns the 512 bytes of the footer. The time stamp is left zero, so that only the id differs
// between two footers of the same size.
func (f Footer) Marshal() []byte {
	b := make([]byte, FooterSize)
	be := binary.BigEndian
	copy(b, cookie)
	be.PutUint32(b[8:], featureReserved)
	be.PutUint32(b[12:], formatVersion)
	be.PutUint64(b[16:], noDynamicHeader)
	be.PutUint32(b[32:], creatorVersion)
	be.PutUint64(b[40:], uint64(f.Size))
	be.PutUint64(b[currentSizeField:], uint64(f.Size))
	be.PutUint32(b[56:], geometry(f.Size))
	be.PutUint32(b[diskTypeOffset:], uint32(f.Type))
	copy(b[68:], f.UniqueID[:])
	be.PutUint32(b[checksumOffset:], checksum(b))
	return b
}

// checksum is the one's complement of the sum of all bytes, the checksum field taken as zero.
func checksum(b []byte) uint32 {
	var sum uint32
	for i, c := range b {
		if i < checksumOffset || i >= checksumOffset+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// geometry returns the cylinder, head and sector triple for a size, by the appendix of the VHD specification. Only old
// readers use it instead of the size.
func geometry(size int64) uint32 {
	const maxSectors = 65535 * 16 * 255
	sectors := min(size/sectorSize, maxSectors)
	var heads, perTrack, cylHeads int64
	if sectors >= 65535*16*63 {
		perTrack, heads = 255, 16
		cylHeads = sectors / perTrack
	} else {
		perTrack = 17
		cylHeads = sectors / perTrack
		heads = max((cylHeads+1023)/1024, 4)
		if cylHeads >= heads*1024 || heads > 16 {
			perTrack, heads = 31, 16
			cylHeads = sectors / perTrack
		}
		if cylHeads >= heads*1024 {
			perTrack, heads = 63, 16
			cylHeads = sectors / perTrack
		}
	}
	return uint32(cylHeads/heads)<<16 | uint32(heads)<<8 | uint32(perTrack)
}

// ParseFooter reads a footer: its 512 bytes, at least. It accepts every kind of VHD; see [Validate]
// for what can be a layer.
func ParseFooter(b []byte) (Footer, error) {
	if len(b) < FooterSize || string(b[:len(cookie)]) != cookie {
		return Footer{}, fmt.Errorf("vhd: %w", ErrNotVHD)
	}
	b = b[:FooterSize]
	be := binary.BigEndian
	if got, want := be.Uint32(b[checksumOffset:]), checksum(b); got != want {
		return Footer{}, fmt.Errorf("vhd: checksum %#x, computed %#x: %w", got, want, ErrChecksum)
	}
	f := Footer{Type: DiskType(be.Uint32(b[diskTypeOffset:]))}
	size := be.Uint64(b[currentSizeField:])
	if size == 0 || size%sectorSize != 0 || size > 1<<62 {
		return Footer{}, fmt.Errorf("vhd: footer gives %d bytes: %w", size, ErrInvalidSize)
	}
	f.Size = int64(size)
	copy(f.UniqueID[:], b[68:])
	return f, nil
}

// WriteFooter appends the footer of a fixed disk of size bytes to w.
func WriteFooter(w io.Writer, size int64) error {
	f, err := NewFooter(size)
	if err != nil {
		return err
	}
	if _, err := w.Write(f.Marshal()); err != nil {
		return fmt.Errorf("vhd: write footer: %w", err)
	}
	return nil
}

// Validate reads the footer at the end of a file of fileSize bytes and checks that the file is a complete fixed VHD.
// For dynamic and differencing disks the error matches [ErrNotFixed], for a size that differs from the footer's
// [ErrWrongSize].
func Validate(r io.ReaderAt, fileSize int64) (Footer, error) {
	if fileSize < FooterSize {
		return Footer{}, fmt.Errorf("vhd: file of %d bytes: %w", fileSize, ErrNotVHD)
	}
	b := make([]byte, FooterSize)
	if _, err := r.ReadAt(b, fileSize-FooterSize); err != nil && !errors.Is(err, io.EOF) {
		return Footer{}, fmt.Errorf("vhd: read footer: %w", err)
	}
	f, err := ParseFooter(b)
	if err != nil {
		return Footer{}, err
	}
	if f.Type != Fixed {
		return f, fmt.Errorf("vhd: this disk is %s: %w", f.Type, ErrNotFixed)
	}
	if f.Size != fileSize-FooterSize {
		return f, fmt.Errorf("vhd: footer gives %d bytes, the file holds %d: %w", f.Size, fileSize-FooterSize, ErrWrongSize)
	}
	return f, nil
}
