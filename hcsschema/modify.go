package hcsschema

import (
	"strconv"

	"github.com/google/uuid"
)

// ModifySettingRequest changes a running system. Settings are for the host's half at ResourcePath,
// GuestRequest is what the guest is to do; either may be missing.
type ModifySettingRequest struct {
	ResourcePath string        `json:",omitempty"`
	RequestType  RequestType   `json:",omitempty"`
	Settings     any           `json:",omitempty"`
	GuestRequest *GuestRequest `json:",omitempty"`
}

// Resource paths of shares: the share is chosen by the name in the settings.
const (
	VSMBSharesPath  = "VirtualMachine/Devices/VirtualSmb/Shares"
	Plan9SharesPath = "VirtualMachine/Devices/Plan9/Shares"
)

// controllerNamespace is the RFC 4122 namespace in which SCSI controllers have their GUIDs.
var controllerNamespace = uuid.MustParse("d422512d-2bf2-4752-809d-7b82b5fcb1b4")

// ControllerGUID is the GUID that names SCSI controller n in documents and to Linux guests since
// 2022: the version 5 UUID of its decimal number.
func ControllerGUID(n uint8) string {
	return uuid.NewSHA1(controllerNamespace, []byte(strconv.Itoa(int(n)))).String()
}

// Controller is the key of SCSI controller n: its number, or with byGUID its GUID. A VM must be
// spoken to in the way it was created.
func Controller(n uint8, byGUID bool) string {
	if byGUID {
		return ControllerGUID(n)
	}
	return strconv.Itoa(int(n))
}

// SCSIPath is the resource path of a disk; controller is a key made by Controller.
func SCSIPath(controller string, lun uint8) string {
	return "VirtualMachine/Devices/Scsi/" + controller + "/Attachments/" + strconv.Itoa(int(lun))
}

// VPMemPath is the resource path of a persistent-memory device.
func VPMemPath(slot uint32) string {
	return "VirtualMachine/Devices/VirtualPMem/Devices/" + strconv.FormatUint(uint64(slot), 10)
}

// VPMemMappingPath is the resource path of a file at a byte offset of a packed device.
func VPMemMappingPath(slot uint32, offset uint64) string {
	return VPMemPath(slot) + "/Mappings/" + strconv.FormatUint(offset, 10)
}
