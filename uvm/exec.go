package uvm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stratavm/strata/vmm"
)

// Exec starts a program in the VM or, if spec has ContainerID and Root, inside a container's root.
func (vm *UtilityVM) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	if len(spec.Args) == 0 {
		return nil, errors.New("run a program in the VM: no program is given")
	}
	vm.l.mu.Lock()
	err := vm.l.usable()
	vm.l.mu.Unlock()
	if err == nil {
		var p vmm.Process
		if p, err = vm.machine.Exec(ctx, spec); err == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("run %q: %w", spec.Args[0], err)
}

const (
	sigKill = 9
	// killTime bounds how long killing a program may take when the caller's context has ended.
	killTime = 5 * time.Second
)

// Run runs a program like Exec, waits for it to exit and returns its exit code. If ctx ends first, the program is
// killed and the error is that of ctx.
func (vm *UtilityVM) Run(ctx context.Context, spec vmm.ProcessSpec) (exitCode int, err error) {
	p, err := vm.Exec(ctx, spec)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if exitCode, err = p.Wait(ctx); err == nil {
		return exitCode, nil
	}
	err = fmt.Errorf("run %q: %w", spec.Args[0], err)
	if ctx.Err() != nil {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
		defer cancel()
		err = errors.Join(err, p.Signal(limited, sigKill))
	}
	return 0, err
}
