package layers

import (
	"context"
	"fmt"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/hostpath"
)

// V1Storage has the layer fields of a schema 1.0 container document. For a Hyper-V isolated Windows container of that
// schema ("Xenon v1"), HCS itself mounts the layers in the document when the container starts, and unmounts them when
// it ends. So MountV1 mounts nothing; it validates the request and returns the fields.
type V1Storage struct {
	LayerFolderPath string              // the scratch folder
	Layers          []hcsschema.LayerV1 // top layer first
}

// MountV1 returns the layer fields of a schema 1.0 create document for a Hyper-V isolated container, with the layers'
// identities. Nothing is mounted; r.VM must be nil.
func MountV1(ctx context.Context, r Request) (V1Storage, error) {
	fail := func(err error) (V1Storage, error) {
		return V1Storage{}, fmt.Errorf("schema 1 layers of container %q: %w", r.ID, err)
	}
	if r.ID == "" {
		r.ID = hostpath.Base(r.Scratch)
	}
	if err := r.complete(); err != nil {
		return fail(err)
	}
	switch {
	case r.VM != nil:
		return fail(fmt.Errorf("%w: HCS creates the VM of a schema 1 container itself", ErrInvalid))
	case len(r.Layers) == 0 || r.Scratch == "" || r.CIM != nil:
		return fail(fmt.Errorf("%w: give at least one layer folder and the scratch folder", ErrInvalid))
	case r.Host == nil:
		return fail(fmt.Errorf("%w: Request.Host is needed for the layers' identities", ErrInvalid))
	}
	out := V1Storage{LayerFolderPath: r.Scratch}
	for _, l := range r.Layers {
		id, err := r.Host.LayerID(ctx, l.Folder)
		if err != nil {
			return fail(fmt.Errorf("identity of layer %s: %w", l.Folder, err))
		}
		out.Layers = append(out.Layers, hcsschema.LayerV1{ID: id, Path: l.Folder})
	}
	return out, nil
}

// UnmountV1 is the counterpart of MountV1: HCS unmounts everything when the container ends, so it does nothing; op
// must be UnmountOperationAll.
func UnmountV1(op UnmountOperation) error {
	if op != UnmountOperationAll {
		return fmt.Errorf("%w: schema 1 layers are unmounted all at once (operation %#x)",
			ErrInvalid, uint(UnmountOperationAll))
	}
	return nil
}
