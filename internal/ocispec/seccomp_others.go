//go:build !linux

package ocispec

import (
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// errSeccomp: the library that evaluates profiles needs a Linux kernel.
var errSeccomp = fmt.Errorf("profiles are evaluated on Linux hosts: %w", errors.ErrUnsupported)

func defaultSeccomp(*specs.Spec) (*specs.LinuxSeccomp, error) { return nil, errSeccomp }

func loadSeccomp([]byte, *specs.Spec) (*specs.LinuxSeccomp, error) { return nil, errSeccomp }
