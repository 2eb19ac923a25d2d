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
// # One device for many layers
//
// There are two ways to put all layers of an image behind one device: partitions (package gpt), each
// mounted by itself and stacked by overlayfs, or an index, mounted once. The index is the better one
// wherever all layers are EROFS, because its cost is paid once and not at every lookup: walking and
// reading 10,000 files takes as long in 100 layers as in 1, while below an overlay of 100 it takes 6
// times as long. With 10,000 files in 1, 10, 30 and 100 layers, on 2 cores (BenchmarkMount and
// BenchmarkRead in package hostmount; the partitions stand on loop devices there):
//
//	                 mount, ms                  walk and read all, ms
//	one per layer    0.3    2.9    8.0   24      169   315   390  1044
//	partitions       4.6    8.4   20     56      755   775   891  2325
//	index           18     25     29     58      175   143   138   228
//
// The time of the index is that of making it, on the host: the guest makes one mount, whereas it makes
// one for each layer otherwise. Partitions remain for ext4 layers, for images of others that are
// compressed, and where layers are to be shared one by one with containers of another image.
//
// An index differs from an overlay of its layers in one respect: a directory without an entry of its own in an upper
// layer, but with entries in it, keeps the attributes of the lower layer, as when layers are unpacked over one another.
// Overlayfs uses those of the upper layer, which are defaults. If a lower layer has a symbolic link in its place, its
// entries are moved to the link's target ([layertree.Tree.Follow]). WriteLayer marks such directories with an attribute
// that overlayfs hides, for Index.
//
// The same tar always gives the same bytes: the UUID is a digest of the metadata.
package erofs
