package hcstest

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

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
	old    bool                // a Linux guest of 2021
	mounts map[string][]string // by target: the resource paths of the devices
	roots  map[string]root
	conn   *bridge
	s      *Service

	inside     map[string]*container
	namespaces map[string]string // network namespaces: the container that took one
	self       *container        // processes of the VM itself
	pid        uint32
	lost       []string      // see Service.Lost
	halted     chan struct{} // closed when the VM has ended
}

// root is a combined root and the mounts it needs.
type root struct{ needs []string }

func newGuest(s *Service, y *system) *guest {
	return &guest{s: s, y: y, old: s.opts.OldGuest, mounts: map[string][]string{}, roots: map[string]root{},
		inside: map[string]*container{}, namespaces: map[string]string{}, pid: 1000, halted: make(chan struct{}),
		self: &container{id: nullContainer, processes: map[uint32]*guestProcess{}}}
}

// halt forgets everything: the VM has ended.
func (g *guest) halt() {
	clear(g.mounts)
	clear(g.roots)
	clear(g.y.devices)
	g.haltContainers()
	select {
	case <-g.halted:
	default:
		close(g.halted)
	}
	if g.conn != nil {
		g.conn.close()
	}
}

func (g *guest) capabilities() string {
	if !g.y.linux() {
		return `{"NamespaceAddRequestSupported":true,"SignalProcessSupported":true}`
	}
	return `{"NamespaceAddRequestSupported":true,"SignalProcessSupported":true,"DumpStacksSupported":true,` +
		`"DeleteContainerStateSupported":true}`
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
	FilterType               hcsschema.FileSystemFilterType
	BlockCIMs                []hcsschema.BlockCIM
	VolumeGUID               string
	MountFlags               uint32
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
		return g.mount(r.RequestType, s.MountPath, "VirtualMachine/Devices/VirtualPMem/Devices/"+
			strconv.FormatUint(uint64(s.DeviceNumber), 10))
	case r.ResourceType == hcsschema.ResourceMappedDirectory && linux:
		return g.mount(r.RequestType, s.MountPath, hcsschema.Plan9SharesPath+"#"+s.ShareName)
	case r.ResourceType == hcsschema.ResourceCombinedLayers:
		return g.combine(r.RequestType, s)
	case r.ResourceType == hcsschema.ResourceSCSIDevice && linux && !g.old:
		if target := g.restingOn(g.disk(s.Controller, s.Lun)); target != "" {
			return fail, "the disk is mounted at " + target
		}
		return ok, ""
	case r.ResourceType == hcsschema.ResourceWCOWBlockCims && !linux:
		return g.mountCIMs(r.RequestType, s)
	case r.ResourceType == hcsschema.ResourceHvSocket && !linux:
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

func (g *guest) mount(op hcsschema.RequestType, target string, devices ...string) (hcs.HRESULT, string) {
	if op == hcsschema.RequestRemove {
		if user := g.user(target); user != "" {
			return fail, target + ": device or resource busy: " + user
		}
		delete(g.mounts, target)
		return ok, ""
	}
	for _, d := range devices {
		if _, found := g.y.devices[d]; !found {
			return fail, target + ": no such device: " + d
		}
	}
	if target == "" {
		return ok, ""
	}
	if _, taken := g.mounts[target]; taken {
		return fail, target + ": something is mounted there"
	}
	g.mounts[target] = devices
	return ok, ""
}

// blockCIMs is the mount flag of images on block devices.
const blockCIMs = 0x10

// mountCIMs mounts one image, or the one that at least two others were merged to and these.
func (g *guest) mountCIMs(op hcsschema.RequestType, s guestSettings) (hcs.HRESULT, string) {
	volume := cimVolume(s.VolumeGUID)
	var disks []string
	for _, c := range s.BlockCIMs {
		if c.CimName == "" || c.Lun < 0 || c.Lun > 63 {
			return invalidArgument, fmt.Sprintf("%s: image %q on LUN %d", volume, c.CimName, c.Lun)
		}
		disks = append(disks, g.disk(0, uint8(c.Lun)))
	}
	if _, err := uuid.Parse(s.VolumeGUID); err != nil || s.MountFlags != blockCIMs || len(disks) == 0 || len(disks) == 2 {
		return invalidArgument, fmt.Sprintf("%s: %d images, flags %#x", volume, len(disks), s.MountFlags)
	}
	return g.mount(op, volume, disks...)
}

// cimVolume is the root of a volume of images.
func cimVolume(guid string) string { return `\\?\Volume{` + strings.ToLower(guid) + `}\` }

func (g *guest) combine(op hcsschema.RequestType, s guestSettings) (hcs.HRESULT, string) {
	if op == hcsschema.RequestRemove {
		delete(g.roots, s.ContainerRootPath) // what is bound over its folder stays
		return ok, ""
	}
	if _, taken := g.roots[s.ContainerRootPath]; taken {
		return fail, s.ContainerRootPath + ": combined already"
	}
	var r root
	if g.y.linux() {
		for _, l := range s.Layers {
			if g.mounts[l.Path] == nil {
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
			if bundle := path.Dir(s.ContainerRootPath); g.binds(bundle, s.ScratchPath) {
				g.mounts[bundle] = g.mounts[below]
				r.needs = append(r.needs, bundle)
			}
		}
	} else {
		if g.mounts[s.ContainerRootPath] == nil {
			return fail, s.ContainerRootPath + ": no scratch volume is mounted there"
		}
		r.needs = append(r.needs, s.ContainerRootPath)
		for _, l := range s.Layers {
			if l.Id == "" {
				return fail, l.Path + ": a layer without identity"
			}
			volume, filter, found := g.filtered(l.Path)
			switch {
			case !found:
				return fail, l.Path + ": no such share or volume"
			case s.FilterType != filter:
				return invalidJSON, fmt.Sprintf("%s: filter %q, want %q", l.Path, s.FilterType, filter)
			case volume != "":
				r.needs = append(r.needs, volume)
			}
		}
	}
	g.roots[s.ContainerRootPath] = r
	return ok, ""
}

// binds reports whether a folder of the scratch is bound over a container's folder: newer Linux guests do so where the
// scratch is not below it, so that what is written there is on a disk.
func (g *guest) binds(bundle, scratch string) bool {
	return !g.old && scratch != "" && !strings.HasPrefix(scratch+"/", bundle+"/")
}

// filtered finds a layer of a Windows root, and the filter that it is for: the files of a volume of
// images, or a share.
func (g *guest) filtered(path string) (volume string, filter hcsschema.FileSystemFilterType, found bool) {
	i := strings.LastIndex(path, `\`) + 1
	if path[i:] == "Files" && g.mounts[path[:i]] != nil {
		return path[:i], hcsschema.FilterUnionFS, true
	}
	return "", "", g.y.devices[hcsschema.VSMBSharesPath+"#"+path[i:]] != nil
}

// below returns the mount that a path lies in.
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
	for target, devices := range g.mounts {
		if slices.Contains(devices, device) {
			return target
		}
	}
	return ""
}
