// Package events publishes the events of tasks to containerd, in order.
package events

import (
	"context"
	"log/slog"
	"sync"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
)

// Queue publishes events one after the other. Its methods may be called concurrently.
type Queue struct {
	publisher events.Publisher
	log       *slog.Logger
	wake      chan struct{} // signals run that waiting or closed changed
	done      chan struct{}

	mu      sync.Mutex
	waiting []any // unbounded, but few events arise while containerd is away
	closed  bool
}

// New returns a queue that the caller must Close. ctx carries containerd's namespace; its end does not matter.
func New(ctx context.Context, p events.Publisher, log *slog.Logger) *Queue {
	q := &Queue{publisher: p, log: log, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go q.run(context.WithoutCancel(ctx))
	return q
}

func (q *Queue) run(ctx context.Context) {
	defer close(q.done)
	for range q.wake {
		q.mu.Lock()
		batch, closed := q.waiting, q.closed
		q.waiting = nil
		q.mu.Unlock()
		for _, e := range batch {
			if err := q.publisher.Publish(ctx, runtime.GetTopic(e), e); err != nil {
				q.log.Error("an event was not published", "topic", runtime.GetTopic(e), "error", err)
			}
		}
		if closed {
			return
		}
	}
}

// Send queues an event of the task API, such as *events.TaskStart. It does not block. Events sent after Close are
// dropped.
func (q *Queue) Send(e any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.waiting = append(q.waiting, e)
		q.notify()
	}
}

func (q *Queue) notify() {
	select {
	case q.wake <- struct{}{}:
	default: // run has not yet seen the last signal
	}
}

// Close waits until all events are published, or ctx ends.
func (q *Queue) Close(ctx context.Context) error {
	q.mu.Lock()
	q.closed = true
	q.notify()
	q.mu.Unlock()
	select {
	case <-q.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
