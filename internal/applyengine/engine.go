// Package applyengine implements the application of a Change for the drivers of package vmm. A driver provides the host
// half and the guest half of a Change; the engine guarantees the rest of the contract:
//
//   - Add does host then guest, Remove guest then host; after an error the second half is not started.
//   - Changes of the same address or guest path are serialized, others run concurrently. Mounts on the same device
//     exclude changes of the device, but not each other.
//   - If the caller's context ends, Run returns at once and the half under way is Unknown. That half continues in the
//     background and keeps its locks until it has ended; no further half is started.
//   - If the driver keeps a [Known], what exists already is not added again, and an address or path that something
//     else occupies is an error that matches vmm.ErrOccupied.
//   - The end of the machine ends every Change, with the machine's error.
package applyengine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/stratavm/strata/vmm"
)

// Half does one half of a Change and returns its outcome. Its context has the caller's values, but ends only with the
// machine. The error is nil if and only if the outcome is Done.
type Half func(ctx context.Context) (vmm.Outcome, error)

// Halves are the two halves of a Change.
type Halves struct {
	Host, Guest Half // nil if the Change has no such half
	// Both, if not nil, does both in one call with one outcome. It is used unless one of them is done already.
	Both Half
}

// Engine applies the Changes of one machine. Its method Run may be called concurrently.
type Engine struct {
	os    vmm.OS
	life  context.Context
	known *Known
	log   *slog.Logger
	locks locks

	mu   sync.Mutex // held while work is incremented
	work sync.WaitGroup
}

// New returns the engine of a machine that runs the operating system os. life must end with the machine; its cause is
// the error of all Changes after that. known may be nil. The results of abandoned Changes are logged to log, which may
// be nil.
func New(life context.Context, os vmm.OS, known *Known, log *slog.Logger) *Engine {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Engine{os: os, life: life, known: known, log: log, locks: locks{held: map[string]*hold{}}}
}

// Run applies a Change by the halves that prepare returns. An error of prepare means that nothing was done. Errors are
// of type *vmm.ApplyError.
func (e *Engine) Run(ctx context.Context, c vmm.Change, prepare func(vmm.Change) (Halves, error)) error {
	refuse := func(err error) error { return &vmm.ApplyError{Change: c, Err: err} }
	switch {
	case e.life.Err() != nil:
		return refuse(context.Cause(e.life))
	case ctx.Err() != nil:
		return refuse(context.Cause(ctx))
	case c.Empty():
		return refuse(errors.New("the change is empty"))
	}
	halves, err := prepare(c)
	if err != nil {
		return refuse(err)
	}
	keys := keysOf(c, e.os)
	if err := e.locks.take(ctx, e.life, keys); err != nil {
		return refuse(err)
	}
	if err := e.begin(); err != nil {
		e.locks.free(keys)
		return refuse(err)
	}
	cl := &call{engine: e, caller: ctx, err: vmm.ApplyError{Change: c}, rested: make(chan struct{})}
	go func() {
		defer e.work.Done()
		defer close(cl.rested)
		defer e.locks.free(keys)
		cl.run(halves)
	}()
	select {
	case <-cl.rested:
	case <-ctx.Done():
	case <-e.life.Done():
	}
	return cl.result()
}

// begin registers work that Wait waits for. It fails if the machine has ended.
func (e *Engine) begin() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.life.Err() != nil {
		return context.Cause(e.life)
	}
	e.work.Add(1)
	return nil
}

// Wait waits until every Change has ended, including abandoned ones. It must be called after life has ended.
func (e *Engine) Wait() {
	e.mu.Lock()
	//lint:ignore SA2001 calls that began before the lock are counted, later ones see that the machine has ended
	e.mu.Unlock()
	e.work.Wait()
}

// call is a Change under way.
type call struct {
	engine *Engine
	caller context.Context
	rested chan struct{} // closed when all steps have ended

	mu        sync.Mutex
	abandoned bool
	err       vmm.ApplyError
}

// step is one call of the driver and the halves that it does.
type step struct {
	do          Half // nil: done already
	host, guest bool
}

// steps returns the halves in order, without those that are done already.
func (e *Engine) steps(c vmm.Change, h Halves) ([]step, error) {
	var host, guest bool // there already
	if c.Op == vmm.Add && e.known != nil {
		var err error
		if host, guest, err = e.known.find(c, e.os); err != nil {
			return nil, err
		}
	}
	if h.Both != nil && !host && !guest {
		return []step{{do: h.Both, host: true, guest: true}}, nil
	}
	var out []step
	if c.Device != nil {
		out = append(out, step{do: unless(host, h.Host), host: true})
	}
	if c.Mount != nil {
		out = append(out, step{do: unless(guest, h.Guest), guest: true})
	}
	if c.Op == vmm.Remove && len(out) == 2 {
		out[0], out[1] = out[1], out[0]
	}
	return out, nil
}

func unless(there bool, h Half) Half {
	if there {
		return nil
	}
	return h
}

// run does the steps one after the other.
func (cl *call) run(h Halves) {
	e := cl.engine
	steps, err := e.steps(cl.err.Change, h)
	if err != nil {
		cl.err.Err = err
		return
	}
	// The work keeps the caller's values, for tracing, but ends with the machine only.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(cl.caller))
	defer cancel(nil)
	defer context.AfterFunc(e.life, func() { cancel(context.Cause(e.life)) })()
	for _, s := range steps {
		if !cl.begin(s) {
			return
		}
		outcome, err := vmm.Done, error(nil)
		if s.do != nil {
			outcome, err = s.do(ctx)
		}
		if err != nil {
			err = e.explain(err)
		}
		if e.known != nil {
			e.known.note(cl.err.Change, s, outcome, e.os)
		}
		if !cl.end(s, outcome, err) {
			return
		}
	}
}

// explain adds the cause to an error if the machine has ended.
func (e *Engine) explain(err error) error {
	gone := context.Cause(e.life)
	if gone == nil || errors.Is(err, gone) || errors.Is(err, vmm.ErrGone) {
		return err
	}
	return fmt.Errorf("%w: %w", gone, err)
}

// begin records that a step starts. It returns false if the caller has given up.
func (cl *call) begin(s step) bool {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.abandoned {
		return false
	}
	if cl.caller.Err() != nil {
		cl.err.Err = context.Cause(cl.caller)
		return false
	}
	cl.set(s, vmm.Unknown)
	return true
}

// end records the outcome of a step, and reports whether the next may start.
func (cl *call) end(s step, o vmm.Outcome, err error) bool {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.abandoned {
		cl.engine.log.Info("an abandoned change came to rest", "change", cl.err.Change.String(), "outcome", o.String(),
			"error", err)
		return false
	}
	cl.set(s, o)
	cl.err.Err = err
	return err == nil
}

func (cl *call) set(s step, o vmm.Outcome) {
	if s.host {
		cl.err.Host = o
	}
	if s.guest {
		cl.err.Guest = o
	}
}

// result returns the caller's error: that of the Change, or that it was abandoned.
func (cl *call) result() error {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	select {
	case <-cl.rested:
		if cl.err.Err == nil {
			return nil
		}
	default:
		cl.abandoned = true
		cl.err.Err = context.Cause(cl.caller)
		if gone := context.Cause(cl.engine.life); gone != nil {
			cl.err.Err = gone
		}
	}
	err := cl.err // whoever does the work may still write to cl.err
	return &err
}
