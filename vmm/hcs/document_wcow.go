package hcs

import (
	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/hostpath"
)

const (
	utilityVM      = "UtilityVM"           // the folder of a layer that holds a VM's operating system
	systemTemplate = "SystemTemplate.vhdx" // in it: what a VM's scratch is copied from
	scratchDisk    = "sandbox.vhdx"
	// directMapMB is how much of the guest's address space maps host files directly.
	directMapMB = 1024
)

// document creates the create document of a Windows VM that boots from the UtilityVM folder given and
// writes to the scratch disk given.
func (o *OptionsWCOW) document(count int32, uvmFolder, scratch string) *hcsschema.ComputeSystem {
	doc := o.system(count)
	vm := doc.VirtualMachine
	// Hints about cold pages make no sense, and are refused, for memory that is always backed.
	vm.ComputeTopology.Memory.EnableHotHint = o.overcommit()
	vm.Chipset.Uefi = &hcsschema.Uefi{BootThis: &hcsschema.UefiBootEntry{
		DeviceType: "VmbFs", DevicePath: `\EFI\Microsoft\Boot\bootmgfw.efi`}}
	vm.Devices.Scsi = map[string]hcsschema.Scsi{
		hcsschema.Controller(0, o.SCSIControllerGUIDs): {Attachments: map[string]hcsschema.Attachment{
			"0": {Type: "VirtualDisk", Path: scratch}}}}
	vm.Devices.VirtualSmb = &hcsschema.VirtualSmb{
		DirectFileMappingInMB: directMapMB,
		Shares: []hcsschema.VirtualSmbShare{{
			Name: "os", Path: hostpath.Join(uvmFolder, "Files"), // the boot loader looks for this name
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
