package hcs

import (
	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/hostpath"
)

const (
	utilityVM      = "UtilityVM"           // the folder of a layer with a VM's operating system
	systemTemplate = "SystemTemplate.vhdx" // in that folder: the template for a VM's scratch
	scratchDisk    = "sandbox.vhdx"
	// directMapMB is the size of the guest's address space for directly mapped host files.
	directMapMB = 1024
)

// document creates the create document of a Windows VM that boots from the UtilityVM folder and writes to the scratch
// disk.
func (o *OptionsWCOW) document(count int32, uvmFolder, scratch string) *hcsschema.ComputeSystem {
	doc := o.system(count)
	vm := doc.VirtualMachine
	// The hot hint is rejected for memory that is always physically backed.
	vm.ComputeTopology.Memory.EnableHotHint = o.overcommit()
	vm.Chipset.Uefi = &hcsschema.Uefi{BootThis: &hcsschema.UefiBootEntry{
		DeviceType: "VmbFs", DevicePath: `\EFI\Microsoft\Boot\bootmgfw.efi`}}
	vm.Devices.Scsi = map[string]hcsschema.Scsi{
		hcsschema.Controller(0, o.SCSIControllerGUIDs): {Attachments: map[string]hcsschema.Attachment{
			"0": {Type: "VirtualDisk", Path: scratch}}}}
	vm.Devices.VirtualSmb = &hcsschema.VirtualSmb{
		DirectFileMappingInMB: directMapMB,
		Shares: []hcsschema.VirtualSmbShare{{
			Name: "os", Path: hostpath.Join(uvmFolder, "Files"), // the boot loader requires this name
			Options: &hcsschema.VirtualSmbShareOptions{ReadOnly: true, ShareRead: true, CacheIo: true,
				PseudoOplocks: true, TakeBackupPrivilege: true, NoDirectmap: o.FullyPhysicallyBacked},
		}},
	}
	vm.RegistryChanges = &hcsschema.RegistryChanges{}
	if !o.DisableCompartmentNamespace {
		vm.RegistryChanges.AddValues = []hcsschema.RegistryValue{{
			Key:  &hcsschema.RegistryKey{Hive: "System", Name: `CurrentControlSet\Services\gns`},
			Name: "EnableCompartmentNamespace", Type: "DWord", DWordValue: 1}}
	}
	if !o.ExternalGuestConnection {
		vm.GuestConnection = &hcsschema.GuestConnection{}
	}
	return doc
}
