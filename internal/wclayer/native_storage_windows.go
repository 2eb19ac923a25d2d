package wclayer

import (
	"runtime"
	"syscall"
	"unsafe"

	"github.com/Microsoft/go-winio/pkg/guid"
	"github.com/Microsoft/go-winio/vhd"
	"golang.org/x/sys/windows"

	"github.com/stratavm/strata/internal/hcsapi"
)

// storage passes texts to a function of computestorage.dll.
func (n *native) storage(name string, args ...string) HRESULT {
	ptrs := make([]uintptr, len(args))
	keep := make([]*uint16, len(args))
	for i, a := range args {
		keep[i] = text(a)
		ptrs[i] = uintptr(unsafe.Pointer(keep[i]))
	}
	defer runtime.KeepAlive(keep)
	return hcsapi.Call(n.computestorage, name, ptrs...)
}

func (n *native) HcsAttachLayerStorageFilter(volume, layerData string) HRESULT {
	return n.storage("HcsAttachLayerStorageFilter", volume, layerData)
}

func (n *native) HcsDetachLayerStorageFilter(volume string) HRESULT {
	return n.storage("HcsDetachLayerStorageFilter", volume)
}

func (n *native) HcsInitializeWritableLayer(folder, layerData, options string) HRESULT {
	return n.storage("HcsInitializeWritableLayer", folder, layerData, options)
}

func (n *native) HcsAttachOverlayFilter(volume, layerData string) HRESULT {
	return n.storage("HcsAttachOverlayFilter", volume, layerData)
}

func (n *native) HcsDetachOverlayFilter(volume, layerData string) HRESULT {
	return n.storage("HcsDetachOverlayFilter", volume, layerData)
}

func (n *native) HcsFormatWritableLayerVhd(disk Disk) HRESULT {
	return hcsapi.Call(n.computestorage, "HcsFormatWritableLayerVhd", uintptr(disk))
}

func (n *native) HcsGetLayerVhdMountPath(disk Disk) (string, HRESULT) {
	var path *uint16
	hr := hcsapi.Call(n.computestorage, "HcsGetLayerVhdMountPath", uintptr(disk), uintptr(unsafe.Pointer(&path)))
	if path == nil {
		return "", hr
	}
	defer windows.CoTaskMemFree(unsafe.Pointer(path))
	return utf16String(bounded(path)), hr
}

// bounded is the text at p, at most as long as a path can be.
func bounded(p *uint16) []uint16 {
	n := 0
	for n < maxMountPath && *(*uint16)(unsafe.Add(unsafe.Pointer(p), n*2)) != 0 {
		n++
	}
	return unsafe.Slice(p, n)
}

func (n *native) OpenVirtualDisk(file string) (Disk, HRESULT) {
	h, err := vhd.OpenVirtualDisk(file, vhd.VirtualDiskAccessNone, vhd.OpenVirtualDiskFlagNone)
	return Disk(h), hresult(err)
}

func (n *native) OpenFile(file string) (Disk, HRESULT) {
	h, err := windows.CreateFile(text(file), windows.GENERIC_READ|windows.GENERIC_WRITE,
		windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE, nil, windows.OPEN_EXISTING, windows.FILE_ATTRIBUTE_NORMAL, 0)
	return Disk(h), hresult(err)
}

func (n *native) AttachVirtualDisk(disk Disk) HRESULT {
	return hresult(vhd.AttachVirtualDisk(syscall.Handle(disk), vhd.AttachVirtualDiskFlagNone,
		&vhd.AttachVirtualDiskParameters{Version: 2}))
}

func (n *native) DetachVirtualDisk(disk Disk) HRESULT {
	return hresult(vhd.DetachVirtualDisk(syscall.Handle(disk)))
}

func (n *native) CloseDisk(disk Disk) HRESULT {
	return hresult(windows.CloseHandle(windows.Handle(disk)))
}

func (n *native) CimMountImage(image CIM, flags uint32, volume guid.GUID) HRESULT {
	return hcsapi.Call(n.cimfs, "CimMountImage", uintptr(unsafe.Pointer(text(image.Dir))),
		uintptr(unsafe.Pointer(text(image.Name))),
		uintptr(flags), uintptr(unsafe.Pointer(&volume)))
}

func (n *native) CimDismountImage(volume guid.GUID) HRESULT {
	return hcsapi.Call(n.cimfs, "CimDismountImage", uintptr(unsafe.Pointer(&volume)))
}

func cimArray(images []CIM) []cimPath {
	out := make([]cimPath, len(images))
	for i, c := range images {
		out[i] = cimPath{dir: text(c.Dir), name: text(c.Name)}
	}
	return out
}

func (n *native) CimMergeMountImage(images []CIM, flags uint32, volume guid.GUID) HRESULT {
	list := cimArray(images)
	defer runtime.KeepAlive(list)
	return hcsapi.Call(n.cimfs, "CimMergeMountImage", uintptr(len(list)), uintptr(unsafe.Pointer(unsafe.SliceData(list))),
		uintptr(flags), uintptr(unsafe.Pointer(&volume)))
}

func (n *native) CimMountVerifiedImage(image CIM, flags uint32, volume guid.GUID, digest []byte) HRESULT {
	return hcsapi.Call(n.cimfs, "CimMountVerifiedImage", uintptr(unsafe.Pointer(text(image.Dir))),
		uintptr(unsafe.Pointer(text(image.Name))),
		uintptr(flags), uintptr(unsafe.Pointer(&volume)), uintptr(len(digest)),
		uintptr(unsafe.Pointer(unsafe.SliceData(digest))))
}

func (n *native) CimMergeMountVerifiedImage(images []CIM, flags uint32, volume guid.GUID, digest []byte) HRESULT {
	list := cimArray(images)
	defer runtime.KeepAlive(list)
	return hcsapi.Call(n.cimfs, "CimMergeMountVerifiedImage", uintptr(len(list)),
		uintptr(unsafe.Pointer(unsafe.SliceData(list))),
		uintptr(flags), uintptr(unsafe.Pointer(&volume)), uintptr(len(digest)),
		uintptr(unsafe.Pointer(unsafe.SliceData(digest))))
}

// Control codes of volumes.
const (
	ioctlDiskGetLengthInfo = 0x0007405C
	fsctlExtendVolume      = 0x000900F0
)

func (n *native) VolumeSize(volume string) (partition, fileSystem uint64, hr HRESULT) {
	h, err := openVolume(volume, windows.GENERIC_READ)
	if err != nil {
		return 0, 0, hresult(err)
	}
	defer windows.CloseHandle(h)
	var done uint32
	err = windows.DeviceIoControl(h, ioctlDiskGetLengthInfo, nil, 0, (*byte)(unsafe.Pointer(&partition)), 8, &done, nil)
	if err != nil {
		return 0, 0, hresult(err)
	}
	err = windows.GetDiskFreeSpaceEx(text(volume+`\`), nil, &fileSystem, nil)
	return partition, fileSystem, hresult(err)
}

func (n *native) ExtendVolume(volume string, sectors uint64) HRESULT {
	h, err := openVolume(volume, windows.GENERIC_READ|windows.GENERIC_WRITE)
	if err != nil {
		return hresult(err)
	}
	defer windows.CloseHandle(h)
	var done uint32
	return hresult(windows.DeviceIoControl(h, fsctlExtendVolume, (*byte)(unsafe.Pointer(&sectors)), 8, nil, 0, &done, nil))
}

func openVolume(volume string, access uint32) (windows.Handle, error) {
	return windows.CreateFile(text(volume), access, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE, nil,
		windows.OPEN_EXISTING, 0, 0)
}
