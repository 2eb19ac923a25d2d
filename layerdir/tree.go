package layerdir

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/regfile"
	"github.com/stratavm/strata/internal/userns"
)

// idsName is the name of the file next to a tree that records the id map of its user namespace.
const idsName = "layer.dir.ids"

const maxIDs = 1 << 20 // maximum size of that file, in bytes

// ErrOtherIDs says that a tree was created in a user namespace with another id map.
var ErrOtherIDs = errors.New("the layer was created in a user namespace with other ids")

// convertTree creates a layer that is a directory tree; see the package comment. Outside of a user namespace the error
// matches errors.ErrUnsupported: there disks can be mounted, and the tree's set-user-ID programs would run as root.
func convertTree(ctx context.Context, in io.Reader, dir string, o Options) (res Result, err error) {
	if o.Verity {
		return res, fmt.Errorf("a hash tree for a directory tree: %w", errors.ErrUnsupported)
	}
	if !userns.Inside() {
		return res, fmt.Errorf("directory trees are for user namespaces: choose %s or %s: %w",
			EROFS, VHD, errors.ErrUnsupported)
	}
	ids, err := userns.Current()
	if err != nil {
		return res, err
	}
	path := filepath.Join(dir, Tree.FileName())
	if _, err := os.Lstat(path); err == nil {
		return res, fmt.Errorf("%s: %w: remove it first, or choose another folder", path, fs.ErrExist)
	}
	// As with the other formats, contents are unpacked first: the final tree is known only at the end of the tar.
	data, err := newOutput(dir, Tree.FileName())
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, data.abandon()) }()
	limits, err := o.limits()
	if err != nil {
		return res, err
	}
	bw := bufio.NewWriterSize(data.file, 1<<20)
	tree, err := layertree.FromTar(ctx, in, bw, 0, limits)
	if err == nil {
		err = bw.Flush()
	}
	if err != nil {
		return res, err
	}
	made := filepath.Join(data.work, "tree")
	// The tree is private, both while it is created and afterwards, as it contains set-user-ID programs.
	if res.Bytes, err = unpack(ctx, tree, data.file, made, ids.One); err != nil {
		return res, err
	}
	if err := data.mkdirAll(dir); err != nil {
		return res, err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return res, err
	}
	// The record is written first, so that a tree is never visible without it.
	if err := writeFile(dir, idsName, []byte(ids.Text)); err != nil {
		return res, err
	}
	res.Path = path
	return res, errors.Join(os.Rename(made, path), atomicfile.SyncDir(dir), atomicfile.SyncDir(filepath.Dir(dir)))
}

// CheckTree checks that the files of the tree in dir have the owners that they were created with. If the tree was
// created in a user namespace with another id map, the error matches ErrOtherIDs.
func CheckTree(dir string) error {
	b, err := regfile.Read(filepath.Join(dir, idsName), maxIDs)
	if err != nil {
		return fmt.Errorf("the ids of layer %s: %w", dir, err)
	}
	ids, err := userns.Current()
	if err != nil {
		return fmt.Errorf("layer %s: %w", dir, err)
	}
	if string(b) != ids.Text {
		return fmt.Errorf("layer %s: %w (%q, here %q): remove it (strata image rm) and import it again",
			dir, ErrOtherIDs, b, ids.Text)
	}
	return nil
}
