package applyengine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/stratavm/strata/internal/applyengine"
	"github.com/stratavm/strata/vmm"
)

var errRefused = errors.New("refused")

func disk(lun uint8) vmm.SCSIDisk { return vmm.SCSIDisk{LUN: lun, Path: fmt.Sprintf("/disk%d", lun)} }

func both(lun uint8) vmm.Change {
	return vmm.Change{Op: vmm.Add, Device: disk(lun), Mount: vmm.MappedDisk{LUN: lun, MountPath: fmt.Sprintf("/m%d", lun)}}
}

// driver does halves as it is told and lists them.
type driver struct {
	mu  sync.Mutex
	ran []string
	// do, if set for the name of a half, is what it does.
	do      map[string]applyengine.Half
	oneCall bool
}

func (d *driver) half(name string) applyengine.Half {
	return func(ctx context.Context) (vmm.Outcome, error) {
		d.mu.Lock()
		d.ran = append(d.ran, name)
		do := d.do[name]
		d.mu.Unlock()
		if do == nil {
			return vmm.Done, nil
		}
		return do(ctx)
	}
}

func (d *driver) halves(c vmm.Change) (applyengine.Halves, error) {
	h := applyengine.Halves{Host: d.half("host"), Guest: d.half("guest")}
	if d.oneCall && c.Device != nil && c.Mount != nil {
		h.Both = d.half("both")
	}
	return h, nil
}

func (d *driver) calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.ran
	d.ran = nil
	return out
}

func ends(o vmm.Outcome, err error) applyengine.Half {
	return func(context.Context) (vmm.Outcome, error) { return o, err }
}

func newEngine(t *testing.T, os vmm.OS, known *applyengine.Known) (*applyengine.Engine, context.CancelCauseFunc) {
	life, end := context.WithCancelCause(context.Background())
	e := applyengine.New(life, os, known, nil)
	t.Cleanup(func() {
		end(vmm.ErrGone)
		e.Wait()
	})
	return e, end
}

func TestOrderAndOutcomes(t *testing.T) {
	refused, unknown := ends(vmm.NotDone, errRefused), ends(vmm.Unknown, errRefused)
	for name, tt := range map[string]struct {
		change      vmm.Change
		do          map[string]applyengine.Half
		oneCall     bool
		ran         []string
		host, guest vmm.Outcome
	}{
		"add":                  {change: both(0), ran: []string{"host", "guest"}, host: vmm.Done, guest: vmm.Done},
		"remove":               {change: both(0).Inverse(), ran: []string{"guest", "host"}, host: vmm.Done, guest: vmm.Done},
		"host only":            {change: both(0).HostOnly(), ran: []string{"host"}, host: vmm.Done},
		"guest only":           {change: both(0).GuestOnly(), ran: []string{"guest"}, guest: vmm.Done},
		"first of an addition": {change: both(0), do: map[string]applyengine.Half{"host": refused}, ran: []string{"host"}},
		"second of an addition": {change: both(0), do: map[string]applyengine.Half{"guest": refused},
			ran: []string{"host", "guest"}, host: vmm.Done},
		"first of a removal in doubt": {change: both(0).Inverse(), do: map[string]applyengine.Half{"guest": unknown},
			ran: []string{"guest"}, guest: vmm.Unknown},
		"second of a removal in doubt": {change: both(0).Inverse(), do: map[string]applyengine.Half{"host": unknown},
			ran: []string{"guest", "host"}, host: vmm.Unknown, guest: vmm.Done},
		"one call": {change: both(0), oneCall: true, ran: []string{"both"}, host: vmm.Done, guest: vmm.Done},
		"one call in doubt": {change: both(0), oneCall: true, do: map[string]applyengine.Half{"both": unknown},
			ran: []string{"both"}, host: vmm.Unknown, guest: vmm.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			e, _ := newEngine(t, vmm.Linux, nil)
			d := &driver{do: tt.do, oneCall: tt.oneCall}
			err := e.Run(t.Context(), tt.change, d.halves)
			if failed := len(tt.do) > 0; failed != (err != nil) || failed && !errors.Is(err, errRefused) {
				t.Errorf("error %v", err)
			}
			if host, guest := vmm.Outcomes(tt.change, err); host != tt.host || guest != tt.guest {
				t.Errorf("host %s, guest %s; want host %s, guest %s", host, guest, tt.host, tt.guest)
			}
			if ran := d.calls(); !slices.Equal(ran, tt.ran) {
				t.Errorf("ran %q, want %q", ran, tt.ran)
			}
		})
	}
}

// What is there is not done again; where one call would do both halves and one is there, the other goes alone.
func TestKnown(t *testing.T) {
	other := both(0)
	other.Device = vmm.SCSIDisk{Path: "/other"}
	elsewhere := both(1)
	elsewhere.Mount = vmm.MappedDisk{LUN: 1, MountPath: "/m0"}
	for name, tt := range map[string]struct {
		there, add vmm.Change
		ran        []string
		is         error
	}{
		"nothing":       {vmm.Change{}, both(0), []string{"both"}, nil},
		"all":           {both(0), both(0), nil, nil},
		"the device":    {both(0).HostOnly(), both(0), []string{"guest"}, nil},
		"the mount":     {both(0).GuestOnly(), both(0), []string{"host"}, nil},
		"another disk":  {both(0), other, nil, vmm.ErrOccupied},
		"another mount": {both(0), elsewhere, nil, vmm.ErrOccupied},
	} {
		t.Run(name, func(t *testing.T) {
			known := applyengine.NewKnown(true)
			e, _ := newEngine(t, vmm.Linux, known)
			d := &driver{oneCall: true}
			if !tt.there.Empty() {
				if err := e.Run(t.Context(), tt.there, d.halves); err != nil {
					t.Fatal(err)
				}
			}
			d.calls()
			err := e.Run(t.Context(), tt.add, d.halves)
			if !errors.Is(err, tt.is) {
				t.Errorf("error %v, want %v", err, tt.is)
			}
			if host, guest := vmm.Outcomes(tt.add, err); err != nil && (host != vmm.NotDone || guest != vmm.NotDone) {
				t.Errorf("host %s, guest %s", host, guest)
			}
			if ran := d.calls(); !slices.Equal(ran, tt.ran) {
				t.Errorf("ran %q, want %q", ran, tt.ran)
			}
			for _, c := range []vmm.Change{tt.add.Inverse(), tt.there.Inverse()} {
				if !c.Empty() {
					_ = e.Run(t.Context(), c, d.halves) // all that may be there
				}
			}
			if o := known.Observation(); len(o.Devices)+len(o.Mounts) != 0 {
				t.Errorf("left: %+v", o)
			}
		})
	}
}

// The key of a Windows container's layers is not that of the scratch, which is at the same path.
func TestFilterOnAScratch(t *testing.T) {
	scratch := vmm.Change{Op: vmm.Add, Mount: vmm.MappedDisk{MountPath: `C:\c\1`}}
	combined := vmm.Change{Op: vmm.Add, Mount: vmm.CombinedLayers{RootPath: `C:\c\1`}}
	for os, want := range map[vmm.OS]error{vmm.Windows: nil, vmm.Linux: vmm.ErrOccupied} {
		e, _ := newEngine(t, os, applyengine.NewKnown(true))
		d := &driver{}
		if err := e.Run(t.Context(), scratch, d.halves); err != nil {
			t.Fatal(err)
		}
		if err := e.Run(t.Context(), combined, d.halves); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", os, err, want)
		}
	}
}

// TestAbandoned gives up a change in its first half, which holds what it works with until it has come to rest.
func TestAbandoned(t *testing.T) {
	mount := func(lun uint8, path string) vmm.Change {
		return vmm.Change{Op: vmm.Add, Mount: vmm.MappedDisk{LUN: lun, MountPath: path, Partition: 1}}
	}
	for name, tt := range map[string]struct {
		slow, next vmm.Change
		waits      bool
	}{
		"the same device":             {both(0), both(0).Inverse(), true},
		"another device":              {both(0), both(1), false},
		"a mount of the device":       {both(0), mount(0, "/part"), true},
		"the device below a mount":    {mount(0, "/part"), both(0).HostOnly().Inverse(), true},
		"another mount of one disk":   {mount(0, "/part"), mount(0, "/part2"), false},
		"the same place in the guest": {mount(0, "/part"), mount(1, "/part"), true},
		"a disk that is not mounted":  {mount(0, ""), mount(0, "/part"), true},
	} {
		t.Run(name, func(t *testing.T) {
			e, _ := newEngine(t, vmm.Linux, nil)
			began, hold := make(chan struct{}), make(chan struct{})
			half := func(context.Context) (vmm.Outcome, error) {
				close(began)
				<-hold
				return vmm.Done, nil
			}
			slow := &driver{do: map[string]applyengine.Half{"host": half, "guest": half}}
			if tt.slow.Device != nil {
				slow.do["guest"] = nil
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-began; cancel() }()
			err := e.Run(ctx, tt.slow, slow.halves)
			host, guest := vmm.Outcomes(tt.slow, err)
			if !errors.Is(err, context.Canceled) || host != vmm.Unknown && guest != vmm.Unknown || host == guest {
				t.Errorf("host %s, guest %s: %v", host, guest, err)
			}

			next := &driver{}
			if tt.waits {
				short, stop := context.WithCancel(t.Context())
				waited := make(chan error)
				go func() { waited <- e.Run(short, tt.next, next.halves) }()
				stop()
				if err := <-waited; !errors.Is(err, context.Canceled) || len(next.calls()) != 0 {
					t.Errorf("the next change did not wait: %v", err)
				}
				close(hold)
			}
			if err := e.Run(t.Context(), tt.next, next.halves); err != nil {
				t.Error(err)
			}
			if !tt.waits {
				close(hold)
			}
			if ran := slow.calls(); len(ran) != 1 {
				t.Errorf("an abandoned change went on with its second half: %q", ran)
			}
		})
	}
}

func TestEndOfTheMachine(t *testing.T) {
	e, end := newEngine(t, vmm.Linux, nil)
	gone := fmt.Errorf("it crashed: %w", vmm.ErrGone)
	began := make(chan struct{})
	d := &driver{do: map[string]applyengine.Half{"host": func(ctx context.Context) (vmm.Outcome, error) {
		close(began)
		<-ctx.Done() // it ends with the machine
		return vmm.Unknown, errRefused
	}}}
	go func() { <-began; end(gone) }()
	err := e.Run(t.Context(), both(0), d.halves)
	if host, guest := vmm.Outcomes(both(0), err); !errors.Is(err, gone) || host != vmm.Unknown || guest != vmm.NotDone {
		t.Errorf("host %s, guest %s: %v", host, guest, err)
	}
	d.calls()
	if err := e.Run(t.Context(), both(1), d.halves); !errors.Is(err, gone) || len(d.calls()) != 0 {
		t.Errorf("after the end: %v", err)
	}
}

func TestRefusedBeforeItBegins(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		ctx     context.Context
		change  vmm.Change
		prepare error
	}{
		"an ended context":      {ended, both(0), nil},
		"an empty change":       {t.Context(), vmm.Change{Op: vmm.Add}, nil},
		"what the driver lacks": {t.Context(), both(0), errors.ErrUnsupported},
	} {
		e, _ := newEngine(t, vmm.Linux, nil)
		d := &driver{}
		err := e.Run(tt.ctx, tt.change, func(c vmm.Change) (applyengine.Halves, error) {
			h, _ := d.halves(c)
			return h, tt.prepare
		})
		ae, ok := errors.AsType[*vmm.ApplyError](err)
		if !ok || ae.Host != vmm.NotDone || ae.Guest != vmm.NotDone || len(d.calls()) != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
