package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/stratavm/strata/internal/atomicfile"
	"github.com/stratavm/strata/internal/regfile"
)

// Image is the record of an image in the store.
type Image struct {
	Name     string          `json:"name"`
	Digest   string          `json:"digest"`
	Source   string          `json:"source"`   // where it was imported from, to import it again
	Platform string          `json:"platform"` // OS/ARCH[/VARIANT]
	Created  time.Time       `json:"created,omitzero"`
	Imported time.Time       `json:"imported,omitzero"`
	Manifest json.RawMessage `json:"manifest,omitempty"`
	Config   json.RawMessage `json:"config,omitempty"`
	Layers   []ImageLayer    `json:"layers"`  // base first
	Formats  []string        `json:"formats"` // formats in which it is stored
}

// same reports whether the images are equal except for the time of the import.
func (i Image) same(other Image) bool {
	other.Imported = i.Imported
	a, err := json.Marshal(i)
	b, berr := json.Marshal(other)
	return err == nil && berr == nil && bytes.Equal(a, b)
}

// ImageLayer is the record of a layer of an image.
type ImageLayer struct {
	DiffID    string `json:"diffID"`
	Digest    string `json:"digest,omitempty"`
	MediaType string `json:"mediaType,omitempty"`
	Size      int64  `json:"size"` // size of the blob in bytes; -1: unknown
	// Chained are the formats in which the layer depends on those below it and is stored for this chain only.
	Chained []string `json:"chained,omitempty"`
}

// place is the position of a layer in the stack of mounted layers.
type place struct {
	layer   int // index in Image.Layers
	diffID  string
	chainID string // id of the chain up to this layer
	ownID   string // id under which the layer is stored if it depends on those below it
}

// stack returns the layers to mount, base first. If a layer occurs twice, the lower one is omitted: the upper one
// hides it completely, and overlayfs refuses duplicate directories.
//
// Chain ids are those of the OCI image specification. If a layer is omitted, the id is our own, as the converted
// layers and their parents may depend on the omitted one.
func (i Image) stack() []place {
	all := make([]string, len(i.Layers))
	for n, l := range i.Layers {
		all[n] = l.DiffID
	}
	whole := chainIDs(all)
	var out []place
	var kept []string
	for n, l := range i.Layers {
		if slices.Contains(all[n+1:], l.DiffID) {
			continue
		}
		kept = append(kept, l.DiffID)
		out = append(out, place{layer: n, diffID: l.DiffID})
	}
	for k, id := range chainIDs(kept) {
		if n := out[k].layer; n == k {
			out[k].chainID = id
		} else {
			out[k].chainID = digestPrefix + hexSum(whole[n]+" mounted as "+id)
		}
		if out[k].ownID = out[k].chainID; k == 0 { // the base's chain id may equal its diff id
			out[k].ownID = digestPrefix + hexSum(out[k].chainID+" over nothing")
		}
	}
	return out
}

// chainIDs returns the chain id of each layer, base first, as defined by the OCI image specification.
func chainIDs(diffIDs []string) []string {
	out := make([]string, len(diffIDs))
	for i, d := range diffIDs {
		out[i] = d
		if i > 0 {
			out[i] = digestPrefix + hexSum(out[i-1]+" "+d)
		}
	}
	return out
}

func hexSum(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// object returns the object of a layer in a format.
func (i Image) object(p place, f Format) object {
	if slices.Contains(i.Layers[p.layer].Chained, f.String()) {
		return layerObject(p.ownID, f)
	}
	return layerObject(p.diffID, f)
}

// objects returns the objects that the image needs.
func (i Image) objects() []object {
	var out []object
	stack := i.stack()
	for _, name := range i.Formats {
		f, err := ParseFormat(name)
		if err != nil {
			continue // written by a later version of this program
		}
		for _, p := range stack {
			out = append(out, i.object(p, f), chainObject(p.chainID, f))
		}
	}
	return out
}

// possible returns objects, and those that the image needs in addition if layers turn out to depend on those below.
func (i Image) possible() []object {
	out := i.objects()
	for _, name := range i.Formats {
		if f, err := ParseFormat(name); err == nil {
			for _, p := range i.stack() {
				out = append(out, layerObject(p.ownID, f))
			}
		}
	}
	return out
}

// Folders returns the layer folders of an image in one format, top layer first, for package layers.
func (s *Store) Folders(img Image, f Format) ([]string, error) {
	if !slices.Contains(img.Formats, f.String()) {
		return nil, fmt.Errorf("image %s: %w in format %s, but in %s; import it again with that format",
			img.Name, ErrNotFound, f, strings.Join(img.Formats, ", "))
	}
	stack := img.stack()
	out := make([]string, 0, len(stack))
	for _, p := range slices.Backward(stack) {
		out = append(out, s.path(string(chainObject(p.chainID, f))))
	}
	return out, nil
}

// Size returns the size in bytes of the layers of an image in all its formats. Layers shared with other images count
// in full.
func (s *Store) Size(img Image) (int64, error) {
	var n int64
	seen := map[object]bool{}
	for _, obj := range img.objects() {
		if seen[obj] || !strings.HasPrefix(string(obj), layersDir) {
			continue
		}
		seen[obj] = true
		rec, err := readRecord(s.path(string(obj)))
		if err != nil {
			return 0, fmt.Errorf("size of image %s: %w", img.Name, err)
		}
		n += rec.Bytes
	}
	return n, nil
}

func (s *Store) imagePath(name string) string { return s.path(imagesDir, hexSum(name)+".json") }

// Images returns the images, sorted by name. If a record cannot be read, the error names it and the other images are
// still returned.
func (s *Store) Images() ([]Image, error) {
	list, err := os.ReadDir(s.path(imagesDir))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var out []Image
	var errs []error
	for _, e := range list {
		img, err := readImage(s.path(imagesDir, e.Name()))
		switch {
		case err == nil:
			out = append(out, img)
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return out, errors.Join(errs...)
}

const maxRecord = 64 << 20

func readImage(path string) (img Image, err error) {
	b, err := regfile.Read(path, maxRecord)
	if errors.Is(err, regfile.ErrTooLarge) || errors.Is(err, regfile.ErrNotRegular) {
		return img, fmt.Errorf("image record: %w: %w", ErrDamaged, err)
	}
	if err != nil {
		return img, err
	}
	if err := json.Unmarshal(b, &img); err != nil {
		return img, fmt.Errorf("image record %s: %w: %w; remove it and import the image again", path, ErrDamaged, err)
	}
	for _, l := range img.Layers {
		if err := checkDigest(l.DiffID); err != nil {
			return img, fmt.Errorf("image record %s: %w: %w", path, ErrDamaged, err)
		}
	}
	return img, nil
}

const shortestDigest = 6

// Find returns the image with the given name, or digest, or unique prefix of a digest of at least six digits.
func (s *Store) Find(ref string) (Image, error) {
	img, err := readImage(s.imagePath(ref))
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return img, err
	}
	hexa := strings.TrimPrefix(ref, digestPrefix)
	var found []Image
	if len(hexa) >= shortestDigest {
		all, err := s.Images()
		if err != nil {
			s.o.Logger.Warn("some images cannot be read", "error", err)
		}
		for _, i := range all {
			if strings.HasPrefix(i.Digest, digestPrefix+hexa) {
				found = append(found, i)
			}
		}
	}
	switch {
	case len(found) == 0:
		return Image{}, fmt.Errorf("image %q: %w", ref, ErrNotFound)
	case len(found) > 1 && slices.ContainsFunc(found, func(i Image) bool { return i.Digest != found[0].Digest }):
		return Image{}, fmt.Errorf("image %q: %w; give more digits", ref, ErrAmbiguous)
	}
	return found[0], nil
}

// Remove removes an image's record. Its layers stay until GC.
func (s *Store) Remove(ctx context.Context, name string) error {
	err := s.with(ctx, true, func() error {
		if err := os.Remove(s.imagePath(name)); err != nil {
			return err
		}
		return atomicfile.SyncDir(s.path(imagesDir))
	})
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove image %q: %w", name, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("remove image %q: %w", name, err)
	}
	return nil
}

// Tag gives an image another name and returns it under that name. An image that had the name loses it. The new image
// has the same Source.
func (s *Store) Tag(ctx context.Context, name, tag string) (img Image, err error) {
	if tag == "" {
		return img, fmt.Errorf("tag image %q: %w: the new name is empty", name, ErrInvalid)
	}
	err = s.with(ctx, true, func() error { // the shared lock keeps its layers from being collected
		if img, err = readImage(s.imagePath(name)); err != nil {
			return err
		}
		img.Name = tag
		return s.putImage(img)
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return Image{}, fmt.Errorf("tag image %q: %w", name, err)
	}
	return img, nil
}

// putImage writes the record of an image atomically.
func (s *Store) putImage(img Image) (err error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", " ")
	if err := enc.Encode(img); err != nil {
		return err
	}
	t, err := s.newTemp()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.remove()) }()
	path := t.dir + "/image.json"
	if err := writeFile(path, b.Bytes()); err != nil {
		return err
	}
	s.step("image")
	if err := commit(path, s.imagePath(img.Name)); err != nil {
		return err
	}
	s.step("image committed")
	return nil
}
