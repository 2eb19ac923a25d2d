package wclayer

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/Microsoft/go-winio/pkg/guid"

	"github.com/stratavm/strata/internal/hostpath"
)

// Flags of the mount functions of cimfs.dll.
const (
	cimDAX         = 0x2
	cimBlockDevice = 0x10
	cimSingleFile  = 0x20
)

// DigestSize is the length of a root digest.
const DigestSize = 32

var cimKindFlags = map[BlockType]uint32{Forked: 0, BlockDevice: cimBlockDevice, BlockFile: cimSingleFile}

// VolumePath is the path of a volume with a GUID.
func VolumePath(volume guid.GUID) string { return `\\?\Volume{` + volume.String() + `}\` }

// MountCIM implements [Host].
func (s *System) MountCIM(ctx context.Context, volume guid.GUID, m CIMMount) (string, error) {
	images, err := m.images()
	if err != nil {
		return "", err
	}
	path := VolumePath(volume)
	flags := cimKindFlags[m.Kind]
	if m.DAX {
		flags |= cimDAX
	}
	// The function that verifies a digest has another name; the flag for verification is for another function.
	op, mount := "CimMountImage", func() HRESULT { return s.api.CimMountImage(images[0], flags, volume) }
	switch merged, verified := len(images) > 1, m.Digest != nil; {
	case merged && verified:
		op = "CimMergeMountVerifiedImage"
		mount = func() HRESULT { return s.api.CimMergeMountVerifiedImage(images, flags, volume, m.Digest) }
	case merged:
		op, mount = "CimMergeMountImage", func() HRESULT { return s.api.CimMergeMountImage(images, flags, volume) }
	case verified:
		op = "CimMountVerifiedImage"
		mount = func() HRESULT { return s.api.CimMountVerifiedImage(images[0], flags, volume, m.Digest) }
	}
	what := hostpath.Join(images[0].Dir, images[0].Name)
	return path, s.run(ctx, call{
		op: op, path: path,
		do: func(context.Context) error {
			dirs := make([]string, len(images))
			for i, c := range images {
				dirs[i] = c.Dir
			}
			return s.holding(path, dirs, func() error { return result(op, what+" at "+path, mount()) })
		},
		undo: func() error { return s.dismountCIM(volume) },
	})
}

// Check returns an error that matches [ErrInvalid] for a mount that no version of Windows supports.
func (m CIMMount) Check() error {
	_, err := m.images()
	return err
}

// images checks a mount and returns its images in the platform's order: the merged one, then its sources.
func (m CIMMount) images() ([]CIM, error) {
	if _, ok := cimKindFlags[m.Kind]; !ok {
		return nil, fmt.Errorf("%w: image kind %d", ErrInvalid, m.Kind)
	}
	switch {
	case len(m.Sources) == 1:
		return nil, fmt.Errorf("%w: image %s is merged from one source: mount the source itself",
			ErrInvalid, m.Image.Name)
	case len(m.Sources) > 0 && m.Kind == Forked:
		return nil, fmt.Errorf("%w: image %s: only block images can be merged", ErrInvalid, m.Image.Name)
	case m.Digest != nil && m.Kind == Forked:
		return nil, fmt.Errorf("%w: image %s: only block images can be verified", ErrInvalid, m.Image.Name)
	case m.Digest != nil && len(m.Digest) != DigestSize:
		return nil, fmt.Errorf("%w: image %s: a root digest of %d bytes, want %d",
			ErrInvalid, m.Image.Name, len(m.Digest), DigestSize)
	}
	var out []CIM
	for _, c := range append([]CIM{m.Image}, m.Sources...) {
		err := errors.Join(checkPath("image folder", c.Dir), checkText("image name", c.Name))
		if err == nil && (c.Name == "" || strings.ContainsAny(c.Name, `/\`)) {
			err = fmt.Errorf("%w: image name %q in %s: give a plain file name", ErrInvalid, c.Name, c.Dir)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, CIM{Dir: strings.TrimRight(c.Dir, `\/`), Name: c.Name})
	}
	return out, nil
}

// DismountCIM implements [Host].
func (s *System) DismountCIM(ctx context.Context, volume guid.GUID) error {
	return s.run(ctx, call{op: "CimDismountImage", path: VolumePath(volume),
		do: func(context.Context) error { return s.dismountCIM(volume) }})
}

func (s *System) dismountCIM(volume guid.GUID) error {
	path := VolumePath(volume)
	err := s.tolerate(result("CimDismountImage", path, s.api.CimDismountImage(volume)), ErrNotFound, ErrNoDevice)
	if err != nil {
		return err
	}
	return s.uses.drop(path)
}
