package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// dockerEntry is one image of the manifest.json of a docker archive.
type dockerEntry struct {
	Config       string                    `json:"Config"`
	RepoTags     []string                  `json:"RepoTags"`
	Layers       []string                  `json:"Layers"`
	LayerSources map[string]*v1.Descriptor `json:"LayerSources"`
}

// openDocker opens an image of a docker archive. The archive has no digests of blobs, so that the
// diffIDs alone say whether a layer is right; they and the configuration make the image's digest.
func openDocker(ctx context.Context, s Source, t *tarFiles, o Options) (*Image, error) {
	raw, err := readFile(t, "manifest.json", maxManifest)
	if err != nil {
		return nil, err
	}
	var list []dockerEntry
	if err := parseJSON(raw, &list); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	e, ref, err := pickDocker(list, s.Name)
	if err != nil {
		return nil, err
	}
	conf, err := readFile(t, path.Clean(e.Config), maxConfig)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	cf, err := parseConfig(conf)
	if err != nil {
		return nil, err
	}
	img := &Image{Name: imageName(s, ref), Source: s, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(conf)), closer: t}
	if err := img.describe(cf, conf); err != nil {
		return nil, err
	}
	f := newFinder(nil, o.Platform)
	if p := cf.Platform(); f.explicit && p != nil && !f.matches(*p, false) {
		return nil, fmt.Errorf("%w %s: it is for %s", ErrPlatform, f.want, img.Platform)
	}
	if len(e.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: %d layers, at most %d are accepted", ErrTooLarge, len(e.Layers), maxLayers)
	}
	if len(e.Layers) != len(cf.RootFS.DiffIDs) {
		return nil, fmt.Errorf("%w: manifest.json has %d layers, the configuration %d", ErrInvalid, len(e.Layers), len(cf.RootFS.DiffIDs))
	}
	for i, name := range e.Layers {
		l := Layer{DiffID: cf.RootFS.DiffIDs[i].String(), Size: -1, limit: o.MaxLayerBytes}
		if src := e.LayerSources[l.DiffID]; src != nil && !src.MediaType.IsDistributable() {
			l.refusal = refuseLayer(src.MediaType, src.Digest.String())
		}
		rc, size, err := t.open(path.Clean(name))
		switch {
		case err == nil:
			l.Size = size
			err = rc.Close()
		case l.refusal != nil:
			err = nil // a foreign layer need not be there
		}
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		l.raw = func(context.Context) (io.ReadCloser, error) {
			rc, _, err := t.open(path.Clean(name))
			return rc, err
		}
		img.Layers = append(img.Layers, l)
	}
	return img, img.refuse()
}

func readFile(t *tarFiles, name string, limit int64) ([]byte, error) {
	rc, _, err := t.open(name)
	if err != nil {
		return nil, err
	}
	return readAll(rc, name, v1.Descriptor{}, limit)
}

// pickDocker finds the image by one of its names.
func pickDocker(list []dockerEntry, want string) (dockerEntry, string, error) {
	var names []string
	for _, e := range list {
		for _, tag := range e.RepoTags {
			if tag == want || want != "" && sameReference(tag, want) {
				return e, tag, nil
			}
		}
		names = append(names, e.RepoTags...)
	}
	slices.Sort(names)
	switch {
	case len(list) == 0:
		return dockerEntry{}, "", fmt.Errorf("%w: the archive holds no image", ErrNotFound)
	case want != "":
		return dockerEntry{}, "", fmt.Errorf("%w: the archive holds no image %q; it has: %s", ErrNotFound, want, strings.Join(names, ", "))
	case len(list) > 1:
		return dockerEntry{}, "", fmt.Errorf("%w: name one of them after a colon: %s", ErrAmbiguous, strings.Join(names, ", "))
	case len(list[0].RepoTags) > 0:
		return list[0], list[0].RepoTags[0], nil
	}
	return list[0], "", nil
}

func sameReference(a, b string) bool {
	x, errX := registrySource(a)
	y, errY := registrySource(b)
	return errX == nil && errY == nil && x == y
}

// openRootFS makes an image of a bare tar. The tar is read once here, for its diffID: that is what the
// layer is kept under, and a tar that was imported before need not be converted again.
func openRootFS(ctx context.Context, s Source, f *os.File, o Options) (*Image, error) {
	if s.Name != "" {
		return nil, fmt.Errorf("%w: %s is a bare root file system and holds no image %q", ErrNotFound, s.Path, s.Name)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	l := Layer{Size: st.Size(), limit: o.MaxLayerBytes, raw: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(f, 0, st.Size())), nil
	}}
	r, err := l.Open(ctx, nil)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	_, err = io.Copy(sum, &ctxReader{ctx, r})
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	l.DiffID = fmt.Sprintf("sha256:%x", sum.Sum(nil))
	return &Image{Name: imageName(s, ""), Source: s, Digest: l.DiffID, Created: st.ModTime().UTC().Truncate(time.Second),
		Platform: Platform{OS: "linux"}, Layers: []Layer{l}, closer: f}, nil
}
