package rootfs

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/stratavm/strata/internal/format/verity"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/layerdir"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/vmm"
)

// scratchName is the name of the scratch disk's directory in Disks.Work. It lives as long as the snapshot and is reused
// by the snapshot's next container.
const scratchName = "strata"

// Request returns r with the root file system added.
func (p Plan) Request(r layers.Request) (layers.Request, error) {
	d := p.Disks
	if d == nil {
		r.RootFolder = p.Folder
		return r, nil
	}
	for _, l := range d.Layers {
		tree, err := l.tree()
		if err != nil {
			return r, fmt.Errorf("root file system: layer %s: %w", l.File, err)
		}
		r.Layers = append(r.Layers, layers.Layer{File: l.File, Verity: tree})
	}
	switch {
	case d.Work != "":
		r.Scratch = filepath.Join(d.Work, scratchName)
	case len(d.Layers) == 0:
		r.RootDisk = d.Disk
	case d.Disk != "":
		r.Scratch, r.WholeScratch = d.Disk, true
	}
	return r, nil
}

// tree returns the dm-verity parameters of a layer, nil if it has none. They must agree with containerd's file.
func (l Layer) tree() (*vmm.Verity, error) {
	if l.Verity == "" {
		return nil, nil
	}
	b, err := regfile.ReadState(l.Verity)
	if err != nil {
		return nil, fmt.Errorf("the record of its hash tree: %w", err)
	}
	var record struct {
		Root   string `json:"roothash"`
		Offset int64  `json:"hashoffset"`
	}
	if err := json.Unmarshal(b, &record); err != nil {
		return nil, fmt.Errorf("the record of its hash tree %s: %w", l.Verity, err)
	}
	info, err := layerdir.VerityInImage(l.File)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the hash tree of %s cannot be used: %w",
			l.Verity, errors.Join(err, errdefs.ErrNotImplemented))
	case info.RootDigest != record.Root || info.DataBytes != record.Offset:
		return nil, fmt.Errorf("its hash tree, %s at %d, is not that of %s, %s at %d: it was changed, or is damaged",
			info.RootDigest, info.DataBytes, l.Verity, record.Root, record.Offset)
	}
	return &vmm.Verity{DataBytes: info.DataBytes, RootDigest: info.RootDigest, Salt: info.Salt, Algorithm: info.Algorithm,
		BlockSize: verity.BlockSize, SuperBlock: true}, nil
}
