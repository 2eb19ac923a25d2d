package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/stratavm/strata/internal/regfile"
)

// files is a set of files: a directory, or a tar with random access.
type files interface {
	// open opens a regular file by its slash-separated name. If it does not exist, the error matches ErrNotFound.
	open(name string) (io.ReadCloser, int64, error)
	io.Closer
}

// dirFiles is a directory. Links that lead out of it are not followed.
type dirFiles struct{ root *os.Root }

func (d dirFiles) open(name string) (io.ReadCloser, int64, error) {
	f, size, err := regfile.OpenIn(d.root, filepath.FromSlash(name))
	switch {
	case err == nil:
		return f, size, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, 0, fmt.Errorf("%s: %w", name, ErrNotFound)
	case strings.Contains(err.Error(), "path escapes"): // package os has no sentinel for it
		return nil, 0, fmt.Errorf("%s: %w: it is a link that leads out of the layout, and such links are not followed; "+
			"make a copy that holds the files themselves: cp -rL", name, ErrUnsupported)
	}
	return nil, 0, err
}

func (d dirFiles) Close() error { return d.root.Close() }

// tarFiles is an uncompressed tar with an index of its files.
type tarFiles struct {
	f       *os.File
	entries map[string]tarEntry
}

type tarEntry struct {
	offset, size int64
	link         string // name of the link's target; empty: a regular file
}

// maxLinks is the maximum length of a chain of links: old docker archives link equal layers.
const maxLinks = 8

// maxArchiveNames bounds the total size of the names in an archive, in bytes: a name may have 1 MiB, which a
// compressed archive can repeat at almost no cost.
const maxArchiveNames = 16 << 20

// inArchive cleans the name of an archive entry: the result never leads out of the archive's root.
func inArchive(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// indexTar reads the headers of f.
func indexTar(ctx context.Context, f *os.File) (*tarFiles, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	t := &tarFiles{f: f, entries: map[string]tarEntry{}}
	r := tar.NewReader(f)
	names := 0
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", f.Name(), ErrCorrupt, err)
		}
		if names += len(h.Name) + len(h.Linkname); n >= maxArchive || names > maxArchiveNames {
			return nil, fmt.Errorf("%s: %w: an archive with an image has at most %d entries, with names of %d bytes; for a "+
				"bare root file system say tar:%s",
				f.Name(), ErrTooLarge, int(maxArchive), maxArchiveNames, f.Name())
		}
		name := strings.Clone(inArchive(h.Name)) // do not retain the whole header
		switch h.Typeflag {
		case tar.TypeReg:
			// The tar reader reads whole blocks and does not read ahead, so the content starts here.
			off, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			t.entries[name] = tarEntry{offset: off, size: h.Size}
		case tar.TypeSymlink:
			link := h.Linkname
			if !path.IsAbs(link) {
				link = path.Join("/", path.Dir(name), link)
			}
			t.entries[name] = tarEntry{link: strings.Clone(inArchive(link))}
		case tar.TypeLink:
			t.entries[name] = tarEntry{link: strings.Clone(inArchive(h.Linkname))}
		}
	}
}

func (t *tarFiles) open(name string) (io.ReadCloser, int64, error) {
	at := name
	for range maxLinks {
		e, ok := t.entries[at]
		if !ok {
			return nil, 0, fmt.Errorf("%s: %w in %s", name, ErrNotFound, t.f.Name())
		}
		if e.link == "" {
			return io.NopCloser(io.NewSectionReader(t.f, e.offset, e.size)), e.size, nil
		}
		at = e.link
	}
	return nil, 0, fmt.Errorf("%s: %w: more than %d links in a row", name, ErrInvalid, maxLinks)
}

func (t *tarFiles) Close() error { return t.f.Close() }

// openFile opens a layout, an archive or a bare root file system.
func openFile(ctx context.Context, s Source, o Options) (*Image, error) {
	st, err := os.Stat(s.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return openDir(ctx, s, o)
	}
	f, _, err := regfile.Open(s.Path)
	if err != nil {
		return nil, err
	}
	img, err := openTar(ctx, s, f, o)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return img, nil
}

func openDir(ctx context.Context, s Source, o Options) (*Image, error) {
	if s.Kind == RootFS || s.Kind == DockerArchive {
		return nil, fmt.Errorf("%w: it is a directory, and a tar is wanted", ErrUnsupported)
	}
	root, err := os.OpenRoot(s.Path)
	if err != nil {
		return nil, err
	}
	img, err := openLayout(ctx, s, dirFiles{root}, o)
	if errors.Is(err, errNoLayout) {
		err = fmt.Errorf("%w; a root file system must be a tar: tar -C %s -c . | strata import - DIR", err, s.Path)
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return img, nil
}

// openTar finds out what a tar holds: by all of its entries, since nothing says which comes first. f is closed with
// the image, or by the caller after an error.
func openTar(ctx context.Context, s Source, f *os.File, o Options) (*Image, error) {
	if s.Kind == RootFS {
		return openRootFS(ctx, s, f, o)
	}
	begin, err := sniff(f)
	if err != nil {
		return nil, err
	}
	switch {
	case !begin.compressed:
		l, err := scan(ctx, f)
		if err != nil {
			return nil, err
		}
		if s.Kind != File || l.isArchive() {
			return openArchive(ctx, s, f, o)
		}
	case s.Kind != File || begin.archive:
		img, err := openCompressed(ctx, s, f, o)
		if !errors.Is(err, errNoArchive) || s.Kind != File {
			return img, err
		}
	}
	img, err := openRootFS(ctx, s, f, o)
	if errors.Is(err, errIsArchive) {
		return openCompressed(ctx, s, f, o)
	}
	return img, err
}

// openCompressed decompresses an archive to a temporary file first, as it needs random access.
func openCompressed(ctx context.Context, s Source, f *os.File, o Options) (*Image, error) {
	at, err := spool(ctx, f, o)
	if err != nil {
		return nil, err
	}
	img, err := openArchive(ctx, s, at.File, o)
	if err != nil {
		return nil, errors.Join(err, at.Close())
	}
	img.closer = at
	return img, f.Close()
}

var errNoArchive = fmt.Errorf("%w: it holds neither index.json nor manifest.json, so that it is no archive with an "+
	"image", ErrUnsupported)

func openArchive(ctx context.Context, s Source, f *os.File, o Options) (*Image, error) {
	t, err := indexTar(ctx, f)
	if err != nil {
		return nil, err
	}
	_, layout := t.entries["index.json"]
	_, docker := t.entries["manifest.json"]
	switch {
	case s.Kind == DockerArchive && !docker:
		return nil, fmt.Errorf("%w: it holds no manifest.json, so that it is no docker archive", ErrUnsupported)
	case layout && s.Kind != DockerArchive:
		return openLayout(ctx, s, t, o)
	case docker && s.Kind != Layout:
		return openDocker(ctx, s, t, o)
	case s.Kind == Layout:
		return nil, errNoLayout
	}
	return nil, errNoArchive
}

// spooled is a temporary file that is removed when it is closed or, if the system can remove open files, right after
// its creation.
type spooled struct {
	*os.File
	named bool
}

func (s *spooled) Close() error {
	err := s.File.Close()
	if s.named {
		err = errors.Join(err, os.Remove(s.Name()))
	}
	return err
}

// spool decompresses f to a temporary file.
func spool(ctx context.Context, f *os.File, o Options) (out *spooled, err error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	content, err := Decompress(f)
	if err != nil {
		return nil, err
	}
	defer content.Close()
	file, err := os.CreateTemp(o.TempDir, "strata-image-*")
	if err != nil {
		return nil, err
	}
	out = &spooled{File: file, named: os.Remove(file.Name()) != nil} // Windows cannot remove open files
	n, err := io.Copy(out, &ctxReader{ctx, io.LimitReader(content, o.MaxLayerBytes+1)})
	if err == nil && n > o.MaxLayerBytes {
		err = fmt.Errorf("%w: it unpacks to more than %d bytes; if the image is trusted, raise the limit", ErrTooLarge,
			o.MaxLayerBytes)
	}
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return out, nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
