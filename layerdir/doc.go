// Package layerdir creates the files of layer folders.
//
// A layer is a folder with layer.vhd (ext4 with the footer of a fixed VHD), layer.erofs or layer.dir (a directory
// tree), and optionally layerchain.json with its parents. A scratch folder has sandbox.vhdx.
//
//   - [Convert] converts a layer tar stream to a layer folder.
//   - [CreateScratch] creates a scratch folder with an empty ext4 file system.
//   - [IndexDisk] and [PartitionDisk] combine several layers to one disk.
//   - [ReadChain], [WriteChain] and [CheckChain] read, write and verify layerchain.json.
//
// New folders have mode 0700 and files 0600, as layers contain set-user-ID programs, and both contain secrets. To
// share a layer, change its mode. Only layer.vhd and layer.erofs have mode 0644 if their folder is private: a virtual
// machine monitor that runs as another user reopens the descriptor that it is passed, which needs read permission on
// the file.
//
// # Trees
//
// A layer in [Tree] format is for overlays in a user namespace: whiteouts are character devices 0:0 and opaque
// directories have the attribute user.overlay.opaque, as overlayfs with the option userxattr expects. Its folder has
// mode 0700, as the tree contains set-user-ID programs. Limits of user namespaces:
//
//   - Owners: in a namespace with a single id, all files belong to it. Otherwise, an owner that is
//     not mapped in the namespace is an error.
//   - Device nodes become whiteouts: they are omitted, and what they replace stays hidden.
//   - Attributes trusted.* and security.* are omitted, except for file capabilities; so are ACLs in a
//     namespace with a single id.
//
// The id map of the namespace is recorded next to the tree: in a namespace with another map, the files would have
// other owners, see [CheckTree].
package layerdir
