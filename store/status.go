package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"tidemark/store/fhir"
)

// Status is how the store stands.
type Status struct {
	Ready     bool         // exports can be answered
	Watermark fhir.Instant // None before the bootstrap is over
	Promised  fhir.Instant // None before the first promise
	Epoch     uint64
	Commit    uint64
	Failed    string // why nothing more is taken in, "" if all is well

	Partitions []PartitionStatus // by topic and number
	Segments   int
	Rows       int64 // stored, of all kinds, dead ones too
	Dead       int64 // superseded rows that still lie in segments
	Bytes      int64 // of bodies on disk
	Pins       int
	Gathering  int64 // bytes taken in and not committed
}

// PartitionStatus is how one partition stands.
type PartitionStatus struct {
	Partition Partition
	Next      int64 // durable
	Fetched   int64
	Watermark fhir.Instant
	Joined    bool
	Held      string // why it holds the watermark back, "" if it does not
}

// Status tells how the store stands.
func (db *DB) Status() Status {
	db.mu.Lock()
	defer db.mu.Unlock()
	st := Status{
		Watermark: db.watermark(), Promised: db.promised, Epoch: db.meta.Epoch, Commit: db.meta.Commit,
		Segments: db.view.len(), Pins: len(db.pins), Gathering: db.gather.bytes,
	}
	st.Ready = db.failed == nil && st.Watermark != fhir.None
	if db.failed != nil {
		st.Failed = db.failed.Error()
	}
	for _, s := range db.view.all() {
		st.Bytes += s.r.BodySize()
		st.Dead += s.buried
		st.Rows += s.rows
	}
	for name, p := range db.parts {
		if p.durable.Forgotten {
			continue
		}
		q := PartitionStatus{Partition: name, Next: p.durable.Next, Joined: p.joined, Held: p.held, Watermark: fhir.None, Fetched: p.durable.Next}
		if p.progress != nil {
			q.Fetched, q.Watermark = p.progress.Next(), p.progress.Watermark(db.o.Allowance)
		}
		st.Partitions = append(st.Partitions, q)
	}
	slices.SortFunc(st.Partitions, func(a, b PartitionStatus) int { return a.Partition.Compare(b.Partition) })
	return st
}

// instruments are the store's metrics.
type instruments struct {
	duration metric.Float64Histogram
	rows     metric.Int64Counter
	bytes    metric.Int64Counter
	ignored  metric.Int64Counter
	late     metric.Int64Counter
	merged   metric.Int64Counter
}

// newInstruments registers the store's metrics; a meter that refuses a name is
// a programming error.
func newInstruments(db *DB) *instruments {
	m := db.o.Meter
	i := &instruments{}
	var err error
	try := func(e error) {
		if err == nil {
			err = e
		}
	}
	var e error
	i.duration, e = m.Float64Histogram("store.commit.duration", metric.WithUnit("s"), metric.WithDescription("Time from sealing to the synced batch."))
	try(e)
	i.rows, e = m.Int64Counter("store.rows", metric.WithUnit("{row}"), metric.WithDescription("Rows committed."))
	try(e)
	i.bytes, e = m.Int64Counter("store.bytes", metric.WithUnit("By"), metric.WithDescription("NDJSON committed, uncompressed."))
	try(e)
	i.ignored, e = m.Int64Counter("store.changes.ignored", metric.WithUnit("{change}"), metric.WithDescription("Changes that changed nothing: stale, the same again, deletions of what was deleted."))
	try(e)
	i.late, e = m.Int64Counter("store.changes.late", metric.WithUnit("{change}"), metric.WithDescription("Changes that came after the line and belong to the next window."))
	try(e)
	i.merged, e = m.Int64Counter("store.merge.bytes", metric.WithUnit("By"), metric.WithDescription("Compressed bytes that merges wrote, by whether blocks were copied as they were."))
	try(e)
	try(observe(db, m))
	if err != nil {
		panic(err)
	}
	return i
}

// observe registers what is read off the store when somebody asks.
func observe(db *DB, m metric.Meter) error {
	var err error
	gauge := func(name, unit, what string) metric.Int64ObservableGauge {
		g, e := m.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(what))
		err = errors.Join(err, e)
		return g
	}
	float := func(name, unit, what string) metric.Float64ObservableGauge {
		g, e := m.Float64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(what))
		err = errors.Join(err, e)
		return g
	}
	lag := float("store.watermark.lag", "s", "How far the watermark lies behind the store's clock; absent before the bootstrap is over.")
	segments := gauge("store.segments", "{segment}", "Live segments, fresh and settled ones.")
	stored := gauge("store.body.size", "By", "Bodies of live segments on disk.")
	text := gauge("store.ndjson.size", "By", "NDJSON in live segments by resource type, of live rows and of dead ones.")
	backlog := gauge("store.backlog", "By", "NDJSON that waits for merges, to settle or to be left out, and that of the segments being merged now.")
	clean := float("store.backlog.duration", "s", "How long merges need for that at their pace so far.")
	written := float("store.write.amplification", "1", "Compressed bytes written for each that came in, since the process started.")
	space := float("store.space.amplification", "1", "Bytes of NDJSON that lie in segments for each that is live.")
	pinned := gauge("store.pinned.size", "By", "Bodies on disk that only snapshots keep.")
	oldest := float("store.pin.age", "s", "Age of the oldest snapshot, 0 while there is none.")
	damaged := gauge("store.damaged", "{segment}", "Live segments that were found damaged.")
	_, e := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		if w := db.Status().Watermark; w != fhir.None {
			o.ObserveFloat64(lag, time.Duration((db.Now()-w)*1e6).Seconds())
		}
		l := db.Layout()
		var bytes int64
		count := map[string]int64{"fresh": 0, "settled": 0}
		types := map[fhir.Type]*TypeStat{}
		for _, w := range l.Windows {
			bytes += w.Stored
			count[state(w.Settled)] += int64(w.Segments)
			for _, t := range w.Types {
				if t.Section.Kind == Internal {
					continue
				}
				sum := types[t.Section.Type]
				if sum == nil {
					sum = &TypeStat{}
					types[t.Section.Type] = sum
				}
				sum.Bytes, sum.Gone = sum.Bytes+t.Bytes, sum.Gone+t.Gone
			}
		}
		for name, n := range count {
			o.ObserveInt64(segments, n, metric.WithAttributes(attribute.String("state", name)))
		}
		for typ, t := range types {
			of := attribute.String("type", typ.String())
			o.ObserveInt64(text, t.Bytes-t.Gone, metric.WithAttributes(of, attribute.Bool("dead", false)))
			o.ObserveInt64(text, t.Gone, metric.WithAttributes(of, attribute.Bool("dead", true)))
		}
		o.ObserveInt64(stored, bytes)
		o.ObserveInt64(backlog, l.Unsettled, metric.WithAttributes(attribute.String("work", "settle")))
		o.ObserveInt64(backlog, l.Droppable, metric.WithAttributes(attribute.String("work", "clean")))
		o.ObserveInt64(backlog, l.Merging, metric.WithAttributes(attribute.String("work", "now")))
		o.ObserveFloat64(clean, l.UntilClean.Seconds())
		o.ObserveFloat64(written, l.Written)
		o.ObserveFloat64(space, l.Space)
		o.ObserveInt64(pinned, l.PinnedOnly)
		o.ObserveInt64(damaged, int64(len(l.Damaged)))
		age := 0.0
		if !l.OldestPin.IsZero() {
			age = time.Since(l.OldestPin).Seconds()
		}
		o.ObserveFloat64(oldest, age)
		return nil
	}, lag, segments, stored, text, backlog, clean, written, space, pinned, oldest, damaged)
	return errors.Join(err, e)
}

func state(settled bool) string {
	if settled {
		return "settled"
	}
	return "fresh"
}

func (i *instruments) committed(c *counts, took time.Duration) {
	ctx := context.Background()
	i.duration.Record(ctx, took.Seconds())
	i.rows.Add(ctx, c.rows)
	i.bytes.Add(ctx, c.bytes)
	i.late.Add(ctx, c.late)
	for reason, n := range map[string]int64{"stale": c.stale, "same": c.same, "gone": c.gone, "erased": c.erased} {
		i.ignored.Add(ctx, n, metric.WithAttributes(attribute.String("reason", reason)))
	}
}

// pebbleLog sends Pebble's messages to the log at debug level; its errors come
// back from its calls anyway.
type pebbleLog struct{ l *slog.Logger }

func (p pebbleLog) Infof(format string, args ...any) {
	p.l.Debug("pebble", "message", fmt.Sprintf(format, args...))
}

func (p pebbleLog) Errorf(format string, args ...any) {
	p.l.Error("pebble", "message", fmt.Sprintf(format, args...))
}

func (p pebbleLog) Fatalf(format string, args ...any) {
	p.l.Error("pebble", "message", fmt.Sprintf(format, args...))
	panic("pebble: " + fmt.Sprintf(format, args...))
}
