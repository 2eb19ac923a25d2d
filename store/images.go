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

// Image is what the store knows of an image.
type Image struct {
	Name     string          `json:"name"`
	Digest   string          `json:"digest"`
	Source   string          `json:"source"`   // where it came from, to import it again
	Platform string          `json:"platform"` // OS/ARCH[/VARIANT]
	Created  time.Time       `json:"created,omitzero"`
	Imported time.Time       `json:"imported,omitzero"`
	Manifest json.RawMessage `json:"manifest,omitempty"`
	Config   json.RawMessage `json:"config,omitempty"`
	Layers   []ImageLayer    `json:"layers"`  // base first
	Formats  []string        `json:"formats"` // that it is kept in
}

// same reports whether all but the time of the import is the same.
func (i Image) same(other Image) bool {
	other.Imported = i.Imported
	a, err := json.Marshal(i)
	b, berr := json.Marshal(other)
	return err == nil && berr == nil && bytes.Equal(a, b)
}

// ImageLayer is a layer of an image in the store, as its record says: a Layer that was imported, and what became of it.
type ImageLayer struct {
	DiffID    string `json:"diffID"`
	Digest    string `json:"digest,omitempty"`
	MediaType string `json:"mediaType,omitempty"`
	Size      int64  `json:"size"` // of the blob; -1: not known
	// Chained are the formats in which the layer is kept for its place in this image alone, because it is another
	// one over other layers.
	Chained []string `json:"chained,omitempty"`
}

// place is a layer in the stack that is mounted.
type place struct {
	layer   int // index in Image.Layers
	diffID  string
	chainID string // of the layer with all below it
	ownID   string // under which the layer is kept if it depends on those below it
}

// stack lists the layers as they are mounted, base first: of a layer that comes twice the lower one is left out.
// All that it has the upper one has too, and overlayfs refuses a directory that comes twice.
//
// The id of a chain is that of the OCI image specification. Where a layer is left out it is one of our own: what
// the others are may depend on it, and their parents do.
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
		if out[k].ownID = out[k].chainID; k == 0 { // which may be the layer's
			out[k].ownID = digestPrefix + hexSum(out[k].chainID+" over nothing")
		}
	}
	return out
}

// chainIDs returns the id of each layer with those below it, base first, as the OCI image specification
// defines it.
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

// object is that of a layer in a format.
func (i Image) object(p place, f Format) object {
	if slices.Contains(i.Layers[p.layer].Chained, f.String()) {
		return layerObject(p.ownID, f)
	}
	return layerObject(p.diffID, f)
}

// objects lists what the image needs of the store.
func (i Image) objects() []object {
	var out []object
	stack := i.stack()
	for _, name := range i.Formats {
		f, err := ParseFormat(name)
		if err != nil {
			continue // of a later version of this program
		}
		for _, p := range stack {
			out = append(out, i.object(p, f), chainObject(p.chainID, f))
		}
	}
	return out
}

// possible lists what the image may need before it is known which of its layers depend on those below.
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

// Folders returns the layer folders of an image in one format, topmost first: what package layers mounts.
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

// Size returns how many bytes the layers of an image have in the store, in all the formats that it is kept in. Layers
// that it shares with other images count in full.
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

// Images lists the images by name. One whose record cannot be read is left out and named in the error,
// which does not keep the others from being listed.
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

// Find returns the image of a name, or of a digest, which may be cut short when it fits one image only.
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

// Remove takes an image out of the list. Its layers stay until GC.
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

// Tag gives an image one name more and returns it under that name, which another image loses that had it. The
// image's Source stays that which it was imported from.
func (s *Store) Tag(ctx context.Context, name, tag string) (img Image, err error) {
	if tag == "" {
		return img, fmt.Errorf("tag image %q: %w: the new name is empty", name, ErrInvalid)
	}
	err = s.with(ctx, true, func() error { // so that its layers are not collected just now
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

// putImage writes the record of an image in one step.
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
