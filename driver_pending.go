package strata

import (
	"context"
	"errors"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

func StartVM(ctx context.Context, o VMOptions) (*uvm.UtilityVM, error) {
	return nil, errors.ErrUnsupported
}
func OpenVM(ctx context.Context, dir string, o OpenOptions) (*uvm.UtilityVM, error) {
	return nil, ErrNoVM
}
func InspectVM(dir string) (VMInfo, error)           { return VMInfo{}, ErrNoVM }
func KillVM(ctx context.Context, dir string) error   { return ErrNoVM }
func RemoveVM(ctx context.Context, dir string) error { return ErrNoVM }
func GuestOS() vmm.OS                                { return vmm.Linux }
func DefaultLimits() vmm.Limits {
	return vmm.Limits{SCSIControllers: 4, SCSILUNs: 64, VPMEMDevices: 64, VPMEMMaxBytes: 4 << 30}
}
