package standin

import (
	"net"

	"github.com/Microsoft/go-winio/pkg/guid"

	"github.com/stratavm/strata/internal/wclayer"
)

// invalid is E_INVALIDARG.
const invalid = 0x80070057

// function takes its arguments off a message and acts.
type function func(w *world, r *reader) answer

// find returns the function with a name, or nil.
func find(name string) function {
	for _, table := range []map[string]function{layerFunctions, storageFunctions, systemFunctions} {
		if f := table[name]; f != nil {
			return f
		}
	}
	return nil
}

func hr(h wclayer.HRESULT, outs ...any) answer { return answer{hr: uint32(h), outs: outs} }

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// onLayer takes driver information and a layer. The platform knows one driver, without a home.
func onLayer(do func(w *world, id string, r *reader) answer) function {
	return func(w *world, r *reader) answer {
		flavour, home, id := r.number(), r.value(), r.text()
		if flavour != 1 || home != "" || id == "" {
			return hr(invalid)
		}
		return do(w, id, r)
	}
}

func simple(f func(*world) func(string) wclayer.HRESULT) function {
	return onLayer(func(w *world, id string, _ *reader) answer { return hr(f(w)(id)) })
}

func takeGUID(r *reader) guid.GUID {
	var raw [16]byte
	copy(raw[:], r.bytes())
	return guid.FromWindowsArray(raw)
}

// maxEntries bounds arrays in calls.
const maxEntries = 1 << 16

func takeDescriptors(r *reader) []wclayer.Descriptor {
	var out []wclayer.Descriptor
	for n := min(r.number(), maxEntries); n > 0 && r.err == nil; n-- {
		out = append(out, wclayer.Descriptor{ID: takeGUID(r), Flags: uint32(r.number()), Path: r.text()})
	}
	return out
}

var layerFunctions = map[string]function{
	"ActivateLayer":   simple(func(w *world) func(string) wclayer.HRESULT { return w.platform.ActivateLayer }),
	"DeactivateLayer": simple(func(w *world) func(string) wclayer.HRESULT { return w.platform.DeactivateLayer }),
	"UnprepareLayer":  simple(func(w *world) func(string) wclayer.HRESULT { return w.platform.UnprepareLayer }),
	"DestroyLayer":    simple(func(w *world) func(string) wclayer.HRESULT { return w.platform.DestroyLayer }),
	"PrepareLayer": onLayer(func(w *world, id string, r *reader) answer {
		return hr(w.platform.PrepareLayer(id, takeDescriptors(r)))
	}),
	"CreateSandboxLayer": onLayer(func(w *world, id string, r *reader) answer {
		if r.number() != 0 {
			return hr(invalid)
		}
		return hr(w.platform.CreateSandboxLayer(id, takeDescriptors(r)))
	}),
	"GetLayerMountPath": onLayer(func(w *world, id string, r *reader) answer {
		room, buffer := r.number(), []uint16(nil)
		if r.number() != 0 {
			buffer = make([]uint16, min(room, 1<<16))
		}
		n, h := w.platform.GetLayerMountPath(id, buffer)
		return hr(h, n, utf16Text(buffer))
	}),
	"LayerExists": onLayer(func(w *world, id string, _ *reader) answer {
		found, h := w.platform.LayerExists(id)
		return hr(h, bit(found))
	}),
	"ExpandSandboxSize": onLayer(func(w *world, id string, r *reader) answer {
		return hr(w.platform.ExpandSandboxSize(id, r.number()))
	}),
	"NameToGuid": func(w *world, r *reader) answer {
		g, h := w.platform.NameToGuid(r.text())
		raw := g.ToWindowsArray()
		return hr(h, raw[:])
	},
	"GrantVmAccess": func(w *world, r *reader) answer {
		vm := r.text()
		return hr(w.platform.GrantVmAccess(vm, r.text()))
	},
	"HcsRevokeVmAccess": func(w *world, r *reader) answer {
		vm := r.text()
		return hr(w.platform.HcsRevokeVmAccess(vm, r.text()))
	},
}

// diskRef is an open disk.
type diskRef struct {
	disk wclayer.Disk
}

func onDisk(do func(w *world, d wclayer.Disk) answer) function {
	return func(w *world, r *reader) answer {
		handle := r.number()
		w.mu.Lock()
		ref := w.disks[handle] // an unknown one is disk 0, which the platform refuses
		w.mu.Unlock()
		return do(w, ref.disk)
	}
}

func mountImages(mount func(w *world, images []wclayer.CIM, flags uint32, volume guid.GUID,
	digest []byte) wclayer.HRESULT) function {
	return func(w *world, r *reader) answer {
		var images []wclayer.CIM
		for n := min(r.number(), maxEntries); n > 0 && r.err == nil; n-- {
			dir := r.text()
			images = append(images, wclayer.CIM{Dir: dir, Name: r.text()})
		}
		flags, volume := uint32(r.number()), takeGUID(r)
		digest := r.bytes()
		if len(images) == 0 || r.err != nil {
			return hr(invalid)
		}
		return hr(mount(w, images, flags, volume, digest))
	}
}

var storageFunctions = map[string]function{
	"HcsAttachLayerStorageFilter": func(w *world, r *reader) answer {
		path := r.text()
		return hr(w.platform.HcsAttachLayerStorageFilter(path, r.text()))
	},
	"HcsDetachLayerStorageFilter": func(w *world, r *reader) answer {
		return hr(w.platform.HcsDetachLayerStorageFilter(r.text()))
	},
	"HcsAttachOverlayFilter": func(w *world, r *reader) answer {
		path := r.text()
		return hr(w.platform.HcsAttachOverlayFilter(path, r.text()))
	},
	"HcsDetachOverlayFilter": func(w *world, r *reader) answer {
		path := r.text()
		return hr(w.platform.HcsDetachOverlayFilter(path, r.text()))
	},
	"HcsInitializeWritableLayer": func(w *world, r *reader) answer {
		path, data := r.text(), r.text()
		return hr(w.platform.HcsInitializeWritableLayer(path, data, r.text()))
	},
	"HcsFormatWritableLayerVhd": onDisk(func(w *world, d wclayer.Disk) answer {
		return hr(w.platform.HcsFormatWritableLayerVhd(d))
	}),
	"HcsGetLayerVhdMountPath": onDisk(func(w *world, d wclayer.Disk) answer {
		path, h := w.platform.HcsGetLayerVhdMountPath(d)
		return hr(h, path)
	}),
	"AttachVirtualDisk": onDisk(func(w *world, d wclayer.Disk) answer { return hr(w.platform.AttachVirtualDisk(d)) }),
	"DetachVirtualDisk": onDisk(func(w *world, d wclayer.Disk) answer { return hr(w.platform.DetachVirtualDisk(d)) }),
	"OpenVirtualDisk": func(w *world, r *reader) answer {
		file, access, version := r.text(), r.number(), r.number()
		if access != 0 || version != 2 {
			return hr(invalid)
		}
		d, h := w.platform.OpenVirtualDisk(file)
		if h.Failed() {
			return hr(h)
		}
		return answer{then: func(c net.Conn) error { return w.hold(c, d) }}
	},
	"CimMountImage": mountImages(func(w *world, images []wclayer.CIM, flags uint32, volume guid.GUID,
		_ []byte) wclayer.HRESULT {
		return w.platform.CimMountImage(images[0], flags, volume)
	}),
	"CimMergeMountImage": mountImages(func(w *world, images []wclayer.CIM, flags uint32, volume guid.GUID,
		_ []byte) wclayer.HRESULT {
		return w.platform.CimMergeMountImage(images, flags, volume)
	}),
	"CimMountVerifiedImage": mountImages(func(w *world, images []wclayer.CIM, flags uint32, volume guid.GUID,
		digest []byte) wclayer.HRESULT {
		return w.platform.CimMountVerifiedImage(images[0], flags, volume, digest)
	}),
	"CimMergeMountVerifiedImage": mountImages(func(w *world, images []wclayer.CIM, flags uint32, volume guid.GUID,
		digest []byte) wclayer.HRESULT {
		return w.platform.CimMergeMountVerifiedImage(images, flags, volume, digest)
	}),
	"CimDismountImage": func(w *world, r *reader) answer { return hr(w.platform.CimDismountImage(takeGUID(r))) },
}
