package hcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm"
)

// tidyGrace bounds cleaning up without a context of a caller.
const tidyGrace = 30 * time.Second

// system is a compute system and its state as known from notifications.
type system struct {
	api      API
	id       string
	handle   Handle
	callback Handle

	created chan Notification
	started chan Notification
	exited  chan struct{} // closed once exitErr is set

	mu      sync.Mutex
	exitErr error
	closed  bool
}

func newSystem(api API, id string) *system {
	return &system{api: api, id: id, created: make(chan Notification, 1),
		started: make(chan Notification, 1), exited: make(chan struct{})}
}

// notify handles a notification. It runs on a thread of the service and never blocks.
func (s *system) notify(n Notification) {
	switch n.Type {
	case SystemCreateCompleted:
		offer(s.created, n)
	case SystemStartCompleted:
		offer(s.started, n)
	case SystemExited:
		reason := error(vmm.ErrGone)
		if n.Status.Failed() {
			reason = fmt.Errorf("%w: %w", vmm.ErrGone, newError("exit of compute system", s.id, n.Status, n.Data))
		}
		s.exit(reason)
	case ServiceDisconnect:
		s.exit(fmt.Errorf("%w: %w", vmm.ErrGone, ErrServiceUnavailable))
	}
}

func offer(ch chan Notification, n Notification) {
	select {
	case ch <- n:
	default:
	}
}

// exit records why the system is gone. Only the first reason counts.
func (s *system) exit(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exitErr == nil {
		s.exitErr = fmt.Errorf("utility VM %s: %w", s.id, reason)
		close(s.exited)
	}
}

func (s *system) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exitErr
}

type outcome struct {
	value, result string
	hr            HRESULT
}

func (o outcome) err(op, id string) error {
	if !o.hr.Failed() {
		return nil
	}
	return newError(op, id, o.hr, o.result)
}

const opCreate = "create compute system"

// createSystem creates a system and waits for completion. If it fails or ctx ends, nothing of the system remains.
func createSystem(ctx context.Context, api API, id, document string) (*system, error) {
	s := newSystem(api, id)
	hr, err := s.take(ctx, opCreate, true, func() (Handle, string, HRESULT) {
		return api.CreateComputeSystem(id, document)
	})
	if err != nil {
		return nil, err
	}
	if hr == Pending {
		terminate, err := s.complete(ctx, opCreate, s.created)
		if err != nil {
			s.discard(ctx, terminate)
			return nil, err
		}
	}
	return s, nil
}

// openSystem opens a system that another process has created.
func openSystem(ctx context.Context, api API, id string) (*system, error) {
	s := newSystem(api, id)
	_, err := s.take(ctx, "open compute system", false, func() (Handle, string, HRESULT) {
		return api.OpenComputeSystem(id)
	})
	if err != nil {
		if IsNotExist(err) {
			err = fmt.Errorf("%w: %w", vmm.ErrGone, err)
		}
		return nil, err
	}
	return s, nil
}

// take obtains the handle of a system and registers for notifications immediately, as the one for a completed creation
// may already be on its way. If it fails or ctx ends, it closes the handle, and, if made, terminates the system.
func (s *system) take(ctx context.Context, op string, made bool,
	get func() (Handle, string, HRESULT)) (HRESULT, error) {
	type taken struct {
		outcome
		held       bool
		registered HRESULT
	}
	t, err := detached(ctx, func() (t taken) {
		s.handle, t.result, t.hr = get()
		if t.held = !t.hr.Failed() || t.hr == Pending; t.held {
			s.callback, t.registered = s.api.RegisterComputeSystemCallback(s.handle, s.notify)
		}
		return t
	}, func(t taken) {
		if t.held {
			s.giveUp(made)
		}
	})
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s %s: %w", op, s.id, err)
	case !t.held:
		return 0, t.err(op, s.id)
	case t.registered.Failed():
		s.discard(ctx, made)
		return 0, newError("register for notifications of compute system", s.id, t.registered, "")
	}
	return t.hr, nil
}

// complete waits for the notification that completes a pending call. timedOut reports whether ctx ended first.
func (s *system) complete(ctx context.Context, op string, ch <-chan Notification) (timedOut bool, err error) {
	select {
	case n := <-ch:
		return false, outcome{result: n.Data, hr: n.Status}.err(op, s.id)
	case <-s.exited:
		return false, fmt.Errorf("%s %s: %w", op, s.id, s.err())
	case <-ctx.Done():
		return true, fmt.Errorf("%s %s: %w", op, s.id, context.Cause(ctx))
	}
}

// discard closes an unused system, after terminating it if requested. It ignores errors, as the handle is closed
// anyway.
func (s *system) discard(ctx context.Context, terminate bool) {
	overrun(ctx, func() { s.giveUp(terminate) })
}

func (s *system) giveUp(terminate bool) {
	if terminate {
		s.api.TerminateComputeSystem(s.handle, "")
	}
	s.release()
}

// close closes the handles. The system continues unless its document says otherwise. If ctx ends first, they are closed
// later.
func (s *system) close(ctx context.Context) error {
	return closeDetached(ctx, "close compute system "+s.id, s.release)
}

func (s *system) release() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	var errs []error
	if s.callback != 0 {
		if hr := s.api.UnregisterComputeSystemCallback(s.callback); hr.Failed() {
			errs = append(errs, newError("unregister from notifications of compute system", s.id, hr, ""))
		}
	}
	if hr := s.api.CloseComputeSystem(s.handle); hr.Failed() {
		errs = append(errs, newError("close compute system", s.id, hr, ""))
	}
	return errors.Join(errs...)
}

// usable returns an error if the system is closed.
func (s *system) usable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("compute system %s: %w", s.id, ErrClosed)
	}
	return nil
}

// do makes a call that, if it completes late, has no effect to roll back.
func (s *system) do(ctx context.Context, op string, f func() outcome) (string, error) {
	if err := s.usable(); err != nil {
		return "", fmt.Errorf("%s: %w", op, err)
	}
	o, err := detached(ctx, f, func(outcome) {})
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", op, s.id, err)
	}
	return o.value, o.err(op, s.id)
}

func (s *system) start(ctx context.Context) error {
	const op = "start compute system"
	_, err := s.do(ctx, op, func() outcome {
		result, hr := s.api.StartComputeSystem(s.handle, "")
		return outcome{result: result, hr: hr}
	})
	if IsPending(err) {
		_, err = s.complete(ctx, op, s.started)
	}
	return err
}

// terminate terminates the system and waits for its exit.
func (s *system) terminate(ctx context.Context) error {
	return s.end(ctx, "terminate compute system", s.api.TerminateComputeSystem)
}

// shutdown asks the guest to power off and waits for the exit.
func (s *system) shutdown(ctx context.Context) error {
	return s.end(ctx, "shut down compute system", s.api.ShutdownComputeSystem)
}

func (s *system) end(ctx context.Context, op string, f func(Handle, string) (string, HRESULT)) error {
	_, err := s.do(ctx, op, func() outcome {
		result, hr := f(s.handle, "")
		return outcome{result: result, hr: hr}
	})
	switch {
	case IsAlreadyStopped(err) || IsNotExist(err):
		s.exit(vmm.ErrGone)
	case err != nil && !IsPending(err):
		return err
	}
	select {
	case <-s.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s %s: wait for its exit: %w", op, s.id, context.Cause(ctx))
	}
}

// modify sends a request and blocks until the service has responded.
func (s *system) modify(request hcsschema.ModifySettingRequest) error {
	const op = "modify compute system"
	if err := s.usable(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	document, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("%s %s: %w", op, s.id, err)
	}
	result, hr := s.api.ModifyComputeSystem(s.handle, string(document))
	return outcome{result: result, hr: hr}.err(op, s.id)
}

func (s *system) properties(ctx context.Context, types ...string) (hcsschema.Properties, error) {
	const op = "query properties of compute system"
	query, err := json.Marshal(hcsschema.PropertyQuery{PropertyTypes: types})
	if err != nil {
		return hcsschema.Properties{}, fmt.Errorf("%s %s: %w", op, s.id, err)
	}
	text, err := s.do(ctx, op, func() outcome {
		value, result, hr := s.api.GetComputeSystemProperties(s.handle, string(query))
		return outcome{value: value, result: result, hr: hr}
	})
	var p hcsschema.Properties
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return p, fmt.Errorf("%s %s: the answer is no properties document: %w", op, s.id, err)
	}
	return p, nil
}

// processors returns the number of logical processors of the host.
func processors(ctx context.Context, api API) (uint32, error) {
	const op = "query the host's processors"
	query, err := json.Marshal(hcsschema.PropertyQuery{PropertyTypes: []string{hcsschema.PropertyProcessorTopology}})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", op, err)
	}
	o, err := detached(ctx, func() outcome {
		value, result, hr := api.GetServiceProperties(string(query))
		return outcome{value: value, result: result, hr: hr}
	}, func(outcome) {})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", op, err)
	}
	if err := o.err(op, ""); err != nil {
		return 0, err
	}
	var p hcsschema.ServiceProperties
	var topology hcsschema.ProcessorTopology
	if err := json.Unmarshal([]byte(o.value), &p); err != nil {
		return 0, fmt.Errorf("%s: the answer is no properties document: %w", op, err)
	}
	if len(p.Properties) != 1 {
		return 0, fmt.Errorf("%s: %d answers where one was asked for", op, len(p.Properties))
	}
	if err := json.Unmarshal(p.Properties[0], &topology); err != nil || topology.LogicalProcessorCount == 0 {
		return 0, fmt.Errorf("%s: the answer %.200q holds no processor count", op, p.Properties[0])
	}
	return topology.LogicalProcessorCount, nil
}
