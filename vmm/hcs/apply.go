package hcs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
)

// Apply implements vmm.Machine. A call into the service or to the guest is never cut short: when ctx
// ends first, Apply returns with the half in question Unknown, and the call is followed to its end.
func (m *Machine) Apply(ctx context.Context, c vmm.Change) error {
	fail := func(err error) error { return &vmm.ApplyError{Change: c, Err: err} }
	if err := m.Err(); err != nil {
		return fail(err)
	}
	if err := context.Cause(ctx); err != nil {
		return fail(err)
	}
	if c.Empty() {
		return fail(errors.New("the change is empty"))
	}
	w := &work{m: m, c: c, ctx: ctx}
	if err := w.prepare(); err != nil {
		return fail(err)
	}
	addrs := addresses(c)
	if err := m.books.acquire(ctx, m.Done(), addrs); err != nil {
		if gone := m.Err(); gone != nil {
			err = gone
		}
		return fail(err)
	}
	done := make(chan error, 1)
	go func() {
		err := w.run()
		host, guest := w.outcomes()
		m.books.note(c, host, guest)
		m.books.release(addrs)
		done <- err
	}()
	select {
	case err := <-done:
		if gone := m.Err(); err != nil && gone != nil && !errors.Is(err, vmm.ErrGone) {
			err = fmt.Errorf("%w: %w", gone, err) // the machine's end is what broke the call
		}
		return w.result(err)
	case <-ctx.Done():
		w.abandon()
		return w.result(context.Cause(ctx))
	case <-m.Done():
		w.abandon()
		return w.result(m.Err())
	}
}

// half is one side of a change: what is to be done, in order, and what is known of it.
type half struct {
	outcome vmm.Outcome
	steps   []func(context.Context) error
	skip    bool // it is there already
}

// work is a change under way.
type work struct {
	m   *Machine
	c   vmm.Change
	ctx context.Context // of the caller; no step starts after it has ended

	host, guest half
	both        bool // one call carries both halves

	mu        sync.Mutex
	abandoned bool
}

// prepare makes the documents, so that what cannot be expressed fails before anything is done.
func (w *work) prepare() error {
	m, c := w.m, w.c
	if err := m.reserved(c); err != nil {
		return err
	}
	if c.Device != nil {
		r, err := m.encoder().host(c.Op, m.mappable(c), w.repeats())
		if err != nil {
			return err
		}
		w.host.steps = append(w.host.steps, w.grant)
		if c.Mount != nil && m.internal && !w.ejects() {
			w.both = true
			g, err := m.encoder().guest(c.Op, c.Mount)
			if err != nil {
				return err
			}
			r.GuestRequest = &g
		}
		w.host.steps = append(w.host.steps, func(context.Context) error { return m.sys.modify(r) })
	}
	if c.Mount != nil && !w.both {
		g, err := m.encoder().guest(c.Op, c.Mount)
		if err != nil {
			return err
		}
		w.guest.steps = append(w.guest.steps, func(ctx context.Context) error { return m.ask(ctx, g) })
	}
	if w.ejects() {
		w.host.steps = slices.Insert(w.host.steps, 0, w.eject)
	}
	return nil
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
			return fmt.Errorf("%s: the machine has %d SCSI controllers: %w", d.Addr(), m.limits.SCSIControllers, ErrNotSupported)
		}
	case vmm.VPMEMDevice:
		if d.Slot < m.limits.VPMEMReserved {
			return fmt.Errorf("%s: %w by the machine itself", d.Addr(), vmm.ErrOccupied)
		}
		if d.Slot >= m.limits.VPMEMDevices {
			return fmt.Errorf("%s: the machine has %d VPMEM devices: %w", d.Addr(), m.limits.VPMEMDevices, ErrNotSupported)
		}
	}
	return nil
}

// mappable is the device of a change, not to be mapped directly where that does not work: builds of
// two years fail on file systems that give files no identity, such as those of some network shares.
func (m *Machine) mappable(c vmm.Change) vmm.Device {
	share, ok := c.Device.(vmm.VSMBShare)
	if !ok || c.Op == vmm.Remove || m.host.FileID == nil || m.host.Build < buildFileIDFirst || m.host.Build > buildFileIDLast {
		return c.Device
	}
	if err := m.host.FileID(share.Path); err != nil {
		m.host.Logger.Info("the share is not mapped directly", "vm", m.ID(), "path", share.Path, "reason", err)
		share.Options.NoDirectmap = true
	}
	return share
}

// repeats reports whether a removal takes back an addition whose mount a guest refused; hcsshim then
// sends the settings again, but for disks that the guest ejects.
func (w *work) repeats() bool {
	return w.c.Op == vmm.Remove && w.c.Device != nil && w.c.Mount == nil &&
		!w.ejects() && w.m.books.wasRefused(w.c.Device.Addr())
}

// ejects reports whether a Linux guest is asked to let go of a disk by a request of its own.
func (w *work) ejects() bool {
	_, disk := w.c.Device.(vmm.SCSIDisk)
	return disk && w.c.Op == vmm.Remove && w.m.enc.os == vmm.Linux && w.m.connected && w.m.encoder().ejects()
}

// encoder gives a copy: what the guest knows may be found out while the machine runs.
func (m *Machine) encoder() encoder {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.enc
}

// eject makes the guest let go of the disk. A guest that has not heard of such a request unplugs on
// unmount; it is not asked again.
func (w *work) eject(ctx context.Context) error {
	m := w.m
	err := m.ask(ctx, eject(w.c.Device.(vmm.SCSIDisk)))
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
	return strings.Contains(strings.ToLower(err.Error()), "resource type") || IsNotSupported(err)
}

func (w *work) grant(ctx context.Context) error {
	d, ok := w.c.Device.(vmm.SCSIDisk)
	if !ok || w.c.Op == vmm.Remove {
		return nil
	}
	return w.m.grant(ctx, d.Access, d.Path, w.m.ID())
}

// ask sends a request to the guest, through the service or over our own connection.
func (m *Machine) ask(ctx context.Context, g hcsschema.GuestRequest) error {
	if m.internal {
		return m.sys.modify(hcsschema.ModifySettingRequest{GuestRequest: &g})
	}
	guest, err := m.external()
	if err != nil {
		return err
	}
	if err := guest.Modify(ctx, g); err != nil {
		return &guestError{err}
	}
	return nil
}

// guestError is an error of our own connection to the guest.
type guestError struct{ err error }

func (e *guestError) Error() string { return "guest: " + e.err.Error() }
func (e *guestError) Unwrap() error { return e.err }

// run does the halves in their order.
func (w *work) run() error {
	if w.c.Op == vmm.Add {
		host, guest, err := w.m.books.conflict(w.c)
		if err != nil {
			return err
		}
		w.host.skip, w.guest.skip = host, guest
		if w.both && host != guest {
			// Half of it is there: the missing half goes alone.
			return w.split(host)
		}
	}
	order := []*half{&w.host, &w.guest}
	if w.c.Op == vmm.Remove {
		slices.Reverse(order)
	}
	for _, h := range order {
		if err := w.do(h); err != nil {
			return err
		}
	}
	return nil
}

// split sends one half of a change whose other half is there, where one call would carry both.
func (w *work) split(host bool) error {
	w.both = false
	m, c := w.m, w.c
	if host {
		g, err := m.encoder().guest(c.Op, c.Mount)
		if err != nil {
			return err
		}
		w.guest.steps = []func(context.Context) error{func(ctx context.Context) error { return m.ask(ctx, g) }}
	} else {
		r, err := m.encoder().host(c.Op, m.mappable(c), false)
		if err != nil {
			return err
		}
		w.host.steps = []func(context.Context) error{w.grant, func(context.Context) error { return m.sys.modify(r) }}
	}
	if err := w.do(&w.host); err != nil {
		return err
	}
	return w.do(&w.guest)
}

// do runs the steps of one half and records what is known of it at every moment.
func (w *work) do(h *half) error {
	if h.skip {
		w.set(h, vmm.Done)
		return nil
	}
	// The steps outlive the caller's patience, but not the machine.
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.ctx))
	defer cancel()
	defer context.AfterFunc(w.m.life, cancel)()
	for _, step := range h.steps {
		if !w.begin(h) {
			return context.Cause(w.ctx)
		}
		err := step(ctx)
		if err == nil || w.c.Op == vmm.Remove && isAbsent(err) {
			continue
		}
		err = w.m.explain(ctx, w.c.Op, err)
		w.set(h, certainty(err))
		return err
	}
	if len(h.steps) > 0 {
		w.set(h, vmm.Done)
	}
	return nil
}

// begin says that a step of a half starts now, unless the caller has gone.
func (w *work) begin(h *half) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.abandoned || w.ctx.Err() != nil {
		return false
	}
	w.record(h, vmm.Unknown)
	return true
}

func (w *work) set(h *half, o vmm.Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.record(h, o)
}

func (w *work) record(h *half, o vmm.Outcome) {
	h.outcome = o
	if w.both {
		w.guest.outcome = o
	}
}

func (w *work) abandon() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.abandoned = true
}

func (w *work) outcomes() (host, guest vmm.Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.host.outcome, w.guest.outcome
}

// result wraps the cause with what is known of the halves.
func (w *work) result(err error) error {
	if err == nil {
		return nil
	}
	e := &vmm.ApplyError{Change: w.c, Err: err}
	e.Host, e.Guest = w.outcomes()
	return e
}

// certainty tells what an error of a step leaves known: who refuses has done nothing, but a timeout
// or a broken connection says nothing.
func certainty(err error) vmm.Outcome {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), IsTimeout(err),
		errors.Is(err, vmm.ErrGuestUnreachable), errors.Is(err, vmm.ErrGone):
		if refused(err) {
			return vmm.NotDone
		}
		return vmm.Unknown
	}
	if g, ok := errors.AsType[*guestError](err); ok && !refused(g.err) {
		return vmm.Unknown
	}
	return vmm.NotDone
}

// isAbsent reports whether a removal failed because there was nothing to remove.
func isAbsent(err error) bool { return errors.Is(err, ErrElementNotFound) }

// explain finds out whether a step failed because the machine is gone, or a removal was refused because
// it is going down: that is no refusal, everything in it goes.
func (m *Machine) explain(ctx context.Context, op vmm.Op, err error) error {
	if errors.Is(err, ErrDoesNotExist) || errors.Is(err, ErrAlreadyStopped) {
		m.sys.exit(fmt.Errorf("%w: %w", vmm.ErrGone, err))
		return err
	}
	if op != vmm.Remove || !IsInvalidState(err) {
		return err
	}
	p, perr := m.sys.properties(ctx)
	if perr != nil && (IsNotExist(perr) || IsAlreadyStopped(perr)) || perr == nil && (p.Stopped || p.State == hcsschema.StateStopped) {
		m.sys.exit(fmt.Errorf("%w: it is stopping", vmm.ErrGone))
		return fmt.Errorf("%w: %w", vmm.ErrGone, err)
	}
	return err
}
