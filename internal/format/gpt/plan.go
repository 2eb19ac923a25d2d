package gpt

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"unicode/utf16"
)

const (
	// SectorSize is the unit of the table in bytes.
	SectorSize = 512
	// Alignment is the alignment of partitions in bytes: file systems of layers have blocks of 4 KiB.
	Alignment = 4096
	// MaxPartitions is Linux's maximum number of partitions of a disk.
	MaxPartitions = 255

	signature   = "EFI PART"
	revision    = 0x00010000
	headerSize  = 92
	entrySize   = 128
	minEntries  = 128 // the minimum in the specification
	nameUnits   = 36
	maxDiskSize = 1 << 62
)

var le = binary.LittleEndian

// linuxData is the type "Linux filesystem data", 0FC63DAF-8483-4772-8E79-3D69D8477DE4.
var linuxData = [16]byte{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}

// Errors of this package.
var (
	ErrTooMany = errors.New("more partitions than Linux shows of one disk")
	ErrNoTable = errors.New("the disk has no GUID partition table")
	ErrCorrupt = errors.New("the GUID partition table is damaged")
)

// Partition is a run of bytes of a disk.
type Partition struct {
	Name   string // at most 36 UTF-16 units
	Offset int64
	Size   int64
}

// Layout is the layout of a disk: Head, then the partitions, each at its Offset and padded with zeroes up to the next,
// then Tail, which ends at Size.
type Layout struct {
	Head       []byte // of the disk from offset 0 on: protective MBR, header, entries
	Partitions []Partition
	Tail       []byte // of the disk up to its end: the copies of entries and header
	TailOffset int64
	Size       int64
}

// Plan lays out one partition for each of sizes, in order. Sizes are rounded up to a multiple of 4096; the caller must
// pad with zeroes. The result is deterministic.
func Plan(names []string, sizes []int64) (Layout, error) {
	if len(names) != len(sizes) || len(sizes) == 0 {
		return Layout{}, fmt.Errorf("gpt: %d names for %d partitions: one for each is needed", len(names), len(sizes))
	}
	if len(sizes) > MaxPartitions {
		return Layout{}, fmt.Errorf("gpt: %d partitions: %w (%d)", len(sizes), ErrTooMany, MaxPartitions)
	}
	count := max(len(sizes), minEntries)
	entries := make([]byte, align(int64(count)*entrySize, SectorSize))
	seed := sha256.New()
	var l Layout
	at := align(2*SectorSize+int64(len(entries)), Alignment)
	l.Head = make([]byte, at)
	for i, size := range sizes {
		if size <= 0 || size > maxDiskSize-at {
			return Layout{}, fmt.Errorf("gpt: partition %d, %q: a size of %d bytes is impossible", i+1, names[i], size)
		}
		fmt.Fprintf(seed, "%d %q\n", size, names[i])
		p := Partition{Name: names[i], Offset: at, Size: align(size, Alignment)}
		if err := putEntry(entries[i*entrySize:], p, i); err != nil {
			return Layout{}, err
		}
		l.Partitions = append(l.Partitions, p)
		at += p.Size
	}
	// The copy of the table ends the disk; the disk is a whole number of blocks.
	l.TailOffset = at
	l.Size = align(at+int64(len(entries))+SectorSize, Alignment)
	l.Tail = make([]byte, l.Size-at)
	h := header{disk: guid(seed.Sum(nil)), count: uint32(count), crc: crc32.ChecksumIEEE(entries[:count*entrySize]),
		firstUsable: uint64(len(l.Head) / SectorSize), lastUsable: uint64(at/SectorSize - 1)}
	last := uint64(l.Size/SectorSize - 1)
	putMBR(l.Head, last)
	h.self, h.other, h.entries = 1, last, 2
	copy(l.Head[SectorSize:], h.encode())
	copy(l.Head[2*SectorSize:], entries)
	h.self, h.other, h.entries = last, 1, last-uint64(len(entries)/SectorSize)
	copy(l.Tail[int64(len(l.Tail))-SectorSize-int64(len(entries)):], entries)
	copy(l.Tail[len(l.Tail)-SectorSize:], h.encode())
	return l, nil
}

func align(n, to int64) int64 { return (n + to - 1) / to * to }

// guid returns a custom GUID (version 8) from a digest, in EFI's mixed byte order.
func guid(digest []byte) (g [16]byte) {
	copy(g[:], digest)
	g[7] = g[7]&0x0f | 0x80
	g[8] = g[8]&0x3f | 0x80
	return g
}

func putEntry(b []byte, p Partition, i int) error {
	copy(b, linuxData[:])
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %d %q", i, p.Offset, p.Size, p.Name))
	id := guid(sum[:])
	copy(b[16:], id[:])
	le.PutUint64(b[32:], uint64(p.Offset/SectorSize))
	le.PutUint64(b[40:], uint64((p.Offset+p.Size)/SectorSize-1))
	units := utf16.Encode([]rune(p.Name))
	if len(units) > nameUnits {
		return fmt.Errorf("gpt: partition %d: the name %q has %d UTF-16 units; at most %d fit",
			i+1, p.Name, len(units), nameUnits)
	}
	for k, u := range units {
		le.PutUint16(b[56+2*k:], u)
	}
	return nil
}

// putMBR writes the protective MBR.
func putMBR(b []byte, last uint64) {
	p := b[446:]
	copy(p[1:], []byte{0x00, 0x02, 0x00}) // first sector, as cylinder, head and sector
	p[4] = 0xee
	copy(p[5:], []byte{0xff, 0xff, 0xff})
	le.PutUint32(p[8:], 1)
	le.PutUint32(p[12:], uint32(min(last, 0xffffffff)))
	b[510], b[511] = 0x55, 0xaa
}

// header is a header of the table.
type header struct {
	self, other             uint64 // sectors of this header and of its copy
	firstUsable, lastUsable uint64
	disk                    [16]byte
	entries                 uint64 // first sector of the entries
	count                   uint32
	crc                     uint32 // of the entries
}

func (h header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, signature)
	le.PutUint32(b[8:], revision)
	le.PutUint32(b[12:], headerSize)
	le.PutUint64(b[24:], h.self)
	le.PutUint64(b[32:], h.other)
	le.PutUint64(b[40:], h.firstUsable)
	le.PutUint64(b[48:], h.lastUsable)
	copy(b[56:], h.disk[:])
	le.PutUint64(b[72:], h.entries)
	le.PutUint32(b[80:], h.count)
	le.PutUint32(b[84:], entrySize)
	le.PutUint32(b[88:], h.crc)
	le.PutUint32(b[16:], crc32.ChecksumIEEE(b))
	return b
}
