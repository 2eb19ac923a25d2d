package wclayer

import (
	"github.com/Microsoft/go-winio/pkg/guid"
)

// Descriptor is one entry of a layer descriptor array.
type Descriptor struct {
	ID    guid.GUID
	Flags uint32
	Path  string
}

// Disk is an open virtual disk.
type Disk uintptr

// API has one method for each function of the platform, named after the export. Strings must not contain NUL. Methods
// may be called concurrently, and may block for long.
type API interface {
	// vmcompute.dll; the driver information is always that of the filter driver.

	ActivateLayer(id string) HRESULT
	DeactivateLayer(id string) HRESULT
	PrepareLayer(id string, parents []Descriptor) HRESULT
	UnprepareLayer(id string) HRESULT
	// GetLayerMountPath with a nil buffer returns the length needed, in UTF-16 units with the NUL; 0
	// means there is no path. With a buffer it fills that.
	GetLayerMountPath(id string, buffer []uint16) (length uint64, hr HRESULT)
	LayerExists(id string) (bool, HRESULT)
	CreateSandboxLayer(id string, parents []Descriptor) HRESULT
	ExpandSandboxSize(id string, size uint64) HRESULT
	DestroyLayer(id string) HRESULT
	NameToGuid(name string) (guid.GUID, HRESULT)
	GrantVmAccess(vmID, file string) HRESULT

	// computecore.dll

	HcsRevokeVmAccess(vmID, file string) HRESULT

	// computestorage.dll; layerData and options are JSON documents.

	HcsAttachLayerStorageFilter(volume, layerData string) HRESULT
	HcsDetachLayerStorageFilter(volume string) HRESULT
	HcsInitializeWritableLayer(folder, layerData, options string) HRESULT
	// HcsFormatWritableLayerVhd takes a disk of OpenVirtualDisk, on builds up to 17763 one of OpenFile.
	HcsFormatWritableLayerVhd(disk Disk) HRESULT
	HcsGetLayerVhdMountPath(disk Disk) (string, HRESULT)
	HcsAttachOverlayFilter(volume, layerData string) HRESULT
	HcsDetachOverlayFilter(volume, layerData string) HRESULT

	// virtdisk.dll

	OpenVirtualDisk(file string) (Disk, HRESULT)
	AttachVirtualDisk(disk Disk) HRESULT
	DetachVirtualDisk(disk Disk) HRESULT
	CloseDisk(disk Disk) HRESULT

	// cimfs.dll

	CimMountImage(image CIM, flags uint32, volume guid.GUID) HRESULT
	CimDismountImage(volume guid.GUID) HRESULT
	CimMergeMountImage(images []CIM, flags uint32, volume guid.GUID) HRESULT
	CimMountVerifiedImage(image CIM, flags uint32, volume guid.GUID, digest []byte) HRESULT
	CimMergeMountVerifiedImage(images []CIM, flags uint32, volume guid.GUID, digest []byte) HRESULT

	// The file system.

	// OpenFile opens a disk image for reading and writing, as a file. CloseDisk closes it.
	OpenFile(file string) (Disk, HRESULT)
	// VolumeSize returns the length of the partition under a volume, and of its file system, in bytes.
	// volume has no trailing backslash.
	VolumeSize(volume string) (partition, fileSystem uint64, hr HRESULT)
	// ExtendVolume grows the file system of a volume to a number of 512-byte sectors.
	ExtendVolume(volume string, sectors uint64) HRESULT
	// GrantGroup adds an entry for the group of all VMs to the ACL of path.
	GrantGroup(path string) HRESULT
}
