// Package span creates the library's OpenTelemetry spans. Their tracer is that of the span in the context: a caller
// whose context has a span gets child spans; without one, spans are no-ops.
package span

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Scope is the name of the instrumentation scope.
const Scope = "github.com/stratavm/strata"

// Start starts a child span of that in ctx. The caller must call End.
func Start(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, trace.Span) {
	tracer := trace.SpanFromContext(ctx).TracerProvider().Tracer(Scope)
	return tracer.Start(ctx, name, trace.WithAttributes(attrs...))
}

// End ends a span and records err, if not nil.
func End(s trace.Span, err error) {
	if err != nil {
		s.SetStatus(codes.Error, err.Error())
	}
	s.End()
}

// Do calls f in a span.
func Do(ctx context.Context, name string, f func(context.Context) error, attrs ...attribute.KeyValue) error {
	ctx, s := Start(ctx, name, attrs...)
	err := f(ctx)
	End(s, err)
	return err
}
