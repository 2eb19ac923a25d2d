// Package ext4 writes read-only ext4 file systems: the content of layer.vhd.
//
// The image is written front to back in one pass, while the tar is read: super block and group
// descriptors (left out until the end), contents, directories, inode tables, bitmaps. The layout is
// that of Microsoft's tar2ext4: blocks of 4 KiB (which DAX needs), no journal, flex_bg so that
// metadata may lie anywhere, sparse_super2 without backups, marked read-only. Microsoft's Linux guest
// and any kernel since 3.18 mount it.
//
// tar2ext4 itself is not used, because of its limitations: duplicate entries are an error; holes are filled; POSIX ACLs
// are stored in a form that the kernel cannot read; attributes in a separate block are not always in the order that the
// kernel expects; times before 1970 are stored wrongly; files over 42 GiB get a wrong extent tree; a directory can have
// at most 65,000 subdirectories; and a hard link must follow its target. Its package also depends on logging, cgroups
// and metrics.
//
// The same tar always gives the same bytes: the UUID is a digest of the metadata.
//
// A file that exceeds a limit of ext4 is an error that names it: more than 65,000 hard links, or attributes of more
// than about 4 KiB. The image has a directory /lost+found, which e2fsck requires.
package ext4
