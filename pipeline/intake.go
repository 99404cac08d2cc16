package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"tidemark/pipeline/decode"
	"tidemark/pipeline/join"
	"tidemark/pipeline/source"
	"tidemark/store"
)

// intake is the side of the pipeline that the source sees.
type intake struct{ *Pipeline }

var _ source.Handler = intake{}

// Discover tells the store what the broker has. Before anything of a new
// partition is fetched, what is known of its topic is put in force.
func (p intake) Discover(ctx context.Context, d store.Discovery) error {
	if err := p.loadJoined(); err != nil { // before the store may think that nothing waits
		return err
	}
	if err := p.store.Discover(d); err != nil {
		return err
	}
	fresh := p.register(d)
	p.holdAbsent()
	for _, f := range fresh {
		if err := p.enter(f.Partition.Topic); err != nil {
			return err
		}
		if err := p.rewind(ctx, f); err != nil {
			return err
		}
	}
	return p.holdTopics(ctx)
}

// register notes the partitions of a discovery and returns the new ones.
func (p *Pipeline) register(d store.Discovery) []store.Discovered {
	p.mu.Lock()
	defer p.mu.Unlock()
	var fresh []store.Discovered
	for _, f := range d.Partitions {
		if !p.partitions[f.Partition] {
			p.partitions[f.Partition] = true
			fresh = append(fresh, f)
		}
	}
	return fresh
}

// holdAbsent says of the store's partitions that nobody reads why the watermark
// waits for them.
func (p *Pipeline) holdAbsent() {
	for id := range p.store.Committed() {
		p.mu.Lock()
		present, absent := p.partitions[id], p.absent[id]
		if present {
			delete(p.absent, id)
		} else {
			p.absent[id] = true
		}
		p.mu.Unlock()
		switch {
		case present && absent:
			p.store.Release(id)
		case !present && !absent:
			p.store.Hold(id, p.absence(id))
		}
	}
}

func (p *Pipeline) absence(id store.Partition) string {
	if _, ok := p.configured(id.Topic); !ok {
		return fmt.Sprintf("topic %s was read into this store but is no longer configured: configure it again, or decide: tidemark topic forget %s", id.Topic, id.Topic)
	}
	return fmt.Sprintf("the broker does not have partition %s/%d, which was read before: wait for it, or decide: tidemark topic forget %s/%d", id.Topic, id.ID, id.Topic, id.ID)
}

// configured finds the configuration that holds for a topic.
func (p *Pipeline) configured(name string) (int, bool) {
	for i, c := range p.o.Topics {
		if c.selector().Match(name) {
			return i, true
		}
	}
	return 0, false
}

// enter makes a topic known, with its state as stored.
func (p *Pipeline) enter(name string) error {
	if p.topic(name) != nil {
		return nil
	}
	i, ok := p.configured(name)
	if !ok {
		return fmt.Errorf("topic %s is not configured", name)
	}
	t := &topic{name: name, cfg: p.o.Topics[i], decoder: p.decoders[i], noted: map[store.Partition]bool{}}
	t.state.Format = t.cfg.reading()
	if stored := p.store.Topic(name); stored != nil {
		var err error
		if t.state, err = parseState(stored); err != nil {
			return fmt.Errorf("read the stored state of topic %s: %w", name, err)
		}
	}
	var err error
	if t.paused, err = Paused(p.store, name); err != nil {
		return fmt.Errorf("find out whether topic %s is paused: %w", name, err)
	}
	if t.state.Format != t.cfg.reading() {
		if err := p.planRetry(t); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.topics[name] == nil { // a command may have been faster
		p.topics[name] = t
	}
	return nil
}

func (p *Pipeline) topic(name string) *topic {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.topics[name]
}

// holdTopics holds every partition of the topics that are held.
func (p *Pipeline) holdTopics(ctx context.Context) error {
	for _, t := range p.knownTopics() {
		t.mu.Lock()
		wrong, seen := t.exceeded(t.state), t.last != ""
		t.mu.Unlock()
		if wrong && !seen {
			if err := p.recall(t); err != nil {
				return err
			}
		}
		t.mu.Lock()
		if t.paused != "" || t.exceeded(t.state) {
			p.hold(ctx, t)
		}
		t.mu.Unlock()
	}
	return nil
}

// hold holds a topic's partitions. Called with t.mu held.
func (p *Pipeline) hold(ctx context.Context, t *topic) {
	if !t.held {
		p.o.Logger.ErrorContext(ctx, "topic is held", "topic", t.name, "reason", t.reason())
	}
	t.held = true
	for _, id := range p.present(t.name) {
		p.store.Hold(id, t.reason())
	}
}

// release has a topic read again that was held. Called with t.mu held.
func (p *Pipeline) release(ctx context.Context, t *topic) {
	t.held = false
	p.o.Logger.InfoContext(ctx, "topic is read again", "topic", t.name)
	gaps := map[store.Partition]string{}
	for _, s := range p.source.Status().Partitions {
		if s.Gap != nil {
			gaps[s.Partition] = s.Gap.Error()
		}
	}
	for _, id := range p.present(t.name) {
		p.store.Release(id)
		if gaps[id] != "" {
			p.store.Hold(id, gaps[id])
		}
	}
	p.source.Again(t.name)
}

// present lists the partitions of a topic that were discovered.
func (p *Pipeline) present(topic string) (ids []store.Partition) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.partitions {
		if id.Topic == topic {
			ids = append(ids, id)
		}
	}
	return ids
}

// Hold passes on why a partition is not read.
func (p intake) Hold(id store.Partition, reason string) { p.store.Hold(id, reason) }

// Release ends a Hold, but not that of a topic.
func (p intake) Release(id store.Partition) {
	p.store.Release(id)
	t := p.topic(id.Topic)
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held {
		p.store.Hold(id, t.reason())
	}
}

// Handle decodes and applies one answer.
func (p intake) Handle(ctx context.Context, a *source.Answer) error {
	t := p.topic(a.Partition.Topic)
	if t.isHeld() {
		return source.ErrStop
	}
	if len(a.Records) > 0 { // most answers are empty: they tell how far a partition goes
		var span trace.Span
		ctx, span = p.o.Tracer.Start(ctx, "pipeline.batch", trace.WithAttributes(
			attribute.String("topic", a.Partition.Topic), attribute.Int("partition", int(a.Partition.ID)),
			attribute.Int("records", len(a.Records)), attribute.Int("bytes", a.Size),
		))
		defer span.End()
	}
	if t.joins() {
		p.joined.mu.Lock() // until all is applied: what is noted with one record decides of the next
		defer p.joined.mu.Unlock()
		defer p.joinedApplied()
		if err := p.tellOverdue(ctx, t, a.Partition); err != nil {
			return err
		}
	}
	if err := p.redecode(ctx, t, a.Partition); err != nil {
		return err
	}
	d, err := p.decode(ctx, t, a)
	if err != nil {
		return err
	}
	b := store.Batch{
		Partition: a.Partition, Changes: d.changes, Next: a.Next, LeaderEpoch: a.LeaderEpoch, Asked: a.Asked, End: a.End,
		Notes: d.notes,
	}
	if b.Resolved, err = p.letters(d.answered); err != nil {
		return err
	}
	return p.apply(ctx, t, b, d)
}

// apply hands a batch to the store. When the topic's state changes the batch
// carries it, and until the store has it no other records of the topic are
// counted: the state stored last must be the newest. An answer without records
// has nothing to count and goes on: the watermark moves by it.
func (p *Pipeline) apply(ctx context.Context, t *topic, b store.Batch, d decoded) error {
	if d.empty() {
		return p.store.Apply(ctx, b)
	}
	t.order.Lock()
	if t.isHeld() {
		t.order.Unlock()
		return source.ErrStop
	}
	state, stop := t.count(d)
	if state == t.state {
		t.order.Unlock()
		return p.store.Apply(ctx, b)
	}
	defer t.order.Unlock()
	if stop >= 0 {
		b = cutAt(b, d.outcomes[stop])
	}
	b.Topic = state.encode()
	if err := p.store.Apply(ctx, b); err != nil {
		return err
	}
	likely := ""
	if stop >= 0 {
		likely = p.likely(t)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = state
	if stop >= 0 {
		t.likely = likely
		p.hold(ctx, t)
		return source.ErrStop
	}
	return nil
}

// likely is the format that a topic's newest dead letters look like.
func (p *Pipeline) likely(t *topic) string {
	t.mu.Lock()
	sample := slices.Clone(t.sample)
	t.mu.Unlock()
	if len(sample) == 0 {
		return ""
	}
	return p.o.Likely(t.cfg.Decode, sample)
}

// recall looks at the dead letters that an earlier process left of a topic that is held.
func (p *Pipeline) recall(t *topic) error {
	var newest []store.DeadLetterRow
	err := p.store.DeadLetters(t.name, func(r store.DeadLetterRow) error {
		if r.Truncated {
			return nil
		}
		i, _ := slices.BinarySearchFunc(newest, r.Seq, func(r store.DeadLetterRow, seq uint64) int { return cmp.Compare(r.Seq, seq) })
		newest = slices.Insert(newest, i, r)
		newest = newest[max(0, len(newest)-sampleRecords):]
		return nil
	})
	if err != nil {
		return fmt.Errorf("look at the dead letters of topic %s: %w", t.name, err)
	}
	for _, r := range newest {
		t.see(recordOf(r), r.Reason)
	}
	likely := p.likely(t)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.likely = likely
	return nil
}

// decoded is what became of an answer's records.
type decoded struct {
	changes  []store.Change
	notes    []store.Note
	answered []join.Origin // dead letters that are none any more
	good     bool          // some were decoded before the outcomes begin
	outcomes []outcome     // from the first dead letter on
}

func (d decoded) empty() bool { return !d.good && d.outcomes == nil }

func (p *Pipeline) decode(ctx context.Context, t *topic, a *source.Answer) (decoded, error) {
	if len(a.Records) == 0 {
		return decoded{}, nil
	}
	d := decoded{changes: make([]store.Change, 0, len(a.Records)), notes: t.begins(a)}
	var bytes int
	for i := range a.Records {
		r := &a.Records[i]
		bytes += len(r.Key) + len(r.Value)
		taken, dead, err := p.decodeRecord(ctx, t, a.Partition, r)
		if err != nil {
			return d, err
		}
		d.changes = append(d.changes, taken.Changes...)
		d.notes, d.answered = append(d.notes, taken.Notes...), append(d.answered, taken.Answered...)
		if dead != "" {
			p.metrics.dead(ctx, t.name, dead)
		}
		if dead == "" && d.outcomes == nil {
			d.good = true
			continue
		}
		d.outcomes = append(d.outcomes, outcome{offset: r.Offset, end: len(d.changes), dead: dead != ""})
	}
	p.metrics.read(ctx, t.name, len(a.Records), bytes)
	return d, nil
}

// oversize is the reason of a record that the source has cut.
const oversize = "larger than the limit for records (kafka.max_record)"

// decodeRecord decodes a record or makes a dead letter of it; then it says why.
func (p *Pipeline) decodeRecord(ctx context.Context, t *topic, id store.Partition, r *source.Record) (join.Taken, string, error) {
	rec := decode.Record{
		Topic: id.Topic, Partition: id.ID, Offset: r.Offset, Timestamp: r.Timestamp,
		Key: r.Key, Value: r.Value, Headers: r.Headers,
	}
	if r.Oversize != nil {
		c := decode.DeadLetter(rec, oversize)
		c.Dead.Length, c.Dead.SHA256, c.Dead.Truncated = r.Oversize.Length, r.Oversize.SHA256, true
		return join.Taken{Changes: []store.Change{c}}, oversize, nil
	}
	taken, bad, err := p.insist(ctx, t, rec)
	if bad != nil {
		t.see(rec, bad.Reason)
		taken.Changes = append(taken.Changes, t.cfg.Decode.DeadLetter(rec, bad.Reason))
		return taken, bad.Reason, nil
	}
	return taken, "", err
}

// understand is what a record says, by itself or together with others.
func (p *Pipeline) understand(t *topic, rec decode.Record) (join.Taken, error) {
	if t.joins() {
		return p.joined.join.Take(rec)
	}
	changes, err := t.decoder.Decode(rec)
	return join.Taken{Changes: changes}, err
}

// insist decodes a record. If the decoder misses something that is none of the
// record's faults (a registry that is away), it tries until that is back; other
// partitions go on meanwhile.
func (p *Pipeline) insist(ctx context.Context, t *topic, rec decode.Record) (join.Taken, *decode.Error, error) {
	taken, err := p.understand(t, rec)
	if err == nil {
		return taken, nil, nil
	}
	if bad, ok := errors.AsType[*decode.Error](err); ok {
		return taken, bad, nil
	}
	log := p.o.Logger.With("topic", rec.Topic, "partition", rec.Partition, "offset", rec.Offset)
	log.WarnContext(ctx, "decoding waits, retrying", "error", err)
	id := store.Partition{Topic: rec.Topic, ID: rec.Partition}
	p.source.Stall(id)
	defer p.goOn(id)
	wait := backoff.NewExponentialBackOff()
	wait.MaxInterval = 10 * time.Second
	for {
		select {
		case <-ctx.Done():
			return join.Taken{}, nil, ctx.Err()
		case <-time.After(wait.NextBackOff()):
		}
		taken, err := p.understand(t, rec)
		bad, ok := errors.AsType[*decode.Error](err)
		if err == nil || ok {
			log.InfoContext(ctx, "decoding goes on")
			return taken, bad, nil
		}
		p.stand(id, fmt.Sprintf("offset %d cannot be decoded yet, still trying: %v", rec.Offset, err))
	}
}

// stand says why a partition waits, for status, metrics and whoever asks what holds the
// watermark.
func (p *Pipeline) stand(id store.Partition, why string) {
	p.mu.Lock()
	p.waits[id] = why
	p.mu.Unlock()
	intake{p}.Hold(id, why)
}

// goOn ends what stand has begun.
func (p *Pipeline) goOn(id store.Partition) {
	p.mu.Lock()
	_, waited := p.waits[id]
	delete(p.waits, id)
	p.mu.Unlock()
	if waited {
		intake{p}.Release(id)
	}
}
