package uvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stratavm/strata/vmm"
)

// Phase is the phase of a claim's life cycle.
type Phase string

// The phases of a claim. Open releases claims that are Mounting or Releasing, as their process died in the middle.
// Mounted and Partial claims stay.
const (
	Mounting  Phase = "mounting"
	Mounted   Phase = "mounted"
	Partial   Phase = "partial"   // some of its leases were released deliberately
	Releasing Phase = "releasing" // all of its leases are to be released
	ended     Phase = "ended"
)

// Kind is the kind of resource that a lease refers to.
type Kind string

// The kinds of leases.
const (
	KindSCSI     Kind = "scsi"
	KindVPMEM    Kind = "vpmem"
	KindVSMB     Kind = "vsmb"
	KindPlan9    Kind = "plan9"
	KindVirtioFS Kind = "virtiofs"
	KindCombined Kind = "combined"
	KindCIM      Kind = "cim"
	KindWritable Kind = "writableLayer"
	KindNIC      Kind = "nic"
)

// Claim is the set of resources that a container holds in a VM. Its methods may be called concurrently.
type Claim struct {
	l      *ledger
	id     string
	phase  Phase
	meta   json.RawMessage
	leases []*Lease
}

// Lease is one claim's use of one resource.
type Lease struct {
	l     *ledger
	id    int
	claim *Claim
	role  string
	kind  Kind
	slot  string // address of the resource's device, or ""
	path  string
	what  string
	lun   uint8
	res   *resource // the resource still held; nil once released
}

// GuestPath returns the path of the resource in the guest. For a disk that was already mounted this is the existing
// mount point, not the requested one.
func (le *Lease) GuestPath() string { return le.path }

// Role returns the role that the caller gave the lease ("layer", "scratch", "root", …).
func (le *Lease) Role() string { return le.role }

// Kind returns the kind of resource.
func (le *Lease) Kind() Kind { return le.kind }

// Addr returns the address of the device, such as "scsi 0:3"; empty for a guest mount without a device.
func (le *Lease) Addr() string { return le.slot }

// LUN returns the LUN of a SCSI disk; 0 for anything else.
func (le *Lease) LUN() uint8 { return le.lun }

func (le *Lease) String() string { return le.what }

// Release releases the lease. It is idempotent; after a failure it can be called again and continues where it stopped.
// If the VM is gone, it succeeds.
func (le *Lease) Release(ctx context.Context) error {
	if err := le.l.drop(ctx, le); err != nil {
		return fmt.Errorf("release %s: %w", le.role, err)
	}
	return nil
}

// Claim creates a claim for the container id. meta is stored with it as JSON, see Claim.Meta. If the id is in use, the
// error matches ErrClaimed, unless the existing claim is being released after a failed mount or unmount: then that
// release is completed first.
func (vm *UtilityVM) Claim(ctx context.Context, id string, meta any) (*Claim, error) {
	raw, err := json.Marshal(meta)
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", id, err)
	}
	l := vm.l
	for {
		l.mu.Lock()
		if err := l.usable(); err != nil {
			l.mu.Unlock()
			return nil, err
		}
		old := l.claims[id]
		if old == nil {
			c := &Claim{l: l, id: id, phase: Mounting, meta: raw}
			l.claims[id] = c
			if err = c.write(); err != nil {
				delete(l.claims, id)
				c = nil
			}
			l.mu.Unlock()
			return c, err
		}
		leftover := old.phase == Releasing
		l.mu.Unlock()
		if !leftover {
			return nil, fmt.Errorf("container %q: %w", id, ErrClaimed)
		}
		if err := old.Release(ctx, nil); err != nil {
			return nil, fmt.Errorf("release the earlier container %q: %w", id, err)
		}
	}
}

// FindClaim returns the claim of a container id. If there is none, the error matches ErrUnknownClaim.
func (vm *UtilityVM) FindClaim(id string) (*Claim, error) {
	vm.l.mu.Lock()
	defer vm.l.mu.Unlock()
	if c := vm.l.claims[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %q: %w", id, ErrUnknownClaim)
}

// Claims returns the claims of all containers, sorted by id.
func (vm *UtilityVM) Claims() []*Claim {
	vm.l.mu.Lock()
	defer vm.l.mu.Unlock()
	out := make([]*Claim, 0, len(vm.l.claims))
	for id, c := range vm.l.claims {
		if id != orphans {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *Claim) int { return strings.Compare(a.id, b.id) })
	return out
}

// ID returns the container id.
func (c *Claim) ID() string { return c.id }

// Phase returns the current phase.
func (c *Claim) Phase() Phase {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	return c.phase
}

// Meta decodes the metadata stored by UtilityVM.Claim or Commit.
func (c *Claim) Meta(into any) error {
	c.l.mu.Lock()
	raw := c.meta
	c.l.mu.Unlock()
	return json.Unmarshal(raw, into)
}

// Leases returns the leases of the claim, in the order in which they were acquired.
func (c *Claim) Leases() []*Lease {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	return slices.Clone(c.leases)
}

// Commit stores meta and marks the claim as Mounted: from now on recovery after a crash keeps it.
func (c *Claim) Commit(meta any) error {
	raw, err := json.Marshal(meta)
	if err != nil {
		return fmt.Errorf("commit %s: %w", c.id, err)
	}
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if err := c.live(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	oldPhase, oldMeta := c.phase, c.meta
	c.phase, c.meta = Mounted, raw
	if err := c.write(); err != nil {
		c.phase, c.meta = oldPhase, oldMeta
		return err
	}
	return nil
}

// live returns an error if nothing more can be acquired for the claim: the VM is gone or closed, or the claim was or
// is being released. The ledger is locked.
func (c *Claim) live() error {
	if err := c.l.usable(); err != nil {
		return err
	}
	if c.l.claims[c.id] != c || c.phase == Releasing {
		return fmt.Errorf("container %q was released meanwhile: %w", c.id, ErrUnknownClaim)
	}
	return nil
}

// write appends the claim to the journal. The ledger is locked.
func (c *Claim) write() error {
	t := c.l.begin()
	t.claim(c)
	return t.write()
}

// partialPhase is the phase of a claim, by its phase before, once some of its leases are being released. A claim
// that was never completely mounted, or was already being released, is to be released as a whole.
var partialPhase = map[Phase]Phase{Mounting: Releasing, Mounted: Partial, Partial: Partial, Releasing: Releasing}

// Release releases the given leases in order, or with nil all of them, last acquired first. It tries every lease and
// joins the errors, but stops at a combined root that is in use: the resources below it are in use, too. When no lease
// is left the claim ends. If only some leases are released, the others are held until a later Release. If nothing
// could be released and everything is still attached, a mounted container stays mounted.
func (c *Claim) Release(ctx context.Context, leases []*Lease) error {
	l := c.l
	l.mu.Lock()
	if leases == nil {
		leases = slices.Clone(c.leases)
		slices.Reverse(leases)
	}
	before, held := c.phase, len(c.leases)
	if c.phase != ended && !l.gone {
		phase := partialPhase[c.phase]
		if len(leases) == len(c.leases) {
			phase = Releasing
		}
		if c.phase != phase {
			c.phase = phase
			l.logFailure(c.write())
		}
	}
	l.mu.Unlock()

	var errs []error
	for _, le := range leases {
		err := le.Release(ctx)
		errs = append(errs, err)
		if le.kind == KindCombined && errors.Is(err, vmm.ErrBusy) {
			break
		}
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	if before == Mounted && len(c.leases) == held && held > 0 && c.intact() {
		c.phase = Mounted
		l.logFailure(c.write())
	}
	if len(c.leases) == 0 && l.claims[c.id] == c {
		c.phase = ended
		delete(l.claims, c.id)
		errs = append(errs, c.write())
	}
	return errors.Join(errs...)
}

// intact reports whether everything the claim holds is attached; the ledger is locked.
func (c *Claim) intact() bool {
	return !slices.ContainsFunc(c.leases, func(le *Lease) bool {
		return le.res == nil || le.res.state != Attached
	})
}

// describe sets the fields of a lease that remain valid after its release.
func (le *Lease) describe(r *resource) {
	le.what = r.String()
	le.kind, le.slot = kindOf(r)
	if r.parent != nil {
		r = r.parent
	}
	if d, ok := r.device.(vmm.SCSIDisk); ok {
		le.lun = d.LUN
	}
}

// kindOf reports the kind of a resource and the address of its device.
func kindOf(r *resource) (Kind, string) {
	if r.device == nil && r.parent != nil {
		return kindOf(r.parent)
	}
	switch r.device.(type) {
	case vmm.SCSIDisk:
		return KindSCSI, r.device.Addr()
	case vmm.VPMEMDevice:
		return KindVPMEM, r.device.Addr()
	case vmm.VSMBShare:
		return KindVSMB, r.device.Addr()
	case vmm.Plan9Share:
		return KindPlan9, r.device.Addr()
	case vmm.NIC:
		return KindNIC, r.device.Addr()
	case vmm.VirtioFSShare:
		return KindVirtioFS, r.device.Addr()
	case vmm.WritableLayer:
		return KindWritable, r.device.Addr()
	}
	switch r.guest.(type) {
	case vmm.BlockCIMs, vmm.CIMVolume:
		return KindCIM, ""
	}
	return KindCombined, ""
}
