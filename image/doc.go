// Package image reads container images and provides their layers as verified streams.
//
// An image comes from an OCI layout (a directory or a tar), a docker archive ("docker save"), a registry, or is a bare
// root file system tar. [ParseSource] parses the user's input, [Open] finds the image for a platform, and every
// [Layer] opens as an uncompressed tar.
//
// All input is untrusted. A stream returns io.EOF only after digest and size of the blob, and the digest of the tar
// inside (the diffID), have been verified; a reader that stores the data must therefore commit it only after io.EOF.
// Sizes, depths, counts and the unpacked size of layers are bounded, and so is the memory needed.
//
// All sources are in one package: layouts, archives and registries differ only in how they find bytes, and share
// limits, verification and errors.
//
// Windows images are recognised and described, but their layers cannot be used for Linux: see [Image.CheckLinux].
//
// This package uses the names (pkg/name) and documents (pkg/v1) of google/go-containerregistry, but not pkg/v1/remote,
// which cannot resume a transfer, uses only the first challenge of a registry, and does not authenticate if the first
// request did not require it; nor pkg/authn, which does not support credentials per namespace and depends on docker's
// command line; nor pkg/v1/layout and pkg/v1/tarball, which read documents without a size limit, follow links out of
// the layout, and read an archive from its start for each layer.
package image
