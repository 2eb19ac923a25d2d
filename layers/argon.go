package layers

import (
	"context"
	"errors"
	"fmt"

	"github.com/stratavm/strata/internal/hostpath"
)

// Host is what this package needs of a Windows host. Package wclayer has the real one.
type Host interface {
	// Activate attaches the scratch disk of a layer folder; Deactivate is its inverse.
	Activate(ctx context.Context, folder string) error
	Deactivate(ctx context.Context, folder string) error
	// Prepare attaches the layer filter with the parents, top-most first; Unprepare is its inverse.
	Prepare(ctx context.Context, folder string, parents []string) error
	Unprepare(ctx context.Context, folder string) error
	// MountPath is the volume GUID path of an activated scratch.
	MountPath(ctx context.Context, folder string) (string, error)
	// LayerID is the identity of a layer folder, a GUID in lower case without braces.
	LayerID(ctx context.Context, folder string) (string, error)
}

// argon is a root on the Windows host itself: the scratch is activated and prepared with its parents.
type argon struct {
	host    Host
	scratch string
	// What is still to be taken back; a failed step stays.
	unprepared, deactivated bool
}

func mountArgon(ctx context.Context, r *Request) (*Mounted, error) {
	switch {
	case r.Host == nil:
		return nil, fmt.Errorf("%w: without a VM layers are mounted on a Windows host, which Request.Host is for: %w",
			ErrInvalid, errors.ErrUnsupported)
	case len(r.Layers) == 0 || r.Scratch == "":
		return nil, fmt.Errorf("%w: give at least one layer and the scratch", ErrInvalid)
	}
	parents := make([]string, len(r.Layers))
	for i, l := range r.Layers {
		parents[i] = l.Folder
	}
	a := &argon{host: r.Host, scratch: r.Scratch, unprepared: true, deactivated: true}
	root, err := a.mount(ctx, parents)
	if err != nil {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoGrace)
		defer cancel()
		return nil, errors.Join(err, a.release(grace, UnmountOperationAll))
	}
	return &Mounted{ID: r.ID, Root: root, ScratchPath: root, argon: a}, nil
}

func (a *argon) mount(ctx context.Context, parents []string) (string, error) {
	if err := a.host.Activate(ctx, a.scratch); err != nil {
		return "", err
	}
	a.deactivated = false
	if err := a.host.Prepare(ctx, a.scratch, parents); err != nil {
		return "", err
	}
	a.unprepared = false
	return a.host.MountPath(ctx, a.scratch)
}

// release attempts both halves whatever becomes of the first.
func (a *argon) release(ctx context.Context, op UnmountOperation) error {
	if op != UnmountOperationAll {
		return fmt.Errorf("%w: without a VM only everything can be unmounted (operation %#x)", ErrInvalid, uint(UnmountOperationAll))
	}
	var errs []error
	for _, step := range []struct {
		done *bool
		do   func(context.Context, string) error
	}{{&a.unprepared, a.host.Unprepare}, {&a.deactivated, a.host.Deactivate}} {
		if *step.done {
			continue
		}
		err := step.do(ctx, a.scratch)
		*step.done = err == nil
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("unmount %s: %w", hostpath.Base(a.scratch), err)
	}
	return nil
}
