package image

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// checked reads a blob and verifies its digest and size before it returns io.EOF.
type checked struct {
	r        io.Reader
	what     string
	want     string    // expected digest; empty: unknown
	size     int64     // expected size; -1: unknown
	sum      hash.Hash // nil if the digest is unknown
	n        int64
	limit    int64 // 0: none
	limitErr error
	progress *throttle // nil: no progress reports
	err      error
}

// newHash returns the hash function of a digest such as sha256:…, and nil for an empty one.
func newHash(digest string) (hash.Hash, error) {
	if digest == "" {
		return nil, nil
	}
	h, err := v1.NewHash(digest)
	if err != nil {
		return nil, fmt.Errorf("%w: digest %q: %w", ErrInvalid, digest, err)
	}
	switch h.Algorithm {
	case "sha256":
		return sha256.New(), nil
	case "sha512":
		return sha512.New(), nil
	}
	return nil, fmt.Errorf("%w: digest %q: use sha256 or sha512", ErrUnsupported, digest)
}

func newChecked(r io.Reader, what, digest string, size int64) (*checked, error) {
	sum, err := newHash(digest)
	if err != nil {
		return nil, err
	}
	return &checked{r: r, what: what, want: digest, size: size, sum: sum}, nil
}

func (c *checked) Read(b []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.r.Read(b)
	c.n += int64(n)
	switch {
	case c.size >= 0 && c.n > c.size:
		c.err = fmt.Errorf("%s: %w: it is longer than the %d bytes announced", c.what, ErrCorrupt, c.size)
		return 0, c.err
	case c.limit > 0 && c.n > c.limit:
		c.err = c.limitErr
		return 0, c.err
	}
	if c.sum != nil {
		c.sum.Write(b[:n])
	}
	if c.progress != nil {
		c.progress.at(c.n, err != nil)
	}
	if err == nil {
		return n, nil
	}
	c.err = err
	if err == io.EOF { // not an error that wraps it, such as of a broken connection
		c.err = c.verdict()
	}
	return n, c.err
}

// verdict returns io.EOF if size and digest are as expected.
func (c *checked) verdict() error {
	if c.size >= 0 && c.n != c.size {
		return fmt.Errorf("%s: %w: it ends after %d of %d bytes", c.what, ErrCorrupt, c.n, c.size)
	}
	if c.sum == nil {
		return io.EOF
	}
	if got := c.digest(); got != c.want {
		return fmt.Errorf("%s: %w: its digest is %s, announced was %s", c.what, ErrCorrupt, got, c.want)
	}
	return io.EOF
}

func (c *checked) digest() string {
	algorithm := "sha256:"
	if c.sum.Size() == sha512.Size {
		algorithm = "sha512:"
	}
	return algorithm + hex.EncodeToString(c.sum.Sum(nil))
}

// Decompress returns the decompressed content of r, whose first bytes tell the format: gzip, zstd, xz, bzip2, or
// anything else, which is returned unchanged. Memory is bounded: zstd windows of up to 128 MiB and xz dictionaries of
// up to 64 MiB are accepted. A goroutine decompresses a little ahead of the reader. The caller must close the content;
// this does not close r.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	content, compressed, err := decompress(r)
	if err != nil || !compressed {
		return content, err
	}
	return &unpacked{newAhead(func(a *ahead) error { return a.copy(content) }), content}, nil
}

type unpacked struct {
	*ahead
	content io.Closer
}

func (u *unpacked) Close() error {
	u.stop()
	return u.content.Close()
}

// stream is the tar of a layer. One goroutine reads, verifies and decompresses the blob, one verifies the tar, and the
// caller consumes it in a third: one layer uses three cores.
type stream struct {
	blob   *ahead // decompressed
	tar    *ahead // decompressed and verified
	raw    io.Closer
	cancel context.CancelFunc
}

func newStream(ctx context.Context, l Layer, progress func(int64)) (io.ReadCloser, error) {
	what := "layer " + l.Digest
	if l.Digest == "" {
		what = "layer " + l.DiffID
	}
	ctx, cancel := context.WithCancel(ctx)
	raw, err := l.raw(ctx)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	fail := func(err error) (io.ReadCloser, error) {
		cancel()
		return nil, errors.Join(err, raw.Close())
	}
	blob, err := newChecked(raw, what, l.Digest, l.Size)
	if err != nil {
		return fail(err)
	}
	if progress != nil {
		blob.progress = &throttle{tell: progress, step: l.Size / 100, now: time.Now}
	}
	tar, err := newChecked(nil, "tar of "+what, l.DiffID, -1)
	if err != nil {
		return fail(err)
	}
	tar.limit = l.limit
	tar.limitErr = fmt.Errorf("tar of %s: %w: it unpacks to more than %d bytes; if the image is trusted, raise the limit",
		what, ErrTooLarge, l.limit)
	s := &stream{blob: newAhead(func(a *ahead) error { return unpack(blob, what, a) }), raw: raw, cancel: cancel}
	tar.r = s.blob
	s.tar = newAhead(func(a *ahead) error { return a.copy(tar) })
	return s, nil
}

// unpack decompresses the blob and makes sure that it is read and verified to its end.
func unpack(blob *checked, what string, out *ahead) error {
	content, compressed, err := decompress(blob)
	if err != nil {
		return blame(blob, what, err)
	}
	defer content.Close()
	switch err := out.copy(content); {
	case err == errNoReader:
		return err
	case err != io.EOF:
		return blame(blob, what, err)
	}
	if compressed {
		// The decompressor stops at the end of its data; the blob is verified at its own end.
		if _, err := io.Copy(io.Discard, blob); err != nil {
			return err
		}
	}
	if blob.err != io.EOF {
		return blob.err
	}
	return io.EOF
}

// blame returns the error of the blob if there is one, rather than the decompressor's.
func blame(blob *checked, what string, err error) error {
	if blob.err != nil && blob.err != io.EOF {
		return blob.err
	}
	if errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, ErrCorrupt, err)
}

func (s *stream) Read(b []byte) (int, error) { return s.tar.Read(b) }

// Close stops the goroutines, blob first as tar waits for it, and closes the source.
func (s *stream) Close() error {
	s.cancel()
	s.blob.stop()
	s.tar.stop()
	return s.raw.Close()
}
