// Package layerdir makes the files of layer folders.
//
// A layer is a folder that holds layer.vhd (ext4 and the footer of a fixed VHD) or layer.erofs, and
// perhaps layerchain.json, which names its parents. A scratch folder holds sandbox.vhdx.
//
//   - [Convert] turns a layer tar stream into a layer folder.
//   - [CreateScratch] makes a scratch folder with an empty ext4 file system in it.
//   - [IndexDisk] and [PartitionDisk] put many layers behind one device.
//   - [ReadChain], [WriteChain] and [CheckChain] keep layerchain.json.
package layerdir
