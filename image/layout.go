package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

var errNoLayout = fmt.Errorf("%w: it is no OCI layout: there is no index.json", ErrUnsupported)

// refNames are the annotations with the names of images in a layout, the fullest name first.
var refNames = []string{"io.containerd.image.name", "org.opencontainers.image.ref.name"}

// layoutBlobs are the blobs of a layout.
type layoutBlobs struct{ files }

func (l layoutBlobs) document(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	return l.blob(ctx, d)
}

func (l layoutBlobs) blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	// A parsed hash contains only letters and digits.
	if d.Digest.Hex == "" {
		return nil, fmt.Errorf("%w: a descriptor has no digest", ErrInvalid)
	}
	rc, size, err := l.open("blobs/" + d.Digest.Algorithm + "/" + d.Digest.Hex)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	if size != d.Size {
		return nil, errors.Join(fmt.Errorf("blob %s: %w: it has %d bytes, announced were %d",
			d.Digest, ErrCorrupt, size, d.Size), rc.Close())
	}
	return rc, nil
}

func openLayout(ctx context.Context, s Source, fs files, o Options) (*Image, error) {
	rc, _, err := fs.open("index.json")
	if errors.Is(err, ErrNotFound) {
		return nil, errNoLayout
	}
	if err != nil {
		return nil, err
	}
	raw, err := readAll(rc, "index.json", v1.Descriptor{}, maxManifest)
	if err != nil {
		return nil, err
	}
	var index v1.IndexManifest
	if err := parseJSON(raw, &index); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	list, ref, err := pickNamed(index.Manifests, s.Name)
	if err != nil {
		return nil, err
	}
	f := newFinder(layoutBlobs{fs}, o.Platform)
	f.unique = true
	d, content, err := f.choose(ctx, list, 0)
	if err != nil {
		return nil, err
	}
	img, err := f.assemble(ctx, s, imageName(s, ref), d, content, o)
	if err != nil {
		return nil, err
	}
	img.ownName = !isFullName(ref)
	return img, nil
}

// pickNamed returns the manifests of a layout with the given name, which may be empty if there is only one image. If
// an image has both annotations, containerd's is the full name and the other the tag.
func pickNamed(list []v1.Descriptor, name string) ([]v1.Descriptor, string, error) {
	var all []named[v1.Descriptor]
	for _, d := range list {
		n := named[v1.Descriptor]{item: d, id: d.Digest.String()}
		for _, key := range refNames {
			if v := d.Annotations[key]; v != "" {
				n.names = append(n.names, v)
			}
		}
		all = append(all, n)
	}
	return pick(all, name, "layout")
}
