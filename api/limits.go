package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"tidemark/api/access"
	"tidemark/api/export"
)

// metered counts the bytes that h sends, and lets it send none to a client that had all
// of its day. What is public has no client and is not counted.
func (s *Server) metered(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		caller := access.From(r.Context())
		owner, own := caller.Owner(), caller.Limits
		if err := s.o.Quota.Send(owner, own); err != nil {
			return err
		}
		to, counts := w.(*sender)
		if counts {
			defer func() { s.o.Quota.Sent(owner, own, to.bytes) }()
		}
		return h(w, r)
	}
}

// A meter of limits shows what they are, and how often somebody met one.
type limitMeter struct{ met metric.Int64Counter }

func (s *Server) newLimitMeter() (*limitMeter, error) {
	m := s.o.MeterProvider.Meter("tidemark/api")
	met, err1 := m.Int64Counter("api.limited", metric.WithUnit("{request}"),
		metric.WithDescription("Requests answered with 429, by the limit that they met"))
	_, err2 := m.Int64ObservableGauge("api.limit", metric.WithDescription("Limits of clients, by their keys; 0: none"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			jobs := s.jobs.Options()
			for key, value := range map[string]int64{
				"limits.jobs": int64(jobs.MaxWorking), "limits.jobs_kept": int64(jobs.MaxJobs), "limits.jobs_per_client": int64(jobs.JobsPerOwner), "limits.polls_per_minute": int64(jobs.PollsPerMinute),
				"limits.jobs_per_client_day": int64(s.o.Quota.Jobs), "limits.bytes_per_client_day": s.o.Quota.Bytes,
			} {
				o.Observe(value, metric.WithAttributes(attribute.String("limit", key)))
			}
			return nil
		}))
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("make the instruments of limits: %w", err)
	}
	return &limitMeter{met}, nil
}

// saw counts an error that says that a limit was met.
func (m *limitMeter) saw(ctx context.Context, err error) {
	key := ""
	if e, ok := errors.AsType[*export.BusyError](err); ok {
		key = e.Limit
	}
	if e, ok := errors.AsType[*access.QuotaError](err); ok {
		key = e.Limit
	}
	if key != "" {
		m.met.Add(ctx, 1, metric.WithAttributes(attribute.String("limit", key)))
	}
}
