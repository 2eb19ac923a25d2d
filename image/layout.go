package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

var errNoLayout = fmt.Errorf("%w: it is no OCI layout: there is no index.json", ErrUnsupported)

// refNames are the annotations that name the images of a layout.
var refNames = []string{"org.opencontainers.image.ref.name", "io.containerd.image.name"}

// layoutBlobs gives the blobs of a layout.
type layoutBlobs struct{ files }

func (l layoutBlobs) document(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	return l.blob(ctx, d)
}

func (l layoutBlobs) blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	// A hash that was parsed holds nothing but letters and digits.
	if d.Digest.Hex == "" {
		return nil, fmt.Errorf("%w: a descriptor has no digest", ErrInvalid)
	}
	rc, size, err := l.open("blobs/" + d.Digest.Algorithm + "/" + d.Digest.Hex)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	if size != d.Size {
		return nil, errors.Join(fmt.Errorf("blob %s: %w: it has %d bytes, announced were %d", d.Digest, ErrCorrupt, size, d.Size), rc.Close())
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
	d, content, err := f.choose(ctx, list, 0)
	if err != nil {
		return nil, err
	}
	return f.assemble(ctx, s, imageName(s, ref), d, content, o)
}

// pickNamed gives the manifests of a layout that have the name, which may be left out when there is
// only one.
func pickNamed(list []v1.Descriptor, name string) ([]v1.Descriptor, string, error) {
	byName := map[string][]v1.Descriptor{}
	var names []string
	for _, d := range list {
		ref := ""
		for _, key := range refNames {
			if v := d.Annotations[key]; v != "" && (ref == "" || v == name) {
				ref = v
			}
		}
		if _, seen := byName[ref]; !seen {
			names = append(names, ref)
		}
		byName[ref] = append(byName[ref], d)
	}
	slices.Sort(names)
	switch {
	case len(list) == 0:
		return nil, "", fmt.Errorf("%w: the layout holds no image", ErrNotFound)
	case byName[name] != nil:
		return byName[name], name, nil
	case name != "":
		return nil, "", fmt.Errorf("%w: the layout holds no image %q; it has: %s", ErrNotFound, name, strings.Join(names, ", "))
	case len(names) > 1:
		return nil, "", fmt.Errorf("%w: name one of them after a colon: %s", ErrAmbiguous, strings.Join(names, ", "))
	}
	return list, names[0], nil
}

// imageName makes a name for an image in a file: its reference if it has one in full, else of the file's
// name and the tag.
func imageName(s Source, ref string) string {
	if strings.ContainsAny(ref, "/:") {
		if src, err := registrySource(ref); err == nil {
			return src.Name
		}
	}
	base := filepath.Base(s.Path)
	for _, suffix := range fileSuffixes {
		if rest, ok := strings.CutSuffix(base, suffix); ok && rest != "" {
			base = rest
			break
		}
	}
	if ref == "" {
		ref = "latest"
	}
	return base + ":" + ref
}
