package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// ErrDenied: the registry wants (other) credentials.
var ErrDenied = errors.New("the registry denies access")

// acceptManifests is what we understand, as a request says it.
var acceptManifests = strings.Join([]string{
	string(types.OCIImageIndex), string(types.DockerManifestList), string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
}, ", ")

// acceptBlobs is what a request for a blob accepts. It stays with a request that is sent elsewhere, and
// tells what is streamed.
const acceptBlobs = "application/octet-stream, */*"

// registryBlobs gives the blobs of one repository.
type registryBlobs struct {
	repo   name.Repository
	scheme string
	client *http.Client
	idle   func() // closes idle connections
	o      Options
}

func openRegistry(ctx context.Context, s Source, o Options) (*Image, error) {
	opts := []name.Option{name.WeakValidation}
	if o.PlainHTTP {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(s.Name, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSource, err)
	}
	b, err := connect(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	img, err := b.find(ctx, s, ref)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return img, nil
}

// connect asks the registry which authentication it wants and does it.
func connect(ctx context.Context, ref name.Reference, o Options) (*registryBlobs, error) {
	reg := ref.Context().Registry
	auth, err := authn.Resolve(ctx, o.Keychain, ref.Context())
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", reg, err)
	}
	inner, idle := o.Transport, func() {}
	if inner == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		inner, idle = t, t.CloseIdleConnections
	}
	rt, err := transport.NewWithContext(ctx, reg, auth, &retrier{inner: inner, o: o}, []string{ref.Scope(transport.PullScope)})
	if err != nil {
		idle()
		return nil, explain(reg.Name(), "authentication", err)
	}
	// The transport puts in the scheme that the registry answered to.
	return &registryBlobs{repo: ref.Context(), scheme: reg.Scheme(), client: &http.Client{Transport: rt}, idle: idle, o: o}, nil
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

// manifest reads what a tag or a digest names. Its digest is computed here; d says what it must be, if
// that is known.
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
	got, _, err := v1.SHA256(strings.NewReader(string(content)))
	if err != nil {
		return nil, v1.Hash{}, err
	}
	if said := resp.Header.Get("Docker-Content-Digest"); strings.HasPrefix(said, "sha256:") && said != got.String() {
		return nil, v1.Hash{}, fmt.Errorf("manifest %s: %w: its digest is %s, announced was %s", id, ErrCorrupt, got, said)
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

// get asks for a part of the repository, from a byte on. Its answer's status is 200 or 206.
func (r *registryBlobs) get(ctx context.Context, path, accept string, from int64, what string) (*http.Response, error) {
	url := r.scheme + "://" + r.repo.RegistryStr() + "/v2/" + r.repo.RepositoryStr() + "/" + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	// Digests are of the bytes that are stored; the transport must not unpack them on the way.
	req.Header.Set("Accept-Encoding", "identity")
	want := []int{http.StatusOK}
	if from > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(from, 10)+"-")
		want = append(want, http.StatusPartialContent)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, explain(r.repo.RegistryStr(), what, err)
	}
	if err := transport.CheckError(resp, want...); err != nil {
		return nil, errors.Join(explain(r.repo.RegistryStr(), what, err), resp.Body.Close())
	}
	return resp, nil
}

// explain says what an answer of the registry means.
func explain(registry, what string, err error) error {
	te, ok := errors.AsType[*transport.Error](err)
	if !ok {
		return fmt.Errorf("registry %s: %s: %w", registry, what, err)
	}
	switch te.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("registry %s: %s: %w: %w", registry, what, ErrNotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("registry %s: %s: %w (is the name right? if the repository is private: docker login %s): %w", registry, what, ErrDenied, registry, err)
	case http.StatusTooManyRequests:
		return fmt.Errorf("registry %s: %s: too many requests; wait, or log in for a higher limit: %w", registry, what, err)
	}
	return fmt.Errorf("registry %s: %s: %w", registry, what, err)
}
