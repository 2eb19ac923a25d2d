package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

// ErrNotRoot: a tar is not an image and does not look like a root file system. Options.AnyRoot, or the prefix tar:,
// accepts it nevertheless.
var ErrNotRoot = errors.New("this does not look like a root file system")

// errIsArchive says that an image was found where a bare root file system was expected.
var errIsArchive = errors.New("it is an archive with an image")

// rootNames are the usual names at the top of a root file system.
var rootNames = func() map[string]bool {
	m := map[string]bool{}
	for name := range strings.FieldsSeq(
		"bin boot dev etc home init lib lib32 lib64 libx32 linuxrc media mnt nix opt proc root run sbin srv sys tmp " +
			"usr var") {
		m[name] = true
	}
	return m
}()

// listing summarizes the names in a tar.
type listing struct {
	entries                        int
	index, layout, blobs, manifest bool  // index.json, oci-layout, blobs/, manifest.json
	root                           bool  // a name of rootNames
	broken                         error // error that ended the listing early
}

func (l *listing) add(h *tar.Header) {
	name := inArchive(h.Name)
	if name == "" {
		return // the folder itself
	}
	l.entries++
	top, _, below := strings.Cut(name, "/")
	l.root = l.root || rootNames[strings.TrimPrefix(top, ".wh.")]
	l.blobs = l.blobs || top == "blobs"
	if below || h.Typeflag == tar.TypeDir {
		return
	}
	switch name {
	case "index.json":
		l.index = true
	case "oci-layout":
		l.layout = true
	case "manifest.json":
		l.manifest = true
	}
}

// isArchive reports whether the tar is an image archive. A root file system may have files with such names.
func (l *listing) isArchive() bool {
	return l.index && (l.layout || l.blobs) && (!l.root || l.layout && l.blobs) || l.manifest && !l.root
}

// scan lists a tar. It fails only if the first entry cannot be read; later errors are in listing.broken.
func scan(ctx context.Context, r io.Reader) (*listing, error) {
	if f, ok := r.(*os.File); ok {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
	}
	l := &listing{}
	t := tar.NewReader(r)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := t.Next()
		switch {
		case errors.Is(err, io.EOF):
			return l, nil
		case err != nil && n == 0:
			return nil, fmt.Errorf("%w: it is no tar, plain or compressed by gzip, zstd, xz or bzip2: %w", ErrUnsupported, err)
		case err != nil:
			l.broken = err
			return l, nil
		}
		l.add(h)
	}
}

// archiveEntry matches the usual names of entries of image archives.
var archiveEntry = regexp.MustCompile(`^(oci-layout|index\.json|manifest\.json|repositories|blobs(/.*)?|` +
	`(sha256:)?[0-9a-f]{64}([./].*)?)$`)

// beginning is what the start of a file tells. archive is a guess, which saves reading a compressed file twice.
type beginning struct{ compressed, archive bool }

func sniff(f *os.File) (b beginning, err error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return b, err
	}
	content, compressed, err := decompress(f)
	if err != nil || !compressed {
		return b, err
	}
	defer content.Close()
	b.compressed = true
	r := tar.NewReader(content)
	for range 16 {
		h, err := r.Next()
		if err != nil {
			return b, nil // a later reader reports it
		}
		if name := inArchive(h.Name); name != "" {
			b.archive = archiveEntry.MatchString(name)
			return b, nil
		}
	}
	return b, nil
}
