//go:build !windows

package wclayer

import "github.com/Microsoft/go-winio/pkg/guid"

// absent is what the loader of a Windows answers for a function that it does not have.
var absent = Win32(0x7F)

// missing is a platform without a single function.
type missing struct{}

func (missing) ActivateLayer(string) HRESULT                                 { return absent }
func (missing) DeactivateLayer(string) HRESULT                               { return absent }
func (missing) PrepareLayer(string, []Descriptor) HRESULT                    { return absent }
func (missing) UnprepareLayer(string) HRESULT                                { return absent }
func (missing) GetLayerMountPath(string, []uint16) (uint64, HRESULT)         { return 0, absent }
func (missing) LayerExists(string) (bool, HRESULT)                           { return false, absent }
func (missing) CreateSandboxLayer(string, []Descriptor) HRESULT              { return absent }
func (missing) ExpandSandboxSize(string, uint64) HRESULT                     { return absent }
func (missing) DestroyLayer(string) HRESULT                                  { return absent }
func (missing) NameToGuid(string) (guid.GUID, HRESULT)                       { return guid.GUID{}, absent }
func (missing) GrantVmAccess(string, string) HRESULT                         { return absent }
func (missing) HcsRevokeVmAccess(string, string) HRESULT                     { return absent }
func (missing) HcsAttachLayerStorageFilter(string, string) HRESULT           { return absent }
func (missing) HcsDetachLayerStorageFilter(string) HRESULT                   { return absent }
func (missing) HcsInitializeWritableLayer(_, _, _ string) HRESULT            { return absent }
func (missing) HcsFormatWritableLayerVhd(Disk) HRESULT                       { return absent }
func (missing) HcsGetLayerVhdMountPath(Disk) (string, HRESULT)               { return "", absent }
func (missing) HcsAttachOverlayFilter(string, string) HRESULT                { return absent }
func (missing) HcsDetachOverlayFilter(string, string) HRESULT                { return absent }
func (missing) OpenVirtualDisk(string) (Disk, HRESULT)                       { return 0, absent }
func (missing) OpenFile(string) (Disk, HRESULT)                              { return 0, absent }
func (missing) AttachVirtualDisk(Disk) HRESULT                               { return absent }
func (missing) DetachVirtualDisk(Disk) HRESULT                               { return absent }
func (missing) CloseDisk(Disk) HRESULT                                       { return absent }
func (missing) CimMountImage(CIM, uint32, guid.GUID) HRESULT                 { return absent }
func (missing) CimDismountImage(guid.GUID) HRESULT                           { return absent }
func (missing) CimMergeMountImage([]CIM, uint32, guid.GUID) HRESULT          { return absent }
func (missing) VolumeSize(string) (uint64, uint64, HRESULT)                  { return 0, 0, absent }
func (missing) ExtendVolume(string, uint64) HRESULT                          { return absent }
func (missing) GrantGroup(string) HRESULT                                    { return absent }
func (missing) CimMountVerifiedImage(CIM, uint32, guid.GUID, []byte) HRESULT { return absent }
func (missing) CimMergeMountVerifiedImage([]CIM, uint32, guid.GUID, []byte) HRESULT {
	return absent
}
