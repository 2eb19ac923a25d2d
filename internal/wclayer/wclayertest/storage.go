package wclayertest

import (
	"encoding/json"
	"strings"

	"github.com/Microsoft/go-winio/pkg/guid"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/wclayer"
)

// parse returns a document as a value, or the text where it is none.
func parse(document string) any {
	var v any
	if json.Unmarshal([]byte(document), &v) != nil {
		return document
	}
	return v
}

// data is the layer data of computestorage.dll.
type data struct {
	SchemaVersion hcsschema.SchemaVersion
	Layers        []hcsschema.Layer
	FilterType    string
}

// attach attaches a filter to a volume. want is the type that the document must name.
func (p *Platform) attach(fn, volume, layerData, want string) wclayer.HRESULT {
	args := map[string]any{"layerPath": volume, "layerData": parse(layerData)}
	return p.record(fn, args, func() (map[string]any, wclayer.HRESULT) {
		var d data
		if json.Unmarshal([]byte(layerData), &d) != nil || len(d.Layers) == 0 || d.FilterType != want ||
			d.SchemaVersion.Major != 2 {
			return nil, 0xC037010D
		}
		if p.filters[key(volume)] != nil {
			return nil, exists
		}
		for _, l := range d.Layers {
			p.filters[key(volume)] = append(p.filters[key(volume)], l.Path)
		}
		return nil, done
	})
}

func (p *Platform) detach(fn, volume string, args map[string]any) wclayer.HRESULT {
	args["layerPath"] = volume
	return p.record(fn, args, func() (map[string]any, wclayer.HRESULT) {
		if p.filters[key(volume)] == nil {
			return nil, notAttached
		}
		delete(p.filters, key(volume))
		return nil, done
	})
}

// HcsAttachLayerStorageFilter implements wclayer.API.
func (p *Platform) HcsAttachLayerStorageFilter(volume, layerData string) wclayer.HRESULT {
	return p.attach("HcsAttachLayerStorageFilter", volume, layerData, "")
}

// HcsDetachLayerStorageFilter implements wclayer.API.
func (p *Platform) HcsDetachLayerStorageFilter(volume string) wclayer.HRESULT {
	return p.detach("HcsDetachLayerStorageFilter", volume, map[string]any{})
}

// HcsAttachOverlayFilter implements wclayer.API.
func (p *Platform) HcsAttachOverlayFilter(volume, layerData string) wclayer.HRESULT {
	return p.attach("HcsAttachOverlayFilter", volume, layerData, string(hcsschema.FilterUnionFS))
}

// HcsDetachOverlayFilter implements wclayer.API.
func (p *Platform) HcsDetachOverlayFilter(volume, layerData string) wclayer.HRESULT {
	return p.detach("HcsDetachOverlayFilter", volume, map[string]any{"layerData": parse(layerData)})
}

// HcsInitializeWritableLayer implements wclayer.API.
func (p *Platform) HcsInitializeWritableLayer(folder, layerData, options string) wclayer.HRESULT {
	args := map[string]any{"writableLayerPath": folder, "layerData": parse(layerData), "options": options}
	return p.record("HcsInitializeWritableLayer", args, func() (map[string]any, wclayer.HRESULT) {
		var d data
		if options != "" || json.Unmarshal([]byte(layerData), &d) != nil || len(d.Layers) == 0 {
			return nil, badParameter
		}
		return nil, done
	})
}

// onDisk records a call that needs an open disk.
func (p *Platform) onDisk(fn string, d wclayer.Disk, do func(*disk) (map[string]any, wclayer.HRESULT)) wclayer.HRESULT {
	return p.record(fn, map[string]any{"handle": "<disk>"}, func() (map[string]any, wclayer.HRESULT) {
		if v := p.disks[d]; v == nil || v.plain && fn != "(close disk)" {
			return nil, badHandle
		}
		return do(p.disks[d])
	})
}

// HcsFormatWritableLayerVhd implements wclayer.API.
func (p *Platform) HcsFormatWritableLayerVhd(d wclayer.Disk) wclayer.HRESULT {
	return p.record("HcsFormatWritableLayerVhd", map[string]any{"handle": "<disk>"},
		func() (map[string]any, wclayer.HRESULT) {
			if v := p.disks[d]; v == nil || v.plain != p.FormatsFiles {
				return nil, badHandle
			}
			return nil, done
		})
}

// HcsGetLayerVhdMountPath implements wclayer.API. As on the real platform the path has no backslash
// at its end.
func (p *Platform) HcsGetLayerVhdMountPath(d wclayer.Disk) (path string, hr wclayer.HRESULT) {
	hr = p.onDisk("HcsGetLayerVhdMountPath", d, func(v *disk) (map[string]any, wclayer.HRESULT) {
		if !v.attached {
			return nil, noDevice
		}
		path = strings.TrimSuffix(MountPath(v.file), `\`)
		return map[string]any{"mountPath": path}, done
	})
	return path, hr
}

// OpenVirtualDisk implements wclayer.API.
func (p *Platform) OpenVirtualDisk(file string) (d wclayer.Disk, hr wclayer.HRESULT) {
	hr = p.record("OpenVirtualDisk", map[string]any{"path": file}, func() (map[string]any, wclayer.HRESULT) {
		p.lastDisk++
		d = p.lastDisk
		p.disks[d] = &disk{file: file}
		return nil, done
	})
	return d, hr
}

// OpenFile implements wclayer.API.
func (p *Platform) OpenFile(file string) (d wclayer.Disk, hr wclayer.HRESULT) {
	hr = p.record("(open file)", map[string]any{"path": file}, func() (map[string]any, wclayer.HRESULT) {
		p.lastDisk++
		d = p.lastDisk
		p.disks[d] = &disk{file: file, plain: true}
		return nil, done
	})
	return d, hr
}

// AttachVirtualDisk implements wclayer.API.
func (p *Platform) AttachVirtualDisk(d wclayer.Disk) wclayer.HRESULT {
	return p.onDisk("AttachVirtualDisk", d, func(v *disk) (map[string]any, wclayer.HRESULT) {
		for _, other := range p.disks {
			if other.attached && key(other.file) == key(v.file) {
				return nil, shared
			}
		}
		v.attached = true
		return nil, done
	})
}

// DetachVirtualDisk implements wclayer.API.
func (p *Platform) DetachVirtualDisk(d wclayer.Disk) wclayer.HRESULT {
	return p.onDisk("DetachVirtualDisk", d, func(v *disk) (map[string]any, wclayer.HRESULT) {
		if !v.attached {
			return nil, noDevice
		}
		v.attached = false
		return nil, done
	})
}

// CloseDisk implements wclayer.API.
func (p *Platform) CloseDisk(d wclayer.Disk) wclayer.HRESULT {
	return p.onDisk("(close disk)", d, func(*disk) (map[string]any, wclayer.HRESULT) {
		delete(p.disks, d)
		return nil, done
	})
}

// VolumeSize implements wclayer.API.
func (p *Platform) VolumeSize(volume string) (partition, fileSystem uint64, hr wclayer.HRESULT) {
	hr = p.record("(volume size)", map[string]any{"volume": volume}, func() (map[string]any, wclayer.HRESULT) {
		file, found := p.diskAt(volume)
		if !found {
			return nil, fileNotFound
		}
		partition, fileSystem = p.sizes[key(file)], defaultSize
		if grown := p.volumes[volume]; grown != 0 {
			fileSystem = grown
		}
		return map[string]any{"partition": partition, "fileSystem": fileSystem}, done
	})
	return partition, fileSystem, hr
}

// diskAt finds the folder of the attached scratch disk behind a volume.
func (p *Platform) diskAt(volume string) (string, bool) {
	for _, d := range p.disks {
		if d.attached && MountPath(d.file) == volume+`\` {
			return strings.TrimSuffix(d.file, `\sandbox.vhdx`), true
		}
	}
	return "", false
}

// ExtendVolume implements wclayer.API.
func (p *Platform) ExtendVolume(volume string, sectors uint64) wclayer.HRESULT {
	args := map[string]any{"volume": volume, "sectors": sectors}
	return p.record("(extend volume)", args, func() (map[string]any, wclayer.HRESULT) {
		file, found := p.diskAt(volume)
		switch {
		case !found:
			return nil, fileNotFound
		case sectors*512 > p.sizes[key(file)]:
			return nil, badParameter
		}
		p.volumes[volume] = sectors * 512
		return nil, done
	})
}

// mount mounts images at a volume.
func (p *Platform) mount(fn string, images []wclayer.CIM, flags uint32, volume guid.GUID,
	digest []byte) wclayer.HRESULT {
	list := make([]map[string]any, len(images))
	for i, c := range images {
		list[i] = map[string]any{"dir": c.Dir, "name": c.Name}
	}
	args := map[string]any{"images": list, "flags": flags, "volume": volume.String()}
	if digest != nil {
		args["digest"] = digest
	}
	return p.record(fn, args, func() (map[string]any, wclayer.HRESULT) {
		if _, taken := p.cims[volume]; taken {
			return nil, exists
		}
		p.cims[volume] = images
		return nil, done
	})
}

// CimMountImage implements wclayer.API.
func (p *Platform) CimMountImage(image wclayer.CIM, flags uint32, volume guid.GUID) wclayer.HRESULT {
	return p.mount("CimMountImage", []wclayer.CIM{image}, flags, volume, nil)
}

// CimMergeMountImage implements wclayer.API.
func (p *Platform) CimMergeMountImage(images []wclayer.CIM, flags uint32, volume guid.GUID) wclayer.HRESULT {
	return p.mount("CimMergeMountImage", images, flags, volume, nil)
}

// CimMountVerifiedImage implements wclayer.API.
func (p *Platform) CimMountVerifiedImage(image wclayer.CIM, flags uint32, volume guid.GUID,
	digest []byte) wclayer.HRESULT {
	return p.mount("CimMountVerifiedImage", []wclayer.CIM{image}, flags, volume, digest)
}

// CimMergeMountVerifiedImage implements wclayer.API.
func (p *Platform) CimMergeMountVerifiedImage(images []wclayer.CIM, flags uint32, volume guid.GUID,
	digest []byte) wclayer.HRESULT {
	return p.mount("CimMergeMountVerifiedImage", images, flags, volume, digest)
}

// CimDismountImage implements wclayer.API.
func (p *Platform) CimDismountImage(volume guid.GUID) wclayer.HRESULT {
	return p.record("CimDismountImage", map[string]any{"volume": volume.String()},
		func() (map[string]any, wclayer.HRESULT) {
			if _, found := p.cims[volume]; !found {
				return nil, notFound
			}
			delete(p.cims, volume)
			return nil, done
		})
}
