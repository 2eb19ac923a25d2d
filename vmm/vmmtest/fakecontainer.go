package vmmtest

import (
	"context"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/vmm"
)

// FakeContainer is what a Fake knows of a container, from its first Exec until it is told to forget it.
type FakeContainer struct {
	Paused  bool
	Updates []specs.LinuxResources
}

// Container returns what is known of a container.
func (f *Fake) Container(id string) (c FakeContainer, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.containers[id]; p != nil {
		return *p, true
	}
	return c, false
}

// PauseContainer implements vmm.ContainerController.
func (f *Fake) PauseContainer(ctx context.Context, id string) error {
	return f.control(ctx, id, func(c *FakeContainer) error {
		if c.Paused {
			return vmm.ErrPaused
		}
		c.Paused = true
		return nil
	})
}

// ResumeContainer implements vmm.ContainerController.
func (f *Fake) ResumeContainer(ctx context.Context, id string) error {
	return f.control(ctx, id, func(c *FakeContainer) error {
		if !c.Paused {
			return vmm.ErrNotPaused
		}
		c.Paused = false
		return nil
	})
}

// UpdateContainer implements vmm.ContainerController.
func (f *Fake) UpdateContainer(ctx context.Context, id string, r specs.LinuxResources) error {
	return f.control(ctx, id, func(c *FakeContainer) error {
		c.Updates = append(c.Updates, r)
		return nil
	})
}

func (f *Fake) control(ctx context.Context, id string, do func(*FakeContainer) error) error {
	if err := f.answers(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.Err(); err != nil {
		return err
	}
	c := f.containers[id]
	if c == nil {
		return fmt.Errorf("container %s does not run", id)
	}
	if err := do(c); err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	return nil
}

var _ vmm.ContainerController = (*Fake)(nil)
