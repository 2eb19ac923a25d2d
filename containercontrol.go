package strata

import (
	"context"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/vmm"
)

// ContainerPaused is the state that Status returns for a running container that is paused.
const ContainerPaused ContainerState = "paused"

// Status returns the state of the container as shown to users: State, or ContainerPaused.
func (r ContainerRecord) Status() ContainerState {
	if r.State == ContainerRunning && r.Paused {
		return ContainerPaused
	}
	return r.State
}

// recorded is a vmm.ContainerController that also writes each change to the container's record.
type recorded struct {
	vmm.ContainerController
	c        *Container
	changing chan struct{} // semaphore: a change and its record are one step, so the record has the last change
}

// begin acquires the semaphore. It blocks while another change is in progress.
func (r recorded) begin(ctx context.Context) (end func(), err error) {
	select {
	case r.changing <- struct{}{}:
		return func() { <-r.changing }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for another change of the container: %w", context.Cause(ctx))
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

// UpdateContainer implements vmm.ContainerController. The new limits also apply when the container is restarted.
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
	if p.Spec != nil && p.Spec.Linux != nil && p.Spec.Linux.Resources != nil { // checked now, as a restart would fail
		if err := ocispec.CheckResources(p.Spec.Linux.Resources); err != nil {
			return fmt.Errorf("%w: together with the container's other limits: %w", vmm.ErrInvalid, err)
		}
	}
	if err := r.ContainerController.UpdateContainer(ctx, id, limits); err != nil {
		return err
	}
	return r.c.note(func(r *ContainerRecord) { r.Process.limit(limits) })
}

// note changes and writes the record of a running container.
func (c *Container) note(change func(*ContainerRecord)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.record.State != ContainerRunning {
		return nil
	}
	change(&c.record)
	return writeContainer(c.dir, c.record)
}

// limit merges the limits that are set in r into the spec.
func (p *ContainerProcess) limit(r specs.LinuxResources) {
	if p.Spec == nil {
		return
	}
	spec, linux, all := *p.Spec, specs.Linux{}, specs.LinuxResources{} // copies: the originals are shared
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

// set assigns given unless it is nil.
func set[T any](to **T, given *T) {
	if given != nil {
		*to = given
	}
}
