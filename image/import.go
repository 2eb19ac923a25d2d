package image

import (
	"context"
	"fmt"

	"github.com/stratavm/strata/store"
)

// ImportOptions are the optional parts of Import.
type ImportOptions struct {
	Name          string         // in the store; empty: the image's own
	Formats       []store.Format // none: EROFS
	MaxLayerBytes int64          // limit on the unpacked size of each layer; 0: the converter's
	Progress      func(store.Event)
}

// Import puts the image into a store. See store.Import.
func (i *Image) Import(ctx context.Context, st *store.Store, o ImportOptions) (store.Image, error) {
	if err := i.CheckLinux(); err != nil {
		return store.Image{}, err
	}
	if o.Name == "" {
		o.Name = i.Name
	}
	r := store.Request{
		Name: o.Name, Digest: i.Digest, Source: i.Source.String(), Platform: i.Platform.String(), Created: i.Created,
		Manifest: i.Manifest, Config: i.RawConfig, Formats: o.Formats, MaxLayerBytes: o.MaxLayerBytes, Progress: o.Progress,
	}
	for _, l := range i.Layers {
		r.Layers = append(r.Layers, store.Layer{DiffID: l.DiffID, Digest: l.Digest, MediaType: l.MediaType, Size: l.Size, Open: l.Open})
	}
	return st.Import(ctx, r)
}

// ParseConfig reads the part of a configuration document that says how to run the image. An empty
// document, that of a bare root file system, gives an empty Config.
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
