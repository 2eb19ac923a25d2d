package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// blobs is the source of an image's parts: a layout or a registry.
type blobs interface {
	// document opens a manifest or an index, blob anything else. The content is not verified yet.
	document(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	io.Closer
}

// readAll reads a document of at most limit bytes and verifies it against its descriptor.
func readAll(rc io.ReadCloser, what string, d v1.Descriptor, limit int64) (b []byte, err error) {
	defer func() { err = errors.Join(err, rc.Close()) }()
	if d.Size > limit {
		return nil, fmt.Errorf("%s %s: %w: it has %d bytes, at most %d are accepted",
			what, d.Digest, ErrTooLarge, d.Size, limit)
	}
	digest := ""
	if d.Digest.Hex != "" {
		digest = d.Digest.String()
	}
	size := d.Size
	if size == 0 {
		size = -1
	}
	c, err := newChecked(rc, what+" "+digest, digest, size)
	if err != nil {
		return nil, err
	}
	c.limit, c.limitErr = limit, fmt.Errorf("%s %s: %w: it has more than %d bytes", what, digest, ErrTooLarge, limit)
	return io.ReadAll(c)
}

// document has the fields that tell the type of a document, as its media type alone is not reliable.
type document struct {
	MediaType types.MediaType   `json:"mediaType"`
	Layers    []json.RawMessage `json:"layers"`
	Manifests []json.RawMessage `json:"manifests"`
	FSLayers  []json.RawMessage `json:"fsLayers"`
}

// classify reports whether b is an index; otherwise it is a manifest.
func classify(b []byte) (index bool, err error) {
	var d document
	if err := parseJSON(b, &d); err != nil {
		return false, err
	}
	switch {
	case d.FSLayers != nil || d.MediaType.IsSchema1():
		return false, fmt.Errorf("%w: its manifest has docker's version 1 of 2015; push it again with a current tool",
			ErrUnsupported)
	case d.Layers != nil && d.Manifests != nil:
		return false, fmt.Errorf("%w: one document claims to be a manifest and an index", ErrInvalid)
	case d.MediaType.IsIndex() || d.Manifests != nil:
		return true, nil
	case d.MediaType.IsImage() || d.Layers != nil:
		return false, nil
	}
	return false, fmt.Errorf("%w: media type %q is neither a manifest nor an index", ErrUnsupported, d.MediaType)
}

// finder resolves indexes to the manifest for a platform.
type finder struct {
	b         blobs
	want      Platform
	explicit  bool // the user gave the platform
	unique    bool // at depth 0, several images for the platform are an error
	documents int
	seen      map[v1.Hash]bool
}

// find resolves d to a manifest. content is the document of d, if already read.
func (f *finder) find(ctx context.Context, d v1.Descriptor, content []byte, depth int) (v1.Descriptor, []byte, error) {
	if depth > maxDepth {
		return d, nil, fmt.Errorf("%w: more than %d indexes inside each other", ErrInvalid, maxDepth)
	}
	if content == nil {
		if f.documents++; f.documents > maxDocuments {
			return d, nil, fmt.Errorf("%w: more than %d indexes", ErrTooLarge, maxDocuments)
		}
		if f.seen[d.Digest] {
			return d, nil, fmt.Errorf("%w: the index %s leads back to itself", ErrInvalid, d.Digest)
		}
		rc, err := f.b.document(ctx, d)
		if err != nil {
			return d, nil, err
		}
		if content, err = readAll(rc, "manifest", d, maxManifest); err != nil {
			return d, nil, err
		}
	}
	f.seen[d.Digest] = true
	index, err := classify(content)
	if err != nil {
		return d, nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	if !index {
		return d, content, nil
	}
	var m v1.IndexManifest
	if err := parseJSON(content, &m); err != nil {
		return d, nil, fmt.Errorf("index %s: %w", d.Digest, err)
	}
	return f.choose(ctx, m.Manifests, depth)
}

// choose returns the manifest for the platform, descending into nested indexes.
func (f *finder) choose(ctx context.Context, list []v1.Descriptor, depth int) (v1.Descriptor, []byte, error) {
	images := slices.DeleteFunc(slices.Clone(list), func(d v1.Descriptor) bool {
		return d.Platform != nil && d.Platform.OS == "unknown" || // buildkit's attestations
			!d.MediaType.IsImage() && !d.MediaType.IsIndex() && d.MediaType != "" || d.ArtifactType != ""
	})
	fitting := f.fitting(images)
	if len(fitting) > 0 {
		if f.unique && depth == 0 {
			if err := oneOf(fitting); err != nil {
				return v1.Descriptor{}, nil, err
			}
		}
		return f.find(ctx, fitting[0], nil, depth+1)
	}
	var plain []v1.Descriptor
	var have []string
	for _, d := range images {
		if d.Platform == nil || d.Platform.OS == "" {
			plain = append(plain, d)
		} else {
			have = append(have, d.Platform.String())
		}
	}
	if len(plain) > 0 {
		return f.choosePlain(ctx, plain, depth)
	}
	if len(have) == 0 {
		return v1.Descriptor{}, nil, fmt.Errorf("%w: the index names no image", ErrNotFound)
	}
	return v1.Descriptor{}, nil, fmt.Errorf("%w %s: there are %s", ErrPlatform, f.want, strings.Join(have, ", "))
}

// fitting returns the images that match the platform best.
func (f *finder) fitting(images []v1.Descriptor) []v1.Descriptor {
	for _, c := range []closeness{exactly, similar, runnable} {
		out := slices.DeleteFunc(slices.Clone(images), func(d v1.Descriptor) bool {
			return d.Platform == nil || !f.serves(*d.Platform, c)
		})
		if len(out) > 0 {
			return out
		}
	}
	return nil
}

// choosePlain chooses among manifests without a platform, by the platform in their configuration.
func (f *finder) choosePlain(ctx context.Context, plain []v1.Descriptor, depth int) (v1.Descriptor, []byte, error) {
	var errs []error
	var found []v1.Descriptor
	var first []byte
	for _, d := range plain {
		if slices.ContainsFunc(found, func(o v1.Descriptor) bool { return o.Digest == d.Digest }) {
			continue
		}
		got, content, err := f.find(ctx, d, nil, depth+1)
		if err == nil && len(plain) == 1 {
			return got, content, nil
		}
		if err == nil {
			err = f.configMatches(ctx, content)
		}
		switch {
		case err != nil:
			errs = append(errs, err)
		case !f.unique || depth > 0:
			return got, content, nil
		default:
			if found = append(found, got); len(found) == 1 {
				first = content
			}
		}
	}
	if len(found) == 0 {
		return v1.Descriptor{}, nil, errors.Join(errs...)
	}
	return found[0], first, oneOf(found)
}

// oneOf returns an error if the descriptors are of different images.
func oneOf(list []v1.Descriptor) error {
	var digests []string
	for _, d := range list {
		digests = append(digests, d.Digest.String())
	}
	slices.Sort(digests)
	if digests = slices.Compact(digests); len(digests) == 1 {
		return nil
	}
	return fmt.Errorf("%w of this name for one platform: give a digest in place of the name: %s",
		ErrAmbiguous, strings.Join(digests, ", "))
}

func (f *finder) configMatches(ctx context.Context, manifest []byte) error {
	var m v1.Manifest
	if err := parseJSON(manifest, &m); err != nil {
		return err
	}
	cf, _, err := readConfig(ctx, f.b, m.Config)
	if err != nil {
		return err
	}
	if p := cf.Platform(); p == nil || !f.serves(*p, runnable) {
		return fmt.Errorf("%w %s: there is %v", ErrPlatform, f.want, p)
	}
	return nil
}

func newFinder(b blobs, want Platform) *finder {
	want = want.normalize()
	f := &finder{b: b, want: want, explicit: want != Platform{}, seen: map[v1.Hash]bool{}}
	if f.want.OS == "" {
		f.want.OS = "linux"
	}
	if f.want.Architecture == "" {
		f.want.Architecture = runtime.GOARCH
	}
	return f
}

func readConfig(ctx context.Context, b blobs, d v1.Descriptor) (*v1.ConfigFile, []byte, error) {
	rc, err := b.blob(ctx, d)
	if err != nil {
		return nil, nil, fmt.Errorf("configuration: %w", err)
	}
	raw, err := readAll(rc, "configuration", d, maxConfig)
	if err != nil {
		return nil, nil, err
	}
	cf, err := parseConfig(raw)
	return cf, raw, err
}

func parseConfig(raw []byte) (*v1.ConfigFile, error) {
	var cf v1.ConfigFile
	if err := parseJSON(raw, &cf); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if t := cf.RootFS.Type; t != "layers" && t != "" {
		return nil, fmt.Errorf("configuration: %w: rootfs type %q", ErrUnsupported, t)
	}
	return &cf, nil
}

// describe sets the fields that come from the configuration.
func (f *finder) assemble(ctx context.Context, s Source, name string, d v1.Descriptor, content []byte,
	o Options) (*Image, error) {
	var m v1.Manifest
	if err := parseJSON(content, &m); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	if err := refuseConfig(m.Config.MediaType); err != nil {
		return nil, err
	}
	cf, raw, err := readConfig(ctx, f.b, m.Config)
	if err != nil {
		return nil, err
	}
	img := &Image{Name: name, Source: s, Digest: d.Digest.String(), Manifest: content, closer: f.b}
	if err := img.describe(cf, raw); err != nil {
		return nil, err
	}
	if p := cf.Platform(); f.explicit && p != nil && !f.serves(*p, runnable) {
		return nil, fmt.Errorf("%w %s: it is for %s", ErrPlatform, f.want, img.Platform)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: %d layers, at most %d are accepted", ErrTooLarge, len(m.Layers), maxLayers)
	}
	if len(m.Layers) != len(cf.RootFS.DiffIDs) {
		return nil, fmt.Errorf("%w: the manifest has %d layers, the configuration %d",
			ErrInvalid, len(m.Layers), len(cf.RootFS.DiffIDs))
	}
	for i, ld := range m.Layers {
		if ld.Size < 0 {
			return nil, fmt.Errorf("%w: layer %s has %d bytes", ErrInvalid, ld.Digest, ld.Size)
		}
		img.Layers = append(img.Layers, Layer{
			MediaType: string(ld.MediaType), Digest: ld.Digest.String(), DiffID: cf.RootFS.DiffIDs[i].String(), Size: ld.Size,
			refusal: refuseLayer(ld.MediaType, ld.Digest.String()),
			raw:     func(ctx context.Context) (io.ReadCloser, error) { return f.layer(ctx, ld) },
			limit:   o.MaxLayerBytes,
		})
	}
	return img, img.refuse()
}

// layer opens the blob of a layer.
func (f *finder) layer(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	rc, err := f.b.blob(ctx, d)
	if errors.Is(err, ErrNotFound) && isForeign(d.MediaType) {
		err = missingForeign(d.MediaType, d.Digest.String(), err)
	}
	return rc, err
}

// describe copies what the configuration says.
func (i *Image) describe(cf *v1.ConfigFile, raw []byte) error {
	i.RawConfig = raw
	i.Created = cf.Created.Time
	i.Platform = Platform{OS: cf.OS, Architecture: cf.Architecture, Variant: cf.Variant,
		OSVersion: cf.OSVersion}.normalize()
	c := cf.Config
	i.Config = Config{Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, WorkingDir: c.WorkingDir, User: c.User,
		Labels: c.Labels, StopSignal: c.StopSignal, Volumes: slices.Sorted(maps.Keys(c.Volumes)),
		Ports: slices.Sorted(maps.Keys(c.ExposedPorts)), Shell: c.Shell}
	if h := c.Healthcheck; h != nil {
		i.Config.Healthcheck = &Healthcheck{Test: h.Test, Interval: h.Interval,
			Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries}
	}
	for _, id := range cf.RootFS.DiffIDs {
		if id.Algorithm != "sha256" {
			return fmt.Errorf("%w: diff id %s: only sha256 is known", ErrUnsupported, id)
		}
	}
	return nil
}

// refuse refuses images with layers that cannot be read. Those of Windows are only described, so that
// their foreign layers are no reason.
func (i *Image) refuse() error {
	if i.Platform.OS == "windows" {
		return nil
	}
	var errs []error
	for _, l := range i.Layers {
		errs = append(errs, l.refusal)
	}
	return errors.Join(errs...)
}
