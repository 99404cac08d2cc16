package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"tidemark/pipeline/decode"
	"tidemark/pipeline/join"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A Selection says which dead letters are meant. What is not set restricts nothing.
type Selection struct {
	Numbers []uint64
	// Reason is a part of the reason, in whatever case, or with * and ? a pattern of all of it.
	Reason    string
	Topic     string
	Partition *int32
	// When they were taken in: Since ≤ instant < Until. fhir.None is no bound.
	Since, Until fhir.Instant
}

// All selects every dead letter.
func All() Selection { return Selection{Since: fhir.None, Until: fhir.None} }

// Match returns what tells the dead letters that are meant.
func (s Selection) Match() func(store.DeadLetterRow) bool {
	reason := func(r string) bool { return strings.Contains(strings.ToLower(r), strings.ToLower(s.Reason)) }
	if strings.ContainsAny(s.Reason, "*?") {
		quoted := strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(s.Reason))
		reason = regexp.MustCompile("(?is)^" + quoted + "$").MatchString
	}
	return func(r store.DeadLetterRow) bool {
		return (len(s.Numbers) == 0 || slices.Contains(s.Numbers, r.Seq)) &&
			(s.Topic == "" || s.Topic == r.Partition.Topic) &&
			(s.Partition == nil || *s.Partition == r.Partition.ID) &&
			(s.Since == fhir.None || r.Instant >= s.Since) && (s.Until == fhir.None || r.Instant < s.Until) &&
			(s.Reason == "" || reason(r.Reason))
	}
}

// Replayed is what became of dead letters that were decoded again.
type Replayed struct {
	Resolved int            // dead letters that are none any more
	Changes  int            // what they said
	Still    map[string]int // the others, by the reason of now
}

// notConfigured is why dead letters of a topic that is none of ours stay.
const notConfigured = "their topic is not configured"

// Replay decodes dead letters with the present configuration. What can be decoded is applied
// as what it is, an old record: what is newer stands. It is durable when Replay returns. An
// error that is none of the records' (a registry that is away) ends it; what was applied is.
func (p *Pipeline) Replay(ctx context.Context, sel Selection) (Replayed, error) {
	out := Replayed{Still: map[string]int{}}
	chosen, err := p.choose(sel)
	if err != nil {
		return out, err
	}
	for _, id := range slices.SortedFunc(maps.Keys(chosen.numbers), store.Partition.Compare) {
		if _, ok := p.configured(id.Topic); !ok {
			out.Still[notConfigured] += len(chosen.numbers[id])
			continue
		}
		if err := p.enter(id.Topic); err != nil {
			return out, err
		}
		if err := p.replay(ctx, p.topic(id.Topic), id, chosen, &out); err != nil {
			err = fmt.Errorf("decode dead letters of %s/%d again: %w", id.Topic, id.ID, err)
			return out, errors.Join(err, p.store.Flush()) //nolint:contextcheck // a commit is not cut short
		}
	}
	return out, p.store.Flush() //nolint:contextcheck // likewise
}

func (p *Pipeline) replay(ctx context.Context, t *topic, id store.Partition, chosen *choice, out *Replayed) error {
	if t.joins() {
		p.joined.mu.Lock()
		defer p.joined.mu.Unlock()
		defer p.joinedApplied()
	}
	apply := func(b store.Batch) error {
		if len(b.Resolved) == 0 {
			return nil
		}
		if err := p.settle(ctx, t, b, chosen.run(id.Topic).upTo); err != nil {
			return err
		}
		out.Resolved, out.Changes = out.Resolved+len(b.Resolved), out.Changes+len(b.Changes)
		return nil
	}
	read := func(rec decode.Record) (join.Taken, *decode.Error, error) {
		taken, err := p.understand(t, rec)
		if bad, ok := errors.AsType[*decode.Error](err); ok {
			return taken, bad, nil
		}
		return taken, nil, errors.Join(err, ctx.Err())
	}
	rest, failed, err := p.again(id, chosen.numbers[id], read, apply)
	for _, f := range failed {
		out.Still[f.reason]++
	}
	return errors.Join(apply(rest), err)
}

// Drop takes dead letters away that nobody wants decoded any more, and says how many. It is
// durable when it returns.
func (p *Pipeline) Drop(ctx context.Context, sel Selection) (dropped int, err error) {
	chosen, err := p.choose(sel)
	if err != nil {
		return 0, err
	}
	for _, id := range slices.SortedFunc(maps.Keys(chosen.numbers), store.Partition.Compare) {
		t := p.topic(id.Topic)
		if t == nil { // nobody reads it in this process
			t = &topic{name: id.Topic}
			if stored := p.store.Topic(id.Topic); stored != nil {
				if t.state, err = parseState(stored); err != nil {
					return dropped, fmt.Errorf("read the stored state of topic %s: %w", id.Topic, err)
				}
			}
		}
		for some := range slices.Chunk(chosen.bounds[id], retryLetters) {
			b := p.retryBatch(id)
			b.Resolved = some
			if err := p.settle(ctx, t, b, chosen.run(id.Topic).these); err != nil {
				return dropped, fmt.Errorf("drop dead letters of %s/%d: %w", id.Topic, id.ID, err)
			}
			dropped += len(some)
		}
	}
	return dropped, p.store.Flush() //nolint:contextcheck // a commit is not cut short
}

// Drop is Pipeline.Drop of a store that nobody reads into.
func Drop(ctx context.Context, s Store, sel Selection) (dropped int, err error) {
	return (&Pipeline{store: s}).Drop(ctx, sel)
}

// settle applies what resolves dead letters, with what that makes of the topic's run of them
// beside it. A topic that was held for it is read again.
func (p *Pipeline) settle(ctx context.Context, t *topic, b store.Batch, less func([]store.Bound) int) error {
	t.order.Lock()
	defer t.order.Unlock()
	state := t.state
	state.Run = max(0, state.Run-less(b.Resolved))
	b.Topic = state.encode()
	if err := p.store.Apply(ctx, b); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = state
	p.reconsider(ctx, t)
	return nil
}

// A choice is what a selection means in the store of now.
type choice struct {
	numbers map[store.Partition][]uint64 // ascending
	bounds  map[store.Partition][]store.Bound
	runs    map[string]*run
}

func (c *choice) run(topic string) *run { return c.runs[topic] }

// choose lists the dead letters that are meant.
func (p *Pipeline) choose(sel Selection) (*choice, error) {
	if err := p.store.Flush(); err != nil { // what is not committed is not listed
		return nil, err
	}
	c := &choice{numbers: map[store.Partition][]uint64{}, bounds: map[store.Partition][]store.Bound{}, runs: map[string]*run{}}
	match := sel.Match()
	err := p.store.DeadLetters(sel.Topic, func(r store.DeadLetterRow) error {
		of := c.runs[r.Partition.Topic]
		if of == nil {
			of = &run{}
			c.runs[r.Partition.Topic] = of
		}
		of.numbers = append(of.numbers, r.Seq)
		if match(r) {
			c.numbers[r.Partition] = append(c.numbers[r.Partition], r.Seq)
			c.bounds[r.Partition] = append(c.bounds[r.Partition], r.Bound)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	for _, list := range c.numbers {
		slices.Sort(list)
	}
	for name, of := range c.runs {
		if err := p.cutRun(name, of); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// cutRun leaves of a topic's dead letters those since its last good record.
func (p *Pipeline) cutRun(name string, of *run) error {
	slices.Sort(of.numbers)
	var state topicState
	if t := p.topic(name); t != nil {
		t.mu.Lock()
		state = t.state
		t.mu.Unlock()
	} else if stored := p.store.Topic(name); stored != nil {
		var err error
		if state, err = parseState(stored); err != nil {
			return fmt.Errorf("read the stored state of topic %s: %w", name, err)
		}
	}
	of.numbers = of.numbers[max(0, len(of.numbers)-state.Run):]
	return nil
}

// A run is the dead letters of a topic since its last good record, ascending.
type run struct{ numbers []uint64 }

// upTo takes what lies at or before the newest of some that turned out to be good records.
func (r *run) upTo(good []store.Bound) int {
	newest := slices.MaxFunc(good, func(a, b store.Bound) int { return cmp.Compare(a.Seq, b.Seq) }).Seq
	n, found := slices.BinarySearch(r.numbers, newest)
	if found {
		n++
	}
	r.numbers = r.numbers[n:]
	return n
}

// these takes some that were dropped: that says nothing of the others.
func (r *run) these(dropped []store.Bound) int {
	before := len(r.numbers)
	r.numbers = slices.DeleteFunc(r.numbers, func(seq uint64) bool {
		return slices.ContainsFunc(dropped, func(b store.Bound) bool { return b.Seq == seq })
	})
	return before - len(r.numbers)
}
