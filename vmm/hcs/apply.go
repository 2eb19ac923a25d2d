package hcs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/applyengine"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/vmm"
)

// Apply implements vmm.Machine. A call into the service or to the guest is never cut short: when ctx
// ends first, Apply returns with the half in question Unknown, and the call is followed to its end.
func (m *Machine) Apply(ctx context.Context, c vmm.Change) error {
	if err := m.Err(); err != nil {
		return &vmm.ApplyError{Change: c, Err: err}
	}
	return m.engine.Run(ctx, c, m.halves)
}

// halves creates the documents of a Change, so that what cannot be expressed fails before anything is done.
func (m *Machine) halves(c vmm.Change) (h applyengine.Halves, err error) {
	if err := m.reserved(c); err != nil {
		return h, err
	}
	var guest *hcsschema.GuestRequest
	if c.Mount != nil {
		g, err := m.encoder().guest(c.Op, c.Mount)
		if err != nil {
			return h, err
		}
		guest = &g
		h.Guest = m.half(c, func(ctx context.Context) error {
			err := m.conn.modify(ctx, m, g)
			if u, needed := m.encoder().unbind(c); needed && (err == nil || isAbsent(err)) {
				err = m.conn.modify(ctx, m, u)
			}
			return err
		})
	}
	if c.Device == nil {
		return h, nil
	}
	r, err := m.encoder().host(c.Op, m.mappable(c), m.repeats(c))
	if err != nil {
		return h, err
	}
	h.Host = m.hostHalf(c, r)
	if guest != nil && m.conn.carries() && !m.ejects(c) {
		r.GuestRequest = guest
		h.Both = m.hostHalf(c, r)
	}
	addr := c.Device.Addr()
	h.Host, h.Both = m.noteRefused(addr, h.Host, vmm.Done, false), m.noteRefused(addr, h.Both, vmm.Done, false)
	if c.Op == vmm.Add {
		h.Guest = m.noteRefused(addr, h.Guest, vmm.NotDone, true)
	}
	return h, nil
}

// half is a half of a Change of one call. What is not there need not be removed.
func (m *Machine) half(c vmm.Change, do func(context.Context) error) applyengine.Half {
	return func(ctx context.Context) (vmm.Outcome, error) {
		err := do(ctx)
		if err == nil || c.Op == vmm.Remove && isAbsent(err) {
			return vmm.Done, nil
		}
		err = m.explain(ctx, c.Op, err)
		return certainty(err), err
	}
}

// hostHalf is the host half, with all that belongs to it.
func (m *Machine) hostHalf(c vmm.Change, r hcsschema.ModifySettingRequest) applyengine.Half {
	return m.half(c, func(ctx context.Context) error {
		if d, ok := c.Device.(vmm.SCSIDisk); ok && m.ejects(c) {
			if err := m.eject(ctx, d); err != nil {
				return err
			}
		} else if ok && c.Op != vmm.Remove {
			if err := m.grant(ctx, d.Access, d.Path, m.ID()); err != nil {
				return err
			}
		}
		return m.sys.modify(r)
	})
}

// noteRefused notes, after a half with a certain outcome, whether a device was added whose mount the guest
// refused; see repeats.
func (m *Machine) noteRefused(addr string, half applyengine.Half, when vmm.Outcome, refused bool) applyengine.Half {
	if half == nil {
		return nil
	}
	return func(ctx context.Context) (vmm.Outcome, error) {
		o, err := half(ctx)
		m.mu.Lock()
		defer m.mu.Unlock()
		switch {
		case o != when:
		case refused:
			m.refused[addr] = true
		default:
			delete(m.refused, addr)
		}
		return o, err
	}
}

// repeats reports whether a removal takes back an addition whose mount a guest refused; hcsshim then
// sends the settings again, but for disks that the guest ejects.
func (m *Machine) repeats(c vmm.Change) bool {
	m.mu.Lock()
	refused := c.Device != nil && m.refused[c.Device.Addr()]
	m.mu.Unlock()
	return refused && c.Op == vmm.Remove && c.Mount == nil && !m.ejects(c)
}

// reserved refuses the places that the machine itself uses.
func (m *Machine) reserved(c vmm.Change) error {
	switch d := c.Device.(type) {
	case vmm.SCSIDisk:
		slot := vmm.SCSISlot{Controller: d.Controller, LUN: d.LUN}
		if slices.Contains(m.limits.ReservedSCSI, slot) {
			return fmt.Errorf("%s: %w by the machine itself", d.Addr(), vmm.ErrOccupied)
		}
		if d.Controller >= m.limits.SCSIControllers || d.LUN >= m.limits.SCSILUNs {
			return fmt.Errorf("%s: the machine has %d SCSI controllers: %w",
				d.Addr(), m.limits.SCSIControllers, ErrNotSupported)
		}
	case vmm.VPMEMDevice:
		if d.Slot < m.limits.VPMEMReserved {
			return fmt.Errorf("%s: %w by the machine itself", d.Addr(), vmm.ErrOccupied)
		}
		if d.Slot >= m.limits.VPMEMDevices {
			return fmt.Errorf("%s: the machine has %d VPMEM devices: %w",
				d.Addr(), m.limits.VPMEMDevices, ErrNotSupported)
		}
	}
	return nil
}

// mappable is the device of a change, not to be mapped directly where that does not work: builds of
// two years fail on file systems that give files no identity, such as those of some network shares.
func (m *Machine) mappable(c vmm.Change) vmm.Device {
	share, ok := c.Device.(vmm.VSMBShare)
	if !ok || c.Op == vmm.Remove || m.host.FileID == nil ||
		m.host.Build < buildFileIDFirst || m.host.Build > buildFileIDLast {
		return c.Device
	}
	if err := m.host.FileID(share.Path); err != nil {
		m.host.Logger.Info("the share is not mapped directly", "vm", m.ID(), "path", share.Path, "reason", err)
		share.Options.NoDirectmap = true
	}
	return share
}

// encoder returns a copy: what the guest knows may be found out while the machine runs.
func (m *Machine) encoder() encoder {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.enc
}

// ejects reports whether a Linux guest is asked to release a disk by a request of its own.
func (m *Machine) ejects(c vmm.Change) bool {
	_, disk := c.Device.(vmm.SCSIDisk)
	return disk && c.Op == vmm.Remove && m.enc.os == vmm.Linux && m.conn.asks() && m.encoder().ejects()
}

// eject makes the guest release the disk. A guest that has not heard of such a request unplugs on
// unmount; it is not asked again.
func (m *Machine) eject(ctx context.Context, d vmm.SCSIDisk) error {
	err := m.conn.modify(ctx, m, eject(d))
	if err == nil || isAbsent(err) {
		return nil
	}
	if !m.probed(err) {
		return fmt.Errorf("let the guest eject the disk: %w", err)
	}
	m.host.Logger.Info("the guest unplugs disks on unmount", "vm", m.sys.id, "answer", err)
	if m.host.Probed != nil {
		m.host.Probed(GuestUnplugs)
	}
	return nil
}

// probed reports whether an answer to a request to eject tells of a guest that does not know it, and notes that.
func (m *Machine) probed(answer error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if g := m.enc.generation; g != GuestProbe && g != GuestUnplugs || !unknownResource(answer) {
		return false
	}
	m.enc.generation = GuestUnplugs
	return true
}

// unknownResource reports whether a Linux guest does not know the kind of resource: it answers with
// its general failure and a text.
func unknownResource(err error) bool {
	return strings.Contains(strings.ToLower(err.Error()), "resource type") || errors.Is(err, errors.ErrUnsupported)
}

// guestError is an error of our own connection to the guest.
type guestError struct{ err error }

func (e *guestError) Error() string { return "guest: " + e.err.Error() }
func (e *guestError) Unwrap() error { return e.err }

// certainty is what an error leaves known: a service that refuses has done nothing, but a timeout says
// nothing.
func certainty(err error) vmm.Outcome {
	if g, ok := errors.AsType[*guestError](err); ok {
		return gcs.Outcome(g.err)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		IsTimeout(err) || errors.Is(err, vmm.ErrGone) {
		return vmm.Unknown
	}
	return vmm.NotDone
}

// isAbsent reports whether a removal failed because there was nothing to remove.
func isAbsent(err error) bool {
	return errors.Is(err, ErrElementNotFound) || errors.Is(err, gcs.ErrNotFound)
}

// explain finds out whether a call failed because the machine is gone, or a removal was refused because
// it is going down: that is no refusal, everything in it goes.
func (m *Machine) explain(ctx context.Context, op vmm.Op, err error) error {
	if errors.Is(err, ErrDoesNotExist) || errors.Is(err, ErrAlreadyStopped) {
		m.sys.exit(fmt.Errorf("%w: %w", vmm.ErrGone, err))
		return err
	}
	if op == vmm.Remove && IsInvalidState(err) {
		p, perr := m.sys.properties(ctx)
		if perr != nil && (IsNotExist(perr) || IsAlreadyStopped(perr)) ||
			perr == nil && (p.Stopped || p.State == hcsschema.StateStopped) {
			m.sys.exit(fmt.Errorf("%w: it is stopping", vmm.ErrGone))
		}
	}
	if gone := m.Err(); gone != nil && !errors.Is(err, vmm.ErrGone) {
		return fmt.Errorf("%w: %w", gone, err)
	}
	return err
}
