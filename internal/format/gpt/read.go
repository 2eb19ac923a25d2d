package gpt

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"unicode/utf16"
)

const (
	maxEntries     = 1024
	maxHeaderSize  = SectorSize
	maxEntryLength = 4096
)

// Read returns the partitions of a disk of size bytes, in the order of the table, without unused entries. If the
// primary table is damaged it uses the backup. Partitions that overlap or are outside the disk are an error that
// matches ErrCorrupt.
func Read(r io.ReaderAt, size int64) ([]Partition, error) {
	if size < 6*SectorSize {
		return nil, fmt.Errorf("gpt: a disk of %d bytes: %w", size, ErrNoTable)
	}
	parts, err := readTable(r, size, 1)
	if err == nil {
		return parts, nil
	}
	backup, backupErr := readTable(r, size, uint64(size/SectorSize-1))
	if backupErr == nil {
		return backup, nil
	}
	if errors.Is(err, ErrNoTable) && !errors.Is(backupErr, ErrNoTable) {
		err = backupErr
	}
	return nil, fmt.Errorf("gpt: %w", err)
}

func readTable(r io.ReaderAt, size int64, sector uint64) ([]Partition, error) {
	b := make([]byte, SectorSize)
	if n, err := r.ReadAt(b, int64(sector)*SectorSize); n < len(b) {
		return nil, fmt.Errorf("read the header in sector %d: %w", sector, err)
	}
	if string(b[:8]) != signature {
		return nil, ErrNoTable
	}
	length := le.Uint32(b[12:])
	if length < headerSize || length > maxHeaderSize {
		return nil, fmt.Errorf("a header of %d bytes: %w", length, ErrCorrupt)
	}
	h := slices.Clone(b[:length])
	clear(h[16:20])
	if crc32.ChecksumIEEE(h) != le.Uint32(b[16:]) {
		return nil, fmt.Errorf("wrong checksum of the header in sector %d: %w", sector, ErrCorrupt)
	}
	first, count, each := le.Uint64(b[72:]), le.Uint32(b[80:]), le.Uint32(b[84:])
	if le.Uint64(b[24:]) != sector || count > maxEntries || each < entrySize || each > maxEntryLength || each%8 != 0 {
		return nil, fmt.Errorf("the header in sector %d names itself %d, with %d entries of %d bytes: %w",
			sector, le.Uint64(b[24:]), count, each, ErrCorrupt)
	}
	sectors := uint64(size / SectorSize)
	length64 := int64(count) * int64(each)
	if first < 2 || first >= sectors || int64(first)*SectorSize+length64 > size {
		return nil, fmt.Errorf("the entries begin in sector %d of %d: %w", first, sectors, ErrCorrupt)
	}
	entries := make([]byte, length64)
	if n, err := r.ReadAt(entries, int64(first)*SectorSize); n < len(entries) {
		return nil, fmt.Errorf("read the entries: %w", err)
	}
	if crc32.ChecksumIEEE(entries) != le.Uint32(b[88:]) {
		return nil, fmt.Errorf("wrong checksum of the entries: %w", ErrCorrupt)
	}
	var parts []Partition
	for ; len(entries) > 0; entries = entries[each:] {
		e := entries[:entrySize]
		if [16]byte(e) == [16]byte{} {
			continue
		}
		from, to := le.Uint64(e[32:]), le.Uint64(e[40:])
		if from > to || to >= sectors || from < 1 {
			return nil, fmt.Errorf("a partition from sector %d to %d on a disk of %d: %w", from, to, sectors, ErrCorrupt)
		}
		parts = append(parts, Partition{Name: entryName(e),
			Offset: int64(from) * SectorSize, Size: int64(to-from+1) * SectorSize})
	}
	sorted := slices.SortedFunc(slices.Values(parts), func(a, b Partition) int { return cmp.Compare(a.Offset, b.Offset) })
	for i := 1; i < len(sorted); i++ {
		if sorted[i-1].Offset+sorted[i-1].Size > sorted[i].Offset {
			return nil, fmt.Errorf("the partitions at %d and %d overlap: %w", sorted[i-1].Offset, sorted[i].Offset, ErrCorrupt)
		}
	}
	return parts, nil
}

func entryName(e []byte) string {
	units := make([]uint16, 0, nameUnits)
	for i := range nameUnits {
		u := le.Uint16(e[56+2*i:])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return strings.ToValidUTF8(string(utf16.Decode(units)), "?")
}
