package tracefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/stratavm/strata/internal/span"
)

type shown struct {
	Events []event `json:"traceEvents"`
}

// written parses what a recorder writes, and fails where two events of a lane overlap without nesting.
func written(t *testing.T, r *Recorder) map[string]event {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	var doc shown
	if err := json.Unmarshal(b.Bytes(), &doc); err != nil {
		t.Fatalf("%v in %s", err, b.Bytes())
	}
	out := map[string]event{}
	open := map[int][]event{}
	for _, e := range doc.Events {
		if e.Phase != "X" {
			continue
		}
		out[e.Name] = e
		in := open[e.Thread]
		for len(in) > 0 && in[len(in)-1].Micros+*in[len(in)-1].Duration <= e.Micros {
			in = in[:len(in)-1]
		}
		if n := len(in); n > 0 && e.Micros+*e.Duration > in[n-1].Micros+*in[n-1].Duration {
			t.Errorf("%s and %s overlap in lane %d", in[n-1].Name, e.Name, e.Thread)
		}
		open[e.Thread] = append(in, e)
	}
	return out
}

func TestNesting(t *testing.T) {
	r := New()
	at := func(ms int) time.Time { return r.begun.Add(time.Duration(ms) * time.Millisecond) }
	tr := r.Tracer("")
	begin := func(parent trace.Span, name string, from, to int) trace.Span {
		ctx := t.Context()
		if parent != nil {
			ctx = trace.ContextWithSpan(ctx, parent)
		}
		_, s := tr.Start(ctx, name, trace.WithTimestamp(at(from)))
		if to > 0 {
			s.End(trace.WithTimestamp(at(to)))
		}
		return s
	}
	all := begin(nil, "all", 0, 100)
	first := begin(all, "first", 0, 50)
	begin(all, "beside", 10, 60) // at the same time as the first
	begin(first, "inside", 5, 20)
	begin(all, "after", 60, 90)
	begin(first, "longer than its parent", 40, 70)
	begin(all, "unfinished", 95, 0)
	got := written(t, r)
	for _, tt := range []struct {
		name string
		lane int
	}{{"all", 0}, {"first", 0}, {"inside", 0}, {"beside", 1}, {"after", 0}, {"longer than its parent", 2}} {
		if e, ok := got[tt.name]; !ok || e.Thread != tt.lane {
			t.Errorf("%s is in lane %d (there: %t), not %d", tt.name, e.Thread, ok, tt.lane)
		}
	}
	if got["unfinished"].Args["unfinished"] != true {
		t.Errorf("a span that has not ended is shown as %v", got["unfinished"])
	}
	if d := *got["inside"].Duration; d != 15000 {
		t.Errorf("15 ms are shown as %v µs", d)
	}
}

// TestLibrary makes spans as the library does, at the same time.
func TestLibrary(t *testing.T) {
	r := New()
	ctx, root := r.Tracer("").Start(t.Context(), "root")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			ctx, s := span.Start(ctx, "outer", attribute.Int("layers", 3))
			_, inner := span.Start(ctx, "inner")
			span.End(inner, errors.New("it broke"))
			span.End(s, nil)
		})
	}
	wg.Wait()
	root.End()
	got := written(t, r)
	if e := got["inner"]; e.Args["error"] != "it broke" {
		t.Errorf("a failure is shown as %v", e.Args)
	}
	if e := got["outer"]; e.Args["layers"] != 3.0 || e.Args["error"] != nil {
		t.Errorf("an attribute is shown as %v", e.Args)
	}
	if got["root"].Args["unfinished"] != nil {
		t.Error("a span that ended is shown as unfinished")
	}
}

// TestWithoutTracer: spans of a context without one are nobody's.
func TestWithoutTracer(t *testing.T) {
	if _, s := span.Start(t.Context(), "x"); s.IsRecording() {
		t.Error("a span is recorded for nobody")
	}
}

func TestBounded(t *testing.T) {
	r := New()
	ctx, root := r.Tracer("").Start(t.Context(), "root")
	for range maxSpans + 10 {
		_, s := span.Start(ctx, "x")
		s.End()
	}
	root.End()
	if len(r.spans) != maxSpans || r.lost != 11 {
		t.Errorf("%d are kept and %d are counted as lost", len(r.spans), r.lost)
	}
}
