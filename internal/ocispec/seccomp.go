package ocispec

import (
	"bytes"
	"fmt"
	"reflect"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// MaxSeccompSize bounds a seccomp profile, in bytes of JSON.
const MaxSeccompSize = 1 << 20

// DefaultSeccomp returns docker's default profile for a container with the bounding set caps, which allows the system
// calls of these capabilities. On hosts other than Linux the error matches errors.ErrUnsupported.
func DefaultSeccomp(caps []string) (*specs.LinuxSeccomp, error) {
	s, err := defaultSeccomp(withCapabilities(caps))
	if err != nil {
		return nil, fmt.Errorf("the default seccomp profile: %w", err)
	}
	return s, nil
}

// ParseSeccomp parses a profile in the format of docker's --security-opt seccomp=FILE: that of the OCI spec, with
// conditions on capabilities, architectures and kernels, for a container with the bounding set caps. Unknown fields,
// actions and operators are errors. On hosts other than Linux the error matches errors.ErrUnsupported.
func ParseSeccomp(profile []byte, caps []string) (*specs.LinuxSeccomp, error) {
	const what = "seccomp profile"
	if len(profile) > MaxSeccompSize {
		return nil, fmt.Errorf("%s: it has %d bytes, and may have %d", what, len(profile), MaxSeccompSize)
	}
	if err := strict(bytes.NewReader(profile), reflect.TypeFor[seccomp.Seccomp]()); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	s, err := loadSeccomp(profile, withCapabilities(caps))
	if err == nil && s == nil {
		err = fmt.Errorf("it has neither a defaultAction nor syscalls")
	}
	if err == nil {
		err = checkSeccomp(s)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return s, nil
}

func withCapabilities(caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
}
