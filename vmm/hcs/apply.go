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

// Apply implements vmm.Machine. Calls to the service or the guest cannot be cancelled: if ctx ends first, Apply returns
// with the half in progress Unknown, and the call continues in the background.
func (m *Machine) Apply(ctx context.Context, c vmm.Change) error {
	if err := m.Err(); err != nil {
		return &vmm.ApplyError{Change: c, Err: err}
	}
	return m.engine.Run(ctx, c, m.halves)
}

// halves creates the documents of a Change first, so that a Change that cannot be expressed fails without effect.
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

// half returns a half of a Change that consists of one call. Removing what does not exist succeeds.
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

// hostHalf returns the host half, including granting access to the disk or having the guest eject it.
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

// noteRefused wraps half. If its outcome is when, it records whether the guest refused the mount of the device at addr;
// see repeats.
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

// repeats reports whether a removal rolls back an addition whose mount the guest refused. hcsshim then sends the
// settings of the device again, except for disks that the guest ejects.
func (m *Machine) repeats(c vmm.Change) bool {
	m.mu.Lock()
	refused := c.Device != nil && m.refused[c.Device.Addr()]
	m.mu.Unlock()
	return refused && c.Op == vmm.Remove && c.Mount == nil && !m.ejects(c)
}

// reserved returns an error for slots that the machine uses itself or does not have.
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

// mappable returns the device of a change, without direct mapping if that does not work: builds of two years fail on
// file systems whose files have no identity, such as some network shares.
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

// encoder returns a copy, as the generation of the guest may be detected while the machine runs.
func (m *Machine) encoder() encoder {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.enc
}

// ejects reports whether the change requires a request to a Linux guest to eject the disk.
func (m *Machine) ejects(c vmm.Change) bool {
	_, disk := c.Device.(vmm.SCSIDisk)
	return disk && c.Op == vmm.Remove && m.enc.os == vmm.Linux && m.conn.asks() && m.encoder().ejects()
}

// eject makes the guest eject the disk. If the guest does not know that request, it has unplugged the disk on unmount;
// it is not asked again.
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

// probed reports whether the error shows that the guest does not know the eject request, and if so, changes the
// generation.
func (m *Machine) probed(answer error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if g := m.enc.generation; g != GuestProbe && g != GuestUnplugs || !unknownResource(answer) {
		return false
	}
	m.enc.generation = GuestUnplugs
	return true
}

// unknownResource reports whether a Linux guest does not know the resource type. It responds with its general error
// code and a message.
func unknownResource(err error) bool {
	return strings.Contains(strings.ToLower(err.Error()), "resource type") || errors.Is(err, errors.ErrUnsupported)
}

// guestError is an error of our own connection to the guest.
type guestError struct{ err error }

func (e *guestError) Error() string { return "guest: " + e.err.Error() }
func (e *guestError) Unwrap() error { return e.err }

// certainty returns the outcome of a call that failed. If the service refuses a request, it had no effect; after a
// timeout the effect is unknown.
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

// explain checks whether a call failed because the machine is gone, or a removal because it is stopping, which removes
// everything in it. It then records that the machine is gone.
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
