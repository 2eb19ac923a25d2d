package hcs

import (
	"fmt"
	"path"
	"strings"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
)

// encoder encodes Changes as documents of the service, for one VM.
type encoder struct {
	os         vmm.OS
	byGUID     bool // SCSI controllers are named by GUID
	generation GuestGeneration
}

// ejects reports whether the guest unplugs a disk on a separate request.
func (e encoder) ejects() bool { return e.generation != Guest2021 && e.generation != GuestUnplugs }

var requestTypes = map[vmm.Op]hcsschema.RequestType{
	vmm.Add: hcsschema.RequestAdd, vmm.Remove: hcsschema.RequestRemove, vmm.Update: hcsschema.RequestUpdate,
}

// host creates the host's half of a change. With repeat, a removal includes the settings of the addition that it rolls
// back, as hcsshim's does after a guest refused one.
func (e encoder) host(op vmm.Op, d vmm.Device, repeat bool) (hcsschema.ModifySettingRequest, error) {
	r := hcsschema.ModifySettingRequest{RequestType: requestTypes[op]}
	var settings any
	var err error
	switch d := d.(type) {
	case vmm.SCSIDisk:
		r.ResourcePath = hcsschema.SCSIPath(hcsschema.Controller(d.Controller, e.byGUID), d.LUN)
		settings, err = attachment(d)
	case vmm.VPMEMDevice:
		r.ResourcePath = hcsschema.VPMemPath(d.Slot)
		settings = hcsschema.VirtualPMemDevice{HostPath: d.Path, ReadOnly: true,
			ImageFormat: imageFormat(d.Path, string(d.Format))}
	case vmm.VSMBShare:
		r.ResourcePath = hcsschema.VSMBSharesPath
		if op == vmm.Remove {
			r.Settings = hcsschema.VirtualSmbShare{Name: d.Name}
			return r, nil
		}
		settings = hcsschema.VirtualSmbShare{Name: d.Name, Path: d.Path, AllowedFiles: d.AllowedFiles,
			Options: shareOptions(d.Options)}
	case vmm.Plan9Share:
		r.ResourcePath = hcsschema.Plan9SharesPath
		share := hcsschema.Plan9Share{Name: d.Name, AccessName: d.Name, Port: vmm.Plan9Port}
		if op == vmm.Remove {
			r.Settings = share
			return r, nil
		}
		share.Path, share.AllowedFiles, share.Flags = d.Path, d.AllowedFiles, plan9Flags(d)
		settings = share
	default:
		return r, fmt.Errorf("a VM of the Host Compute Service has no %T: %w", d, ErrNotSupported)
	}
	if op != vmm.Remove || repeat {
		r.Settings = settings
	}
	if op == vmm.Remove {
		err = nil // only the address matters
	}
	return r, err
}

func attachment(d vmm.SCSIDisk) (hcsschema.Attachment, error) {
	kind := d.Kind
	if kind == "" {
		kind = vmm.VirtualDisk
	}
	a := hcsschema.Attachment{Type: string(kind), Path: d.Path, ReadOnly: d.ReadOnly,
		ExtensibleVirtualDiskType: d.ExtensibleType}
	switch {
	case d.Extents != nil:
		return a, fmt.Errorf("composite disks: %w", ErrNotSupported)
	case d.Path == "":
		return a, fmt.Errorf("%s: a disk needs a path", d.Addr())
	case kind == vmm.VirtualDisk && d.Format == vmm.FormatRaw:
		return a, fmt.Errorf("%s: Windows attaches .vhd and .vhdx files, not raw images: %w", d.Path, ErrNotSupported)
	case (kind == vmm.ExtensibleVirtualDisk) != (d.ExtensibleType != ""):
		return a, fmt.Errorf("%s: an extensible virtual disk, and only that, has a type", d.Path)
	}
	return a, nil
}

func shareOptions(o vmm.VSMBOptions) *hcsschema.VirtualSmbShareOptions {
	return &hcsschema.VirtualSmbShareOptions{
		ReadOnly: o.ReadOnly, ShareRead: o.ShareRead, CacheIo: o.CacheIo, NoOplocks: o.NoOplocks,
		TakeBackupPrivilege: o.TakeBackupPrivilege, NoDirectmap: o.NoDirectmap,
		PseudoOplocks: o.PseudoOplocks, RestrictFileAccess: o.RestrictFileAccess,
		SingleFileMapping: o.SingleFileMapping,
	}
}

func plan9Flags(d vmm.Plan9Share) int32 {
	flags := hcsschema.Plan9LinuxMetadata
	if d.ReadOnly {
		flags |= hcsschema.Plan9ReadOnly
	}
	if len(d.AllowedFiles) > 0 {
		flags |= hcsschema.Plan9RestrictFileAccess
	}
	return flags
}

// guest creates the guest's half of a change, as the generation of the guest understands it.
func (e encoder) guest(op vmm.Op, g vmm.Mount) (hcsschema.GuestRequest, error) {
	if e.os == vmm.Linux && e.generation == Guest2021 {
		var err error
		if g, err = for2021(op, g); err != nil {
			return hcsschema.GuestRequest{}, err
		}
	}
	return vmm.GuestRequest(op, g, e.os)
}

// for2021 removes settings that a Linux guest of 2021 ignores. If one must not be ignored, it returns an error: the
// guest would mount something else than requested.
func for2021(op vmm.Op, g vmm.Mount) (vmm.Mount, error) {
	refuse := func(what string) error {
		if op == vmm.Remove {
			return nil
		}
		return fmt.Errorf("%s: %s: %w (a guest of 2021)", g, what, ErrNotSupported)
	}
	switch v := g.(type) {
	case vmm.MappedDisk:
		var err error
		switch {
		case v.Partition != 0:
			err = refuse("partitions")
		case v.BlockDev:
			err = refuse("block devices")
		case v.Encrypted:
			err = refuse("encryption")
		case v.Verity != nil:
			err = refuse("dm-verity")
		case v.Controller != 0:
			err = refuse("more than one SCSI controller")
		}
		if err != nil {
			return nil, err
		}
		v.EnsureFilesystem, v.Filesystem, v.Options = false, "", nil
		if op == vmm.Remove {
			v.ReadOnly = false
		}
		return v, nil
	case vmm.MappedPMEM:
		if v.Verity != nil {
			return v, refuse("dm-verity")
		}
		if v.Size != 0 {
			return v, refuse("packed devices")
		}
		return v, nil
	case vmm.CombinedLayers:
		v.ContainerID = ""
		return v, nil
	}
	return g, nil
}

// eject returns the request to a current Linux guest to eject a disk before the host removes it.
func eject(d vmm.SCSIDisk) hcsschema.GuestRequest {
	return hcsschema.GuestRequest{RequestType: hcsschema.RequestRemove, ResourceType: hcsschema.ResourceSCSIDevice,
		Settings: hcsschema.SCSIDevice{Controller: d.Controller, Lun: d.LUN}}
}

// unbind returns the request to a Linux guest after the removal of a root whose scratch is not below the root's folder,
// such as that of a container that shares another's. For such a root the guest has bind-mounted a folder of the scratch
// over the root's folder. It would unmount that only with a container whose document names both folders, and would then
// delete them with their contents. So the document does not name them, and the mount, which would keep the disk in use,
// is removed by its path.
func (e encoder) unbind(c vmm.Change) (r hcsschema.GuestRequest, needed bool) {
	root, ok := c.Mount.(vmm.CombinedLayers)
	if !ok || c.Op != vmm.Remove || e.os != vmm.Linux || !e.ejects() || root.ScratchPath == "" {
		return r, false
	}
	folder := path.Dir(root.RootPath)
	r = hcsschema.GuestRequest{RequestType: hcsschema.RequestRemove, ResourceType: hcsschema.ResourceMappedDirectory,
		Settings: hcsschema.LCOWMappedDirectory{MountPath: folder}}
	return r, !strings.HasPrefix(root.ScratchPath+"/", folder+"/")
}
