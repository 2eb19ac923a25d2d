package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// dockerEntry is one image in the manifest.json of a docker archive.
type dockerEntry struct {
	Config       string                    `json:"Config"`
	RepoTags     []string                  `json:"RepoTags"`
	Layers       []string                  `json:"Layers"`
	LayerSources map[string]*v1.Descriptor `json:"LayerSources"`
}

// openDocker opens an image of a docker archive. The archive has no digests of blobs, so only the diffIDs verify the
// layers; the image's digest is that of its configuration, which has them.
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
	conf, err := readFile(t, inArchive(e.Config), maxConfig)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	cf, err := parseConfig(conf)
	if err != nil {
		return nil, err
	}
	img := &Image{Name: imageName(s, ref), Source: s, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(conf)),
		closer: t, ownName: !isFullName(ref)}
	if err := img.describe(cf, conf); err != nil {
		return nil, err
	}
	f := newFinder(nil, o.Platform)
	if p := cf.Platform(); f.explicit && p != nil && !f.serves(*p, runnable) {
		return nil, fmt.Errorf("%w %s: it is for %s", ErrPlatform, f.want, img.Platform)
	}
	if len(e.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: %d layers, at most %d are accepted", ErrTooLarge, len(e.Layers), maxLayers)
	}
	if len(e.Layers) != len(cf.RootFS.DiffIDs) {
		return nil, fmt.Errorf("%w: manifest.json has %d layers, the configuration %d",
			ErrInvalid, len(e.Layers), len(cf.RootFS.DiffIDs))
	}
	for i, name := range e.Layers {
		l := Layer{DiffID: cf.RootFS.DiffIDs[i].String(), Size: -1, limit: o.MaxLayerBytes}
		rc, size, err := t.open(inArchive(name))
		if err == nil {
			l.Size = size
			err = rc.Close()
		} else if src := e.LayerSources[l.DiffID]; src != nil && isForeign(src.MediaType) {
			l.refusal, err = missingForeign(src.MediaType, src.Digest.String(), err), nil
		}
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		l.raw = func(context.Context) (io.ReadCloser, error) {
			rc, _, err := t.open(inArchive(name))
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

// pickDocker finds the image with the given name.
func pickDocker(list []dockerEntry, want string) (dockerEntry, string, error) {
	var all []named[dockerEntry]
	for _, e := range list {
		all = append(all, named[dockerEntry]{item: e, id: inArchive(e.Config), names: e.RepoTags})
	}
	found, name, err := pick(all, want, "archive")
	if err != nil {
		return dockerEntry{}, "", err
	}
	for _, e := range found {
		if e.Config != found[0].Config {
			return dockerEntry{}, "", fmt.Errorf("%w: several have the name %s", ErrAmbiguous, oneLine(name))
		}
	}
	return found[0], name, nil
}

// openRootFS returns an image for a bare tar. It reads the tar once to compute its diffID, under which the layer is
// stored: a tar that was imported before need not be converted again. On the way it checks what the tar contains.
func openRootFS(ctx context.Context, s Source, f *os.File, o Options) (*Image, error) {
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
	content := io.TeeReader(&ctxReader{ctx, r}, sum)
	list, err := scan(ctx, content)
	if err == nil {
		_, err = io.Copy(io.Discard, content)
	}
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	if s.Kind != RootFS {
		if err := list.checkRoot(s, o); err != nil {
			return nil, err
		}
	}
	if s.Name != "" {
		return nil, fmt.Errorf("%w: %s is a bare root file system and holds no image %q", ErrNotFound, s.Path, s.Name)
	}
	l.DiffID = fmt.Sprintf("sha256:%x", sum.Sum(nil))
	return &Image{Name: imageName(s, ""), Source: s, Digest: l.DiffID, Created: st.ModTime().UTC().Truncate(time.Second),
		Platform: Platform{OS: "linux"}, Layers: []Layer{l}, closer: f, ownName: true}, nil
}

// checkRoot refuses what is probably not a root file system.
func (l *listing) checkRoot(s Source, o Options) error {
	switch {
	case l.isArchive():
		return errIsArchive
	case l.root || o.AnyRoot:
		return nil
	case l.broken != nil:
		return fmt.Errorf("%s: %w: %w", s.Path, ErrCorrupt, l.broken)
	}
	return fmt.Errorf("%w: %s has none of /bin, /etc, /usr, /lib and the like, and it holds no image; if it is meant "+
		"as one: tar:%s",
		ErrNotRoot, s.Path, s.Path)
}
