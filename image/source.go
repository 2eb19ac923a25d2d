package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Kind is the kind of an image source.
type Kind string

// The kinds of image sources.
const (
	Registry      Kind = "registry"
	Layout        Kind = "oci"            // an OCI layout, directory or tar
	DockerArchive Kind = "docker-archive" // a tar of "docker save"
	RootFS        Kind = "tar"            // a bare root file system
	File          Kind = "file"           // one of the three above, detected by content
)

// ErrSource says that a string is not a valid image source.
var ErrSource = errors.New("this does not name an image")

// Source names an image: a file by Path, and an image in it by Name; an image in a registry by Name only.
type Source struct {
	Kind Kind
	Path string // absolute
	Name string // a registry reference, or the name of one of several images in a file; may be empty
}

// String returns the source in the syntax of ParseSource.
func (s Source) String() string {
	switch {
	case s.Kind == Registry:
		return "docker://" + s.Name
	case s.Name == "":
		return string(s.Kind) + ":" + s.Path
	}
	return string(s.Kind) + ":" + s.Path + ":" + s.Name
}

// prefixes are the prefixes for the kinds of sources; they are those of skopeo and buildah.
var prefixes = []struct {
	text string
	kind Kind
}{
	{"docker://", Registry},
	{"oci-archive:", Layout},
	{"oci:", Layout},
	{"docker-archive:", DockerArchive},
	{"tar:", RootFS},
	{"file:", File},
}

// fileSuffixes are suffixes that mean a file even if it does not exist.
var fileSuffixes = []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.xz", ".txz", ".tar.bz2", ".tbz2",
	".oci"}

// ParseSource parses an image source:
//
//	debian:12, ghcr.io/org/app@sha256:…, docker://localhost:5000/app   a registry
//	oci:DIR[:TAG], oci-archive:FILE[:TAG]                             an OCI layout
//	docker-archive:FILE[:NAME]                                        what "docker save" writes
//	tar:FILE                                                          a bare root file system
//	FILE or DIR                                                       any of these: the content tells
//
// A path without a prefix must exist, or start with a slash or a dot.
func ParseSource(text string) (Source, error) {
	if text == "" {
		return Source{}, fmt.Errorf("%w: it is empty", ErrSource)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Source{}, fmt.Errorf("%w: %q holds control characters", ErrSource, text)
	}
	for _, p := range prefixes {
		rest, ok := strings.CutPrefix(text, p.text)
		switch {
		case !ok:
			continue
		case p.kind == Registry:
			return registrySource(rest)
		default:
			return fileSource(p.kind, rest)
		}
	}
	for _, scheme := range []string{"http://", "https://"} {
		if strings.HasPrefix(text, scheme) {
			return Source{}, fmt.Errorf("%w: %q: leave out %s; registries on this machine are asked over plain HTTP too",
				ErrSource, text, scheme)
		}
	}
	path, _ := splitName(text)
	if looksLikePath(text) || exists(text) || exists(path) {
		return fileSource(File, text)
	}
	for _, s := range fileSuffixes {
		if strings.HasSuffix(text, s) {
			return Source{}, fmt.Errorf("%w: there is no file %q (an image of that name in a registry: docker://%s)", ErrSource,
				text, text)
		}
	}
	return registrySource(text)
}

func registrySource(text string) (Source, error) {
	ref, err := name.ParseReference(text, name.WeakValidation)
	if err != nil {
		return Source{}, fmt.Errorf("%w: %q is no reference such as debian:12 or localhost:5000/app@sha256:…, and no "+
			"file: %w", ErrSource, text, err)
	}
	return Source{Kind: Registry, Name: canonical(ref)}, nil
}

// canonical returns the full reference, with docker.io as the name of the default registry.
func canonical(ref interface{ Name() string }) string {
	full := ref.Name()
	if rest, ok := strings.CutPrefix(full, name.DefaultRegistry+"/"); ok {
		return "docker.io/" + rest
	}
	return full
}

func fileSource(kind Kind, text string) (Source, error) {
	path, inner := splitName(text)
	if path == "" {
		return Source{}, fmt.Errorf("%w: %q: the path is empty", ErrSource, text)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return Source{}, fmt.Errorf("%w: %q: %w", ErrSource, text, err)
	}
	return Source{Kind: kind, Path: abs, Name: inner}, nil
}

// splitName splits PATH:NAME. The path is the longest one that exists, as names and paths may contain colons; if none
// does, it ends at the first colon, except for that of a Windows drive letter.
func splitName(text string) (path, inner string) {
	if exists(text) {
		return text, ""
	}
	start := 0
	if filepath.IsAbs(text) {
		start = len(filepath.VolumeName(text))
	}
	first := strings.IndexByte(text[start:], ':')
	if first < 0 {
		return text, ""
	}
	first += start
	for i := len(text) - 1; i > first; i-- {
		if text[i] == ':' && exists(text[:i]) {
			return text[:i], text[i+1:]
		}
	}
	return text[:first], text[first+1:]
}

func looksLikePath(text string) bool {
	return strings.HasPrefix(text, "/") || strings.HasPrefix(text, ".") || strings.HasPrefix(text, `\`) ||
		filepath.IsAbs(text)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
