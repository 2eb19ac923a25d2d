// Package mounts manages what a Linux guest mounts for its hosts: disks, persistent memory, shares, and the container
// roots that are combined of them.
//
// A [Table] serves the requests about mounts. It asks [Processes] which processes use a mount. In turn it implements
// what containers need for their roots: CheckPath, Hold and RemoveDir.
//
// Unmounting is never lazy and nothing is deleted recursively: a mount in use stays, with an error that names its
// users, and only empty directories are removed.
//
// Not done by libraries, and why:
//
//   - the list of mounts is read by package hostmount, which says why moby/sys/mountinfo does not fit;
//   - the device mapper is controlled by ioctls, some forty lines. The package dm of containerd/go-dmverity is young
//     (0.1.0), truncates names that are too long instead of refusing them, and would add nothing;
//   - paths are walked component by component without following links. openat2 (RESOLVE_NO_SYMLINKS) opens a path as
//     safely but does not create it, and a failed Add must know which components it created, to remove them.
//     filepath-securejoin follows links within a root, while here none may be followed.
package mounts
