package image

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Platform is the platform that an image is built for.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
	OSVersion    string `json:"osVersion,omitempty"`
}

// String returns the platform as OS/ARCH[/VARIANT].
func (p Platform) String() string {
	return v1.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion}.String()
}

// GOOS and GOARCH values, which images use as well.
var (
	systems = strings.Fields("aix android darwin dragonfly freebsd illumos js linux netbsd openbsd plan9 solaris " +
		"wasip1 windows")
	architectures = strings.Fields("386 amd64 arm arm64 loong64 mips mips64 mips64le mipsle ppc64 ppc64le riscv64 " +
		"s390x wasm")
)

// spellings are other names of architectures that containerd accepts.
var spellings = map[string]struct{ architecture, variant string }{
	"i386": {"386", ""}, "x86_64": {"amd64", ""}, "x86-64": {"amd64", ""},
	"aarch64": {"arm64", ""}, "armhf": {"arm", "v7"}, "armel": {"arm", "v6"},
}

// normalize returns the platform in canonical spelling. Unknown values are kept.
func (p Platform) normalize() Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	if p.OS == "macos" {
		p.OS = "darwin"
	}
	if s, ok := spellings[p.Architecture]; ok {
		p.Architecture = s.architecture
		if s.variant != "" {
			p.Variant = s.variant
		}
	}
	if p.Variant != "" && strings.Trim(p.Variant, "0123456789") == "" {
		p.Variant = "v" + p.Variant
	}
	return p
}

func platformOf(p v1.Platform) Platform {
	return Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion}.normalize()
}

// ParsePlatform parses OS/ARCH[/VARIANT], only ARCH (of Linux) or only OS (on this machine's architecture), in any
// spelling that containerd accepts: amd64, x86_64, linux/aarch64, armhf.
func ParsePlatform(s string) (Platform, error) {
	bad := fmt.Errorf("platform %q: give OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64", s)
	text, version, _ := strings.Cut(strings.TrimSpace(s), ":")
	parts := strings.Split(text, "/")
	if len(parts) > 3 || slices.Contains(parts, "") {
		return Platform{}, bad
	}
	if len(parts) > 1 {
		p := Platform{OS: parts[0], Architecture: parts[1], OSVersion: version}
		if len(parts) > 2 {
			p.Variant = parts[2]
		}
		return p.normalize(), nil
	}
	p := Platform{OS: "linux", Architecture: parts[0], OSVersion: version}.normalize()
	if slices.Contains(architectures, p.Architecture) {
		return p, nil
	}
	p = Platform{OS: parts[0], Architecture: runtime.GOARCH, OSVersion: version}.normalize()
	if slices.Contains(systems, p.OS) {
		return p, nil
	}
	return Platform{}, bad
}

// older are the 32-bit architectures whose programs usually run on a 64-bit one.
var older = map[string]string{"amd64": "386", "arm64": "arm"}

// RunsOn reports whether a machine of the architecture can usually run programs of the platform: those of its own
// architecture, of its 32-bit predecessor, and of an unspecified one.
func (p Platform) RunsOn(architecture string) bool {
	a := p.normalize().Architecture
	return a == "" || a == architecture || a == older[architecture]
}

// defaultVariant is the variant of an architecture if none is given.
var defaultVariant = map[string]string{"arm64": "v8", "arm": "v7", "amd64": "v1"}

// closeness is how well an image's platform matches the requested one.
type closeness int

const (
	exactly  closeness = iota
	similar            // for an older machine of the same architecture
	runnable           // for the 32-bit predecessor, if no platform was requested
)

// serves reports whether a platform matches the requested one, at least that closely.
func (f *finder) serves(raw v1.Platform, c closeness) bool {
	p, w := platformOf(raw), f.want
	if p.OS != w.OS || w.OSVersion != "" && !strings.HasPrefix(p.OSVersion, w.OSVersion) {
		return false
	}
	if p.Architecture == "" {
		return c >= similar // the image does not say
	}
	if p.Architecture != w.Architecture {
		return c >= runnable && !f.explicit && p.Architecture == older[w.Architecture]
	}
	normal := func(v string) string {
		if v == "" {
			return defaultVariant[p.Architecture]
		}
		return v
	}
	return normal(p.Variant) == normal(w.Variant) || c >= similar && normal(p.Variant) < normal(w.Variant)
}
