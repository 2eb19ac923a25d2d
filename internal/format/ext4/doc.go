// Package ext4 writes read-only ext4 file systems: the content of layer.vhd.
//
// The image is written front to back in one pass, while the tar is read: super block and group
// descriptors (left out until the end), contents, directories, inode tables, bitmaps. The layout is
// that of Microsoft's tar2ext4: blocks of 4 KiB (which DAX needs), no journal, flex_bg so that
// metadata may lie anywhere, sparse_super2 without backups, marked read-only. Microsoft's Linux guest
// and any kernel since 3.18 mount it.
//
// tar2ext4 itself is not used, because of what it cannot do: an entry that comes twice is refused;
// holes are filled; POSIX ACLs are stored in a form the kernel cannot read; attributes in a block of
// their own are not always in the order the kernel searches them in; times before 1970 become
// garbage; files over 42 GiB get a wrong extent tree; directories hold at most 65,000 others; and a
// hard link must come after its target. Its package also brings in logging, cgroups and metrics.
//
// The same tar always gives the same bytes: the UUID is a digest of the metadata.
//
// What ext4 cannot hold is refused with an error that names the file: more than 65,000 names of one
// file, or attributes of one file that exceed about 4 KiB. The image has a directory /lost+found,
// because e2fsck wants it.
package ext4
