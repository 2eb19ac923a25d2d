package vmm

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/stratavm/strata/hcsschema"
)

// Plan9Port is the port of a machine's Plan9 server.
const Plan9Port = 564

var requestTypes = map[Op]hcsschema.RequestType{
	Add: hcsschema.RequestAdd, Remove: hcsschema.RequestRemove, Update: hcsschema.RequestUpdate,
}

// GuestRequest returns the guest half of a Change as a guest request for operating system os. It fails for mounts that
// the system does not support.
func GuestRequest(op Op, g Mount, os OS) (hcsschema.GuestRequest, error) {
	encode := linuxSettings
	if os == Windows {
		encode = windowsSettings
	}
	resource, settings := encode(op, g)
	if settings == nil {
		return hcsschema.GuestRequest{}, fmt.Errorf("vmm: a %s guest cannot %s (%T)", os, g, g)
	}
	return hcsschema.GuestRequest{RequestType: requestTypes[op], ResourceType: resource, Settings: settings}, nil
}

func linuxSettings(op Op, g Mount) (hcsschema.ResourceType, any) {
	switch g := g.(type) {
	case MappedDisk:
		// Remove repeats all settings: guests use ReadOnly and Encrypted to find the device mappings to remove.
		return hcsschema.ResourceMappedVirtualDisk, hcsschema.LCOWMappedVirtualDisk{
			MountPath: g.MountPath, Controller: g.Controller, Lun: g.LUN, Partition: g.Partition,
			ReadOnly: g.ReadOnly, Options: g.Options, Filesystem: g.Filesystem,
			EnsureFilesystem: g.EnsureFilesystem, Encrypted: g.Encrypted, BlockDev: g.BlockDev,
			VerityInfo: verityInfo(g.Verity),
		}
	case MappedPMEM:
		s := hcsschema.LCOWMappedVPMemDevice{
			DeviceNumber: g.Slot, MountPath: g.MountPath, VerityInfo: verityInfo(g.Verity),
		}
		if g.Size != 0 {
			s.MappingInfo = &hcsschema.LCOWVPMemMappingInfo{
				DeviceOffsetInBytes: g.Offset, DeviceSizeInBytes: g.Size,
			}
		}
		return hcsschema.ResourceVPMemDevice, s
	case MappedDirectory:
		return hcsschema.ResourceMappedDirectory, hcsschema.LCOWMappedDirectory{
			MountPath: g.MountPath, ShareName: g.Share, Port: Plan9Port,
			ReadOnly: g.ReadOnly && op != Remove,
		}
	case NetworkInterface:
		return hcsschema.ResourceNetwork, networkSettings(g)
	case MappedVirtioFS:
		return hcsschema.ResourceVirtioFS, hcsschema.LCOWVirtioFS{
			MountPath: g.MountPath, Tag: VirtioFSShare{Slot: g.Slot}.Tag(), ReadOnly: g.ReadOnly && op != Remove,
		}
	case CombinedLayers:
		if op == Remove {
			return hcsschema.ResourceCombinedLayers, hcsschema.LCOWCombinedLayers{ContainerRootPath: g.RootPath}
		}
		return hcsschema.ResourceCombinedLayers, hcsschema.LCOWCombinedLayers{
			ContainerID: g.ContainerID, ContainerRootPath: g.RootPath,
			Layers: schemaLayers(g.Layers), ScratchPath: g.ScratchPath,
		}
	}
	return "", nil
}

func networkSettings(g NetworkInterface) hcsschema.LCOWNetworkAdapter {
	link, servers := g.Link, g.DNS
	if link == nil {
		u := UserNetwork(g.Subnet)
		link = &Link{Addresses: []netip.Prefix{u.Address},
			Routes: []Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Gateway: u.Gateway}}}
		servers = []netip.Addr{u.DNS}
	}
	s := hcsschema.LCOWNetworkAdapter{
		NamespaceID: g.ContainerID, ID: NIC{Slot: g.Slot}.Addr(), MacAddress: NIC{Slot: g.Slot, Link: g.Link}.MAC(),
		DNSSuffix: strings.Join(g.Search, ","), Name: link.Name, MTU: link.MTU,
	}
	for _, a := range link.Addresses {
		s.IPConfigs = append(s.IPConfigs,
			hcsschema.LCOWIPConfig{IPAddress: a.Addr().String(), PrefixLength: uint8(a.Bits())})
	}
	for _, r := range link.Routes {
		s.Routes = append(s.Routes, hcsschema.LCOWRoute{DestinationPrefix: r.To.String(), NextHop: textOf(r.Gateway),
			OnLink: r.OnLink, Source: textOf(r.Source), Metric: r.Metric})
	}
	var list []string
	for _, a := range servers {
		list = append(list, a.String())
	}
	s.DNSServerList = strings.Join(list, ",")
	return s
}

// textOf returns the address as text; empty if it is not valid.
func textOf(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func windowsSettings(op Op, g Mount) (hcsschema.ResourceType, any) {
	switch g := g.(type) {
	case MappedDisk:
		return hcsschema.ResourceMappedVirtualDisk, hcsschema.WCOWMappedVirtualDisk{
			ContainerPath: g.MountPath, Lun: int32(g.LUN),
		}
	case CombinedLayers:
		s := hcsschema.WCOWCombinedLayers{ContainerRootPath: g.RootPath}
		if op != Remove {
			s.Layers, s.ScratchPath = schemaLayers(g.Layers), g.ScratchPath
			s.FilterType = hcsschema.FileSystemFilterType(g.Filter)
		}
		return hcsschema.ResourceCombinedLayers, s
	case BlockCIMs:
		s := hcsschema.WCOWBlockCims{VolumeGUID: g.VolumeGUID, MountFlags: g.MountFlags, ContainerID: g.ContainerID}
		for _, c := range g.CIMs {
			s.BlockCIMs = append(s.BlockCIMs, hcsschema.BlockCIM{CimName: c.Name, Lun: int32(c.LUN)})
		}
		return hcsschema.ResourceWCOWBlockCims, s
	}
	return "", nil
}

func schemaLayers(layers []GuestLayer) []hcsschema.Layer {
	out := make([]hcsschema.Layer, len(layers))
	for i, l := range layers {
		out[i] = hcsschema.Layer{Id: l.ID, Path: l.Path}
	}
	return out
}

func verityInfo(v *Verity) *hcsschema.DeviceVerityInfo {
	if v == nil {
		return nil
	}
	return &hcsschema.DeviceVerityInfo{
		Ext4SizeInBytes: v.DataBytes, Version: 1, Algorithm: v.Algorithm, SuperBlock: v.SuperBlock,
		RootDigest: v.RootDigest, Salt: v.Salt, BlockSize: v.BlockSize,
	}
}
