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

// DefaultSeccomp returns the profile that docker gives to a container whose bounding set is caps: what a
// capability is for is let through with it. It is built on Linux hosts only; elsewhere the error matches
// errors.ErrUnsupported.
func DefaultSeccomp(caps []string) (*specs.LinuxSeccomp, error) {
	s, err := defaultSeccomp(withCapabilities(caps))
	if err != nil {
		return nil, fmt.Errorf("the default seccomp profile: %w", err)
	}
	return s, nil
}

// ParseSeccomp reads a profile as docker's --security-opt seccomp=FILE takes it, which is that of the
// runtime specification with conditions on capabilities, architectures and kernels, for a container whose bounding
// set is caps. Unknown fields, actions and operators are errors. On other hosts than Linux the error matches
// errors.ErrUnsupported.
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
