package argon

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/Microsoft/go-winio/pkg/guid"

	"github.com/stratavm/strata/internal/applyengine"
	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/vmm"
)

// UnionFS is the CombinedLayers.Filter of roots made of a CIMVolume.
const UnionFS = "UnionFS"

// act adds something to the host and removes it.
type act struct {
	add, remove func(context.Context) error
}

// Apply implements vmm.Machine. Calls of the platform cannot be interrupted: one that outlasts ctx continues, and the
// next change of the same address waits for it.
func (m *Machine) Apply(ctx context.Context, c vmm.Change) error {
	return m.engine.Run(ctx, c, m.halves)
}

func (m *Machine) halves(c vmm.Change) (h applyengine.Halves, err error) {
	if c.Op != vmm.Add && c.Op != vmm.Remove {
		return h, fmt.Errorf("%s on a Windows host itself: %w", c.Op, errors.ErrUnsupported)
	}
	if c.Device != nil {
		a, err := m.device(c.Device)
		if err != nil {
			return h, err
		}
		h.Host = m.half(c.HostOnly(), a)
	}
	if c.Mount != nil {
		a, err := m.mount(c.Mount)
		if err != nil {
			return h, err
		}
		h.Guest = m.half(c.GuestOnly(), a)
	}
	return h, nil
}

func (m *Machine) device(d vmm.Device) (act, error) {
	layer, ok := d.(vmm.WritableLayer)
	if !ok {
		return act{}, fmt.Errorf("%s on a Windows host itself: %w", d, errors.ErrUnsupported)
	}
	return act{
		add: func(ctx context.Context) error { return m.host.Activate(ctx, layer.Path) },
		remove: func(ctx context.Context) error {
			if err := m.unused(func(g vmm.CombinedLayers) bool { return samePath(g.RootPath, layer.Path) }); err != nil {
				return err
			}
			return m.host.Deactivate(ctx, layer.Path)
		},
	}, nil
}

// unused returns an error if there is a recorded root for which uses is true.
func (m *Machine) unused(uses func(vmm.CombinedLayers) bool) error {
	for _, c := range m.records.changes() {
		if g, ok := c.Mount.(vmm.CombinedLayers); ok && uses(g) {
			return fmt.Errorf("%w by the root at %s: remove that first", vmm.ErrBusy, g.RootPath)
		}
	}
	return nil
}

func samePath(a, b string) bool { return hostpath.Identity(a) == hostpath.Identity(b) }

func (m *Machine) mount(g vmm.Mount) (act, error) {
	switch g := g.(type) {
	case vmm.CombinedLayers:
		if g.Filter == UnionFS {
			return m.overlay(g)
		}
		return m.filter(g), nil
	case vmm.CIMVolume:
		return m.volume(g)
	}
	return act{}, fmt.Errorf("%s on a Windows host itself: %w", g, errors.ErrUnsupported)
}

// filter makes the layer folders visible in the volume of a scratch.
func (m *Machine) filter(g vmm.CombinedLayers) act {
	parents := make([]string, len(g.Layers))
	for i, l := range g.Layers {
		parents[i] = l.Path
	}
	return act{
		add:    func(ctx context.Context) error { return m.host.Prepare(ctx, g.RootPath, parents) },
		remove: func(ctx context.Context) error { return m.host.Unprepare(ctx, g.RootPath) },
	}
}

// overlay combines mounted images with the volume of a scratch.
func (m *Machine) overlay(g vmm.CombinedLayers) (act, error) {
	layers := make([]wclayer.OverlayLayer, len(g.Layers))
	for i, l := range g.Layers {
		id, err := guid.FromString(l.ID)
		if err != nil {
			return act{}, fmt.Errorf("layer %s: %w", l.Path, err)
		}
		layers[i] = wclayer.OverlayLayer{ID: id, Path: l.Path}
	}
	return act{
		add: func(ctx context.Context) error {
			volume, err := m.VolumePath(ctx, g.RootPath)
			if err != nil {
				return err
			}
			return m.host.AttachOverlay(ctx, volume, layers)
		},
		remove: func(ctx context.Context) error {
			volume, err := m.host.MountPath(ctx, g.RootPath)
			if err != nil || volume == "" { // no volume, so no filter on it
				return err
			}
			return m.host.DetachOverlay(ctx, volume)
		},
	}, nil
}

var cimKinds = map[vmm.CIMKind]wclayer.BlockType{
	vmm.CIMFolder: wclayer.Forked, vmm.CIMBlockDevice: wclayer.BlockDevice, vmm.CIMBlockFile: wclayer.BlockFile,
}

func (m *Machine) volume(g vmm.CIMVolume) (act, error) {
	id, err := guid.FromString(g.VolumeGUID)
	kind, known := cimKinds[g.Kind]
	switch {
	case err != nil:
		return act{}, fmt.Errorf("volume %q: %w", g.VolumeGUID, err)
	case !known || len(g.Images) == 0:
		return act{}, fmt.Errorf("%w: %d images of kind %q", vmm.ErrInvalid, len(g.Images), g.Kind)
	}
	images := make([]wclayer.CIM, len(g.Images))
	for i, image := range g.Images {
		images[i] = wclayer.CIM(image)
	}
	cim := wclayer.CIMMount{Kind: kind, Image: images[0], Sources: images[1:], Digest: g.Digest, DAX: g.DAX}
	return act{
		add: func(ctx context.Context) error {
			_, err := m.host.MountCIM(ctx, id, cim)
			return err
		},
		remove: func(ctx context.Context) error {
			err := m.unused(func(root vmm.CombinedLayers) bool {
				return slices.ContainsFunc(root.Layers, func(l vmm.GuestLayer) bool { return l.ID == g.VolumeGUID })
			})
			if err != nil {
				return err
			}
			return m.host.DismountCIM(ctx, id)
		},
	}, nil
}

// half returns a half of a Change, which is all that c consists of, and keeps its record.
func (m *Machine) half(c vmm.Change, a act) applyengine.Half {
	if c.Op == vmm.Remove {
		return func(ctx context.Context) (vmm.Outcome, error) { return m.remove(ctx, c, a) }
	}
	return func(ctx context.Context) (vmm.Outcome, error) { return m.add(ctx, c, a) }
}

func (m *Machine) add(ctx context.Context, c vmm.Change, a act) (vmm.Outcome, error) {
	there, err := m.records.find(c)
	switch {
	case err != nil:
		return vmm.NotDone, err
	case there == certain:
		return vmm.Done, nil
	case there == doubtful:
		if err := a.remove(ctx); err != nil { // if it matters, adding it again fails too
			m.log.Info("removing what may be there from before", "change", c.String(), "error", err)
		}
	}
	if err := m.records.put(c, doubtful); err != nil {
		return vmm.NotDone, err
	}
	if err := a.add(ctx); err != nil {
		if uncertain(err) {
			return vmm.Unknown, err
		}
		return vmm.NotDone, errors.Join(err, m.records.put(c, absent))
	}
	// If the record stays doubtful, that only costs another attempt to remove it.
	m.noteFailure(m.records.put(c, certain))
	return vmm.Done, nil
}

func (m *Machine) remove(ctx context.Context, c vmm.Change, a act) (vmm.Outcome, error) {
	if m.records.gone(c) {
		return vmm.Done, nil
	}
	if err := a.remove(ctx); err != nil {
		if uncertain(err) {
			return vmm.Unknown, err
		}
		return vmm.NotDone, err
	}
	m.noteFailure(m.records.put(c, absent))
	return vmm.Done, nil
}

// uncertain reports whether a failed call may have taken effect.
func uncertain(err error) bool {
	return errors.Is(err, wclayer.ErrTimeout) || errors.Is(err, wclayer.ErrUnfinished)
}

func (m *Machine) noteFailure(err error) {
	if err != nil {
		m.log.Error("the outcome of a change is not recorded", "error", err)
	}
}
