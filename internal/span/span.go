// Package span makes the library's spans of OpenTelemetry. Their tracer is that of the span in the context: who calls
// the library with a context that has one gets spans below it, and nobody else pays for any.
package span

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Scope is the name of the instrumentation.
const Scope = "github.com/stratavm/strata"

// Start begins a span below that of ctx. The caller ends it with End.
func Start(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, trace.Span) {
	tracer := trace.SpanFromContext(ctx).TracerProvider().Tracer(Scope)
	return tracer.Start(ctx, name, trace.WithAttributes(attrs...))
}

// End ends a span, with the error that what it stands for ended with.
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
