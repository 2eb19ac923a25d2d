// Package tracefile records OpenTelemetry spans and writes them in Chrome's trace event format, for Perfetto
// (ui.perfetto.dev) and chrome://tracing.
//
// https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
package tracefile

import (
	"context"
	"encoding/json"
	"io"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// maxSpans is the maximum number of recorded spans. Further spans are only counted.
const maxSpans = 100_000

// Recorder records spans. It is a trace.TracerProvider and may be used concurrently.
type Recorder struct {
	noop.TracerProvider
	begun time.Time

	mu    sync.Mutex
	spans []*kept
	lost  int
}

// New returns a Recorder whose traces begin now.
func New() *Recorder { return &Recorder{begun: time.Now()} }

// Tracer implements trace.TracerProvider.
func (r *Recorder) Tracer(string, ...trace.TracerOption) trace.Tracer { return tracer{r: r} }

type tracer struct {
	noop.Tracer
	r *Recorder
}

// kept is a recorded span, guarded by its recorder's lock.
type kept struct {
	noop.Span  // of which no event or link is shown
	r          *Recorder
	parent     *kept
	name       string
	start, end time.Time
	attrs      map[string]any
	failed     string
	lane       int
}

// Start implements trace.Tracer.
func (t tracer) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	c := trace.NewSpanStartConfig(options...)
	s := &kept{r: t.r, name: name, start: c.Timestamp(), attrs: map[string]any{}}
	if s.start.IsZero() {
		s.start = time.Now()
	}
	s.parent, _ = trace.SpanFromContext(ctx).(*kept)
	s.SetAttributes(c.Attributes()...)
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	if len(t.r.spans) < maxSpans {
		t.r.spans = append(t.r.spans, s)
	} else {
		t.r.lost++
	}
	return trace.ContextWithSpan(ctx, s), s
}

// TracerProvider implements trace.Span.
func (s *kept) TracerProvider() trace.TracerProvider { return s.r }

// IsRecording implements trace.Span.
func (s *kept) IsRecording() bool { return true }

// End implements trace.Span.
func (s *kept) End(options ...trace.SpanEndOption) {
	c := trace.NewSpanEndConfig(options...)
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if !s.end.IsZero() {
		return
	}
	if s.end = c.Timestamp(); s.end.IsZero() {
		s.end = time.Now()
	}
}

// SetAttributes implements trace.Span.
func (s *kept) SetAttributes(attrs ...attribute.KeyValue) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	for _, a := range attrs {
		s.attrs[string(a.Key)] = a.Value.AsInterface()
	}
}

// SetStatus implements trace.Span.
func (s *kept) SetStatus(code codes.Code, description string) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if s.failed = ""; code == codes.Error {
		s.failed = description
	}
}

// event is an event of the trace event format.
type event struct {
	Name     string         `json:"name"`
	Phase    string         `json:"ph"`            // X: with a duration; M: what things are called
	Micros   float64        `json:"ts"`            // since the trace began
	Duration *float64       `json:"dur,omitempty"` // of an X, in microseconds
	Process  int            `json:"pid"`
	Thread   int            `json:"tid"`
	Args     map[string]any `json:"args,omitempty"`
}

// Write writes the trace. Spans that have not ended are written as lasting until now.
func (r *Recorder) Write(w io.Writer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	lanes := place(r.spans, time.Now())
	doc := struct {
		Events []event `json:"traceEvents"`
		Unit   string  `json:"displayTimeUnit"`
		Lost   int     `json:"lostSpans,omitempty"`
	}{Events: []event{}, Unit: "ms", Lost: r.lost}
	name := func(kind string, thread int, text string) {
		doc.Events = append(doc.Events, event{Name: kind, Phase: "M", Process: 1, Thread: thread,
			Args: map[string]any{"name": text}})
	}
	name("process_name", 0, "strata")
	for lane, spans := range lanes {
		name("thread_name", lane, spans[0].name)
	}
	for lane, spans := range lanes {
		for _, s := range spans {
			args := map[string]any{}
			for k, v := range s.attrs {
				args[k] = v
			}
			if s.failed != "" {
				args["error"] = s.failed
			}
			end := s.end
			if end.IsZero() {
				end, args["unfinished"] = time.Now(), true
			}
			took := micros(end.Sub(s.start))
			doc.Events = append(doc.Events, event{Name: s.name, Phase: "X", Micros: micros(s.start.Sub(r.begun)),
				Duration: &took, Process: 1, Thread: lane, Args: args})
		}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	return enc.Encode(doc)
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
