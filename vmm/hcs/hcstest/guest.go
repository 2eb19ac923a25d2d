package hcstest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm/hcs"
)

// guestRequest is a guest request as it is read.
type guestRequest struct {
	RequestType  hcsschema.RequestType
	ResourceType hcsschema.ResourceType
	Settings     json.RawMessage
}

// guest is the agent in a VM: what it mounted and combined. It is guarded by the service's lock.
type guest struct {
	y      *system
	old    bool              // a Linux guest of 2021
	mounts map[string]string // by target: the resource path of the device
	roots  map[string]root
	conn   *bridge
}

// root is a combined root and the mounts it needs.
type root struct{ needs []string }

func newGuest(y *system, old bool) *guest {
	return &guest{y: y, old: old, mounts: map[string]string{}, roots: map[string]root{}}
}

// halt forgets everything: the VM has ended.
func (g *guest) halt() {
	clear(g.mounts)
	clear(g.roots)
	clear(g.y.devices)
	if g.conn != nil {
		g.conn.close()
	}
}

func (g *guest) capabilities() string {
	if !g.y.linux() {
		return `{"NamespaceAddRequestSupported":true,"SignalProcessSupported":true}`
	}
	return `{"NamespaceAddRequestSupported":true,"SignalProcessSupported":true,"DumpStacksSupported":true}`
}

// guestSettings are the members of all settings that the guest looks at.
type guestSettings struct {
	MountPath, ContainerPath string
	Controller, Lun          uint8
	DeviceNumber             uint32
	ShareName                string
	ContainerRootPath        string
	ScratchPath              string
	Layers                   []hcsschema.Layer
}

// modify does a request and says what went wrong.
func (g *guest) modify(r guestRequest) (hcs.HRESULT, string) {
	var s guestSettings
	if len(r.Settings) > 0 && json.Unmarshal(r.Settings, &s) != nil {
		return invalidJSON, "settings"
	}
	linux := g.y.linux()
	switch {
	case r.ResourceType == hcsschema.ResourceMappedVirtualDisk:
		target := s.MountPath
		if !linux {
			target = s.ContainerPath
		}
		return g.mount(r.RequestType, target, g.disk(s.Controller, s.Lun))
	case r.ResourceType == hcsschema.ResourceVPMemDevice && linux:
		return g.mount(r.RequestType, s.MountPath, "VirtualMachine/Devices/VirtualPMem/Devices/"+strconv.FormatUint(uint64(s.DeviceNumber), 10))
	case r.ResourceType == hcsschema.ResourceMappedDirectory && linux:
		return g.mount(r.RequestType, s.MountPath, hcsschema.Plan9SharesPath+"#"+s.ShareName)
	case r.ResourceType == hcsschema.ResourceCombinedLayers:
		return g.combine(r.RequestType, s)
	case r.ResourceType == hcsschema.ResourceSCSIDevice && linux && !g.old:
		if target := g.restingOn(g.disk(s.Controller, s.Lun)); target != "" {
			return fail, "the disk is mounted at " + target
		}
		return ok, ""
	case r.ResourceType == hcsschema.ResourceHvSocket && !linux, r.ResourceType == hcsschema.ResourceWCOWBlockCims && !linux:
		return ok, ""
	}
	return fail, fmt.Sprintf("the ResourceType %q is not supported: invalid resource type", r.ResourceType)
}

// disk is the resource path of a disk, however its controller is named.
func (g *guest) disk(controller, lun uint8) string {
	for _, byGUID := range []bool{false, true} {
		path := hcsschema.SCSIPath(hcsschema.Controller(controller, byGUID), lun)
		if _, found := g.y.devices[path]; found || !byGUID && g.y.knows(path) {
			return path
		}
	}
	return hcsschema.SCSIPath(hcsschema.ControllerGUID(controller), lun)
}

func (g *guest) mount(op hcsschema.RequestType, target, device string) (hcs.HRESULT, string) {
	if op == hcsschema.RequestRemove {
		if user := g.user(target); user != "" {
			return fail, target + ": device or resource busy: " + user
		}
		delete(g.mounts, target)
		return ok, ""
	}
	if _, found := g.y.devices[device]; !found {
		return fail, target + ": no such device: " + device
	}
	if target == "" {
		return ok, ""
	}
	if _, taken := g.mounts[target]; taken {
		return fail, target + ": something is mounted there"
	}
	g.mounts[target] = device
	return ok, ""
}

func (g *guest) combine(op hcsschema.RequestType, s guestSettings) (hcs.HRESULT, string) {
	if op == hcsschema.RequestRemove {
		delete(g.roots, s.ContainerRootPath)
		return ok, ""
	}
	if _, taken := g.roots[s.ContainerRootPath]; taken {
		return fail, s.ContainerRootPath + ": combined already"
	}
	var r root
	if g.y.linux() {
		for _, l := range s.Layers {
			if g.mounts[l.Path] == "" {
				return fail, l.Path + ": no layer is mounted there"
			}
			r.needs = append(r.needs, l.Path)
		}
		if s.ScratchPath != "" {
			below := g.below(s.ScratchPath)
			if below == "" {
				return fail, s.ScratchPath + ": no scratch is mounted there"
			}
			r.needs = append(r.needs, below)
		}
	} else {
		if g.mounts[s.ContainerRootPath] == "" {
			return fail, s.ContainerRootPath + ": no scratch volume is mounted there"
		}
		r.needs = append(r.needs, s.ContainerRootPath)
		for _, l := range s.Layers {
			if l.Id == "" {
				return fail, l.Path + ": a layer without identity"
			}
			share := l.Path[strings.LastIndex(l.Path, `\`)+1:]
			if g.y.devices[hcsschema.VSMBSharesPath+"#"+share] == nil {
				return fail, l.Path + ": no such share"
			}
		}
	}
	g.roots[s.ContainerRootPath] = r
	return ok, ""
}

// below gives the mount that a path lies in.
func (g *guest) below(path string) string {
	for target := range g.mounts {
		if path == target || strings.HasPrefix(path, target+"/") {
			return target
		}
	}
	return ""
}

// user names the combined root that needs a mount.
func (g *guest) user(target string) string {
	for path, r := range g.roots {
		for _, n := range r.needs {
			if n == target {
				return path
			}
		}
	}
	return ""
}

// restingOn names a mount of a device.
func (g *guest) restingOn(device string) string {
	for target, d := range g.mounts {
		if d == device {
			return target
		}
	}
	return ""
}
