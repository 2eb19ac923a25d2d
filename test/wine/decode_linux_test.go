package winetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// pmemController is where the files of VPMEM slots are: QEMU does not unplug persistent memory, so a
// slot is the disk on the LUN of its number.
const pmemController = 1

// unixPath is the path of a file that a program under Wine named.
func unixPath(path string) string {
	path = strings.TrimPrefix(strings.TrimPrefix(path, `\\?\`), `Z:`)
	return strings.ReplaceAll(path, `\`, "/")
}

// modification is a request to change a VM.
type modification struct {
	ResourcePath string
	RequestType  hcsschema.RequestType
	Settings     json.RawMessage
	GuestRequest *struct {
		RequestType  hcsschema.RequestType
		ResourceType hcsschema.ResourceType
		Settings     json.RawMessage
	}
}

var ops = map[hcsschema.RequestType]vmm.Op{
	hcsschema.RequestAdd: vmm.Add, hcsschema.RequestRemove: vmm.Remove, hcsschema.RequestUpdate: vmm.Update,
}

// decodeChange returns the change of a machine that a request asks for. It is empty for what the machine does by
// itself.
func decodeChange(text string) (c vmm.Change, err error) {
	var r modification
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return c, err
	}
	kind := r.RequestType
	if r.ResourcePath != "" {
		if c.Device, err = decodeDevice(r.ResourcePath, r.Settings); err != nil {
			return c, err
		}
	}
	if g := r.GuestRequest; g != nil {
		if c.Device != nil && g.RequestType != kind {
			return c, fmt.Errorf("%s for the host, %s for the guest", kind, g.RequestType)
		}
		kind = g.RequestType
		if c.Mount, err = decodeGuest(g.ResourceType, g.Settings); err != nil {
			return c, err
		}
	}
	op, found := ops[kind]
	if !found {
		return c, fmt.Errorf("request type %q", kind)
	}
	c.Op = op
	return c, nil
}

func decodeDevice(path string, settings json.RawMessage) (vmm.Device, error) {
	var s struct {
		Type     string // of a SCSI attachment
		Path     string
		HostPath string // of a VPMEM device
		ReadOnly bool
	}
	if len(settings) > 0 {
		if err := json.Unmarshal(settings, &s); err != nil {
			return nil, err
		}
	}
	var d vmm.SCSIDisk
	if _, err := fmt.Sscanf(path, "VirtualMachine/Devices/Scsi/%d/Attachments/%d", &d.Controller, &d.LUN); err == nil &&
		d.Controller != pmemController {
		d.Path, d.ReadOnly = unixPath(s.Path), s.ReadOnly
		return d, nil
	}
	if _, err := fmt.Sscanf(path, "VirtualMachine/Devices/VirtualPMem/Devices/%d", &d.LUN); err == nil {
		d.Controller, d.Path, d.ReadOnly = pmemController, unixPath(s.HostPath), true
		return d, nil
	}
	return nil, fmt.Errorf("the machine has no %s", path)
}

// decodeGuest reads the settings of a request to a Linux guest.
func decodeGuest(kind hcsschema.ResourceType, settings json.RawMessage) (vmm.Mount, error) {
	switch kind {
	case hcsschema.ResourceMappedVirtualDisk:
		var s hcsschema.LCOWMappedVirtualDisk
		err := json.Unmarshal(settings, &s)
		return vmm.MappedDisk{MountPath: s.MountPath, Controller: s.Controller, LUN: s.Lun, Partition: s.Partition,
			ReadOnly: s.ReadOnly, Options: s.Options, Filesystem: s.Filesystem, EnsureFilesystem: s.EnsureFilesystem,
			Encrypted: s.Encrypted, BlockDev: s.BlockDev, Verity: decodeVerity(s.VerityInfo)}, err
	case hcsschema.ResourceVPMemDevice:
		var s hcsschema.LCOWMappedVPMemDevice
		err := json.Unmarshal(settings, &s)
		return vmm.MappedDisk{MountPath: s.MountPath, Controller: pmemController, LUN: uint8(s.DeviceNumber),
			ReadOnly: true, Verity: decodeVerity(s.VerityInfo)}, err
	case hcsschema.ResourceCombinedLayers:
		var s hcsschema.LCOWCombinedLayers
		err := json.Unmarshal(settings, &s)
		g := vmm.CombinedLayers{ContainerID: s.ContainerID, RootPath: s.ContainerRootPath, ScratchPath: s.ScratchPath}
		for _, l := range s.Layers {
			g.Layers = append(g.Layers, vmm.GuestLayer{ID: l.Id, Path: l.Path})
		}
		return g, err
	case hcsschema.ResourceSCSIDevice:
		return nil, nil // the QEMU driver has the guest release a disk when it removes it
	}
	return nil, fmt.Errorf("the guest knows no %s", kind)
}

// decodeProcess reads what a process is started with: in the VM, or in a container of it.
func decodeProcess(p hcstest.ProcessParameters) (vmm.ProcessSpec, error) {
	s := vmm.ProcessSpec{Args: p.CommandArgs, Dir: p.WorkingDirectory, User: p.User, Terminal: p.EmulateConsole}
	for k, v := range p.Environment {
		s.Env = append(s.Env, k+"="+v)
	}
	if p.Hosted == nil {
		return s, nil
	}
	var hosted struct {
		OciBundlePath    string
		OciSpecification specs.Spec
	}
	if err := json.Unmarshal(p.Hosted, &hosted); err != nil {
		return s, err
	}
	process := hosted.OciSpecification.Process // of the container's first process
	if p.OciProcess != nil {
		process = &specs.Process{}
		if err := json.Unmarshal(p.OciProcess, process); err != nil {
			return s, err
		}
	}
	if process == nil || hosted.OciSpecification.Root == nil {
		return s, errors.New("the container has no process or no root")
	}
	s.ContainerID, s.Root = path.Base(hosted.OciBundlePath), hosted.OciSpecification.Root.Path
	s.Hostname, s.Args, s.Env, s.Dir = hosted.OciSpecification.Hostname, process.Args, process.Env, process.Cwd
	s.User = process.User.Username
	return s, nil
}

func decodeVerity(i *hcsschema.DeviceVerityInfo) *vmm.Verity {
	if i == nil {
		return nil
	}
	return &vmm.Verity{DataBytes: i.Ext4SizeInBytes, RootDigest: i.RootDigest, Salt: i.Salt, Algorithm: i.Algorithm,
		BlockSize: i.BlockSize, SuperBlock: i.SuperBlock}
}
