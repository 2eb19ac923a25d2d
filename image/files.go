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
	"regexp"
	"strings"
)

// files is a folder of files: a directory, or a tar that can be read at any place.
type files interface {
	// open opens a regular file by its slash-separated name. A missing one matches ErrNotFound.
	open(name string) (io.ReadCloser, int64, error)
	io.Closer
}

// dirFiles is a directory. Links never lead out of it.
type dirFiles struct{ root *os.Root }

func (d dirFiles) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.Open(filepath.FromSlash(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w: it is no regular file", name, ErrInvalid)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size(), nil
}

func (d dirFiles) Close() error { return d.root.Close() }

// tarFiles is an uncompressed tar with an index of its files.
type tarFiles struct {
	f       *os.File
	entries map[string]tarEntry
}

type tarEntry struct {
	offset, size int64
	link         string // of links: the name of the target
}

// maxLinks is how many links in a row lead to a file: old docker archives link equal layers.
const maxLinks = 8

// maxArchiveNames is how many bytes the names in an archive with an image may have together: one name may
// have a MiB, which a compressed archive can repeat without growing.
const maxArchiveNames = 16 << 20

// indexTar reads the headers of f.
func indexTar(ctx context.Context, f *os.File) (*tarFiles, error) {
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
		if n >= maxArchive {
			return nil, fmt.Errorf("%s: %w: an archive with an image has at most %d entries; for a bare root file system say tar:%s",
				f.Name(), ErrTooLarge, int(maxArchive), f.Name())
		}
		if names += len(h.Name) + len(h.Linkname); names > maxArchiveNames {
			return nil, fmt.Errorf("%s: %w: the names in an archive with an image have at most %d bytes; for a bare root file system say tar:%s",
				f.Name(), ErrTooLarge, maxArchiveNames, f.Name())
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			// The reader takes whole blocks from the file and nothing ahead, so that this is where the content begins.
			off, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			t.entries[name] = tarEntry{offset: off, size: h.Size}
		case tar.TypeSymlink:
			t.entries[name] = tarEntry{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			t.entries[name] = tarEntry{link: path.Clean(h.Linkname)}
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

// archiveEntry is what entries of image archives are called; root file systems do not begin like that.
var archiveEntry = regexp.MustCompile(`^(oci-layout|index\.json|manifest\.json|repositories|blobs(/.*)?|(sha256:)?[0-9a-f]{64}([./].*)?)$`)

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
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: it is neither a file nor a directory", ErrUnsupported)
	}
	f, err := os.Open(s.Path)
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

// openTar finds out what a tar holds. f is closed with the image, or by the caller after an error.
func openTar(ctx context.Context, s Source, f *os.File, o Options) (*Image, error) {
	if s.Kind == RootFS {
		return openRootFS(ctx, s, f, o)
	}
	archive, compressed, err := sniff(f)
	if err != nil {
		return nil, err
	}
	if !archive && s.Kind == File {
		return openRootFS(ctx, s, f, o)
	}
	if !compressed {
		return openArchive(ctx, s, f, o)
	}
	// An archive is read here and there, which a compressed file does not allow.
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

func openArchive(ctx context.Context, s Source, f *os.File, o Options) (*Image, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
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
	case s.Kind == File:
		return openRootFS(ctx, s, f, o)
	}
	return nil, errNoLayout
}

// sniff looks at the beginning of a tar: whether it is an archive with an image, and compressed.
func sniff(f *os.File) (archive, compressed bool, err error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, false, err
	}
	content, compressed, err := decompress(f)
	if err != nil {
		return false, false, err
	}
	defer content.Close()
	r := tar.NewReader(content)
	for range 16 {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return false, compressed, nil
		}
		if err != nil {
			return false, compressed, fmt.Errorf("%w: it is no tar, plain or compressed by gzip or zstd: %w", ErrUnsupported, err)
		}
		if name := strings.TrimSuffix(path.Clean(h.Name), "/"); name != "." {
			return archiveEntry.MatchString(name), compressed, nil
		}
	}
	return false, compressed, nil
}

// spooled is a temporary file that goes when it is closed, or where the system can earlier: then it has
// no name any more, and goes with its descriptor however that ends.
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
	out = &spooled{File: file, named: os.Remove(file.Name()) != nil} // Windows removes no open file
	n, err := io.Copy(out, &ctxReader{ctx, io.LimitReader(content, o.MaxLayerBytes+1)})
	if err == nil && n > o.MaxLayerBytes {
		err = fmt.Errorf("%w: it unpacks to more than %d bytes; if the image is trusted, raise the limit", ErrTooLarge, o.MaxLayerBytes)
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
