// Package store stores converted layers on disk, content-addressed. Any number of images, goroutines and processes may
// use it concurrently.
//
//	lock                              held shared to add a reference, exclusively to collect garbage
//	layers/sha256/<diffID>/<format>/  layer.erofs, layer.vhd or layer.dir, record.json, outline
//	layers/sha256/<chainID>/<format>/ the same, for a layer that depends on the layers below it
//	chains/sha256/<chainID>/<format>/ links to the layer's files, layerchain.json with the parents
//	images/<hash of the name>.json    name, source, configuration, layers
//	leases/<id>.json                  objects in use
//	locks/<diffID>-<format>           held while a layer is converted
//	templates/                        scratch disks to clone
//	tmp/<id>/, tmp/<id>.lock          objects being created or deleted
//
// A layer is converted once, even if requested concurrently, and all images share the file: a virtual machine that has
// it attached does not get it again. layerchain.json, which depends on the layers below, is stored separately, in a
// folder for each chain; package layers mounts these folders.
//
// Some layers depend on those below: an entry lib/x without an entry lib/, where lib is a symbolic link in a lower
// layer, belongs to the link's target, and a hard link may refer to a file of a lower layer. Such a layer is first
// converted on its own; the outlines (trees without contents) then show that it depends on the lower layers, and it is
// converted again for its chain. So images share a layer only if it is the same for them.
//
// Folders are created below tmp, synced, and renamed to their final place, so that a crash leaves either a complete
// object or none. The owner of a folder below tmp holds a lock on it; the next Open removes folders without owner.
// Leases are references: Import takes one before it looks up existing layers, so that GC cannot remove what it is
// about to use.
package store
