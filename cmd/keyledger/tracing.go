package main

import (
	"context"
	"fmt"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"
)

// tracing makes spans; the zero value makes none.
type tracing struct {
	provider trace.TracerProvider // of requests
	queries  pgx.QueryTracer      // of the pool's
}

// startTracing sends spans when OpenTelemetry's own variables say where to. The
// exporter reads the rest of them itself.
func (n *node) startTracing(ctx context.Context) error {
	if !n.isSet("OTEL_EXPORTER_OTLP_ENDPOINT") && !n.isSet("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
		return nil
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return fmt.Errorf("send traces: %w", err)
	}
	about, err := resource.New(ctx, resource.WithAttributes(semconv.ServiceName("keyledger"), semconv.ServiceVersion(buildVersion().Version)), resource.WithFromEnv())
	if err != nil {
		return fmt.Errorf("send traces: %w", err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	n.tracing = tracing{
		provider: provider,
		// Parameters are digests, sealed sections and names: they stay here.
		queries: otelpgx.NewTracer(otelpgx.WithTracerProvider(provider)),
	}
	n.parts.Go("traces", func(ctx context.Context) error {
		<-ctx.Done()
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainWithin)
		defer cancel()
		if err := provider.Shutdown(stopping); err != nil {
			n.logger.Warn("the last traces were not sent", "error", err)
		}
		return nil
	})
	n.logger.Info("sending traces as OpenTelemetry's variables say")
	return nil
}
