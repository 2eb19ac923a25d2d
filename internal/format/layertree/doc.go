// Package layertree holds a layer in memory: names, attributes, and where on the image the content of
// each file lies. [FromTar] makes a [Tree] of a layer tar in one pass and writes the contents, block
// by block, while it reads; the packages ext4 and erofs write a Tree as a file system around them.
//
// The tree is what a layer means, not what the tar says:
//
//   - OCI whiteouts become what overlayfs understands: ".wh.name" a character device 0:0, and
//     ".wh..wh..opq" the attribute trusted.overlay.opaque=y. A whiteout beside an entry of the same
//     name in the same layer hides only what is below: a directory then becomes opaque. One that is there
//     only because of whiteouts in it hides nothing that its own whiteout does not, and is left out.
//   - The last entry of a name wins, as with tar; a directory that comes again keeps its children.
//   - Hard links may name any file of the layer, also one that comes later.
//   - Parents that have no entry are made, 0755 root, with the time of their first child, and marked
//     [Node.Implied]: over a layer that has the directory, they say nothing of its attributes.
//   - A path through a symbolic link of the layer follows it, never out of the root.
//   - So does one through a symbolic link of the layers below, where these are known ([Options.Below]): an entry
//     lib/x without an entry lib/, over a link lib, goes where the link leads to, as when layers are unpacked over
//     one another (umoci, tar). Docker and containerd hide the link. With an entry lib/ the directory replaces it.
//   - A hard link to a file of a layer below takes a copy of that file into the layer, under both names, as
//     overlayfs does. Without the layers below it is an error, ErrLink.
//   - trusted.overlay.* and user.overlay.* other than opaque=y are dropped: they are instructions to
//     overlayfs that no layer has to give. So are attributes that Linux does not let a file of the type have, as
//     user.* on links and devices, and those of a name space that it does not know. A malformed ACL or file
//     capability is an error.
//   - A name x/../y is y; one that leads out of the root is an error.
//
// Tar has no entry for a socket; a Tree can hold one.
//
// Memory is bounded: it grows with the number of entries and the length of their names and attributes,
// which have limits, and never with the size of files.
package layertree
