package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidemark/pipeline/source"
	"tidemark/store"
)

// What somebody decides about topics: to wait, to go on, to do without. All of it is durable
// when it returns.

// pausedNote is where the store keeps that a topic is paused.
func pausedNote(topic string) string { return "topic/paused/" + topic }

func pausedText(because string) string {
	text := "since " + time.Now().UTC().Format(time.RFC3339)
	if because != "" {
		text += " (" + because + ")"
	}
	return text
}

// Pause has a topic read no further until Resume, over restarts. What is not read may be
// missing, so the watermark waits.
func (p *Pipeline) Pause(ctx context.Context, name, because string) error {
	if _, ok := p.configured(name); !ok {
		return fmt.Errorf("topic %s is not configured, so it is not read", name)
	}
	if err := errors.Join(p.enter(name), Pause(p.store, name, because)); err != nil {
		return err
	}
	paused, err := Paused(p.store, name)
	if err != nil {
		return err
	}
	t := p.topic(name)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.paused = paused
	p.hold(ctx, t)
	return nil
}

// Pause is Pipeline.Pause of a store that nobody reads into.
func Pause(s Store, name, because string) error {
	return s.Remember(pausedNote(name), []byte(pausedText(because)))
}

// Paused says since when and why a topic is paused, "" if it is not.
func Paused(s Store, name string) (string, error) {
	paused, err := s.Remembered(pausedNote(name))
	return string(paused), err
}

// Resume ends a Pause.
func (p *Pipeline) Resume(ctx context.Context, name string) error {
	if err := Resume(p.store, name); err != nil {
		return err
	}
	if t := p.topic(name); t != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.paused = ""
		p.reconsider(ctx, t)
	}
	return nil
}

// Resume is Pipeline.Resume of a store that nobody reads into.
func Resume(s Store, name string) error {
	paused, err := Paused(s, name)
	if err == nil && paused == "" {
		err = fmt.Errorf("topic %s is not paused", name)
	}
	if err != nil {
		return err
	}
	return s.Remember(pausedNote(name), nil)
}

// reconsider has a topic that is held read again if nothing holds it any more. Called with
// t.mu held.
func (p *Pipeline) reconsider(ctx context.Context, t *topic) {
	if t.held && t.paused == "" && !t.exceeded(t.state) {
		p.release(ctx, t)
	}
}

// An Accepted gap is one after which a partition is read on.
type Accepted struct {
	Partition store.Partition
	Gap       string
	From      int64 // the offset from which it is read now
}

// Accept has partitions go on whose log has a gap: from where it is now, and, where offsets
// are not to be trusted, from its beginning. That something may be missing stays known: as a
// dead letter, of which exports speak. nil means all partitions of the topic.
func (p *Pipeline) Accept(ctx context.Context, topic string, partition *int32) (accepted []Accepted, err error) {
	for _, s := range p.source.Status().Partitions {
		if s.Gap == nil || s.Partition.Topic != topic || partition != nil && s.Partition.ID != *partition {
			continue
		}
		a, err := p.accept(ctx, s)
		if err != nil {
			return accepted, fmt.Errorf("%v: %w", s.Partition, err)
		}
		accepted = append(accepted, a)
	}
	if len(accepted) == 0 {
		return nil, errors.New("it has no gap: tidemark topic list shows those there are")
	}
	return accepted, nil
}

func (p *Pipeline) accept(ctx context.Context, s source.PartitionStatus) (Accepted, error) {
	if s.Busy {
		return Accepted{}, errors.New("what was read before the gap is still being taken in: ask again in a moment")
	}
	now, err := p.source.Bounds(ctx, s.Partition)
	if errors.Is(err, source.ErrNone) {
		return Accepted{}, fmt.Errorf("%w any more: have the store forget it", err)
	}
	if err != nil {
		return Accepted{}, fmt.Errorf("ask where its log begins and ends: %w", err)
	}
	state, _ := p.store.Partition(s.Partition)
	d := decide(s.Gap, state, now)
	if err := p.store.Decide(ctx, d); err != nil {
		return Accepted{}, err
	}
	p.o.Logger.WarnContext(ctx, "a gap was accepted", "topic", s.Partition.Topic, "partition", s.Partition.ID, "reason", s.Gap.Reason, "from", d.Next)
	p.source.Retake(s.Partition)
	intake{p}.Release(s.Partition)
	return Accepted{Partition: s.Partition, Gap: s.Gap.Detail, From: d.Next}, nil
}

// decide is how a partition goes on after a gap. What brokers have lost they may have given
// other offsets, so that of such a log everything is read again: what is known changes nothing.
func decide(g *source.Gap, state store.PartitionState, now source.Bounds) store.Decision {
	d := store.Decision{Partition: g.Partition, Next: now.Start, TopicID: state.TopicID, Anew: true}
	another := now.TopicID != ([16]byte{}) && now.TopicID != state.TopicID
	if another {
		d.TopicID = now.TopicID
	}
	what := "the log is another one now"
	switch {
	case another:
	case g.Reason == source.Expired:
		d.Next, d.Anew = max(now.Start, state.Next), false
		what = fmt.Sprintf("offsets %d to %d are not there any more", state.Next, d.Next-1)
	case g.Reason == source.Away:
		d.Next, d.Anew = state.Next, false
		what = "deletions may have been compacted away unseen"
	}
	d.Lost = store.DeadLetter{Reason: fmt.Sprintf("a gap in the log (%s) was accepted: %s", g.Reason, what), Truncated: true}
	return d
}

// Forget has the store go on without a topic, or one partition of it, that is there no more
// or that nobody wants read: one that is configured and there is refused.
func (p *Pipeline) Forget(ctx context.Context, topic string, partition *int32) (forgotten []store.Partition, err error) {
	if forgotten, err = known(p.store, topic, partition); err != nil {
		return nil, err
	}
	if _, ok := p.configured(topic); ok {
		for _, id := range forgotten {
			if err := p.gone(ctx, id); err != nil {
				return nil, fmt.Errorf("%v: %w", id, err)
			}
		}
	}
	for i, id := range forgotten {
		if err := forget(p.store, id); err != nil {
			return forgotten[:i], err
		}
		p.source.Retake(id)
		p.mu.Lock()
		delete(p.partitions, id)
		delete(p.absent, id)
		p.mu.Unlock()
	}
	return forgotten, nil
}

// gone is nil if the brokers say that they do not have a partition.
func (p *Pipeline) gone(ctx context.Context, id store.Partition) error {
	_, err := p.source.Bounds(ctx, id)
	switch {
	case errors.Is(err, source.ErrNone):
		return nil
	case err != nil:
		return fmt.Errorf("whether it is there still cannot be asked: %w; or take it out of topics in the configuration first", err)
	}
	return errors.New("it is there and configured: take it out of topics in the configuration and restart, then forget it; to wait with it there is tidemark topic pause")
}

// Forget is Pipeline.Forget of a store that nobody reads into; configured tells of topics
// that are to be read.
func Forget(s Store, topic string, partition *int32, configured func(topic string) bool) (forgotten []store.Partition, err error) {
	if configured(topic) {
		return nil, errors.New("it is configured: take it out of topics in the configuration first. If the brokers do not have it any more, start the server and have that forget it")
	}
	if forgotten, err = known(s, topic, partition); err != nil {
		return nil, err
	}
	for i, id := range forgotten {
		if err := forget(s, id); err != nil {
			return forgotten[:i], err
		}
	}
	return forgotten, nil
}

// forget takes away what is noted of a partition, too: if it comes back it is another one.
func forget(s Store, id store.Partition) error {
	if noted, err := s.Remembered(begun(id)); err != nil {
		return err
	} else if len(noted) > 0 {
		if err := s.Remember(begun(id), nil); err != nil {
			return err
		}
	}
	return s.Forget(id)
}

// known lists the partitions of a topic that the store knows.
func known(s Store, topic string, partition *int32) (ids []store.Partition, err error) {
	for id := range s.Committed() {
		if id.Topic == topic && (partition == nil || id.ID == *partition) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, errors.New("the store has never read it, or has forgotten it: tidemark topic list shows what it knows")
	}
	slices.SortFunc(ids, func(a, b store.Partition) int { return cmp.Compare(a.ID, b.ID) })
	return ids, nil
}

// Transactions asks which transactions are open in a partition.
func (p *Pipeline) Transactions(ctx context.Context, id store.Partition) ([]source.Transaction, error) {
	return p.source.Transactions(ctx, id)
}
