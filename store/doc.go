// Package store keeps converted layers on disk, by content, for any number of images, goroutines and
// processes at once.
//
//	lock                              held shared to take a reference, exclusively to collect garbage
//	layers/sha256/<diffID>/<format>/  layer.erofs, layer.vhd or layer.dir, record.json, outline
//	layers/sha256/<chainID>/<format>/ the same of a layer that is another one over other layers, or over none
//	chains/sha256/<chainID>/<format>/ links to the layer's files, layerchain.json with the parents
//	images/<hash of the name>.json    name, source, configuration, layers
//	leases/<id>.json                  what somebody works with just now
//	locks/<diffID>-<format>           who converts a layer
//	templates/                        scratch disks to clone
//	tmp/<id>/, tmp/<id>.lock          what is being made or thrown away
//
// A layer is converted once, however many ask for it, and is the same file for every image: a virtual
// machine that has it does not get it again. What depends on the layers below, layerchain.json, is kept
// apart from it, in a folder for each chain; these folders are what package layers mounts.
//
// Some layers depend on those below: an entry lib/x without one for lib/, where lib is a symbolic link below,
// belongs where the link leads to, and a hard link may name a file below. Such a layer is made by itself first; the
// outlines, the layers' names without contents, then tell that it would be another one, and it is made again for its
// chain. So a layer is served to an image only where it is the same.
//
// Folders are made below tmp, synced, and renamed to their place, so that a crash at any point leaves the
// whole thing or nothing. The owner of a folder below tmp holds a lock on it; what has lost its owner the
// next Open removes. References are leases: Import takes one before it looks what is there already, so
// that GC cannot take away what an import is about to use.
package store
