package events

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
)

type publisher struct{ topics []string }

func (p *publisher) Publish(ctx context.Context, topic string, _ events.Event) error {
	p.topics = append(p.topics, topic)
	if len(p.topics) == 2 {
		return errors.New("containerd is away")
	}
	return ctx.Err()
}

// TestOrder publishes events in order, also after one that could not be, and after the end of the first context.
func TestOrder(t *testing.T) {
	p := &publisher{}
	ctx, cancel := context.WithCancel(t.Context())
	q := New(ctx, p, slog.New(slog.DiscardHandler))
	cancel()
	q.Send(&eventsapi.TaskCreate{})
	q.Send(&eventsapi.TaskStart{})
	q.Send(&eventsapi.TaskExit{})
	q.Send(&eventsapi.TaskDelete{})
	for range 2 {
		if err := q.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	q.Send(&eventsapi.TaskStart{}) // is lost
	want := []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}
	if !slices.Equal(p.topics, want) {
		t.Errorf("published %q, want %q", p.topics, want)
	}
}

// away is a publisher that takes its first event when it is told to.
type away struct {
	back chan struct{}
	n    int
}

func (a *away) Publish(context.Context, string, events.Event) error {
	<-a.back
	a.n++
	return nil
}

// TestAway holds nobody up while containerd does not take events, and loses none of them.
func TestAway(t *testing.T) {
	p := &away{back: make(chan struct{})}
	q := New(t.Context(), p, slog.New(slog.DiscardHandler))
	const many = 5000
	for range many {
		q.Send(&eventsapi.TaskExit{})
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.Close(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("close: %v", err)
	}
	close(p.back)
	if err := q.Close(t.Context()); err != nil || p.n != many {
		t.Errorf("close: %v, %d events were published, want %d", err, p.n, many)
	}
}
