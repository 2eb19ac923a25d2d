package image

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// named is one of several images in a file.
type named[T any] struct {
	item  T
	id    string   // digest or file name
	names []string // all its names, the fullest first
}

// name returns the image's full name, or "": a file may have a single image without a name.
func (n named[T]) name() string {
	if len(n.names) > 0 {
		return n.names[0]
	}
	return ""
}

// pick returns the images with the given name, which may be empty if there is only one, and their full name. The name
// is one in the file, a digest, or another spelling of the same reference: app for docker.io/library/app:latest. If it
// matches images with different names, the error matches ErrAmbiguous.
func pick[T any](list []named[T], want, what string) (found []T, name string, err error) {
	fits := []func(named[T]) bool{
		func(n named[T]) bool { return slices.Contains(n.names, want) || n.id == want },
		func(n named[T]) bool {
			return slices.ContainsFunc(n.names, func(name string) bool { return sameReference(name, want) })
		},
	}
	if want == "" {
		fits = []func(named[T]) bool{func(named[T]) bool { return true }}
	}
	for _, fit := range fits {
		matches := slices.DeleteFunc(slices.Clone(list), func(n named[T]) bool { return !fit(n) })
		if len(matches) == 0 {
			continue
		}
		first := matches[0]
		if slices.ContainsFunc(matches, func(n named[T]) bool { return n.id != first.id && n.name() != first.name() }) {
			return nil, "", fmt.Errorf("%w: name one of them after a colon: %s", ErrAmbiguous, labels(matches))
		}
		for _, n := range matches {
			found = append(found, n.item)
		}
		return found, first.name(), nil
	}
	if len(list) == 0 {
		return nil, "", fmt.Errorf("%w: the %s holds no image", ErrNotFound, what)
	}
	return nil, "", fmt.Errorf("%w: the %s holds no image %q; it has: %s", ErrNotFound, what, want, labels(list))
}

// labels returns the names of images, or the digests of those without a name.
func labels[T any](list []named[T]) string {
	var out []string
	for _, n := range list {
		if n.name() == "" {
			out = append(out, oneLine(n.id))
		} else {
			out = append(out, oneLine(n.name()))
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ", ")
}

func sameReference(a, b string) bool {
	x, errX := registrySource(a)
	y, errY := registrySource(b)
	return errX == nil && errY == nil && x == y
}

// isFullName reports whether ref is a complete reference, not only a tag.
func isFullName(ref string) bool {
	if !strings.ContainsAny(ref, "/:") {
		return false
	}
	_, err := registrySource(ref)
	return err == nil
}

// imageName returns a name for an image in a file: its reference if complete, else the file name and the tag.
func imageName(s Source, ref string) string {
	if isFullName(ref) {
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

// longerNames returns further candidates for the name, prefixed with one folder of the path, with two, and so on.
func longerNames(s Source, name string) []string {
	var out []string
	for dir := filepath.Dir(s.Path); ; dir = filepath.Dir(dir) {
		base := filepath.Base(dir)
		if parent := filepath.Dir(dir); parent == dir {
			return out
		}
		name = base + "/" + name
		out = append(out, name)
	}
}
