// Package gpt arranges layers as the partitions of one disk, and reads GUID partition tables.
//
// [Plan] returns the bytes before and after the partitions, and where each of these lies; the caller
// makes a disk of them and of the layer files themselves, without copying a layer. [Read] finds the
// partitions of a disk, such as an lcow-partitioned-layer. The format is that of the UEFI
// specification, chapter 5.
//
// github.com/diskfs/go-diskfs is not used: it needs the disk as one file, which never exists here.
package gpt
