package wclayer

import (
	"errors"
	"path/filepath"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/Microsoft/go-winio/pkg/guid"
	"github.com/Microsoft/go-winio/pkg/security"
	"golang.org/x/sys/windows"

	"github.com/stratavm/strata/internal/hcsapi"
)

// Memory layouts of the platform, on 64-bit systems.

// driverInfo names the driver that makes layers.
type driverInfo struct {
	flavour uint32 // 1: the filter driver
	homeDir *uint16
}

const filterDriver = 1

// layerDescriptor is WC_LAYER_DESCRIPTOR.
type layerDescriptor struct {
	layerID guid.GUID
	flags   uint32
	path    *uint16
}

// cimPath is an entry of the array that merged mounts take.
type cimPath struct {
	dir, name *uint16
}

// native is the libraries. They are loaded from the system directory when first called.
type native struct {
	vmcompute, computecore, computestorage, cimfs, virtdisk *windows.LazyDLL
}

// Native is the platform of this system.
func Native() API {
	return &native{
		vmcompute:      windows.NewLazySystemDLL("vmcompute.dll"),
		computecore:    windows.NewLazySystemDLL("computecore.dll"),
		computestorage: windows.NewLazySystemDLL("computestorage.dll"),
		cimfs:          windows.NewLazySystemDLL("cimfs.dll"),
		virtdisk:       windows.NewLazySystemDLL("virtdisk.dll"),
	}
}

func build() uint32 { return windows.RtlGetVersion().BuildNumber }

// DefaultUsesDir is the [Options.UsesDir] that the processes of this host share, or "" where there is none.
func DefaultUsesDir() string {
	dir, err := windows.KnownFolderPath(windows.FOLDERID_ProgramData, 0)
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "strata", "uses")
}

// Supported returns an error that matches [errors.ErrUnsupported] unless this system is a Windows host with layers.
func Supported() error {
	if err := windows.NewLazySystemDLL("vmcompute.dll").NewProc("ActivateLayer").Find(); err != nil {
		return errors.Join(&Error{Op: "load", Path: "vmcompute.dll", HR: Win32(uint16(windows.ERROR_PROC_NOT_FOUND))}, err)
	}
	return nil
}

// text returns s as UTF-16. System has refused strings with NUL; here a NUL would end the string.
func text(s string) *uint16 {
	p, err := windows.UTF16PtrFromString(s)
	if err != nil {
		return new(uint16)
	}
	return p
}

func info() *driverInfo { return &driverInfo{flavour: filterDriver, homeDir: new(uint16)} }

// array is the address and length of a descriptor array. keep holds what it points at.
func array(parents []Descriptor) (first *layerDescriptor, n uintptr, keep []layerDescriptor) {
	if len(parents) == 0 {
		return nil, 0, nil
	}
	keep = make([]layerDescriptor, len(parents))
	for i, p := range parents {
		keep[i] = layerDescriptor{layerID: p.ID, flags: p.Flags, path: text(p.Path)}
	}
	return &keep[0], uintptr(len(keep)), keep
}

// onLayer calls a function that takes driver information and a layer.
func (n *native) onLayer(name, id string) HRESULT {
	return hcsapi.Call(n.vmcompute, name, uintptr(unsafe.Pointer(info())), uintptr(unsafe.Pointer(text(id))))
}

func (n *native) ActivateLayer(id string) HRESULT   { return n.onLayer("ActivateLayer", id) }
func (n *native) DeactivateLayer(id string) HRESULT { return n.onLayer("DeactivateLayer", id) }
func (n *native) UnprepareLayer(id string) HRESULT  { return n.onLayer("UnprepareLayer", id) }
func (n *native) DestroyLayer(id string) HRESULT    { return n.onLayer("DestroyLayer", id) }

func (n *native) PrepareLayer(id string, parents []Descriptor) HRESULT {
	first, count, keep := array(parents)
	defer runtime.KeepAlive(keep)
	return hcsapi.Call(n.vmcompute, "PrepareLayer", uintptr(unsafe.Pointer(info())), uintptr(unsafe.Pointer(text(id))),
		uintptr(unsafe.Pointer(first)), count)
}

func (n *native) CreateSandboxLayer(id string, parents []Descriptor) HRESULT {
	first, count, keep := array(parents)
	defer runtime.KeepAlive(keep)
	return hcsapi.Call(n.vmcompute, "CreateSandboxLayer", uintptr(unsafe.Pointer(info())),
		uintptr(unsafe.Pointer(text(id))),
		0, uintptr(unsafe.Pointer(first)), count)
}

func (n *native) GetLayerMountPath(id string, buffer []uint16) (uint64, HRESULT) {
	length := uint64(len(buffer))
	hr := hcsapi.Call(n.vmcompute, "GetLayerMountPath", uintptr(unsafe.Pointer(info())), uintptr(unsafe.Pointer(text(id))),
		uintptr(unsafe.Pointer(&length)), uintptr(unsafe.Pointer(unsafe.SliceData(buffer))))
	return length, hr
}

func (n *native) LayerExists(id string) (bool, HRESULT) {
	var exists uint32
	hr := hcsapi.Call(n.vmcompute, "LayerExists", uintptr(unsafe.Pointer(info())), uintptr(unsafe.Pointer(text(id))),
		uintptr(unsafe.Pointer(&exists)))
	return exists != 0, hr
}

func (n *native) ExpandSandboxSize(id string, size uint64) HRESULT {
	return hcsapi.Call(n.vmcompute, "ExpandSandboxSize", uintptr(unsafe.Pointer(info())),
		uintptr(unsafe.Pointer(text(id))), uintptr(size))
}

func (n *native) NameToGuid(name string) (guid.GUID, HRESULT) {
	var g guid.GUID
	hr := hcsapi.Call(n.vmcompute, "NameToGuid", uintptr(unsafe.Pointer(text(name))), uintptr(unsafe.Pointer(&g)))
	return g, hr
}

func (n *native) GrantVmAccess(vmID, file string) HRESULT {
	return hcsapi.Call(n.vmcompute, "GrantVmAccess", uintptr(unsafe.Pointer(text(vmID))),
		uintptr(unsafe.Pointer(text(file))))
}

func (n *native) HcsRevokeVmAccess(vmID, file string) HRESULT {
	return hcsapi.Call(n.computecore, "HcsRevokeVmAccess", uintptr(unsafe.Pointer(text(vmID))),
		uintptr(unsafe.Pointer(text(file))))
}

// GrantGroup edits the ACL itself: the platform's function for that exists only on newer builds.
func (n *native) GrantGroup(path string) HRESULT { return hresult(security.GrantVmGroupAccess(path)) }

// hresult converts an error of the Windows API.
func hresult(err error) HRESULT {
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[syscall.Errno](err); ok && code != 0 {
		if uint32(code)&0x80000000 != 0 {
			return HRESULT(code)
		}
		return Win32(uint16(code))
	}
	return 0x80004005 // E_FAIL
}
