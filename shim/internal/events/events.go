// Package events tells containerd what becomes of tasks, in the order in which it happens.
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
	wake      chan struct{} // there is something new
	done      chan struct{}

	mu      sync.Mutex
	waiting []any // as many as come while containerd is away; what is asked of the shim is few then
	closed  bool
}

// New returns a queue. ctx carries the namespace of the tasks.
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

// Send publishes an event of the task API, such as *events.TaskStart, after all that were sent before. It does not
// wait. What is sent after Close is lost.
func (q *Queue) Send(e any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.waiting = append(q.waiting, e)
		q.news()
	}
}

func (q *Queue) news() {
	select {
	case q.wake <- struct{}{}:
	default: // it is told already
	}
}

// Close waits until all events are published, or ctx ends.
func (q *Queue) Close(ctx context.Context) error {
	q.mu.Lock()
	q.closed = true
	q.news()
	q.mu.Unlock()
	select {
	case <-q.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
