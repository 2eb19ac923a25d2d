package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/stratavm/strata/store"
)

// ImportOptions are the options of Import.
type ImportOptions struct {
	Name          string         // name in the store; empty: the image's name
	Formats       []store.Format // none: EROFS
	MaxLayerBytes int64          // limit on the unpacked size of each layer; 0: the converter's limit
	Progress      func(store.Event)
}

// Import imports the image into a store. See store.Import.
func (i *Image) Import(ctx context.Context, st *store.Store, o ImportOptions) (store.Image, error) {
	if err := i.CheckLinux(); err != nil {
		return store.Image{}, err
	}
	if o.Name == "" {
		o.Name = i.freeName(st)
	}
	r := store.Request{
		Name: o.Name, Digest: i.Digest, Source: i.Source.String(), Platform: i.Platform.String(), Created: i.Created,
		Manifest: i.Manifest, Config: i.RawConfig, Formats: o.Formats, MaxLayerBytes: o.MaxLayerBytes, Progress: o.Progress,
	}
	if len(i.Layers) == 0 {
		// An image may have no layers; it is imported with an empty one.
		r.Layers = append(r.Layers, emptyLayer())
	}
	for _, l := range i.Layers {
		r.Layers = append(r.Layers, store.Layer{DiffID: l.DiffID, Digest: l.Digest, MediaType: l.MediaType, Size: l.Size,
			Open: endedOpen(l)})
	}
	return st.Import(ctx, r)
}

// freeName returns a name for the image. If a name derived from the file name is used by an image of another file, it
// is prefixed with more of the path.
func (i *Image) freeName(st *store.Store) string {
	if !i.ownName {
		return i.Name
	}
	for _, name := range append([]string{i.Name}, longerNames(i.Source, i.Name)...) {
		old, err := st.Find(name)
		if err != nil || old.Name != name || old.Digest == i.Digest {
			return name
		}
		src, err := ParseSource(old.Source)
		if err == nil && src.Path == i.Source.Path && src.Name == i.Source.Name {
			return name // the same file, which has changed
		}
	}
	return i.Source.String()
}

// endedOpen returns a function that opens the tar of a layer. A layer of zero bytes becomes an empty tar.
func endedOpen(l Layer) func(context.Context, func(int64)) (io.ReadCloser, error) {
	return func(ctx context.Context, progress func(int64)) (io.ReadCloser, error) {
		rc, err := l.Open(ctx, progress)
		if err != nil {
			return nil, err
		}
		return &ended{ReadCloser: rc}, nil
	}
}

// tarEnd is an empty tar.
var tarEnd = make([]byte, 1024)

// ended is a stream, or tarEnd if the stream is empty.
type ended struct {
	io.ReadCloser
	begun bool
	end   *bytes.Reader
}

func (e *ended) Read(b []byte) (int, error) {
	if e.end != nil {
		return e.end.Read(b)
	}
	n, err := e.ReadCloser.Read(b)
	e.begun = e.begun || n > 0
	if err == io.EOF && !e.begun { // the empty stream has been verified
		e.end = bytes.NewReader(tarEnd)
		return e.end.Read(b)
	}
	return n, err
}

// emptyLayer returns a layer without files.
func emptyLayer() store.Layer {
	return store.Layer{DiffID: fmt.Sprintf("sha256:%x", sha256.Sum256(tarEnd)), Size: int64(len(tarEnd)),
		Open: func(context.Context, func(int64)) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(tarEnd)), nil
		}}
}

// ParseConfig parses the part of a configuration document that says how to run the image. For an empty document, as of
// a bare root file system, it returns an empty Config.
func ParseConfig(raw []byte) (Config, error) {
	if len(raw) == 0 {
		return Config{}, nil
	}
	cf, err := parseConfig(raw)
	if err != nil {
		return Config{}, fmt.Errorf("read the image's configuration: %w", err)
	}
	var i Image
	err = i.describe(cf, raw)
	return i.Config, err
}
