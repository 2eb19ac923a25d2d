//go:build !linux

package layerdir

import (
	"context"
	"errors"
	"os"

	"github.com/stratavm/strata/internal/format/layertree"
)

func unpack(context.Context, *layertree.Tree, *os.File, string, bool) (int64, error) {
	return 0, errors.ErrUnsupported
}
