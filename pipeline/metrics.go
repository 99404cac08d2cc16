package pipeline

import (
	"context"
	"errors"
	"regexp"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"tidemark/store"
)

type metrics struct {
	records metric.Int64Counter
	bytes   metric.Int64Counter
	letters metric.Int64Counter
	gauges  metric.Registration

	mu      sync.Mutex
	reasons map[string]bool
}

func newMetrics(m metric.Meter, p *Pipeline) (*metrics, error) {
	var (
		out    = &metrics{reasons: map[string]bool{}}
		faults [7]error
	)
	out.records, faults[0] = m.Int64Counter("pipeline.records", metric.WithUnit("{record}"),
		metric.WithDescription("Records read, by topic."))
	out.bytes, faults[1] = m.Int64Counter("pipeline.bytes", metric.WithUnit("By"),
		metric.WithDescription("Bytes of keys and values read, uncompressed, by topic."))
	out.letters, faults[2] = m.Int64Counter("pipeline.dead_letters", metric.WithUnit("{record}"),
		metric.WithDescription("Records that could not be decoded, by topic and reason."))
	lag, err := m.Int64ObservableGauge("pipeline.lag", metric.WithUnit("{offset}"),
		metric.WithDescription("Offsets between what was fetched and the last stable offset, by partition."))
	faults[3] = err
	open, err := m.Int64ObservableGauge("pipeline.open_transaction", metric.WithUnit("{offset}"),
		metric.WithDescription("Offsets hidden by an open transaction, by partition. If it stays up, a producer hangs and changes come late."))
	faults[4] = err
	held, err := m.Int64ObservableGauge("pipeline.held", metric.WithUnit("1"),
		metric.WithDescription("1 while a partition is not read, and so holds the watermark, by partition and why: the reason of a gap, dead letters, paused, decoding, absent."))
	faults[5] = err
	out.gauges, faults[6] = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, s := range p.Status().Partitions {
			at := metric.WithAttributes(attribute.String("topic", s.Partition.Topic), attribute.Int("partition", int(s.Partition.ID)))
			o.ObserveInt64(lag, s.Lag, at)
			o.ObserveInt64(open, s.Open, at)
			o.ObserveInt64(held, truth(s.why() != ""), at, metric.WithAttributes(attribute.String("why", s.why())))
		}
		for _, id := range p.missed() {
			o.ObserveInt64(held, 1, metric.WithAttributes(
				attribute.String("topic", id.Topic), attribute.Int("partition", int(id.ID)), attribute.String("why", "absent")))
		}
		return nil
	}, lag, open, held)
	return out, errors.Join(faults[:]...)
}

// why a partition is not read, in a word or two; "" if it is.
func (s PartitionStatus) why() string {
	switch {
	case s.Gap != "":
		return string(s.Reason)
	case s.Absent:
		return "absent"
	case s.Paused:
		return "paused"
	case s.Held != "":
		return "dead letters"
	case s.Waits != "":
		return "decoding"
	}
	return ""
}

// missed lists the partitions that were read once, and that nobody reads now.
func (p *Pipeline) missed() (ids []store.Partition) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.absent {
		ids = append(ids, id)
	}
	return ids
}

func truth(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func (m *metrics) read(ctx context.Context, topic string, records, bytes int) {
	at := metric.WithAttributes(attribute.String("topic", topic))
	m.records.Add(ctx, int64(records), at)
	m.bytes.Add(ctx, int64(bytes), at)
}

// maxReasons bounds the label. Decoders have a handful of reasons each; one
// that made them up from records would end here.
const maxReasons = 64

// places are what reasons name in a record: which entry, which byte. They are no label's.
var places = regexp.MustCompile(`\b(entry|change|byte) [0-9]+`)

func (m *metrics) dead(ctx context.Context, topic, reason string) {
	reason = places.ReplaceAllString(reason, "$1 n")
	m.mu.Lock()
	if !m.reasons[reason] && len(m.reasons) >= maxReasons {
		reason = "other"
	}
	m.reasons[reason] = true
	m.mu.Unlock()
	m.letters.Add(ctx, 1, metric.WithAttributes(attribute.String("topic", topic), attribute.String("reason", reason)))
}

// close ends the gauges: there is nothing to observe any more.
func (m *metrics) close() { _ = m.gauges.Unregister() }
