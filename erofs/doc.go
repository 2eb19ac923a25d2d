// Package erofs writes and reads uncompressed EROFS file systems: the content of layer.erofs.
//
// [WriteLayer] writes an image front to back in one pass, while the tar is read: the contents of
// files, then directories, then all other metadata; the super block goes into block 0 at the end. The
// content of a file is a run of whole blocks of 4 KiB (with holes: chunks of such), never packed with
// others, so that another image can refer to it by block number. [Open] reads the metadata of an image
// back, and [Index] makes one image without contents, an index, over several that lie behind it on
// the same disk.
//
// Blocks are always 4 KiB, whatever the page size of this host, because guests refuse larger ones.
// Kernels since 5.16 mount the images.
//
// github.com/erofs/go-erofs is not used: its writer knows no hard links, spools all contents into a
// temporary file before it writes them again, and has no way to place contents at given blocks.
//
// The same tar always gives the same bytes: the UUID is a digest of the metadata.
package erofs
