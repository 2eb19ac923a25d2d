package wclayer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/hostpath"
)

// layerData is the JSON document of computestorage.dll with the layers of a volume, topmost first.
type layerData struct {
	SchemaVersion hcsschema.SchemaVersion
	Layers        []hcsschema.Layer              `json:",omitempty"`
	FilterType    hcsschema.FileSystemFilterType `json:",omitempty"`
}

func (d layerData) document() (string, error) {
	d.SchemaVersion = hcsschema.V21
	b, err := json.Marshal(d)
	return string(b), err
}

// parentsDocument returns the layer data with parents.
func (s *System) parentsDocument(parents []string) (string, error) {
	desc, err := s.descriptors(parents)
	if err != nil {
		return "", err
	}
	var d layerData
	for _, p := range desc {
		d.Layers = append(d.Layers, hcsschema.Layer{Id: p.ID.String(), Path: p.Path})
	}
	return d.document()
}

// AttachFilter implements [Host].
func (s *System) AttachFilter(ctx context.Context, volume string, parents []string) error {
	if err := errors.Join(checkPath("volume", volume), checkParents(parents)); err != nil {
		return err
	}
	const op = "HcsAttachLayerStorageFilter"
	return s.run(ctx, call{
		op: op, path: volume,
		do: func(context.Context) error {
			doc, err := s.parentsDocument(parents)
			if err != nil {
				return err
			}
			return s.holding(volume, parents, func() error {
				return result(op, volume, s.api.HcsAttachLayerStorageFilter(volume, doc))
			})
		},
		undo: func() error { return s.detachFilter(volume) },
	})
}

// holding records the use of folders by a volume and calls attach. On error it removes the record.
func (s *System) holding(volume string, folders []string, attach func() error) error {
	if err := s.uses.hold(volume, folders...); err != nil {
		return err
	}
	if err := attach(); err != nil {
		return errors.Join(err, s.uses.drop(volume))
	}
	return nil
}

// DetachFilter implements [Host].
func (s *System) DetachFilter(ctx context.Context, volume string) error {
	if err := checkPath("volume", volume); err != nil {
		return err
	}
	return s.run(ctx, call{op: "HcsDetachLayerStorageFilter", path: volume,
		do: func(context.Context) error { return s.detachFilter(volume) }})
}

func (s *System) detachFilter(volume string) error {
	hr := s.api.HcsDetachLayerStorageFilter(volume)
	if err := s.tolerate(result("HcsDetachLayerStorageFilter", volume, hr), ErrNotAttached, ErrNoDevice); err != nil {
		return err
	}
	return s.uses.drop(volume)
}

// AttachOverlay implements [Host].
func (s *System) AttachOverlay(ctx context.Context, volume string, layers []OverlayLayer) error {
	if err := checkPath("volume", volume); err != nil {
		return err
	}
	if len(layers) == 0 {
		return fmt.Errorf("%w: overlay on %s: no layers", ErrInvalid, volume)
	}
	d := layerData{FilterType: hcsschema.FilterUnionFS}
	folders := make([]string, len(layers))
	for i, l := range layers {
		if err := checkPath("overlay layer", l.Path); err != nil {
			return err
		}
		folders[i] = l.Path
		d.Layers = append(d.Layers, hcsschema.Layer{Id: l.ID.String(), Path: l.Path})
	}
	doc, err := d.document()
	if err != nil {
		return err
	}
	const op = "HcsAttachOverlayFilter"
	return s.run(ctx, call{
		op: op, path: volume,
		do: func(context.Context) error {
			return s.holding(volume, folders, func() error {
				return result(op, volume, s.api.HcsAttachOverlayFilter(volume, doc))
			})
		},
		undo: func() error { return s.detachOverlay(volume) },
	})
}

// DetachOverlay implements [Host].
func (s *System) DetachOverlay(ctx context.Context, volume string) error {
	if err := checkPath("volume", volume); err != nil {
		return err
	}
	return s.run(ctx, call{op: "HcsDetachOverlayFilter", path: volume,
		do: func(context.Context) error { return s.detachOverlay(volume) }})
}

func (s *System) detachOverlay(volume string) error {
	doc, err := layerData{FilterType: hcsschema.FilterUnionFS}.document()
	if err != nil {
		return err
	}
	hr := s.api.HcsDetachOverlayFilter(volume, doc)
	if err := s.tolerate(result("HcsDetachOverlayFilter", volume, hr), ErrNotAttached, ErrNoDevice); err != nil {
		return err
	}
	return s.uses.drop(volume)
}

// InitializeWritable implements [Host].
func (s *System) InitializeWritable(ctx context.Context, folder string, parents []string) error {
	if err := errors.Join(checkPath("writable layer", folder), checkParents(parents)); err != nil {
		return err
	}
	const op = "HcsInitializeWritableLayer"
	return s.run(ctx, call{op: op, path: folder, do: func(context.Context) error {
		doc, err := s.parentsDocument(parents)
		if err != nil {
			return err
		}
		return result(op, folder, s.api.HcsInitializeWritableLayer(folder, doc, ""))
	}})
}

// buildFormatsFiles is the last build of Windows in which formatting takes a file handle instead of a disk handle.
const buildFormatsFiles = 17763

// FormatVHD implements [Host].
func (s *System) FormatVHD(ctx context.Context, file string) error {
	if err := checkPath("disk file", file); err != nil {
		return err
	}
	const op = "HcsFormatWritableLayerVhd"
	return s.run(ctx, call{op: op, path: file, do: func(context.Context) (err error) {
		how, open := "OpenVirtualDisk", s.api.OpenVirtualDisk
		if s.build != 0 && s.build <= buildFormatsFiles {
			how, open = "open", s.api.OpenFile
		}
		disk, hr := open(file)
		if err := result(how, file, hr); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, result("close disk", file, s.api.CloseDisk(disk))) }()
		return result(op, file, s.api.HcsFormatWritableLayerVhd(disk))
	}})
}

// VHDMountPath implements [Host].
func (s *System) VHDMountPath(ctx context.Context, file string) (string, error) {
	if err := checkPath("disk file", file); err != nil {
		return "", err
	}
	answer := make(chan string, 1)
	err := s.run(ctx, call{
		op: "HcsGetLayerVhdMountPath", path: file,
		do: func(context.Context) error {
			if _, twice := s.disk(file); twice {
				return fmt.Errorf("%w: disk %s is attached already", ErrInvalid, file)
			}
			disk, volume, err := s.attachVHD(file)
			if err != nil {
				return err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.disks[hostpath.Identity(file)] = disk
			answer <- volume
			return nil
		},
		undo: func() error { return s.dropVHD(file) },
	})
	if err != nil {
		return "", err
	}
	return <-answer, nil
}

// DetachVHD implements [Host].
func (s *System) DetachVHD(ctx context.Context, file string) error {
	if err := checkPath("disk file", file); err != nil {
		return err
	}
	return s.run(ctx, call{op: "DetachVirtualDisk", path: file,
		do: func(context.Context) error { return s.dropVHD(file) }})
}

func (s *System) disk(file string) (Disk, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.disks[hostpath.Identity(file)]
	return d, ok
}

// dropVHD detaches a disk. If that fails the disk stays registered, so that it can be retried.
func (s *System) dropVHD(file string) error {
	disk, ok := s.disk(file)
	if !ok {
		return nil
	}
	if err := result("DetachVirtualDisk", file, s.api.DetachVirtualDisk(disk)); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.disks, hostpath.Identity(file))
	s.mu.Unlock()
	return result("close disk", file, s.api.CloseDisk(disk))
}

// attachVHD opens and attaches a disk file and finds its volume.
func (s *System) attachVHD(file string) (Disk, string, error) {
	disk, hr := s.api.OpenVirtualDisk(file)
	if err := result("OpenVirtualDisk", file, hr); err != nil {
		return 0, "", err
	}
	if err := result("AttachVirtualDisk", file, s.api.AttachVirtualDisk(disk)); err != nil {
		return 0, "", errors.Join(err, result("close disk", file, s.api.CloseDisk(disk)))
	}
	volume, hr := s.api.HcsGetLayerVhdMountPath(disk)
	err := result("HcsGetLayerVhdMountPath", file, hr)
	if err == nil {
		err = checkPath("volume of "+file, volume)
	}
	if err != nil {
		return 0, "", errors.Join(err, s.detachVHD(file, disk))
	}
	return disk, volume, nil
}

func (s *System) detachVHD(file string, disk Disk) error {
	return errors.Join(result("DetachVirtualDisk", file, s.api.DetachVirtualDisk(disk)),
		result("close disk", file, s.api.CloseDisk(disk)))
}
