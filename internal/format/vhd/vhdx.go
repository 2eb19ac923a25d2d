package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Offsets and sizes in a VHDX, by MS-VHDX.
const (
	vhdxSignature  = "vhdxfile"
	headerSig      = "head"
	regionSig      = "regi"
	metadataSig    = "metadata"
	headerSize     = 4 << 10
	regionSize     = 64 << 10
	firstHeader    = 64 << 10
	secondHeader   = 128 << 10
	firstRegion    = 192 << 10
	secondRegion   = 256 << 10
	maxRegions     = 2047
	maxMetadata    = 2047
	metadataTable  = 64 << 10
	regionAlign    = 1 << 20
	maxVirtualSize = 64 << 40
	minBlockSize   = 1 << 20
	maxBlockSize   = 256 << 20
)

var (
	metadataRegion = guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")
	fileParameters = guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
	virtualSize    = guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
	sectorSizeItem = guid("8141bf1d-a96f-4709-ba47-f233a8faab5f")
)

// Errors of ProbeVHDX.
var (
	ErrNotVHDX     = errors.New("not a VHDX disk")
	ErrVHDXDamaged = errors.New("the VHDX disk is damaged")
)

// VHDX has the parameters of a VHDX disk.
type VHDX struct {
	Size         int64 // of the disk in bytes
	BlockSize    int64 // allocation unit of the file, in bytes
	SectorSize   int   // logical, in bytes
	Differencing bool  // it needs a parent
	// LogDirty: the disk was not closed cleanly. Its log is replayed when it is opened for writing.
	LogDirty bool
}

// ProbeVHDX reads the headers and the metadata of the VHDX in r, whose file has fileSize bytes. It reads at most about
// 1 MiB, even of a hostile file. The error matches ErrNotVHDX for another kind of file, and ErrVHDXDamaged for an
// inconsistent or truncated one.
func ProbeVHDX(r io.ReaderAt, fileSize int64) (VHDX, error) {
	p := probe{r: r, size: fileSize}
	v, err := p.run()
	if err != nil {
		return VHDX{}, fmt.Errorf("vhdx: %w", err)
	}
	return v, nil
}

type probe struct {
	r    io.ReaderAt
	size int64
}

func (p probe) read(at, n int64) ([]byte, error) {
	if at < 0 || n < 0 || at > p.size-n {
		return nil, fmt.Errorf("%w: it needs %d bytes at %d, the file has %d (truncated?)", ErrVHDXDamaged, n, at, p.size)
	}
	b := make([]byte, n)
	if got, err := p.r.ReadAt(b, at); got < len(b) {
		return nil, err
	}
	return b, nil
}

func (p probe) run() (VHDX, error) {
	if b, err := p.read(0, 8); err != nil || string(b) != vhdxSignature {
		return VHDX{}, ErrNotVHDX
	}
	dirty, err := p.header()
	if err != nil {
		return VHDX{}, err
	}
	at, err := p.metadataRegion()
	if err != nil {
		return VHDX{}, err
	}
	v, err := p.metadata(at)
	v.LogDirty = dirty
	return v, err
}

// sealed reads a structure that begins with a signature and a CRC-32C of all of it.
func (p probe) sealed(at, n int64, signature string) ([]byte, error) {
	b, err := p.read(at, n)
	if err != nil {
		return nil, err
	}
	if string(b[:4]) != signature {
		return nil, fmt.Errorf("%w: no %q at %d", ErrVHDXDamaged, signature, at)
	}
	want := binary.LittleEndian.Uint32(b[4:])
	clear(b[4:8])
	if crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) != want {
		return nil, fmt.Errorf("%w: wrong checksum of %q at %d", ErrVHDXDamaged, signature, at)
	}
	return b, nil
}

// header finds the current one of the two headers and reports whether the log has entries.
func (p probe) header() (dirty bool, err error) {
	var current []byte
	var errs []error
	for _, at := range []int64{firstHeader, secondHeader} {
		b, err := p.sealed(at, headerSize, headerSig)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if current == nil || binary.LittleEndian.Uint64(b[8:]) > binary.LittleEndian.Uint64(current[8:]) {
			current = b
		}
	}
	if current == nil {
		return false, errors.Join(errs...)
	}
	if version := binary.LittleEndian.Uint16(current[66:]); version != 1 {
		return false, fmt.Errorf("%w: version %d of the format is unknown", ErrVHDXDamaged, version)
	}
	return [16]byte(current[48:64]) != [16]byte{}, nil
}

// metadataRegion returns the offset of the metadata.
func (p probe) metadataRegion() (int64, error) {
	b, err := p.sealed(firstRegion, regionSize, regionSig)
	if err != nil {
		var second error
		if b, second = p.sealed(secondRegion, regionSize, regionSig); second != nil {
			return 0, errors.Join(err, second)
		}
	}
	count := binary.LittleEndian.Uint32(b[8:])
	if count > maxRegions {
		return 0, fmt.Errorf("%w: %d regions", ErrVHDXDamaged, count)
	}
	for e := b[16:][:32*count]; len(e) > 0; e = e[32:] {
		if [16]byte(e) != metadataRegion {
			continue
		}
		at, length := binary.LittleEndian.Uint64(e[16:]), binary.LittleEndian.Uint32(e[24:])
		if at%regionAlign != 0 || at < regionAlign || at > uint64(p.size) || length < metadataTable {
			return 0, fmt.Errorf("%w: metadata of %d bytes at %d", ErrVHDXDamaged, length, at)
		}
		return int64(at), nil
	}
	return 0, fmt.Errorf("%w: it has no metadata", ErrVHDXDamaged)
}

func (p probe) metadata(region int64) (VHDX, error) {
	b, err := p.read(region, metadataTable)
	if err != nil {
		return VHDX{}, err
	}
	count := int(binary.LittleEndian.Uint16(b[10:]))
	if string(b[:8]) != metadataSig || count > maxMetadata {
		return VHDX{}, fmt.Errorf("%w: no table of metadata at %d", ErrVHDXDamaged, region)
	}
	var v VHDX
	for e := b[32:][:32*count]; len(e) > 0; e = e[32:] {
		at, length := int64(binary.LittleEndian.Uint32(e[16:])), binary.LittleEndian.Uint32(e[20:])
		var want uint32
		switch [16]byte(e) {
		case fileParameters, virtualSize:
			want = 8
		case sectorSizeItem:
			want = 4
		default:
			continue
		}
		if length != want || at < metadataTable {
			return VHDX{}, fmt.Errorf("%w: an item of %d bytes at %d of the metadata", ErrVHDXDamaged, length, at)
		}
		item, err := p.read(region+at, int64(want))
		if err != nil {
			return VHDX{}, err
		}
		switch [16]byte(e) {
		case fileParameters:
			v.BlockSize = int64(binary.LittleEndian.Uint32(item))
			v.Differencing = binary.LittleEndian.Uint32(item[4:])&2 != 0
		case virtualSize:
			v.Size = int64(min(binary.LittleEndian.Uint64(item), maxVirtualSize+1))
		case sectorSizeItem:
			v.SectorSize = int(binary.LittleEndian.Uint32(item))
		}
	}
	switch {
	case v.SectorSize != 512 && v.SectorSize != 4096:
		return VHDX{}, fmt.Errorf("%w: sectors of %d bytes", ErrVHDXDamaged, v.SectorSize)
	case v.Size <= 0 || v.Size > maxVirtualSize || v.Size%int64(v.SectorSize) != 0:
		return VHDX{}, fmt.Errorf("%w: a size of %d bytes", ErrVHDXDamaged, v.Size)
	case v.BlockSize < minBlockSize || v.BlockSize > maxBlockSize || v.BlockSize&(v.BlockSize-1) != 0:
		return VHDX{}, fmt.Errorf("%w: blocks of %d bytes", ErrVHDXDamaged, v.BlockSize)
	}
	return v, nil
}

// guid converts the text form of a GUID to the byte order of files.
func guid(text string) (g [16]byte) {
	nibble := func(c byte) byte {
		if c >= 'a' {
			return c - 'a' + 10
		}
		return c - '0'
	}
	order := [16]int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15}
	i := 0
	for at := 0; at+1 < len(text); {
		if text[at] == '-' {
			at++
			continue
		}
		g[order[i]] = nibble(text[at])<<4 | nibble(text[at+1])
		i++
		at += 2
	}
	return g
}
