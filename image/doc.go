// Package image reads container images and gives their layers as verified streams.
//
// An image comes from an OCI layout (a directory or a tar), from a docker archive ("docker save"), from
// a registry, or is a bare root file system tar. [ParseSource] reads what a user types, [Open] finds the
// one image for a platform, and every [Layer] opens as an uncompressed tar.
//
// Nothing is taken on trust. A stream ends with io.EOF only after the digest and the size of the blob
// and the digest of the tar inside (the diffID) have been compared with what the image says; a reader
// that stores what it reads must therefore do so only after io.EOF. Sizes, depths, counts and the
// unpacked size of layers are bounded, and so is the memory that reading takes, whatever the image says.
//
// The package is large because its sources are one thing seen from outside: layouts, archives and registries differ
// in how bytes are found, and share the bounds, the checks and the errors, which nobody else has a use for.
//
// Images of Windows are recognised and described, but their layers are no Linux root: see
// [Image.CheckLinux].
//
// Of google/go-containerregistry this package takes the names (pkg/name) and the documents (pkg/v1). It does not
// take pkg/v1/remote, which cannot resume a transfer, takes the first way to log in that a registry offers for the
// only one, and does not log in where the first request needed no login; nor pkg/authn, which knows no logins for
// a namespace and brings docker's command line with it; nor pkg/v1/layout and pkg/v1/tarball, which read whole
// documents without a bound, follow links out of the layout, and read an archive again from its beginning for
// each layer.
package image
