package audit

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/metric"
)

// A Lag is how far the Publisher is behind what is on record.
type Lag struct {
	Bytes int64     // of the lines that it has not had
	Since time.Time // when the oldest of them was recorded; zero: it has all
	Err   error     // of its last attempt, if that failed
}

// Lag finds out how far the Publisher is behind, also where it has not run yet. Without
// one it is zero.
func (t *Trail) Lag() (l Lag, err error) {
	if t == nil || t.o.Publisher == nil {
		return l, nil
	}
	at, err := readCursor(t.o.FS, t.o.Dir)
	if err != nil {
		return l, err
	}
	lines, next, err := t.since(at)
	for err == nil && len(lines) == 0 && next != at {
		at = next
		lines, next, err = t.since(at)
	}
	if err != nil || len(lines) == 0 {
		return l, err
	}
	if e, err := decode(lines[0].Text); err == nil { // of one that was changed it is not known
		l.Since = e.Time
	}
	t.mu.Lock()
	l.Err = t.unpublished
	t.mu.Unlock()
	l.Bytes, err = t.behind(at)
	return l, err
}

// behind is how many bytes are on record after a cursor.
func (t *Trail) behind(at cursor) (n int64, err error) {
	t.disk.Lock()
	last, end := t.out.name, t.out.end
	t.disk.Unlock()
	list, err := files(t.o.FS, t.o.Dir)
	if err != nil {
		return 0, err
	}
	for _, name := range list[max(0, slices.Index(list, at.File)):] {
		if name == last {
			n += end
			break
		}
		info, err := t.o.FS.Stat(t.out.path(name))
		if err != nil {
			return 0, err
		}
		n += info.Size()
	}
	return n - at.Size, nil
}

// measure shows the lag. What cannot be found out is not shown, and in the log of Run.
func (t *Trail) measure() error {
	bytes, err := t.o.Meter.Int64ObservableGauge("audit.unpublished", metric.WithUnit("By"),
		metric.WithDescription("Lines of the audit trail that audit.topic does not have yet."))
	if err != nil {
		return fmt.Errorf("make the instruments of the audit trail: %w", err)
	}
	age, err := t.o.Meter.Float64ObservableGauge("audit.unpublished.age", metric.WithUnit("s"),
		metric.WithDescription("How long the oldest of them has been waiting; 0: there is none."))
	if err != nil {
		return fmt.Errorf("make the instruments of the audit trail: %w", err)
	}
	_, err = t.o.Meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		l, err := t.Lag()
		if err != nil {
			return err
		}
		o.ObserveInt64(bytes, l.Bytes)
		waited := time.Duration(0)
		if !l.Since.IsZero() {
			waited = max(0, time.Since(l.Since))
		}
		o.ObserveFloat64(age, waited.Seconds())
		return nil
	}, bytes, age)
	return err
}
