package uvm

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	mnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"

	"github.com/stratavm/strata/internal/span"
	"github.com/stratavm/strata/vmm"
)

// telemetry emits one span, one log line and one measurement for every Change.
type telemetry struct {
	log      *slog.Logger
	tracer   trace.Tracer // nil: the tracer provider of the context's span
	duration metric.Float64Histogram
}

func newTelemetry(o Options) (*telemetry, error) {
	if o.Meter == nil {
		o.Meter = mnoop.NewMeterProvider().Meter("")
	}
	h, err := o.Meter.Float64Histogram("strata.change.duration",
		metric.WithUnit("s"), metric.WithDescription("Time to apply one change to a utility VM."))
	if err != nil {
		return nil, fmt.Errorf("create metric: %w", err)
	}
	return &telemetry{log: o.Logger, tracer: o.Tracer, duration: h}, nil
}

func (t *telemetry) apply(ctx context.Context, m vmm.Machine, c vmm.Change) error {
	tracer := t.tracer
	if tracer == nil {
		tracer = trace.SpanFromContext(ctx).TracerProvider().Tracer(span.Scope)
	}
	ctx, s := tracer.Start(ctx, "strata.change", trace.WithAttributes(
		attribute.String("strata.vm", m.ID()), attribute.Stringer("strata.change", c)))
	start := time.Now()
	err := m.Apply(ctx, c)
	span.End(s, err)
	took := time.Since(start)
	level, attrs := slog.LevelDebug, []slog.Attr{
		slog.String("vm", m.ID()), slog.String("change", c.String()), slog.Duration("took", took)}
	if err != nil {
		level, attrs = slog.LevelInfo, append(attrs, slog.Any("error", err))
	}
	t.log.LogAttrs(ctx, level, "change", attrs...)
	t.duration.Record(ctx, took.Seconds(), metric.WithAttributes(
		attribute.String("op", c.Op.String()), attribute.Bool("failed", err != nil)))
	return err
}
