package pipeline

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"tidemark/pipeline/decode"
	"tidemark/pipeline/join"
	"tidemark/pipeline/source"
	"tidemark/store"
	"tidemark/store/fhir"
)

// retry is the work of decoding a topic's newest run of dead letters again,
// because its format is another one now. Each partition does its own part when
// its first answer comes, before that is applied.
//
// Until all of it is done the stored state keeps the old format and counts what
// is left, so that a crash begins again with just that.
type retry struct {
	// topic.mu guards these,
	waiting map[store.Partition][]uint64 // sequence numbers, ascending
	running int                          // partitions at work

	// and topic.order all that follows.
	failed   []uint64
	resolved uint64 // the greatest

	// What was read meanwhile, in the new format.
	good bool // any good record
	run  int  // dead letters since
}

// planRetry finds the dead letters since the topic's last good record: as many
// of the newest as its stored state counts.
func (p *Pipeline) planRetry(t *topic) error {
	type letter struct {
		seq uint64
		id  store.Partition
	}
	var letters []letter
	if t.state.Run > 0 {
		err := p.store.DeadLetters(t.name, func(r store.DeadLetterRow) error {
			letters = append(letters, letter{r.Seq, r.Partition})
			return nil
		})
		if err != nil {
			return fmt.Errorf("list dead letters of topic %s: %w", t.name, err)
		}
	}
	slices.SortFunc(letters, func(a, b letter) int { return cmp.Compare(a.seq, b.seq) })
	letters = letters[max(0, len(letters)-t.state.Run):]
	if len(letters) == 0 {
		t.state = topicState{Format: t.cfg.reading()}
		return nil
	}
	t.state.Run = len(letters) // fewer if somebody has removed some
	t.retry = &retry{waiting: map[store.Partition][]uint64{}}
	for _, l := range letters {
		t.retry.waiting[l.id] = append(t.retry.waiting[l.id], l.seq)
	}
	return nil
}

// begin takes a partition's part of the retry, nil if it has none.
func (t *topic) begin(id store.Partition) []uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.retry == nil || t.retry.waiting[id] == nil {
		return nil
	}
	waiting := t.retry.waiting[id]
	delete(t.retry.waiting, id)
	t.retry.running++
	return waiting
}

// observe counts what was read while a retry is under way. Called with t.order
// held.
func (r *retry) observe(d decoded) (dead int) {
	if d.good {
		r.good, r.run = true, 0
	}
	for _, o := range d.outcomes {
		if !o.dead {
			r.good, r.run = true, 0
			continue
		}
		r.run++
		dead++
	}
	return dead
}

// left counts the dead letters since the last good record when all is done.
func (r *retry) left() int {
	if r.good {
		return r.run
	}
	n := r.run
	for _, seq := range r.failed {
		if seq > r.resolved {
			n++
		}
	}
	return n
}

// So many dead letters are decoded again and applied at a time.
const (
	retryLetters = 500
	retryBytes   = 4 << 20
)

// redecode decodes a partition's dead letters with the topic's new format.
// Those that decode are applied and disappear, the others stay.
func (p *Pipeline) redecode(ctx context.Context, t *topic, id store.Partition) error {
	waiting := t.begin(id)
	if len(waiting) == 0 {
		return nil
	}
	insist := func(rec decode.Record) (join.Taken, *decode.Error, error) { return p.insist(ctx, t, rec) }
	rest, failed, err := p.again(id, waiting, insist, func(b store.Batch) error { return p.applyRetry(ctx, t, b, nil, false) })
	if err != nil {
		return fmt.Errorf("decode dead letters of %s/%d again: %w", id.Topic, id.ID, err)
	}
	var seqs []uint64
	for _, f := range failed {
		seqs = append(seqs, f.seq)
	}
	return p.applyRetry(ctx, t, rest, seqs, true)
}

// A failure is a dead letter that is still one.
type failure struct {
	seq    uint64
	reason string
}

// cut is why a dead letter cannot be decoded whatever the format.
const cut = "not enough is kept to decode it: raise kafka.max_record, and have the source write it again"

// again decodes the dead letters of a partition with some numbers, ascending. What can be
// decoded is handed over in batches; the last one is returned. Of joined topics it is called
// with joined.mu held.
func (p *Pipeline) again(id store.Partition, numbers []uint64, read func(decode.Record) (join.Taken, *decode.Error, error), apply func(store.Batch) error) (b store.Batch, failed []failure, err error) {
	b = p.retryBatch(id)
	var answered []join.Origin
	size := 0
	err = p.store.DeadLetters(id.Topic, func(r store.DeadLetterRow) error {
		if _, ok := slices.BinarySearch(numbers, r.Seq); !ok {
			return nil
		}
		if r.Truncated {
			failed = append(failed, failure{r.Seq, cut})
			return nil
		}
		taken, bad, err := read(recordOf(r))
		if err != nil {
			return err
		}
		if bad != nil {
			failed = append(failed, failure{r.Seq, bad.Reason})
			return nil
		}
		b.Changes, b.Notes, b.Resolved = append(b.Changes, taken.Changes...), append(b.Notes, taken.Notes...), append(b.Resolved, r.Bound)
		answered = append(answered, taken.Answered...)
		if size += len(r.Value); len(b.Resolved) < retryLetters && size < retryBytes {
			return nil
		}
		full := b
		b, size = p.retryBatch(id), 0
		return apply(full)
	})
	if err != nil {
		return b, failed, err
	}
	others, err := p.letters(answered)
	b.Resolved = append(b.Resolved, others...)
	return b, failed, err
}

// recordOf is the record that a dead letter was.
func recordOf(r store.DeadLetterRow) decode.Record {
	return decode.Record{
		Topic: r.Partition.Topic, Partition: r.Partition.ID,
		Offset: r.Offset, Timestamp: r.Timestamp, Key: r.Key, Value: r.Value, Headers: r.Headers,
	}
}

// retryBatch is an empty batch that says nothing new of its partition.
func (p *Pipeline) retryBatch(id store.Partition) store.Batch {
	s, _ := p.store.Partition(id)
	return store.Batch{Partition: id, Next: s.Next, End: s.Next, LeaderEpoch: s.LeaderEpoch, Asked: fhir.None, Resolved: []store.Bound{}}
}

// applyRetry applies what could be decoded, with the topic's state behind it.
// last ends the partition's part, and the last part ends the retry.
func (p *Pipeline) applyRetry(ctx context.Context, t *topic, b store.Batch, failed []uint64, last bool) error {
	t.order.Lock()
	defer t.order.Unlock()
	state, done := t.resolve(b.Resolved, failed, last)
	b.Topic = state.encode()
	if err := p.store.Apply(ctx, b); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = state
	if done {
		t.retry = nil
		p.o.Logger.InfoContext(ctx, "dead letters were decoded again with the new format",
			"topic", t.name, "format", t.cfg.Format, "still_dead", state.Run)
	}
	if t.exceeded(state) {
		p.hold(ctx, t)
		return source.ErrStop
	}
	return nil
}

// resolve counts what became of dead letters, and says whether that was the last
// of them: nobody begins a part after it. Called with t.order held.
func (t *topic) resolve(resolved []store.Bound, failed []uint64, last bool) (s topicState, done bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.retry
	r.failed = append(r.failed, failed...)
	for _, l := range resolved {
		r.resolved = max(r.resolved, l.Seq)
	}
	if last {
		r.running--
	}
	if r.running == 0 && len(r.waiting) == 0 {
		return topicState{Format: t.cfg.reading(), Run: r.left()}, true
	}
	s = t.state
	s.Run = max(0, s.Run-len(resolved))
	return s, false
}
