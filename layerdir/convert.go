package layerdir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/stratavm/strata/internal/format/erofs"
	"github.com/stratavm/strata/internal/format/ext4"
	"github.com/stratavm/strata/internal/format/layertree"
	"github.com/stratavm/strata/internal/format/verity"
	"github.com/stratavm/strata/internal/format/vhd"
)

// Format is a file format of layers.
type Format string

// The formats of layers.
const (
	VHD   Format = "vhd"   // layer.vhd: ext4 and a fixed VHD footer
	EROFS Format = "erofs" // layer.erofs: uncompressed EROFS with blocks of 4 KiB
	Tree  Format = "dir"   // layer.dir: a directory tree, for user namespaces, which cannot mount disks
)

// FileName returns the name of the layer file or tree in its folder.
func (f Format) FileName() string { return "layer." + string(f) }

// DefaultMaxBytes is the limit on the unpacked size of a layer when Options.MaxBytes is 0.
const DefaultMaxBytes = layertree.DefaultMaxBytes

// DefaultMaxImageBytes is the limit on the unpacked size of the layers that one import of an image into a store
// converts. See store.Request.MaxImageBytes.
const DefaultMaxImageBytes = layertree.DefaultMaxImageBytes

// Budget bounds the total size of the layers of an image: see [NewBudget]. It may be used concurrently.
type Budget struct{ b *layertree.Budget }

// NewBudget returns a Budget of so many bytes of files, and of four times the entries and names that a layer may have.
func NewBudget(maxBytes int64) *Budget { return &Budget{layertree.NewBudget(maxBytes)} }

// Options are the options of Convert.
type Options struct {
	Format Format    // empty: VHD
	Tar    io.Reader // an uncompressed layer tar, with OCI whiteouts
	Dir    string    // the layer folder; it and its parents are created if needed
	// Progress, if not nil, is called repeatedly with the number of bytes of Tar read so far.
	Progress func(n int64)
	// MaxBytes limits the unpacked size, holes of sparse files included; 0: DefaultMaxBytes.
	MaxBytes int64
	// Image, if not nil, bounds the total size of the layers of an image. Each conversion draws from it.
	Image *Budget
	// AllowUnterminated: see layertree.Options. Set it if reading Tar fails when its digest is wrong.
	AllowUnterminated bool
	// Below are the layers below this one, if known: their symbolic links are followed for directories that the layer
	// has no entry for, and hard links may refer to their files. Without them such hard links are an error that
	// matches ErrNeedsBelow.
	Below *Below
	// Outline, if not nil, receives the layer's outline, its tree without contents, for [Below.Add].
	Outline io.Writer
	// Verity appends a dm-verity hash tree, so that a guest can verify what it reads. Its parameters are in the
	// Result, and in a record next to the layer for ReadVerity.
	Verity bool
	// Share, if not nil, is called with the complete file before it is renamed to its final name, to grant access to
	// others, such as the virtual machines of a Windows host. If it fails, Convert fails.
	Share func(ctx context.Context, file string) error
}

// Result describes the layer that Convert created.
type Result struct {
	Path  string // the layer file, or the directory of a tree
	Bytes int64  // its size with hash tree and footer; of a tree the total size of its files
	// Verity is set if Options.Verity was.
	Verity *verity.Info
}

// Convert writes the layer in o.Tar to o.Dir, atomically: the file is written under a temporary name next to the
// folder, synced, and renamed. After an error or the end of ctx nothing is left, not even a folder that Convert
// created. A [Tree] is created in the same way, but does not replace an existing one.
func Convert(ctx context.Context, o Options) (res Result, err error) {
	if o.Format == "" {
		o.Format = VHD
	}
	if o.Format != VHD && o.Format != EROFS && o.Format != Tree {
		return res, fmt.Errorf("convert layer: unknown format %q: use %s, %s or %s", o.Format, VHD, EROFS, Tree)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return res, fmt.Errorf("convert layer: %w", err)
	}
	wrap := func(err error) error { return fmt.Errorf("convert layer to %s: %w", dir, explain(err)) }
	in := &meter{ctx: ctx, r: o.Tar, progress: o.Progress}
	if o.Format == Tree {
		if res, err = convertTree(ctx, in, dir, o); err != nil {
			return Result{}, wrap(err)
		}
		return res, nil
	}
	out, err := newOutput(dir, o.Format.FileName())
	if err != nil {
		return res, wrap(err)
	}
	defer func() { err = errors.Join(err, out.abandon()) }()
	res.Path = filepath.Join(dir, o.Format.FileName())
	if res.Verity, err = write(ctx, out.file, in, o); err != nil {
		return Result{}, wrap(err)
	}
	st, err := out.file.Stat()
	if err != nil {
		return Result{}, wrap(err)
	}
	res.Bytes = st.Size()
	if o.Share != nil {
		if err := o.Share(ctx, out.file.Name()); err != nil {
			return Result{}, wrap(err)
		}
	}
	// The record is written first, so that a layer is never visible without it.
	if err := writeVerity(dir, o.Format, res.Verity); err != nil {
		return Result{}, wrap(err)
	}
	out.lent = true
	if err := out.commit(true); err != nil {
		return Result{}, wrap(err)
	}
	return res, nil
}

// vhdAlign is the alignment of the size of a layer.vhd, padded with a hole: guests map persistent memory in units of 2
// MiB; with another size the layer could only be attached as a disk.
const vhdAlign = 2 << 20

func (o Options) limits() (layertree.Options, error) {
	below, err := o.Below.load()
	limits := layertree.Options{MaxBytes: o.MaxBytes, AllowUnterminated: o.AllowUnterminated,
		Below: below, Outline: o.Outline}
	if o.Image != nil {
		limits.Image = o.Image.b
	}
	return limits, err
}

// write writes the layer to f.
func write(ctx context.Context, f *os.File, in io.Reader, o Options) (tree *verity.Info, err error) {
	limits, err := o.limits()
	if err != nil {
		return nil, err
	}
	var size int64
	switch o.Format {
	case EROFS:
		info, err := erofs.WriteLayer(ctx, f, in, limits)
		if err != nil {
			return nil, err
		}
		size = info.Bytes
	default:
		info, err := ext4.WriteLayer(ctx, f, in, limits)
		if err != nil {
			return nil, err
		}
		size = info.Bytes
	}
	if o.Verity {
		info, err := verity.Append(ctx, f, size)
		if err != nil {
			return nil, err
		}
		tree, size = &info, size+info.TreeBytes
	}
	if o.Format == VHD {
		size = (size + vhdAlign - 1) / vhdAlign * vhdAlign
		if _, err := f.Seek(size, io.SeekStart); err != nil {
			return nil, err
		}
		return tree, vhd.WriteFooter(f, size)
	}
	return tree, nil
}

// meter counts the bytes read, and fails once ctx has ended.
type meter struct {
	ctx      context.Context
	r        io.Reader
	progress func(int64)
	n        int64
}

func (m *meter) Read(b []byte) (int, error) {
	if m.ctx.Err() != nil {
		return 0, context.Cause(m.ctx)
	}
	n, err := m.r.Read(b)
	m.n += int64(n)
	if m.progress != nil {
		m.progress(m.n)
	}
	return n, err
}
