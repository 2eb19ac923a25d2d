package vhd

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"
)

var (
	batRegion          = guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
	diskIDItem         = guid("beca12ab-b2e6-4523-93ef-c309e000c746")
	physicalSectorItem = guid("cda348c7-445d-4471-9cc9-e9885251c556")
)

// Parameters and file layout of WriteVHDX.
const (
	newBlockSize  = minBlockSize
	newSectorSize = 512
	logAt         = 1 << 20
	logSize       = 1 << 20
	metadataAt    = 2 << 20
	metadataSize  = 1 << 20
	batAt         = 3 << 20
	// chunkRatio is the number of payload blocks per sector bitmap block.
	chunkRatio = (1 << 23) * newSectorSize / newBlockSize
)

// Flags of an item of metadata.
const (
	ofDisk   = 2 // IsVirtualDisk: it describes the disk rather than the file
	required = 4
)

// WriteVHDX writes an empty dynamic VHDX with a disk of size bytes, a multiple of 1 MiB, with blocks of 1 MiB and
// sectors of 512 bytes. w must read as zero where nothing is written, and the caller must extend the file to length
// bytes.
func WriteVHDX(w io.WriterAt, size int64) (length int64, err error) {
	if size <= 0 || size > maxVirtualSize || size%newBlockSize != 0 {
		return 0, fmt.Errorf("vhdx: a size of %d bytes: choose a multiple of 1 MiB up to 64 TiB", size)
	}
	blocks := size / newBlockSize
	batSize := roundUp(8*(blocks+(blocks-1)/chunkRatio), regionAlign)
	regions := newRegions(batSize)
	for _, p := range []struct {
		at   int64
		data []byte
	}{
		{0, append([]byte(vhdxSignature), utf16le("strata")...)},
		{firstHeader, newHeader(0)}, {secondHeader, newHeader(1)},
		{firstRegion, regions}, {secondRegion, regions},
		{metadataAt, newMetadata(size)},
		// The block allocation table is zero: no block is present.
	} {
		if _, err := w.WriteAt(p.data, p.at); err != nil {
			return 0, fmt.Errorf("vhdx: %w", err)
		}
	}
	return batAt + batSize, nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

func utf16le(s string) (b []byte) {
	for _, c := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}

func randomID() (id [16]byte) {
	rand.Read(id[:])
	id[7], id[8] = id[7]&0x0F|0x40, id[8]&0x3F|0x80 // a random UUID, version 4
	return id
}

// seal sets the checksum of a structure.
func seal(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// newHeader has an empty log.
func newHeader(sequence uint64) []byte {
	b := make([]byte, headerSize)
	copy(b, headerSig)
	binary.LittleEndian.PutUint64(b[8:], sequence)
	file, data := randomID(), randomID()
	copy(b[16:], file[:])
	copy(b[32:], data[:])
	binary.LittleEndian.PutUint16(b[66:], 1) // version of the format
	binary.LittleEndian.PutUint32(b[68:], logSize)
	binary.LittleEndian.PutUint64(b[72:], logAt)
	return seal(b)
}

func newRegions(batSize int64) []byte {
	b := make([]byte, regionSize)
	copy(b, regionSig)
	binary.LittleEndian.PutUint32(b[8:], 2)
	for i, r := range []struct {
		id       [16]byte
		at, size int64
	}{{batRegion, batAt, batSize}, {metadataRegion, metadataAt, metadataSize}} {
		e := b[16+32*i:]
		copy(e, r.id[:])
		binary.LittleEndian.PutUint64(e[16:], uint64(r.at))
		binary.LittleEndian.PutUint32(e[24:], uint32(r.size))
		binary.LittleEndian.PutUint32(e[28:], 1) // it must be understood
	}
	return seal(b)
}

func newMetadata(size int64) []byte {
	id := randomID()
	items := []struct {
		id    [16]byte
		flags uint32
		value []byte
	}{
		{fileParameters, required, binary.LittleEndian.AppendUint64(nil, newBlockSize)}, // the upper half has flags
		{virtualSize, required | ofDisk, binary.LittleEndian.AppendUint64(nil, uint64(size))},
		{diskIDItem, required | ofDisk, id[:]},
		{sectorSizeItem, required | ofDisk, binary.LittleEndian.AppendUint32(nil, newSectorSize)},
		{physicalSectorItem, required | ofDisk, binary.LittleEndian.AppendUint32(nil, newSectorSize)},
	}
	b := make([]byte, metadataTable)
	copy(b, metadataSig)
	binary.LittleEndian.PutUint16(b[10:], uint16(len(items)))
	for i, item := range items {
		e := b[32+32*i:]
		copy(e, item.id[:])
		binary.LittleEndian.PutUint32(e[16:], uint32(len(b)))
		binary.LittleEndian.PutUint32(e[20:], uint32(len(item.value)))
		binary.LittleEndian.PutUint32(e[24:], item.flags)
		b = append(b, item.value...)
	}
	return b
}
