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
	Tree  Format = "dir"   // layer.dir: a directory tree, for user namespaces, where no disk is mounted
)

// FileName is the name that a layer of this format has in its folder.
func (f Format) FileName() string { return "layer." + string(f) }

// DefaultMaxBytes is the limit on the unpacked size of a layer when Options.MaxBytes is 0.
const DefaultMaxBytes = layertree.DefaultMaxBytes

// DefaultMaxImageBytes is the limit on the unpacked size of all layers of an image in a store.
const DefaultMaxImageBytes = layertree.DefaultMaxImageBytes

// Budget is what the layers of an image may have together: see [NewBudget]. It may be used concurrently.
type Budget struct{ b *layertree.Budget }

// NewBudget returns a Budget of so many bytes of files, and of four times the entries and names that a layer may have.
func NewBudget(maxBytes int64) *Budget { return &Budget{layertree.NewBudget(maxBytes)} }

// Options says what Convert does.
type Options struct {
	Format Format    // empty: VHD
	Tar    io.Reader // an uncompressed layer tar: OCI whiteouts are understood
	Dir    string    // the layer folder: made, with its parents, when it does not exist
	// Progress, when set, is called from time to time with the bytes of Tar read so far.
	Progress func(n int64)
	// MaxBytes limits the unpacked size, holes of sparse files included; 0: DefaultMaxBytes.
	MaxBytes int64
	// Image, when set, is what the layers of an image may have together. Each conversion takes from it.
	Image *Budget
	// AllowUnterminated: see layertree.Options. Set it where Tar fails when its digest is wrong.
	AllowUnterminated bool
	// Below are the layers that this one will lie over, where they are known: symbolic links of theirs are
	// followed where the layer has no entry for a directory, and hard links may name their files. Without them
	// the latter give an error that matches ErrNeedsBelow.
	Below *Below
	// Outline, when set, receives the layer without contents, for [Below.Add].
	Outline io.Writer
	// Verity appends a dm-verity hash tree, so that a guest can check what it reads. What the guest
	// has to know is in the Result, and is kept beside the layer for ReadVerity.
	Verity bool
	// Share, when set, is called with the finished file before it gets its name: it lets those read it
	// that a new file is closed to, as the virtual machines of a Windows host. Its error fails Convert.
	Share func(ctx context.Context, file string) error
}

// Result reports what Convert made.
type Result struct {
	Path  string // of the layer file, or of the directory that is the tree
	Bytes int64  // its size, hash tree and footer included; of a tree that of all files
	// Verity is set when a hash tree was asked for.
	Verity *verity.Info
}

// Convert writes the layer of o.Tar to o.Dir. The file appears complete or not at all: it is written
// under a temporary name beside the folder, synced, and renamed. After an error or the end of ctx
// nothing is left, not even the folder if Convert made it. A [Tree] is made in the same way, but takes
// the place of no other.
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
	// The record comes first, so that no layer is seen without one.
	if err := writeVerity(dir, o.Format, res.Verity); err != nil {
		return Result{}, wrap(err)
	}
	out.lent = true
	if err := out.commit(true); err != nil {
		return Result{}, wrap(err)
	}
	return res, nil
}

// vhdAlign is what the content of a layer.vhd is filled up to, with a hole: guests map persistent
// memory in units of 2 MiB, and a layer of another size could only be a disk.
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

// meter counts what is read, and stops when ctx ends.
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
