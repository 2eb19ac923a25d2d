package hcstest

import (
	"github.com/stratavm/strata/vmm/hcs"
)

// layer is the state of a scratch layer on the host itself.
type layer struct{ activated, prepared bool }

// Descriptor is a layer descriptor as PrepareLayer gets it.
type Descriptor struct {
	LayerID string
	Flags   uint32
	Path    string
}

// info is the driver information that every layer function gets.
func info() map[string]any { return map[string]any{"flavour": float64(1), "homeDir": ""} }

// layer returns the layer of a path; the service is locked.
func (s *Service) layer(id string) *layer {
	l := s.layers[id]
	if l == nil {
		l = &layer{}
		s.layers[id] = l
	}
	return l
}

// step does one transition of a layer under the name of its function.
func (s *Service) transition(fn, id string, more map[string]any, do func(l *layer) hcs.HRESULT) hcs.HRESULT {
	args := map[string]any{"info": info(), "id": id}
	for k, v := range more {
		args[k] = v
	}
	return s.Record(fn, args, func() (map[string]any, hcs.HRESULT) { return nil, do(s.layer(id)) })
}

// ActivateLayer makes the scratch's volume available.
func (s *Service) ActivateLayer(id string) hcs.HRESULT {
	return s.transition("ActivateLayer", id, nil, func(l *layer) hcs.HRESULT {
		if l.activated {
			return 0x80070020 // sharing violation
		}
		l.activated = true
		return ok
	})
}

// DeactivateLayer is the inverse of ActivateLayer.
func (s *Service) DeactivateLayer(id string) hcs.HRESULT {
	return s.transition("DeactivateLayer", id, nil, func(l *layer) hcs.HRESULT {
		switch {
		case l.prepared:
			return 0x80070020
		case !l.activated:
			return noDevice
		}
		l.activated = false
		return ok
	})
}

// PrepareLayer attaches the layer filter with the parents, top-most first.
func (s *Service) PrepareLayer(id string, parents []Descriptor) hcs.HRESULT {
	list := make([]any, len(parents))
	for i, d := range parents {
		list[i] = map[string]any{"layerId": d.LayerID, "flags": float64(d.Flags), "path": d.Path}
	}
	more := map[string]any{"descriptors": list, "descriptorCount": float64(len(list))}
	return s.transition("PrepareLayer", id, more, func(l *layer) hcs.HRESULT {
		switch {
		case !l.activated:
			return notReady
		case l.prepared:
			return invalidState
		}
		l.prepared = true
		return ok
	})
}

// UnprepareLayer is the inverse of PrepareLayer.
func (s *Service) UnprepareLayer(id string) hcs.HRESULT {
	return s.transition("UnprepareLayer", id, nil, func(l *layer) hcs.HRESULT {
		if !l.prepared {
			return noDevice
		}
		l.prepared = false
		return ok
	})
}

// VolumePath is what GetLayerMountPath answers for a layer.
func VolumePath(id string) string { return `\\?\Volume{` + GUID("mount:"+id) + `}\` }

// GetLayerMountPath answers a length, in UTF-16 units with the terminator, to a query without buffer,
// and the path otherwise.
func (s *Service) GetLayerMountPath(id string, length uint64, buffer bool) (
	needed uint64, path string, hr hcs.HRESULT) {
	args := map[string]any{"info": info(), "id": id, "length": float64(length), "buffer": nil}
	if buffer {
		args["buffer"] = "<buffer>"
	}
	volume := VolumePath(id)
	hr = s.Record("GetLayerMountPath", args, func() (map[string]any, hcs.HRESULT) {
		needed = uint64(len(volume) + 1)
		out := map[string]any{"length": float64(needed)}
		if !s.layer(id).activated {
			needed = 0
			return map[string]any{"length": float64(0)}, ok
		}
		if buffer && length < needed {
			return nil, 0x8007007A // insufficient buffer
		}
		if buffer {
			path = volume
			out["mountPath"] = path
		}
		return out, ok
	})
	return needed, path, hr
}

// NameToGuid returns the identity of a name. The algorithm is this package's own.
func (s *Service) NameToGuid(name string) (guid string, hr hcs.HRESULT) {
	hr = s.Record("NameToGuid", map[string]any{"name": name}, func() (map[string]any, hcs.HRESULT) {
		guid = GUID(name)
		return map[string]any{"guid": guid}, ok
	})
	return guid, hr
}
