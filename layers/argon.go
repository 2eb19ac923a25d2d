package layers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stratavm/strata/internal/wclayer"
)

// undoGrace is how long a failed mount on the host may take to take back what it did.
const undoGrace = 30 * time.Second

// argon is a root on the Windows host itself. What takes it away again is a list of steps, last done
// first; a step that failed stays on the list.
type argon struct {
	scratch string
	undo    []undoStep
}

type undoStep func(context.Context) error

// did notes how to take back what was just done.
func (a *argon) did(undo undoStep) { a.undo = append([]undoStep{undo}, a.undo...) }

// unmountArgon knows only the scratch: the layer filter and the disk are found by it.
func unmountArgon(host wclayer.Host, scratch string) *argon {
	a := &argon{scratch: scratch}
	a.did(func(ctx context.Context) error { return host.Deactivate(ctx, scratch) })
	a.did(func(ctx context.Context) error { return host.Unprepare(ctx, scratch) })
	return a
}

func mountArgon(ctx context.Context, r *Request) (*Mounted, error) {
	mount := (*argon).mountFiltered
	switch {
	case r.Host == nil:
		return nil, fmt.Errorf("%w: without a VM layers are mounted on a Windows host, which Request.Host is for: %w",
			ErrInvalid, errors.ErrUnsupported)
	case r.Scratch == "":
		return nil, fmt.Errorf("%w: a Windows container needs a scratch", ErrInvalid)
	case r.CIM != nil:
		mount = (*argon).mountCIM
	case len(r.Layers) == 0:
		return nil, fmt.Errorf("%w: give at least one layer and the scratch", ErrInvalid)
	}
	if err := r.checkOrder(); err != nil {
		return nil, err
	}
	a := &argon{scratch: r.Scratch}
	root, err := mount(a, ctx, r)
	if err != nil {
		return nil, errors.Join(err, a.takeBack(context.WithoutCancel(ctx)))
	}
	return &Mounted{ID: r.ID, Root: root, ScratchPath: root, argon: a}, nil
}

// takeBack releases what a failed mount did. A call of the platform that hangs holds up the steps behind
// it; when it outlasts undoGrace they are left to follow it, whenever it ends, and the error says so.
func (a *argon) takeBack(ctx context.Context) error {
	grace, cancel := context.WithTimeout(ctx, undoGrace)
	defer cancel()
	err := a.release(grace, UnmountOperationAll)
	if errors.Is(err, wclayer.ErrUnfinished) {
		err = fmt.Errorf("%w; this goes on in the background", err)
		go a.release(ctx, UnmountOperationAll)
	}
	return err
}

// mountFiltered activates the scratch and attaches the layer filter with the layers as parents.
func (a *argon) mountFiltered(ctx context.Context, r *Request) (string, error) {
	parents := make([]string, len(r.Layers))
	for i, l := range r.Layers {
		parents[i] = l.Folder
	}
	if err := r.Host.Activate(ctx, a.scratch); err != nil {
		return "", err
	}
	a.did(func(ctx context.Context) error { return r.Host.Deactivate(ctx, a.scratch) })
	if err := r.Host.Prepare(ctx, a.scratch, parents); err != nil {
		return "", err
	}
	a.did(func(ctx context.Context) error { return r.Host.Unprepare(ctx, a.scratch) })
	return r.Host.MountPath(ctx, a.scratch)
}

// release attempts every step whatever becomes of the others.
func (a *argon) release(ctx context.Context, op UnmountOperation) error {
	if op != UnmountOperationAll {
		return fmt.Errorf("%w: without a VM only everything can be unmounted (operation %#x)", ErrInvalid, uint(UnmountOperationAll))
	}
	var errs []error
	var left []undoStep
	for _, step := range a.undo {
		if err := step(ctx); err != nil {
			errs, left = append(errs, err), append(left, step)
		}
	}
	a.undo = left
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("unmount %s: %w", a.scratch, err)
	}
	return nil
}
