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

// Phase is how far a claim has come.
type Phase string

// The phases of a claim. Opening a VM releases claims that are mounting or releasing: their process
// died half way. Mounted and partial ones stay.
const (
	Mounting  Phase = "mounting"
	Mounted   Phase = "mounted"
	Partial   Phase = "partial"   // some of its leases were released on purpose
	Releasing Phase = "releasing" // all of its leases are to go
	ended     Phase = "ended"
)

// Kind is the sort of resource that a lease is on.
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

// Claim is what one container holds in a VM. Its methods may be called concurrently.
type Claim struct {
	l      *ledger
	id     string
	phase  Phase
	meta   json.RawMessage
	leases []*Lease
}

// Lease is one use of a resource by one claim.
type Lease struct {
	l     *ledger
	id    int
	claim *Claim
	role  string
	kind  Kind
	slot  string // address of the device below, or ""
	path  string
	what  string
	lun   uint8
	res   *resource // what is still held; nil once released
}

// GuestPath is where the resource appears in the guest. For a disk that was mounted already it is
// the place of the first mount, not the one asked for.
func (le *Lease) GuestPath() string { return le.path }

// Role is what the holder called it ("layer", "scratch", "root", …).
func (le *Lease) Role() string { return le.role }

// Kind is the sort of resource.
func (le *Lease) Kind() Kind { return le.kind }

// Addr is the address of the device, such as "scsi 0:3"; empty for a guest mount without a device.
func (le *Lease) Addr() string { return le.slot }

// LUN is the LUN of a SCSI disk; 0 for anything else.
func (le *Lease) LUN() uint8 { return le.lun }

func (le *Lease) String() string { return le.what }

// Release gives up the lease. It is idempotent, and after a failure it can be called again and
// continues where it stopped. When the VM is gone it succeeds.
func (le *Lease) Release(ctx context.Context) error {
	if err := le.l.drop(ctx, le); err != nil {
		return fmt.Errorf("release %s: %w", le.role, err)
	}
	return nil
}

// Claim begins a claim for the container id. meta is kept with it and given back by Claims. An id
// that is in use fails with ErrClaimed, unless what holds it is the rest of a failed mount or
// unmount: that is finished first.
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
			return nil, fmt.Errorf("finish the release of an earlier container %q: %w", id, err)
		}
	}
}

// FindClaim returns the claim of a container id.
func (vm *UtilityVM) FindClaim(id string) (*Claim, error) {
	vm.l.mu.Lock()
	defer vm.l.mu.Unlock()
	if c := vm.l.claims[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %q: %w", id, ErrUnknownClaim)
}

// Claims lists the claims of all containers by id.
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

// ID is the container id.
func (c *Claim) ID() string { return c.id }

// Phase is how far the claim has come.
func (c *Claim) Phase() Phase {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	return c.phase
}

// Meta decodes what the holder keeps with the claim.
func (c *Claim) Meta(into any) error {
	c.l.mu.Lock()
	raw := c.meta
	c.l.mu.Unlock()
	return json.Unmarshal(raw, into)
}

// Leases lists what is held, in the order in which it was taken.
func (c *Claim) Leases() []*Lease {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	return slices.Clone(c.leases)
}

// Commit says that the container is whole: from now on a crash leaves it mounted.
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

// live fails when nothing more can be taken for the claim: the VM is gone or closed, or the claim is
// being released, or was. The ledger is locked.
func (c *Claim) live() error {
	if err := c.l.usable(); err != nil {
		return err
	}
	if c.l.claims[c.id] != c || c.phase == Releasing {
		return fmt.Errorf("container %q was released meanwhile: %w", c.id, ErrUnknownClaim)
	}
	return nil
}

// write puts the claim into the journal; the ledger is locked.
func (c *Claim) write() error {
	t := c.l.begin()
	t.claim(c)
	return t.write()
}

// partly is the phase of a claim of which only a part is to go. One that was never whole, or was to go
// already, still is to go.
var partly = map[Phase]Phase{Mounting: Releasing, Mounted: Partial, Partial: Partial, Releasing: Releasing}

// Release gives up the leases in the order given, or with nil all of them, last taken first. It
// attempts every one and joins the errors, but for a combined root that is in use: what it rests on
// is in use too, and is not touched. When nothing is held any more the claim ends. Releasing a part
// leaves the rest held until a later Release; when nothing could be released at all the container is
// mounted as before.
func (c *Claim) Release(ctx context.Context, leases []*Lease) error {
	l := c.l
	l.mu.Lock()
	if leases == nil {
		leases = slices.Clone(c.leases)
		slices.Reverse(leases)
	}
	before, held := c.phase, len(c.leases)
	if c.phase != ended && !l.gone {
		phase := partly[c.phase]
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

// describe notes what is to be told about a lease even after it is released.
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
