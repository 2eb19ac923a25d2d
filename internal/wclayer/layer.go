package wclayer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
	"unicode/utf16"

	"github.com/Microsoft/go-winio/pkg/guid"

	"github.com/stratavm/strata/internal/hostpath"
)

// Number of attempts of Prepare while the device is not ready, and the pause between them; the same as in hcsshim.
const (
	prepareAttempts = 5
	preparePause    = 100 * time.Millisecond
)

// Activate implements [Host].
func (s *System) Activate(ctx context.Context, folder string) error {
	if err := checkFolder("scratch folder", folder); err != nil {
		return err
	}
	id := spelled(folder)
	return s.run(ctx, call{
		op: "ActivateLayer", path: id,
		do:   func(context.Context) error { return s.activate(id) },
		undo: func() error { return s.deactivate(id) },
	})
}

func (s *System) activate(id string) error {
	// Recorded first: a missing record could let a layer in use be destroyed.
	if err := s.uses.hold(id, id); err != nil {
		return err
	}
	if err := result("ActivateLayer", id, s.api.ActivateLayer(id)); err != nil {
		return errors.Join(err, s.uses.drop(id))
	}
	return nil
}

// Deactivate implements [Host].
func (s *System) Deactivate(ctx context.Context, folder string) error {
	if err := checkFolder("scratch folder", folder); err != nil {
		return err
	}
	id := spelled(folder)
	return s.run(ctx, call{op: "DeactivateLayer", path: id,
		do: func(context.Context) error { return s.deactivate(id) }})
}

func (s *System) deactivate(id string) error {
	err := s.tolerate(result("DeactivateLayer", id, s.api.DeactivateLayer(id)), ErrNoDevice)
	if err != nil {
		return err
	}
	return s.uses.drop(id)
}

// Prepare implements [Host].
func (s *System) Prepare(ctx context.Context, folder string, parents []string) error {
	if err := checkFolder("scratch folder", folder); err != nil {
		return err
	}
	if err := checkParents(parents); err != nil {
		return err
	}
	id := spelled(folder)
	return s.run(ctx, call{
		op: "PrepareLayer", path: id,
		do:   func(ctx context.Context) error { return s.prepare(ctx, id, parents) },
		undo: func() error { return s.unprepare(id) },
	})
}

func (s *System) prepare(ctx context.Context, id string, parents []string) error {
	desc, err := s.descriptors(parents)
	if err != nil {
		return err
	}
	if err := take(ctx, s.preparing); err != nil {
		return fmt.Errorf("PrepareLayer %s: waiting for another layer to be prepared: %w: %w", id, ErrUnfinished, err)
	}
	defer func() { s.preparing <- struct{}{} }()

	if err := s.uses.hold(id, append([]string{id}, paths(desc)...)...); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		hr := s.api.PrepareLayer(id, desc)
		if !hr.Failed() {
			return nil
		}
		err := result("PrepareLayer", id, hr)
		if transient(hr) && attempt < prepareAttempts {
			if err = s.again(ctx, id, err); err == nil {
				continue
			}
		} else if transient(hr) {
			err = fmt.Errorf("%w (%d attempts)", err, attempt)
		}
		return errors.Join(err, s.uses.hold(id, id))
	}
}

// again deactivates and activates the scratch, whose disk was not ready for the filter.
func (s *System) again(ctx context.Context, id string, cause error) error {
	s.log.Info("PrepareLayer is tried again", "path", id, "err", cause)
	if err := result("DeactivateLayer", id, s.api.DeactivateLayer(id)); err != nil {
		return errors.Join(cause, err)
	}
	slept := s.sleep(ctx, preparePause)
	// Even if the caller has gone, which may rely on the scratch still being activated.
	if err := result("ActivateLayer", id, s.api.ActivateLayer(id)); err != nil {
		return errors.Join(cause, err, slept)
	}
	if slept != nil {
		return errors.Join(cause, slept)
	}
	return nil
}

// Unprepare implements [Host].
func (s *System) Unprepare(ctx context.Context, folder string) error {
	if err := checkFolder("scratch folder", folder); err != nil {
		return err
	}
	id := spelled(folder)
	return s.run(ctx, call{op: "UnprepareLayer", path: id, do: func(context.Context) error { return s.unprepare(id) }})
}

func (s *System) unprepare(id string) error {
	err := s.tolerate(result("UnprepareLayer", id, s.api.UnprepareLayer(id)), ErrNoDevice, ErrNotAttached)
	if err != nil {
		return err
	}
	return s.uses.shrink(id, id)
}

// maxMountPath bounds the length of a mount path that the platform returns.
const maxMountPath = maxPath + 1

// MountPath implements [Host].
func (s *System) MountPath(ctx context.Context, folder string) (string, error) {
	if err := checkFolder("layer folder", folder); err != nil {
		return "", err
	}
	id := spelled(folder)
	return query(ctx, s, "GetLayerMountPath", id, func() (string, error) {
		n, hr := s.api.GetLayerMountPath(id, nil)
		if err := result("GetLayerMountPath", id, hr); err != nil || n == 0 {
			return "", err
		}
		if n > maxMountPath {
			return "", fmt.Errorf("GetLayerMountPath %s: the platform tells a length of %d", id, n)
		}
		buf := make([]uint16, n)
		if _, hr = s.api.GetLayerMountPath(id, buf); hr.Failed() {
			return "", fmt.Errorf("%w (second call)", result("GetLayerMountPath", id, hr))
		}
		return utf16String(buf), nil
	})
}

// LayerExists implements [Host].
func (s *System) LayerExists(ctx context.Context, folder string) (bool, error) {
	if err := checkFolder("layer folder", folder); err != nil {
		return false, err
	}
	id := spelled(folder)
	return query(ctx, s, "LayerExists", id, func() (bool, error) {
		ok, hr := s.api.LayerExists(id)
		return ok, result("LayerExists", id, hr)
	})
}

// LayerID implements [Host].
func (s *System) LayerID(ctx context.Context, folder string) (string, error) {
	if err := checkPath("layer folder", folder); err != nil {
		return "", err
	}
	return query(ctx, s, "NameToGuid", folder, func() (string, error) {
		g, err := s.layerID(folder)
		return g.String(), err
	})
}

// query runs a call without side effects. If the call completes late its result is dropped.
func query[T any](ctx context.Context, s *System, op, path string, ask func() (T, error)) (T, error) {
	var zero T
	answer := make(chan T, 1)
	err := s.run(ctx, call{op: op, path: path, do: func(context.Context) error {
		v, err := ask()
		answer <- v
		return err
	}})
	if err != nil {
		return zero, err
	}
	return <-answer, nil
}

func (s *System) layerID(folder string) (guid.GUID, error) {
	g, hr := s.api.NameToGuid(hostpath.Base(spelled(folder)))
	return g, result("NameToGuid", folder, hr)
}

func checkParents(parents []string) error {
	if len(parents) == 0 || len(parents) > math.MaxUint16 {
		return fmt.Errorf("%w: %d parent layers: give at least one, top-most first", ErrInvalid, len(parents))
	}
	for i, p := range parents {
		if err := checkFolder(fmt.Sprintf("parent layer %d", i+1), p); err != nil {
			return err
		}
	}
	return nil
}

// descriptors creates the descriptor array of parents, in their order.
func (s *System) descriptors(parents []string) ([]Descriptor, error) {
	out := make([]Descriptor, len(parents))
	for i, p := range parents {
		id, err := s.layerID(p)
		if err != nil {
			return nil, err
		}
		out[i] = Descriptor{ID: id, Path: spelled(p)}
	}
	return out, nil
}

func paths(desc []Descriptor) []string {
	out := make([]string, len(desc))
	for i, d := range desc {
		out[i] = d.Path
	}
	return out
}

// utf16String is the text in buf up to its NUL.
func utf16String(buf []uint16) string {
	for i, c := range buf {
		if c == 0 {
			buf = buf[:i]
			break
		}
	}
	return string(utf16.Decode(buf))
}
