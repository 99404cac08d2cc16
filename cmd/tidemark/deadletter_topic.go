package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/segmentio/kafka-go"
	otel "go.opentelemetry.io/otel/metric"

	"tidemark/cmd/tidemark/internal/config"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A letterTopic is where dead letters go as well (dead_letters.topic): each as the record that
// it was, all in one partition, in the order of their numbers, at least once. Intake never
// waits for it. How far it has come the store remembers.
type letterTopic struct {
	db     *store.DB
	kafka  config.Kafka
	topic  string
	server string // its public URL chooses the partition
	log    *slog.Logger
	w      *writer // nil: the brokers are asked again

	sent uint64 // everything up to this number needs no sending
	mu   sync.Mutex
	// since when, and why, some could not be sent; zero: all were.
	failing time.Time
	err     error
}

const (
	letterEvery    = time.Second // between two looks for new ones
	letterBatch    = 512 << 10   // bytes at once: half of what topics take if nobody has changed that
	letterOverhead = 200         // bytes that a record has beside key and value, about
	letterKept     = 64 << 10    // bytes left of a value that the topic does not take
	letterPause    = time.Minute // the longest between two attempts
)

// newLetterTopic is nil if none is configured.
func newLetterTopic(c *config.Config, db *store.DB, m otel.Meter, log *slog.Logger) (*letterTopic, error) {
	l := &letterTopic{db: db, kafka: c.Kafka, topic: c.DeadLetters.Topic, server: c.HTTP.PublicURL, log: log}
	age, err := m.Float64ObservableGauge("dead_letters.uncopied.age", otel.WithUnit("s"),
		otel.WithDescription("For how long dead letters could not be written to dead_letters.topic; 0: it has all."))
	if err != nil {
		return nil, err
	}
	_, err = m.RegisterCallback(func(_ context.Context, o otel.Observer) error {
		waited := 0.0
		if since, _ := l.trouble(); !since.IsZero() {
			waited = time.Since(since).Seconds()
		}
		o.ObserveFloat64(age, waited)
		return nil
	}, age)
	if c.DeadLetters.Topic == "" { // the metric is there all the same: 0
		return nil, err
	}
	return l, err
}

// cursor is where the store remembers how far the topic has come.
func (l *letterTopic) cursor() string { return "deadletters/copied/" + l.topic }

// run copies dead letters until ctx ends.
func (l *letterTopic) run(ctx context.Context) error {
	if l == nil {
		<-ctx.Done()
		return nil
	}
	said, err := l.db.Remembered(l.cursor())
	if err != nil {
		return err
	}
	l.sent, _ = strconv.ParseUint(string(said), 10, 64) // nothing: from the first on
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = letterPause
	var warned time.Time
	for {
		wait := letterEvery
		err := l.copy(ctx)
		l.note(err)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrClosed):
			return err
		case err == nil:
			pause.Reset()
		default:
			wait = pause.NextBackOff()
			if now := time.Now(); now.Sub(warned) >= time.Minute {
				warned = now
				l.log.Warn("dead letters are not copied to dead_letters.topic: the store has them, and it is tried again", "topic", l.topic, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (l *letterTopic) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.err = err; {
	case err == nil:
		l.failing = time.Time{}
	case l.failing.IsZero():
		l.failing = time.Now()
	}
}

// trouble is since when, and why, nothing is copied.
func (l *letterTopic) trouble() (since time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failing, l.err
}

// copy sends what is new.
func (l *letterTopic) copy(ctx context.Context) error {
	var list []entry
	last, bytes := uint64(0), 0
	send := func() error {
		if len(list) == 0 {
			return nil
		}
		if err := l.send(ctx, list); err != nil {
			return err
		}
		l.sent, list, bytes = last, nil, 0
		return l.db.Remember(l.cursor(), strconv.AppendUint(nil, last, 10))
	}
	upTo, err := l.db.DeadLettersAfter(l.sent, func(d store.DeadLetterRow) error {
		size := len(d.Key) + len(d.Value) + letterOverhead
		if bytes > 0 && bytes+size > letterBatch {
			if err := send(); err != nil {
				return err
			}
		}
		list, last, bytes = append(list, letterEntry(d)), d.Seq, bytes+size
		return ctx.Err()
	})
	if err == nil {
		err = send()
	}
	if err == nil {
		l.sent = upTo
	}
	return err
}

func (l *letterTopic) send(ctx context.Context, list []entry) (err error) {
	if l.w == nil {
		if l.w, err = newWriter(ctx, l.kafka, l.topic, l.server); err != nil {
			return err
		}
	}
	err = l.w.writeAll(ctx, list, func(e entry) (entry, error) {
		e.headers = append(e.headers, kafka.Header{Key: "tidemark-cut", Value: strconv.AppendInt(nil, int64(len(e.value)), 10)})
		e.value = e.value[:min(len(e.value), letterKept)]
		return e, nil
	})
	if err != nil {
		l.w.close()
		l.w = nil // brokers, the topic and what it takes may have changed
	}
	return err
}

// letterEntry is the record of a dead letter, with headers that say what became of it.
func letterEntry(d store.DeadLetterRow) entry {
	e := entry{key: d.Key, value: d.Value}
	say := func(name, value string) {
		e.headers = append(e.headers, kafka.Header{Key: "tidemark-" + name, Value: []byte(value)})
	}
	say("number", strconv.FormatUint(d.Seq, 10))
	say("reason", d.Reason)
	say("topic", d.Partition.Topic)
	say("partition", strconv.FormatInt(int64(d.Partition.ID), 10))
	say("offset", strconv.FormatInt(d.Offset, 10))
	if d.Timestamp != fhir.None {
		say("timestamp", d.Timestamp.String())
	}
	if d.Truncated {
		say("cut", strconv.FormatInt(d.Length, 10))
	}
	for _, h := range d.Headers {
		e.headers = append(e.headers, kafka.Header{Key: h.Key, Value: h.Value})
	}
	return e
}

// tell says for inspect how far the topic is behind.
func (l *letterTopic) tell(out io.Writer) error {
	if l == nil {
		return nil
	}
	since, err := l.trouble()
	if since.IsZero() {
		return nil
	}
	_, err = fmt.Fprintf(out, "dead letters are not copied to %s since %s: %v\n", l.topic, since.UTC().Format(time.RFC3339), err)
	return err
}
