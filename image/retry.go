package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	maxBackoff    = 10 * time.Second
	maxRetryAfter = 2 * time.Minute
)

// Retry describes a retry that is about to be made.
type Retry struct {
	Registry string
	Step     string // what is requested: "manifest v1", "blob sha256:..."
	Err      error  // why the last attempt failed
	Pause    time.Duration
	Attempt  int // number of the next attempt, from 2
	Attempts int // maximum number of attempts
}

// stepOf describes what the path of a request is for.
func stepOf(path string) string {
	for _, kind := range []string{"manifest", "blob"} {
		if _, id, ok := strings.Cut(path, "/"+kind+"s/"); ok {
			return kind + " " + oneLine(id)
		}
	}
	if path == "/v2/" {
		return "first request"
	}
	return "token"
}

// wait waits before retry n (from 0), or as long as the registry asked for; it returns early when ctx ends.
func (o Options) wait(ctx context.Context, n int, asked time.Duration, say Retry) error {
	d := min(o.Backoff<<min(n, 16), maxBackoff)
	d += rand.N(d/4 + 1) // jitter, so that many clients do not return at once
	if asked > 0 {
		d = min(asked, maxRetryAfter)
	}
	if o.OnRetry != nil {
		say.Pause = d
		o.OnRetry(say)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retrier retries requests that fail, are interrupted or that the registry asks to repeat. Bodies of blobs are
// streamed, and the caller resumes them; other responses are small and are read completely here.
type retrier struct {
	inner    http.RoundTripper
	o        Options
	registry string
}

// passing are the statuses of transient failures.
var passing = map[int]bool{
	http.StatusRequestTimeout: true, http.StatusTooManyRequests: true, http.StatusInternalServerError: true,
	http.StatusBadGateway: true, http.StatusServiceUnavailable: true, http.StatusGatewayTimeout: true,
}

func (r *retrier) RoundTrip(req *http.Request) (*http.Response, error) {
	for n := 0; ; n++ {
		resp, err := r.once(req)
		last := n >= r.o.Retries || req.Body != nil && req.GetBody == nil
		var asked time.Duration
		switch {
		case err != nil:
			if last || req.Context().Err() != nil || !mayPass(err) {
				return nil, err
			}
		case passing[resp.StatusCode] && !last:
			asked = retryAfter(resp.Header.Get("Retry-After"))
		default:
			return resp, nil
		}
		if err == nil {
			err = &statusError{code: resp.StatusCode}
		}
		w := Retry{Registry: r.registry, Step: stepOf(req.URL.Path), Err: err, Attempt: n + 2, Attempts: r.o.Retries + 1}
		if err := r.o.wait(req.Context(), n, asked, w); err != nil {
			return nil, err
		}
		if req.Body != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			req = req.Clone(req.Context())
			req.Body = body
		}
	}
}

// once sends a request once. It, and reading the body, fails with errStalled if nothing arrives for too long.
func (r *retrier) once(req *http.Request) (*http.Response, error) {
	w := newWatch(req.Context(), r.o.Stall)
	w.timer.Reset(w.limit)
	resp, err := r.inner.RoundTrip(req.WithContext(w.ctx))
	w.timer.Stop()
	if err != nil {
		err = w.cause(err)
		w.stop()
		return nil, err
	}
	resp.Body = &watched{resp.Body, w}
	if req.Header.Get("Accept") == acceptBlobs && resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1)) // one byte more shows that it is too large
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(b))
	return resp, nil
}

// retryAfter parses the seconds or date of a Retry-After header; 0 if there is none or it is invalid.
func retryAfter(h string) time.Duration {
	if s, err := strconv.Atoi(h); err == nil && s > 0 {
		return min(time.Duration(min(s, 3600))*time.Second, maxRetryAfter)
	}
	if at, err := http.ParseTime(h); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// mayPass reports whether a network failure may be transient.
func mayPass(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.IsTemporary || dns.IsTimeout
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return true
	}
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.ECONNREFUSED,
		syscall.EPIPE, syscall.ECONNABORTED, errStalled} {
		if errors.Is(err, e) {
			return true
		}
	}
	text := err.Error() // net/http has no sentinels for these
	return strings.Contains(text, "server closed idle connection") || strings.Contains(text, "connection broken")
}

var errStalled = errors.New("the registry stopped sending")

// resumer reads a blob of a registry and resumes when the connection breaks.
type resumer struct {
	ctx   context.Context
	r     *registryBlobs
	d     v1.Descriptor
	body  io.ReadCloser
	off   int64
	tries int  // failures since the last byte was received
	whole bool // the registry refuses range requests
	err   error
}

// connect requests the rest of the blob.
func (b *resumer) connect() error {
	resp, err := b.get()
	se, ok := errors.AsType[*statusError](err)
	if ok && se.code == http.StatusRequestedRangeNotSatisfiable && b.off > 0 && !b.whole {
		b.whole = true // start over and skip what was read
		resp, err = b.get()
	}
	if err != nil {
		return err
	}
	from := int64(0)
	if resp.StatusCode == http.StatusPartialContent {
		if from, err = rangeStart(resp.Header.Get("Content-Range")); err == nil && from > b.off {
			err = fmt.Errorf("blob %s: %w: asked for byte %d on, the answer begins at %d", b.d.Digest, ErrCorrupt, b.off, from)
		}
	}
	if n := resp.ContentLength; err == nil && n >= 0 && from+n != b.d.Size {
		err = fmt.Errorf("blob %s: %w: it has %d bytes, announced were %d", b.d.Digest, ErrCorrupt, from+n, b.d.Size)
	}
	if err == nil && from < b.off {
		// A registry without range requests sends everything again.
		_, err = io.CopyN(io.Discard, resp.Body, b.off-from)
	}
	if err != nil {
		return errors.Join(err, resp.Body.Close())
	}
	b.body = resp.Body
	return nil
}

func (b *resumer) get() (*http.Response, error) {
	off, digest := b.off, b.d.Digest.String()
	if b.whole {
		off = 0
	}
	return b.r.get(b.ctx, "blobs/"+digest, acceptBlobs, off, "blob "+digest)
}

// rangeStart returns FIRST of "bytes FIRST-LAST/TOTAL".
func rangeStart(h string) (int64, error) {
	first, _, ok := strings.Cut(strings.TrimPrefix(h, "bytes "), "-")
	n, err := strconv.ParseInt(first, 10, 64)
	if !ok || err != nil || n < 0 {
		return 0, fmt.Errorf("%w: Content-Range %q", ErrCorrupt, h)
	}
	return n, nil
}

func (b *resumer) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	for {
		if b.body != nil {
			n, err := b.body.Read(p)
			b.off += int64(n)
			switch {
			case n > 0:
				b.tries = 0
				return n, nil // the next call gets the error again
			case err == nil:
				continue
			case err == io.EOF && b.off >= b.d.Size:
				return 0, io.EOF
			case err == io.EOF:
				err = io.ErrUnexpectedEOF
			}
			b.drop()
			if b.err = b.again(err); b.err != nil {
				return 0, b.err
			}
		}
		if err := b.connect(); err != nil {
			if b.err = b.again(err); b.err != nil {
				return 0, b.err
			}
		}
	}
}

// again waits before another attempt, or returns an error if there is none.
func (b *resumer) again(err error) error {
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	if !mayPass(err) {
		return err
	}
	if b.tries >= b.r.o.Retries {
		return explain(b.r.host, "blob "+b.d.Digest.String(),
			fmt.Errorf("given up at byte %d of %d after %d attempts: %w", b.off, b.d.Size, b.tries+1, err))
	}
	b.tries++
	return b.r.o.wait(b.ctx, b.tries-1, 0, Retry{Registry: b.r.host, Step: "blob " + b.d.Digest.String(), Err: err,
		Attempt: b.tries + 1, Attempts: b.r.o.Retries + 1})
}

func (b *resumer) drop() {
	if b.body != nil {
		_ = b.body.Close() // the connection is broken anyway
		b.body = nil
	}
}

func (b *resumer) Close() error {
	b.drop()
	return nil
}

// watch cancels a request when nothing arrives for too long.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

func newWatch(parent context.Context, limit time.Duration) *watch {
	ctx, cancel := context.WithCancelCause(parent)
	w := &watch{ctx: ctx, cancel: cancel, limit: limit}
	w.timer = time.AfterFunc(limit, func() { cancel(errStalled) })
	w.timer.Stop() // until a reader waits
	return w
}

func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(context.Canceled)
}

// cause returns errStalled if the watch ended the request, else err.
func (w *watch) cause(err error) error {
	if errors.Is(context.Cause(w.ctx), errStalled) {
		return errStalled
	}
	return err
}

// watched is a body whose watch runs only during Read: a slow reader does not count as a stalled registry.
type watched struct {
	io.ReadCloser
	w *watch
}

func (r *watched) Read(p []byte) (int, error) {
	r.w.timer.Reset(r.w.limit)
	defer r.w.timer.Stop()
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = r.w.cause(err)
	}
	return n, err
}

func (r *watched) Close() error {
	defer r.w.stop()
	return r.ReadCloser.Close()
}
