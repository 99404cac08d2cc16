package pipeline

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"tidemark/pipeline/decode"
	"tidemark/pipeline/join"
	"tidemark/pipeline/source"
	"tidemark/store"
)

// joined is what topics have in common whose records are parts of resources: all are of one
// source.
type joined struct {
	mu     sync.Mutex
	join   *join.Join
	loaded bool
}

// joinTopics finds the topics whose records are joined. What one says is read again beside
// what another says, so they must be read in the same way.
func (p *Pipeline) joinTopics() error {
	first := -1
	for i, d := range p.decoders {
		d, ok := d.(decode.Joined)
		switch {
		case !ok:
		case first < 0:
			first, p.joined.join = i, join.New(d, p.store, p.store.Now, p.store.ReachedBeside)
		case !reflect.DeepEqual(p.o.Topics[i].Decode, p.o.Topics[first].Decode):
			return fmt.Errorf("topics %s and %s: both are of preset %s and so of one source: give them the same options",
				p.o.Topics[first].selector(), p.o.Topics[i].selector(), p.o.Topics[i].Decode.Preset)
		}
	}
	return nil
}

func (t *topic) joins() bool {
	_, ok := t.decoder.(decode.Joined)
	return ok
}

// loadJoined reads, once, what waited when the process before this one ended.
func (p *Pipeline) loadJoined() error {
	p.joined.mu.Lock()
	defer p.joined.mu.Unlock()
	if p.joined.join == nil || p.joined.loaded {
		return nil
	}
	if err := p.joined.join.Load(); err != nil {
		return err
	}
	p.joined.loaded = true
	p.joinedWaits()
	return nil
}

// joinedApplied says that the store has what was taken, or that it never will, and what the
// watermark waits for.
func (p *Pipeline) joinedApplied() {
	p.joined.join.Applied()
	p.joinedWaits()
}

// joinedWaits passes on what the watermark waits for, and why. Called with joined.mu held.
func (p *Pipeline) joinedWaits() {
	p.store.Wait(p.joined.join.Waits())
	waiting := p.joined.join.Waiting()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = waiting
}

// begun is the note that says of a partition that its rows are noted from the first on.
func begun(id store.Partition) string { return fmt.Sprintf("joined/%s/%d", id.Topic, id.ID) }

// begins notes that with the first answer of a partition that is joined.
func (t *topic) begins(a *source.Answer) []store.Note {
	if !t.joins() || t.noted[a.Partition] {
		return nil
	}
	t.noted[a.Partition] = true
	return []store.Note{{Name: begun(a.Partition), Value: []byte("1"), Offset: a.Records[0].Offset}}
}

// rewind has a partition whose rows are joined read from its first record on, if what they
// said is not noted: it was read in another way before, or the notes are lost with the index.
// Of one that is not joined it forgets that it was.
func (p *Pipeline) rewind(ctx context.Context, f store.Discovered) error {
	id := f.Partition
	noted, err := p.store.Remembered(begun(id))
	if err != nil {
		return err
	}
	if t := p.topic(id.Topic); !t.joins() {
		if len(noted) > 0 {
			err = p.store.Remember(begun(id), nil)
		}
		return err
	}
	if st, _ := p.store.Partition(id); len(noted) > 0 || st.Next <= f.Start {
		return nil
	}
	p.o.Logger.InfoContext(ctx, "a partition is read from its first record again: what its rows said of others' is not known", "topic", id.Topic, "partition", id.ID)
	return p.store.Rewind(id, f.Start)
}

// tellOverdue makes dead letters of what has waited for too long. Called with joined.mu held.
func (p *Pipeline) tellOverdue(ctx context.Context, t *topic, id store.Partition) error {
	late, err := p.joined.join.Overdue(id, p.store.Reached(), t.cfg.Decode.DeadLetter)
	if err != nil {
		return err
	}
	b := p.retryBatch(id)
	for _, l := range late {
		b.Changes, b.Notes = append(b.Changes, l.Changes...), append(b.Notes, l.Notes...)
		for _, ch := range l.Changes {
			if ch.Dead != nil && ch.Revise == nil {
				p.metrics.dead(ctx, t.name, ch.Dead.Reason)
			}
		}
	}
	if len(b.Changes)+len(b.Notes) == 0 {
		return nil
	}
	return p.store.Apply(ctx, b)
}

// letters finds dead letters by the records that they are of.
func (p *Pipeline) letters(of []join.Origin) ([]store.Bound, error) {
	if len(of) == 0 {
		return nil, nil
	}
	if err := p.store.Flush(); err != nil { // what is not committed is not listed
		return nil, err
	}
	var found []store.Bound
	err := p.store.DeadLetters("", func(r store.DeadLetterRow) error {
		if slices.Contains(of, join.Origin{Partition: r.Partition, Offset: r.Offset}) {
			found = append(found, r.Bound)
		}
		return nil
	})
	return found, err
}
