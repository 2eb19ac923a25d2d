package layers

import (
	"context"

	"github.com/stratavm/strata/uvm"
)

// attachLayers brings all layers into a Linux VM and gives their guest paths in the same order.
func attachLayers(ctx context.Context, r *Request, c *uvm.Claim, images []image) ([]string, error) {
	paths := make([]string, len(images))
	for i, img := range images {
		path, err := attachLayer(ctx, r, c, img)
		if err != nil {
			return nil, err
		}
		paths[i] = path
	}
	return paths, nil
}
