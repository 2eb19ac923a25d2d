// Package mounts is what a Linux guest mounts for its hosts: disks, persistent memory, shares, and the roots that
// are combined of them.
//
// A [Table] answers the requests about mounts. What it has to know of the processes that use a mount it asks
// through [Processes]; the table itself is what containers need of their roots: CheckPath, Hold and RemoveDir.
//
// Unmounting is never lazy and nothing is deleted recursively: what is in use stays and is reported with its
// holder, and only empty directories are removed.
//
// What there are libraries for and is done here all the same:
//
//   - the list of mounts is read by package hostmount, which says why moby/sys/mountinfo does not fit;
//   - the device mapper is told by ioctls of its own, some forty lines. The package dm of containerd/go-dmverity
//     is young (0.1.0), cuts names that are too long instead of refusing them, and would add nothing;
//   - paths are walked part by part without following links. openat2 (RESOLVE_NO_SYMLINKS) opens a path as safely
//     but does not make one, and what an Add has made must be known part by part to be removed when it fails.
//     filepath-securejoin follows links within a root, while here none is to be followed.
package mounts
