package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	userAgent    = "strata"
	maxRedirects = 10
)

// acceptManifests is the Accept header of requests for manifests.
var acceptManifests = strings.Join([]string{
	string(types.OCIImageIndex), string(types.DockerManifestList),
	string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
}, ", ")

// acceptBlobs is the Accept header of requests for blobs. It is kept in redirected requests, and tells retrier which
// responses are streamed.
const acceptBlobs = "application/octet-stream, */*"

// registryBlobs are the blobs of one repository.
type registryBlobs struct {
	host, scheme string
	repo         string // without the registry
	client       *http.Client
	idle         func() // closes idle connections
	credsErr     error  // error of the Keychain, or nil
	o            Options
}

func openRegistry(ctx context.Context, s Source, o Options) (*Image, error) {
	ref, err := name.ParseReference(s.Name, name.WeakValidation)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSource, err)
	}
	b, err := connect(ctx, ref.Context(), o)
	if err != nil {
		return nil, err
	}
	img, err := b.find(ctx, s, ref)
	if err != nil {
		return nil, errors.Join(b.denied(err), b.Close())
	}
	return img, nil
}

// connect finds out how to reach the registry, and authenticates if it asks for that at once.
func connect(ctx context.Context, repo name.Repository, o Options) (*registryBlobs, error) {
	r := &registryBlobs{host: repo.RegistryStr(), repo: repo.RepositoryStr(), idle: func() {}, o: o}
	inner := o.Transport
	if inner == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		inner, r.idle = t, t.CloseIdleConnections
	}
	s := &session{inner: &retrier{inner: inner, o: o, registry: r.host},
		scope: "repository:" + r.repo + ":pull", logins: map[origin]*login{}}
	s.creds, r.credsErr = o.Keychain(ctx, canonical(repo))
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	r.client = &http.Client{Transport: s, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fmt.Errorf("%w: more than %d redirections", ErrInvalid, maxRedirects)
		}
		return nil
	}}
	p, err := findScheme(ctx, r.host, inner, o)
	if err == nil {
		r.scheme = p.scheme
		s.home = origin{r.scheme, r.host}
		if len(p.challenges) > 0 {
			_, err = s.answer(ctx, s.home, "", p.challenges)
		}
	}
	if err != nil {
		r.idle()
		return nil, r.denied(err)
	}
	return r, nil
}

// denied adds the error of the Keychain to a denial.
func (r *registryBlobs) denied(err error) error {
	if r.credsErr != nil && errors.Is(err, ErrDenied) {
		return fmt.Errorf("%w; no credentials were used: %w", err, r.credsErr)
	}
	return err
}

func (r *registryBlobs) Close() error {
	r.idle()
	return nil
}

// find resolves a tag or a digest to the image for the platform.
func (r *registryBlobs) find(ctx context.Context, s Source, ref name.Reference) (*Image, error) {
	var top v1.Descriptor
	if d, ok := ref.(name.Digest); ok {
		h, err := v1.NewHash(d.DigestStr())
		if err != nil {
			return nil, fmt.Errorf("%w: digest %s: %w", ErrInvalid, d.DigestStr(), err)
		}
		top.Digest = h
	}
	content, got, err := r.manifest(ctx, ref.Identifier(), top)
	if err != nil {
		return nil, err
	}
	top.Digest = got
	f := newFinder(r, r.o.Platform)
	d, content, err := f.find(ctx, top, content, 0)
	if err != nil {
		return nil, err
	}
	return f.assemble(ctx, s, s.Name, d, content, r.o)
}

// manifest reads the manifest of a tag or a digest and returns its computed digest. d is its descriptor, as far as
// known.
func (r *registryBlobs) manifest(ctx context.Context, id string, d v1.Descriptor) ([]byte, v1.Hash, error) {
	resp, err := r.get(ctx, "manifests/"+id, acceptManifests, 0, "manifest "+id)
	if err != nil {
		return nil, v1.Hash{}, err
	}
	content, err := readAll(resp.Body, "manifest", d, maxManifest)
	if err != nil {
		return nil, v1.Hash{}, err
	}
	if d.Digest.Hex != "" {
		return content, d.Digest, nil
	}
	got, _, err := v1.SHA256(bytes.NewReader(content))
	if err != nil {
		return nil, v1.Hash{}, err
	}
	if said := resp.Header.Get("Docker-Content-Digest"); strings.HasPrefix(said, "sha256:") && said != got.String() {
		return nil, v1.Hash{}, fmt.Errorf("manifest %s: %w: its digest is %s, announced was %s",
			id, ErrCorrupt, got, oneLine(said))
	}
	return content, got, nil
}

func (r *registryBlobs) document(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	resp, err := r.get(ctx, "manifests/"+d.Digest.String(), acceptManifests, 0, "manifest "+d.Digest.String())
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func (r *registryBlobs) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	b := &resumer{ctx: ctx, r: r, d: d}
	if err := b.connect(); err != nil {
		return nil, err
	}
	return b, nil
}

// get requests a resource of the repository, starting at byte from. The status of the response is 200 or 206.
func (r *registryBlobs) get(ctx context.Context, path, accept string, from int64, step string) (*http.Response, error) {
	url := r.scheme + "://" + r.host + "/v2/" + r.repo + "/" + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept", accept)
	// Digests are those of the stored bytes; the transport must not decompress them.
	req.Header.Set("Accept-Encoding", "identity")
	want := []int{http.StatusOK}
	if from > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(from, 10)+"-")
		want = append(want, http.StatusPartialContent)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, explain(r.host, step, err)
	}
	if err := checkStatus(resp, want...); err != nil {
		return nil, explain(r.host, step, errors.Join(err, resp.Body.Close()))
	}
	// Decompress a manifest that the server compressed although it was asked not to. Not a blob: its header often only
	// says that the layer itself is compressed.
	if accept == acceptManifests && resp.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(resp.Body)
		if err != nil {
			return nil, explain(r.host, step, errors.Join(fmt.Errorf("gzip: %w: %w", ErrCorrupt, err), resp.Body.Close()))
		}
		resp.Body = unzipped{z, resp.Body}
	}
	return resp, nil
}

// unzipped is a decompressed response body; closing it closes the body.
type unzipped struct {
	io.Reader
	io.Closer
}
