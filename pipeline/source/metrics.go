package source

import (
	"context"
	"errors"

	"github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

type metrics struct {
	errors metric.Int64Counter
	gaps   metric.Int64Counter
}

func newMetrics(m metric.Meter) (metrics, error) {
	if m == nil {
		m = noop.Meter{}
	}
	faults, err1 := m.Int64Counter("pipeline.fetch.errors", metric.WithUnit("{error}"),
		metric.WithDescription("Fetches that failed, by class of error; retried."))
	gaps, err2 := m.Int64Counter("pipeline.gaps", metric.WithUnit("{gap}"),
		metric.WithDescription("Gaps found in the log, by reason; each stops a partition."))
	return metrics{errors: faults, gaps: gaps}, errors.Join(err1, err2)
}

func (m metrics) fault(ctx context.Context, err error) {
	m.errors.Add(ctx, 1, metric.WithAttributes(attribute.String("class", class(err))))
}

func (m metrics) gap(ctx context.Context, g *Gap) {
	m.gaps.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", string(g.Reason))))
}

// class names an error by one of a few words.
func class(err error) string {
	if _, ok := errors.AsType[*Corrupt](err); ok {
		return "corrupt"
	}
	if _, ok := errors.AsType[*largeAnswer](err); ok {
		return "too large"
	}
	if code, ok := errors.AsType[kafka.Error](err); ok {
		return code.Title()
	}
	return "connection"
}
