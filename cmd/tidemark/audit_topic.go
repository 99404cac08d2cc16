package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"tidemark/api/audit"
	"tidemark/cmd/tidemark/internal/config"
)

// An auditTopic is where the trail goes as well (audit.topic). All lines of a server go to
// one partition, which its public URL chooses: so they stay in their order. The key of
// each is its own id, so that compaction drops only what came twice.
type auditTopic struct {
	kafka  config.Kafka
	topic  string
	server string
	w      *writer // nil: the brokers are asked again
}

var _ audit.Publisher = (*auditTopic)(nil)

// Publish writes lines in one batch, and in smaller ones if that is too large.
func (a *auditTopic) Publish(ctx context.Context, lines []audit.Published) (err error) {
	if a.w == nil {
		if a.w, err = newWriter(ctx, a.kafka, a.topic, a.server); err != nil {
			return err
		}
	}
	list := make([]entry, len(lines))
	for i, l := range lines {
		list[i] = entry{key: []byte(l.ID), value: l.Text}
	}
	// A request of limits.body compresses to less than topics take by default. It is not
	// passed over: what is missing there would look like what was removed.
	err = a.w.writeAll(ctx, list, func(e entry) (entry, error) {
		return e, fmt.Errorf("a line of the audit trail has %d bytes, and the topic %s takes less: raise its max.message.bytes", len(e.value), a.topic)
	})
	if err != nil {
		a.w.close()
		a.w = nil // brokers, the topic and what it takes may have changed
	}
	return err
}

// publishTrail carries the trail to its topic until ctx ends, and then what is left.
func publishTrail(ctx context.Context, trail *audit.Trail) error {
	if err := trail.Run(ctx); err != nil {
		return err
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditGrace)
	defer cancel()
	_ = trail.Flush(last) // the next start goes on
	return nil
}

// tellLag says how far the topic is behind; nothing if there is none.
func tellLag(trail *audit.Trail, out io.Writer) error {
	lag, err := trail.Lag()
	if err != nil {
		return fmt.Errorf("find out how far audit.topic is behind: %w", err)
	}
	if lag.Bytes == 0 {
		return nil
	}
	text := fmt.Sprintf("audit.topic lacks %s of the audit trail", bytesOf(lag.Bytes))
	if !lag.Since.IsZero() {
		text += ", the oldest of " + lag.Since.UTC().Format(time.RFC3339)
	}
	if lag.Err != nil {
		text += ": " + lag.Err.Error()
	}
	_, err = fmt.Fprintln(out, text)
	return err
}
