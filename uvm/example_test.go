package uvm_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// A process attaches a disk for a container and ends. Another one opens the VM, finds the container
// by its id, and releases what it holds.
func ExampleOpen() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	machine := vmmtest.New("vm", vmm.Linux, vmmtest.LinuxLimits())
	connect := func(context.Context) (vmm.Machine, error) { return machine, nil }

	first, err := uvm.Open(ctx, dir, connect, uvm.Options{})
	if err != nil {
		log.Fatal(err)
	}
	claim, err := first.Claim(ctx, "web", nil)
	if err != nil {
		log.Fatal(err)
	}
	lease, err := first.SCSI().Attach(ctx, claim, "data", uvm.Disk{
		Path: "/data.vhdx", Mount: &uvm.DiskMount{Filesystem: "ext4", EnsureFilesystem: true}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(lease.Addr(), "at", lease.GuestPath())
	if err := claim.Commit(nil); err != nil {
		log.Fatal(err)
	}
	if err := first.Close(); err != nil {
		log.Fatal(err)
	}

	second, err := uvm.Open(ctx, dir, connect, uvm.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer second.Close()
	claim, err = second.FindClaim("web")
	if err != nil {
		log.Fatal(err)
	}
	if err := claim.Release(ctx, nil); err != nil {
		log.Fatal(err)
	}
	fmt.Println("left:", len(machine.Leftovers()))
	// Output:
	// scsi 0:0 at /run/mounts/m1
	// left: 0
}
