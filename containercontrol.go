package strata

import (
	"context"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/vmm"
)

// ContainerPaused is the state that is shown of a container which runs and is paused.
const ContainerPaused ContainerState = "paused"

// Status is the state of the container, told from a record: one that runs may be paused.
func (r ContainerRecord) Status() ContainerState {
	if r.State == ContainerRunning && r.Paused {
		return ContainerPaused
	}
	return r.State
}

// recorded is what changes the container of a supervisor, and notes it in the record.
type recorded struct {
	vmm.ContainerController
	c        *Container
	changing chan struct{} // takes one element while something is done and noted, so that the record says the last
}

// begin waits for what is being done.
func (r recorded) begin(ctx context.Context) (end func(), err error) {
	select {
	case r.changing <- struct{}{}:
		return func() { <-r.changing }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("the container is being changed: %w", context.Cause(ctx))
	}
}

// PauseContainer implements vmm.ContainerController.
func (r recorded) PauseContainer(ctx context.Context, id string) error {
	end, err := r.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	err = r.ContainerController.PauseContainer(ctx, id)
	if err != nil && !errors.Is(err, vmm.ErrPaused) {
		return err
	}
	return errors.Join(err, r.c.note(func(r *ContainerRecord) { r.Paused = true }))
}

// ResumeContainer implements vmm.ContainerController.
func (r recorded) ResumeContainer(ctx context.Context, id string) error {
	end, err := r.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	err = r.ContainerController.ResumeContainer(ctx, id)
	if err != nil && !errors.Is(err, vmm.ErrNotPaused) {
		return err
	}
	return errors.Join(err, r.c.note(func(r *ContainerRecord) { r.Paused = false }))
}

// UpdateContainer implements vmm.ContainerController. The container keeps its limits when it is started again.
func (r recorded) UpdateContainer(ctx context.Context, id string, limits specs.LinuxResources) error {
	end, err := r.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	r.c.mu.Lock()
	p := r.c.record.Process
	r.c.mu.Unlock()
	p.limit(limits)
	if p.Spec != nil && p.Spec.Linux != nil && p.Spec.Linux.Resources != nil { // with which it is to start again
		if err := ocispec.CheckResources(p.Spec.Linux.Resources); err != nil {
			return fmt.Errorf("%w: with the other limits of the container: %w", vmm.ErrInvalid, err)
		}
	}
	if err := r.ContainerController.UpdateContainer(ctx, id, limits); err != nil {
		return err
	}
	return r.c.note(func(r *ContainerRecord) { r.Process.limit(limits) })
}

// note changes the record of a container that runs, at once.
func (c *Container) note(change func(*ContainerRecord)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.record.State != ContainerRunning {
		return nil
	}
	change(&c.record)
	return writeContainer(c.dir, c.record)
}

// limit changes the limits that are set in r.
func (p *ContainerProcess) limit(r specs.LinuxResources) {
	if p.Spec == nil {
		return
	}
	spec, linux, all := *p.Spec, specs.Linux{}, specs.LinuxResources{} // others read these
	if spec.Linux != nil {
		linux = *spec.Linux
	}
	if linux.Resources != nil {
		all = *linux.Resources
	}
	if m := r.Memory; m != nil {
		memory := specs.LinuxMemory{}
		if all.Memory != nil {
			memory = *all.Memory
		}
		set(&memory.Limit, m.Limit)
		set(&memory.Swap, m.Swap)
		set(&memory.Reservation, m.Reservation)
		all.Memory = &memory
	}
	if c := r.CPU; c != nil {
		cpu := specs.LinuxCPU{}
		if all.CPU != nil {
			cpu = *all.CPU
		}
		set(&cpu.Quota, c.Quota)
		set(&cpu.Period, c.Period)
		set(&cpu.Shares, c.Shares)
		all.CPU = &cpu
	}
	set(&all.Pids, r.Pids)
	linux.Resources, spec.Linux, p.Spec = &all, &linux, &spec
}

// set changes what is given.
func set[T any](to **T, given *T) {
	if given != nil {
		*to = given
	}
}
