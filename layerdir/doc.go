// Package layerdir makes the files of layer folders.
//
// A layer is a folder that holds layer.vhd (ext4 and the footer of a fixed VHD), layer.erofs or
// layer.dir (a directory tree), and perhaps layerchain.json, which names its parents. A scratch folder
// holds sandbox.vhdx.
//
//   - [Convert] turns a layer tar stream into a layer folder.
//   - [CreateScratch] makes a scratch folder with an empty ext4 file system in it.
//   - [IndexDisk] and [PartitionDisk] put many layers behind one device.
//   - [ReadChain], [WriteChain] and [CheckChain] keep layerchain.json.
//
// New folders have the mode 0700 and files 0600: layers hold set-user-ID programs, and both hold secrets. Whoever
// wants to share a layer changes that. Only layer.vhd and layer.erofs are 0644, and only in a folder that is closed to
// others: a virtual machine monitor that runs as another user opens its descriptor of them once more, which takes the
// right to read.
//
// # Trees
//
// A layer of the format [Tree] is for overlays in a user namespace: whiteouts are character devices 0:0,
// opaque directories have user.overlay.opaque, as the overlay option userxattr wants them. Its folder is
// made private (0700): the tree has set-user-ID programs. What a user namespace cannot have:
//
//   - Owners: in a namespace with one id all files belong to it. In one with more, an owner that it
//     does not have is an error.
//   - Device nodes become whiteouts: they are left out, and what they replace stays hidden.
//   - Attributes trusted.* and security.* are left out, but for the capabilities of files; so are ACLs
//     where there is but one id.
//
// The ids of the namespace are kept beside the tree: in another one its files would belong to others, see
// [CheckTree].
package layerdir
