// Package wclayertest holds the layer functions of a Windows host in memory. It keeps the platform's
// rules: what is attached once, what comes before what, which code a breach gets. Calls are recorded,
// and failed, delayed or held up, by the hcstest.Service it belongs to.
package wclayertest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf16"

	"github.com/Microsoft/go-winio/pkg/guid"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/vmm/hcs"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// Codes that the platform answers with.
const (
	done         wclayer.HRESULT = 0
	fileNotFound wclayer.HRESULT = 0x80070002
	badHandle    wclayer.HRESULT = 0x80070006
	shared       wclayer.HRESULT = 0x80070020
	noDevice     wclayer.HRESULT = 0x80070037
	exists       wclayer.HRESULT = 0x800700B7
	badParameter wclayer.HRESULT = 0x80070057
	notFound     wclayer.HRESULT = 0x80070490
	notAttached  wclayer.HRESULT = 0x801F0015
)

// defaultSize is how large the platform makes scratches.
const defaultSize = 20 << 30

// Platform implements wclayer.API. It may be used concurrently.
type Platform struct {
	// FormatsFiles: formatting wants a file, as builds of Windows up to 17763 do. Set it before the first call.
	FormatsFiles bool

	svc *hcstest.Service

	mu       sync.Mutex
	active   map[string][]string // activated scratches and the parents they were prepared with
	sizes    map[string]uint64   // of scratches, by folder
	volumes  map[string]uint64   // size of the file system, by volume
	filters  map[string][]string // computestorage: folders, by volume
	disks    map[wclayer.Disk]*disk
	lastDisk wclayer.Disk
	cims     map[guid.GUID][]wclayer.CIM
	revoked  []string

	preparing atomic.Int32
	races     atomic.Int32
	damage    []string
}

type disk struct {
	file     string
	attached bool
	plain    bool // opened as a file
}

var _ wclayer.API = (*Platform)(nil)

// New returns a platform with nothing in it, whose calls svc records.
func New(svc *hcstest.Service) *Platform {
	return &Platform{svc: svc, active: map[string][]string{}, sizes: map[string]uint64{}, volumes: map[string]uint64{},
		filters: map[string][]string{}, disks: map[wclayer.Disk]*disk{}, cims: map[guid.GUID][]wclayer.CIM{}}
}

// Service is what records the calls.
func (p *Platform) Service() *hcstest.Service { return p.svc }

// record creates a call of the service with the rules of this package.
func (p *Platform) record(fn string, args map[string]any, do func() (map[string]any, wclayer.HRESULT)) wclayer.HRESULT {
	return wclayer.HRESULT(p.svc.Record(fn, plain(args), func() (map[string]any, hcs.HRESULT) {
		p.mu.Lock()
		defer p.mu.Unlock()
		out, hr := do()
		return plain(out), hcs.HRESULT(hr)
	}))
}

// look runs do with the state locked, without a record.
func (p *Platform) look(do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	do()
}

// plain gives values the types that they have when a trace is read from a file.
func plain(m map[string]any) map[string]any {
	text, err := json.Marshal(m)
	var out map[string]any
	if m == nil || err != nil || json.Unmarshal(text, &out) != nil {
		return nil
	}
	return out
}

// about is the arguments of a function that works on a layer.
func about(id string, more ...any) map[string]any {
	args := map[string]any{"info": map[string]any{"flavour": 1, "homeDir": ""}, "id": id}
	for i := 0; i+1 < len(more); i += 2 {
		args[more[i].(string)] = more[i+1]
	}
	return args
}

func descriptors(parents []wclayer.Descriptor) []map[string]any {
	out := make([]map[string]any, len(parents))
	for i, d := range parents {
		out[i] = map[string]any{"layerId": d.ID.String(), "flags": d.Flags, "path": d.Path}
	}
	return out
}

func key(path string) string { return hostpath.Identity(path) }

func (p *Platform) activated(id string) bool {
	_, is := p.active[key(id)]
	return is
}

// MountPath is the volume path that the platform gives to the scratch in a folder.
func MountPath(id string) string { return hcstest.VolumePath(id) }

// ActivateLayer implements wclayer.API.
func (p *Platform) ActivateLayer(id string) wclayer.HRESULT {
	hr := wclayer.HRESULT(p.svc.ActivateLayer(id))
	if hr == done {
		p.look(func() { p.active[key(id)] = nil })
	}
	return hr
}

// DeactivateLayer implements wclayer.API.
func (p *Platform) DeactivateLayer(id string) wclayer.HRESULT {
	hr := wclayer.HRESULT(p.svc.DeactivateLayer(id))
	if hr == done || hr == noDevice {
		p.look(func() { delete(p.active, key(id)) })
	}
	return hr
}

// PrepareLayer implements wclayer.API. Two of these at the same time are the race of the platform.
func (p *Platform) PrepareLayer(id string, parents []wclayer.Descriptor) wclayer.HRESULT {
	if p.preparing.Add(1) > 1 {
		p.races.Add(1)
	}
	defer p.preparing.Add(-1)
	list := make([]hcstest.Descriptor, len(parents))
	folders := make([]string, len(parents))
	for i, d := range parents {
		list[i] = hcstest.Descriptor{LayerID: d.ID.String(), Flags: d.Flags, Path: d.Path}
		folders[i] = d.Path
	}
	hr := wclayer.HRESULT(p.svc.PrepareLayer(id, list))
	if hr == done {
		p.look(func() { p.active[key(id)] = folders })
	}
	return hr
}

// UnprepareLayer implements wclayer.API.
func (p *Platform) UnprepareLayer(id string) wclayer.HRESULT {
	hr := wclayer.HRESULT(p.svc.UnprepareLayer(id))
	if hr == done {
		p.look(func() { p.active[key(id)] = nil })
	}
	return hr
}

// GetLayerMountPath implements wclayer.API.
func (p *Platform) GetLayerMountPath(id string, buffer []uint16) (uint64, wclayer.HRESULT) {
	length, path, hr := p.svc.GetLayerMountPath(id, uint64(len(buffer)), buffer != nil)
	if buffer != nil {
		copy(buffer, append(utf16.Encode([]rune(path)), 0))
	}
	return length, wclayer.HRESULT(hr)
}

// LayerExists implements wclayer.API.
func (p *Platform) LayerExists(id string) (bool, wclayer.HRESULT) {
	var found bool
	hr := p.record("LayerExists", about(id), func() (map[string]any, wclayer.HRESULT) {
		_, found = p.sizes[key(id)]
		found = found || p.activated(id)
		return map[string]any{"exists": found}, done
	})
	return found, hr
}

// CreateSandboxLayer implements wclayer.API.
func (p *Platform) CreateSandboxLayer(id string, parents []wclayer.Descriptor) wclayer.HRESULT {
	args := about(id, "parent", 0, "descriptors", descriptors(parents), "descriptorCount", len(parents))
	return p.record("CreateSandboxLayer", args, func() (map[string]any, wclayer.HRESULT) {
		if _, twice := p.sizes[key(id)]; twice {
			return nil, exists
		}
		p.sizes[key(id)] = defaultSize
		return nil, done
	})
}

// ExpandSandboxSize implements wclayer.API. The file system does not grow with the disk.
func (p *Platform) ExpandSandboxSize(id string, size uint64) wclayer.HRESULT {
	return p.record("ExpandSandboxSize", about(id, "size", size), func() (map[string]any, wclayer.HRESULT) {
		have, found := p.sizes[key(id)]
		switch {
		case !found:
			return nil, fileNotFound
		case p.activated(id):
			return nil, shared
		case size < have:
			return nil, badParameter
		}
		p.sizes[key(id)] = size
		return nil, done
	})
}

// DestroyLayer implements wclayer.API. As on the real platform nothing is refused: destroying what is
// in use does damage.
func (p *Platform) DestroyLayer(id string) wclayer.HRESULT {
	return p.record("DestroyLayer", about(id), func() (map[string]any, wclayer.HRESULT) {
		uses := func(f string) bool { return key(f) == key(id) }
		for scratch, parents := range p.active {
			if scratch == key(id) || slices.ContainsFunc(parents, uses) {
				p.damage = append(p.damage, fmt.Sprintf("%s was destroyed while %s used it", id, scratch))
			}
		}
		delete(p.sizes, key(id))
		return nil, done
	})
}

// NameToGuid implements wclayer.API with the fixed identities of the conformance traces.
func (p *Platform) NameToGuid(name string) (guid.GUID, wclayer.HRESULT) {
	var g guid.GUID
	hr := p.record("NameToGuid", map[string]any{"name": name}, func() (map[string]any, wclayer.HRESULT) {
		var err error
		if g, err = guid.FromString(hcstest.GUID(name)); err != nil {
			return nil, badParameter
		}
		return map[string]any{"guid": g.String()}, done
	})
	return g, hr
}

// GrantVmAccess implements wclayer.API.
func (p *Platform) GrantVmAccess(vmID, file string) wclayer.HRESULT {
	return wclayer.HRESULT(p.svc.GrantVmAccess(vmID, file))
}

// HcsRevokeVmAccess implements wclayer.API.
func (p *Platform) HcsRevokeVmAccess(vmID, file string) wclayer.HRESULT {
	return p.record("HcsRevokeVmAccess", map[string]any{"vmId": vmID, "filePath": file},
		func() (map[string]any, wclayer.HRESULT) {
			p.revoked = append(p.revoked, vmID+" "+file)
			return nil, done
		})
}

// GrantGroup implements wclayer.API.
func (p *Platform) GrantGroup(path string) wclayer.HRESULT {
	return wclayer.HRESULT(p.svc.GrantGroup(path))
}

// Races counts how often two layers were prepared at the same time.
func (p *Platform) Races() int { return int(p.races.Load()) }

// Damage reports which layers were destroyed while they were in use.
func (p *Platform) Damage() (out []string) {
	p.look(func() { out = slices.Clone(p.damage) })
	return out
}

// Leftovers names what is still attached, open or mounted.
func (p *Platform) Leftovers() (out []string) {
	p.look(func() {
		for id := range p.active {
			out = append(out, "layer "+id)
		}
		for v := range p.filters {
			out = append(out, "filter on "+v)
		}
		for _, d := range p.disks {
			out = append(out, "disk "+d.file)
		}
		for v := range p.cims {
			out = append(out, "image at "+strings.ToLower(v.String()))
		}
	})
	slices.Sort(out)
	return out
}
