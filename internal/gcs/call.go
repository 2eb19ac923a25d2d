package gcs

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"

	"github.com/google/uuid"
)

// call is one request under way.
type call struct {
	id     uint64
	typ    MessageType
	frame  []byte
	answer chan []byte
	sent   atomic.Int32 // see below
}

// States of a call, which the writer and a caller that abandons it race for.
const (
	callQueued int32 = iota
	callWriting
	callWithdrawn
)

// maxAbandoned bounds the abandoned calls whose responses are outstanding.
const maxAbandoned = 4096

type request interface{ Base() *RequestBase }

type response interface{ Base() *ResponseBase }

// call sends a request and waits for its response. If ctx ends first, the call is abandoned and the bridge lives on;
// late, if not nil, is called with the response if it comes later.
func (c *Client) call(ctx context.Context, typ MessageType, req request, resp response, late func([]byte)) error {
	call, err := c.send(ctx, typ, req, late)
	if err != nil {
		return err
	}
	return c.answered(ctx, call, resp, late)
}

// send sends a request, after those that were sent before.
func (c *Client) send(ctx context.Context, typ MessageType, req request, late func([]byte)) (*call, error) {
	wrap := func(err error) error { return fmt.Errorf("guest %v: %w", typ, err) }
	if err := ctx.Err(); err != nil {
		return nil, wrap(fmt.Errorf("%w: %w", ErrNotSent, context.Cause(ctx)))
	}
	req.Base().ActivityId = uuid.NewString() // identifies the request in the guest's log

	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, wrap(fmt.Errorf("%w: %w", ErrNotSent, c.err))
	}
	call := &call{id: c.nextID, typ: typ, answer: make(chan []byte, 1)}
	frame, err := EncodeMessage(Header{typ, call.id}, req, c.requests)
	if err != nil {
		c.mu.Unlock()
		return nil, wrap(fmt.Errorf("%w: %w", ErrNotSent, err))
	}
	call.frame = frame
	c.nextID++
	c.calls[call.id] = call
	c.mu.Unlock()

	select {
	case c.out <- call:
		return call, nil
	case <-ctx.Done():
		return nil, wrap(c.abandon(ctx, call, late))
	case <-c.done:
		return nil, wrap(fmt.Errorf("%w: %w", ErrNotSent, c.Err()))
	}
}

// answered waits for the response to a request that was sent.
func (c *Client) answered(ctx context.Context, call *call, resp response, late func([]byte)) error {
	wrap := func(err error) error { return fmt.Errorf("guest %v: %w", call.typ, err) }
	select {
	case payload := <-call.answer:
		return c.decode(call.typ, payload, resp)
	case <-ctx.Done():
		return wrap(c.abandon(ctx, call, late))
	case <-c.done:
		select { // the answer may have come just before the end
		case payload := <-call.answer:
			return c.decode(call.typ, payload, resp)
		default:
		}
		if call.sent.CompareAndSwap(callQueued, callWithdrawn) {
			return wrap(fmt.Errorf("%w: %w", ErrNotSent, c.Err()))
		}
		return wrap(c.Err())
	}
}

// decode decodes a response. If that fails it closes the bridge.
func (c *Client) decode(typ MessageType, payload []byte, resp response) error {
	if err := json.Unmarshal(payload, resp); err != nil {
		err = fmt.Errorf("%w: answer to %v: %w", ErrProtocol, typ, err)
		c.fail(err)
		return err
	}
	return errorFrom(typ.String(), resp.Base())
}

func (c *Client) abandon(ctx context.Context, call *call, late func([]byte)) error {
	withdrawn := call.sent.CompareAndSwap(callQueued, callWithdrawn)
	c.mu.Lock()
	_, outstanding := c.calls[call.id]
	delete(c.calls, call.id)
	if outstanding && !withdrawn {
		c.abandoned[call.id] = late
	}
	tooMany := len(c.abandoned) > maxAbandoned
	c.mu.Unlock()
	switch {
	case withdrawn:
		return fmt.Errorf("%w: %w", ErrNotSent, context.Cause(ctx))
	case tooMany:
		c.fail(fmt.Errorf("%w: it leaves more than %d requests unanswered", ErrProtocol, maxAbandoned))
	case !outstanding && late != nil: // the answer came at the same moment
		c.tidy(func() {
			select {
			case payload := <-call.answer:
				late(payload)
			case <-c.done:
			}
		})
	}
	return context.Cause(ctx)
}
