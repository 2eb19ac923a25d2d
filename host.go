package strata

import (
	"context"
	"fmt"
	"os"

	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/host"
)

// HostOptions are the optional parts of OpenHost.
type HostOptions struct {
	OpenOptions
	// Self is a program whose main calls agent.Stage of package gcs/agent first thing, usually the
	// running one; it becomes the first process of each container. Empty: programs cannot be run.
	Self string
}

// OpenHost takes up this Linux system itself as if it were a VM: layers are mounted on it, with the
// same books, journal and recovery. dir is the state directory, made when it does not exist; the
// guest path p of a container is dir/fs/p on the host (see HostPath). It needs root. A scratch is a
// folder that is written to, or a raw file with ext4. After a reboot nothing is mounted any more, and
// the books are empty. On other systems the error matches errors.ErrUnsupported.
func OpenHost(ctx context.Context, dir string, o HostOptions) (*uvm.UtilityVM, error) {
	o.Logger = discard(o.Logger)
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return uvm.Open(ctx, dir, func(context.Context) (vmm.Machine, error) {
		return host.Open(host.Options{Dir: dir, ID: "host", Self: o.Self, Logger: o.Logger})
	}, uvm.Options{Logger: o.Logger, Undo: o.Undo})
}

// HostPath is where a guest path of a VM that OpenHost gave is on this system; for other VMs "".
func HostPath(vm *uvm.UtilityVM, guest string) string {
	if m, ok := vm.Machine().(*host.Machine); ok {
		return m.HostPath(guest)
	}
	return ""
}
