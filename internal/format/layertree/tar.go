package layertree

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
	"time"
)

// Limits that apply where Options leaves them 0.
const (
	DefaultMaxBytes    = 128 << 30
	DefaultMaxEntries  = 2 << 20
	DefaultMaxMetadata = 256 << 20
)

// Limits of Linux.
const (
	maxName     = 255  // bytes of a name
	maxPath     = 4096 // bytes of a path in a tar
	maxTarget   = 4095 // bytes of a symbolic link
	maxXattr    = 65536
	maxMajor    = 1<<12 - 1
	maxMinor    = 1<<20 - 1
	maxID       = math.MaxUint32 - 1
	maxSymlinks = 40 // followed on the way to one entry
	maxDepth    = maxPath / 2
)

// Estimated memory per item in addition to its name, in bytes, for items of which a small layer can have many.
const (
	xattrCost = 32
	runCost   = 12
)

// Errors of FromTar. They are wrapped with the entry at fault.
var (
	ErrTooLarge = errors.New("the layer is larger than the limit")
	ErrEscape   = errors.New("the path leads out of the layer")
	ErrInvalid  = errors.New("the entry is invalid")
	ErrLink     = errors.New("the hard link has no target in the layer")
)

// Options are the limits of FromTar. Zero values mean the defaults above.
type Options struct {
	MaxBytes    int64   // unpacked size of all files, holes included
	MaxEntries  int     // entries of the tar, and parents that have none
	MaxMetadata int64   // bytes of memory for names, link targets, attributes and the places of contents
	Image       *Budget // of all layers of the image; nil: none
	// AllowUnterminated accepts a stream without the zero blocks at the end of a tar, and an empty one. A tar truncated
	// between two entries looks like that, so set it only if a digest is verified as well.
	AllowUnterminated bool
	// Below are the layers below this one, if known. Their symbolic links are followed, see [Tree.Follow], and hard
	// links to their files copy these into the layer.
	Below *Below
	// Outline, if set, receives the layer's outline, for [ReadOutline].
	Outline io.Writer
}

func (o *Options) defaults() {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	if o.MaxMetadata == 0 {
		o.MaxMetadata = DefaultMaxMetadata
	}
}

// reader is the state of FromTar.
type reader struct {
	o        Options
	tree     *Tree
	out      contents
	entries  int // of the tar so far
	nodes    int // these and what was made for them
	bytes    int64
	metadata int64
	pending  []pendingLink           // hard links without a target so far
	waiting  map[place][]pendingLink // those of them, at the end, that wait for an entry
	ready    []pendingLink           // those that can be tried
	whited   []*Node                 // directories with whiteouts
}

type pendingLink struct {
	entry        int // of the tar
	name, target string
}

// place is a name in a directory, whether there is an entry or not.
type place struct {
	dir  *Node
	name string
}

// FromTar reads an uncompressed layer tar from r to EOF, and appends the contents of its files to data, whose position
// is block firstBlock of the image. All writes are whole blocks. ctx is checked between entries.
func FromTar(ctx context.Context, r io.Reader, data io.Writer, firstBlock uint32, o Options) (*Tree, error) {
	o.defaults()
	rd := &reader{o: o, tree: &Tree{Root: impliedDir(time.Time{})}, out: contents{w: data, next: firstBlock}}
	in := bufio.NewReaderSize(r, copyBuffer)
	if err := sniff(in, o.AllowUnterminated); err != nil {
		return nil, err
	}
	blocks := &blockReader{r: in}
	t := tar.NewReader(blocks)
	for {
		if ctx.Err() != nil {
			return nil, rd.streamError("read the next entry", context.Cause(ctx))
		}
		h, err := t.Next()
		if err == io.EOF {
			if !blocks.zero && !o.AllowUnterminated {
				return nil, rd.streamError("find the end of the archive", io.ErrUnexpectedEOF)
			}
			break
		}
		if err != nil {
			return nil, rd.streamError("read the next entry", err)
		}
		if err := rd.entry(h, t); err != nil {
			return nil, fmt.Errorf("layer tar: entry %d, %s: %w", rd.entries, quote(h.Name), err)
		}
	}
	if err := rd.finish(ctx); err != nil {
		return nil, err
	}
	// Read the padding after the end too, for callers that compute a digest of r.
	n, err := io.Copy(io.Discard, io.LimitReader(in, o.MaxBytes+1))
	if err != nil {
		return nil, rd.streamError("read what follows the last entry", err)
	}
	if n > o.MaxBytes {
		return nil, fmt.Errorf("layer tar: more than %d bytes follow the last entry: %w", o.MaxBytes, ErrTooLarge)
	}
	rd.tree.NextBlock = rd.out.next
	if o.Outline != nil {
		if err := rd.tree.writeOutline(o.Outline); err != nil {
			return nil, fmt.Errorf("layer tar: write the outline: %w", err)
		}
	}
	return rd.tree, nil
}

// finish handles what needs all entries: deferred hard links, whiteouts, and Follow.
func (rd *reader) finish(ctx context.Context) error {
	if err := rd.links(ctx); err != nil {
		return err
	}
	rd.whiteouts()
	if rd.o.Below == nil {
		return rd.linksLeft()
	}
	for range 2 { // links make directories that have no entries either
		if _, err := rd.tree.Follow(rd.o.Below); err != nil {
			return fmt.Errorf("layer tar: follow the links of the layers below: %w", err)
		}
		if len(rd.waiting) == 0 {
			break
		}
		if err := rd.lowLinks(); err != nil {
			return err
		}
	}
	return nil
}

// sniff returns an error for an empty or compressed stream, which is clearer than that of the tar reader.
func sniff(in *bufio.Reader, mayBeEmpty bool) error {
	b, err := in.Peek(6)
	if err != nil && err != io.EOF {
		return fmt.Errorf("layer tar: %w", err)
	}
	if len(b) == 0 && !mayBeEmpty {
		return fmt.Errorf("layer tar: the stream is empty: %w", io.ErrUnexpectedEOF)
	}
	for _, c := range [...]struct{ magic, name string }{
		{"\x1f\x8b", "gzip"}, {"\x28\xb5\x2f\xfd", "zstd"}, {"\xfd7zXZ\x00", "xz"}, {"BZh", "bzip2"},
	} {
		if strings.HasPrefix(string(b), c.magic) {
			return fmt.Errorf("layer tar: the stream is compressed with %s: decompress it first: %w", c.name, tar.ErrHeader)
		}
	}
	return nil
}

// blockReader records whether the last block that was read is zero, because the tar reader does not distinguish a
// proper end from a missing one.
type blockReader struct {
	r    io.Reader
	zero bool
}

func (b *blockReader) Read(p []byte) (int, error) {
	const tarBlock = 512
	if len(p) != tarBlock {
		b.zero = false
		return b.r.Read(p)
	}
	n, err := io.ReadFull(b.r, p)
	if n > 0 {
		b.zero = n == tarBlock && isZero(p)
		err = nil // what is missing shows at the next read
	}
	return n, err
}

func (rd *reader) streamError(doing string, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("layer tar: %s after %d entries: the stream is truncated: %w", doing, rd.entries, err)
	}
	return fmt.Errorf("layer tar: %s after %d entries: %w", doing, rd.entries, err)
}

func (rd *reader) entry(h *tar.Header, body io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if rd.entries++; h.Typeflag == gnuVolumeLabel {
		return rd.account(1, 0)
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if err := rd.account(1, len(name)+len(h.Linkname)); err != nil {
		return err
	}
	dirName, base := path.Split(name)
	if base == "" {
		return rd.root(h)
	}
	if strings.HasPrefix(base, ".wh.") && rd.belowFile(dirName) {
		// umoci writes whiteouts for the entries of a directory that the layer replaces by a file, which hides them
		// already.
		return nil
	}
	dir, err := rd.dir(dirName, h.ModTime)
	if err != nil {
		return err
	}
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		return rd.whiteout(dir, hidden)
	}
	if h.Typeflag == tar.TypeLink {
		target, err := cleanName(h.Linkname)
		if err != nil {
			return fmt.Errorf("hard link to %s: %w", quote(h.Linkname), err)
		}
		return rd.link(dir, base, pendingLink{entry: rd.entries, name: name, target: target})
	}
	n, err := rd.node(h)
	if err != nil {
		return err
	}
	if n.Type() == TypeRegular {
		if err := rd.content(n, h.Size, body); err != nil {
			return err
		}
	}
	if old := dir.Child(base); old != nil && old.IsDir() && n.IsDir() {
		old.update(n)
		return nil
	}
	dir.SetChild(base, n)
	return nil
}

// content appends the content of a regular file to the image.
func (rd *reader) content(n *Node, size int64, body io.Reader) (err error) {
	if rd.bytes += size; rd.bytes > rd.o.MaxBytes || size > rd.o.MaxBytes {
		return fmt.Errorf("the unpacked layer exceeds %d bytes: %w (raise the limit if the layer is to be trusted)",
			rd.o.MaxBytes, ErrTooLarge)
	}
	if err := rd.o.Image.content(size); err != nil {
		return err
	}
	if n.Runs, err = rd.out.add(body, size); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the stream is truncated: %w", err)
		}
		return fmt.Errorf("content of %d bytes: %w", size, err)
	}
	n.Size = size
	return rd.account(0, len(n.Runs)*runCost)
}

// belowFile reports whether the layer has something other than a directory or a link on the way to dir.
func (rd *reader) belowFile(dir string) bool {
	n := rd.tree.Root
	for part := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if n = n.Child(part); n == nil || n.Type() == TypeSymlink {
			return false
		}
		if !n.IsDir() {
			return true
		}
	}
	return false
}

// root sets the attributes of the root directory from its entry.
func (rd *reader) root(h *tar.Header) error {
	n, err := rd.node(h)
	if err != nil {
		return err
	}
	if !n.IsDir() {
		return fmt.Errorf("the root of a layer is a directory: %w", ErrInvalid)
	}
	rd.tree.Root.update(n)
	return nil
}

// update gives the directory n the attributes of m.
func (n *Node) update(m *Node) {
	n.Mode, n.UID, n.GID, n.Sec, n.Nsec, n.Xattrs = m.Mode, m.UID, m.GID, m.Sec, m.Nsec, m.Xattrs
	n.Implied = m.Implied
}

// account adds to the number of nodes and the memory in use, and checks the limits.
func (rd *reader) account(nodes, bytes int) error {
	if rd.nodes += nodes; rd.nodes > rd.o.MaxEntries {
		return fmt.Errorf("more than %d entries: %w", rd.o.MaxEntries, ErrTooLarge)
	}
	if rd.metadata += int64(bytes); rd.metadata > rd.o.MaxMetadata {
		return fmt.Errorf("names, attributes and places of contents exceed %d bytes: %w", rd.o.MaxMetadata, ErrTooLarge)
	}
	return rd.o.Image.memory(nodes, bytes)
}

// cleanName returns the path of an entry without leading and trailing slashes, "." and ".."; the root is "". Like umoci
// and docker it resolves ".." lexically, without following symbolic links. A path out of the root is an error.
func cleanName(name string) (string, error) {
	if len(name) > maxPath {
		return "", fmt.Errorf("a path of %d bytes; at most %d are possible: %w", len(name), maxPath, ErrInvalid)
	}
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("a NUL character in the path: %w", ErrInvalid)
	}
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			if depth--; depth < 0 {
				return "", fmt.Errorf("%q in the path: %w", "..", ErrEscape)
			}
		case len(part) > maxName:
			return "", fmt.Errorf("a name of %d bytes; at most %d are possible: %w", len(part), maxName, ErrInvalid)
		default:
			depth++
		}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

// quote shortens names for messages.
func quote(name string) string {
	if len(name) > 200 {
		return fmt.Sprintf("%q... (%d bytes)", name[:200], len(name))
	}
	return fmt.Sprintf("%q", name)
}
