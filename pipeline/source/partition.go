package source

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/segmentio/kafka-go"

	"tidemark/store"
	"tidemark/store/fhir"
)

// A partition is the state of reading one. Source.mu guards it, but for the
// queue.
type partition struct {
	id      store.Partition
	topicID topicID
	found   store.Discovered // as at its discovery

	leader      int32 // -1 if there is none
	leaderEpoch int32 // as the metadata say, -1 if unknown
	next        int64
	epoch       int32 // of the newest record batch read, -1 if unknown
	end, high   int64

	busy     bool // in a fetch that is under way
	stale    bool // not fetched before the metadata were asked for again
	lost     bool // the broker says that next lies outside its log
	absent   bool // the brokers say that they do not have it
	doubted  bool // not fetched before it is known whether we were away for too long
	stopped  bool // by the handler
	again    bool // to be taken up anew though stopped
	dropped  bool // to be taken up anew, if it is there
	gap      *Gap
	gapAt    store.PartitionState // the store's state when the gap was found
	gapSince time.Time

	safe      fhir.Instant  // until then no deletion that was not read can have been compacted away
	retention time.Duration // how long they stay at least

	retry   *backoff.ExponentialBackOff
	retryAt time.Time
	failing time.Time // since when, zero if it is not
	trouble string
	held    bool // the handler was told of the trouble

	told    time.Time // of the last answer
	pending int       // answers that the handler has not settled
	ahead   int       // their bytes
	aside   bool      // they wait for something else than the store
	queue   chan *Answer
}

// queueLength bounds the answers of a partition that wait, so that queueing
// never blocks its leader's goroutine; their bytes are bounded by Config.Ahead.
const queueLength = 16

func (s *Source) newPartition(id store.Partition) *partition {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval = s.cfg.RetryMin, s.cfg.RetryMax
	return &partition{id: id, leader: -1, retry: retry, queue: make(chan *Answer, queueLength)}
}

// open says whether the partition is meant to be read at all.
func (p *partition) open() bool { return p.gap == nil && !p.stopped }

// ready says whether the partition can be fetched now.
func (p *partition) ready(now time.Time) bool {
	return p.open() && !p.busy && !p.stale && !p.doubted && !p.aside && !now.Before(p.retryAt) && len(p.queue) < cap(p.queue)
}

func (p *partition) status() PartitionStatus {
	return PartitionStatus{
		Partition: p.id, Leader: p.leader, Next: p.next, End: p.end, High: p.high,
		Gap: p.gap, Since: p.gapSince, Busy: p.busy || p.pending > 0, Stopped: p.stopped, Trouble: p.trouble, Absent: p.absent,
	}
}

// work hands the partition's answers to the handler until ctx ends.
func (s *Source) work(ctx context.Context, p *partition) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case a, ok := <-p.queue:
			if !ok {
				return nil // taken up anew
			}
			if s.over(p) { // what follows a refused answer must not be taken without it
				s.settle(p, a, ErrStop)
				continue
			}
			err := s.handler.Handle(ctx, a)
			s.settle(p, a, err)
			if err != nil && !errors.Is(err, ErrStop) {
				return fmt.Errorf("take %s/%d at offset %d: %w", p.id.Topic, p.id.ID, a.Next, err)
			}
		}
	}
}

// over says whether the handler wanted no more of a partition, as it was taken up.
func (s *Source) over(p *partition) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.stopped
}

// settle gives back an answer's share of memory and lets the leader go on.
func (s *Source) settle(p *partition, a *Answer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.pending--
	p.ahead -= a.Size
	p.aside = false
	p.stopped = p.stopped || errors.Is(err, ErrStop)
	if l := s.leaders[p.leader]; l != nil {
		l.signal()
	}
}

// Stall says that the answer being handled waits for something of its own (a
// schema registry that is away). Until it is settled its partition is not
// fetched, and what is fetched of it does not count as ahead, so that the
// other partitions go on.
func (s *Source) Stall(id store.Partition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.partitions[id]
	if p == nil {
		return
	}
	p.aside = true
	if l := s.leaders[p.leader]; l != nil {
		l.signal()
	}
}

// Again has the partitions of a topic read that the handler wanted no more of, from where
// the store says then.
func (s *Source) Again(topic string) {
	s.mu.Lock()
	for _, p := range s.partitions {
		if p.id.Topic == topic {
			p.again = true
		}
	}
	s.mu.Unlock()
	s.kick()
}

// Retake ends what is known of a partition. If the brokers have it, it is taken up anew.
func (s *Source) Retake(id store.Partition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.partitions[id]; p != nil {
		p.dropped = true
	}
	s.kick()
}

// fault takes note of an error and postpones the next fetch. Errors that pass
// by themselves are reported to the handler once they last; those that need
// somebody, at once.
func (s *Source) fault(ctx context.Context, p *partition, err error) {
	s.mu.Lock()
	now := time.Now()
	if p.failing.IsZero() {
		p.failing = now
		p.retry.Reset()
	}
	first := p.trouble == ""
	p.trouble = err.Error()
	_, absent := errors.AsType[absence](err)
	p.absent = p.absent || absent
	p.retryAt = now.Add(p.retry.NextBackOff())
	p.stale = true
	p.lost = p.lost || errors.Is(err, kafka.OffsetOutOfRange)
	hold := p.complain(needsSomebody(err) || now.Sub(p.failing) >= s.cfg.Grace)
	s.mu.Unlock()

	s.metrics.fault(ctx, err)
	if first {
		s.cfg.Logger.WarnContext(ctx, "partition cannot be fetched, retrying", "topic", p.id.Topic, "partition", p.id.ID, "error", err)
	}
	if hold {
		s.handler.Hold(p.id, stillTrying+err.Error())
	}
}

const stillTrying = "cannot be fetched, still trying: "

// complain says whether the handler is to be told of the partition's trouble,
// which is done once. Called with Source.mu held.
func (p *partition) complain(due bool) bool {
	due = due && p.open() && p.trouble != "" && !p.held
	p.held = p.held || due
	return due
}

// complainOverdue tells the handler of trouble that has lasted, also while
// nothing is tried because the cluster is away.
func (s *Source) complainOverdue() {
	reasons := map[store.Partition]string{}
	s.mu.Lock()
	for _, p := range s.partitions {
		if p.complain(!p.failing.IsZero() && time.Since(p.failing) >= s.cfg.Grace) {
			reasons[p.id] = stillTrying + p.trouble
		}
	}
	s.mu.Unlock()
	for id, reason := range reasons {
		s.handler.Hold(id, reason)
	}
}

func needsSomebody(err error) bool {
	_, corrupt := errors.AsType[*Corrupt](err)
	_, large := errors.AsType[*largeAnswer](err)
	return corrupt || large || errors.Is(err, kafka.TopicAuthorizationFailed)
}

// recover ends what fault began.
func (s *Source) recover(ctx context.Context, p *partition) {
	s.mu.Lock()
	failed, held := p.trouble != "", p.held
	p.failing, p.trouble, p.held, p.lost = time.Time{}, "", false, false
	s.mu.Unlock()
	if failed {
		s.cfg.Logger.InfoContext(ctx, "partition is fetched again", "topic", p.id.Topic, "partition", p.id.ID)
	}
	if held {
		s.handler.Release(p.id)
	}
}

// bar ends the reading of a partition at a gap.
func (s *Source) bar(ctx context.Context, p *partition, g *Gap) {
	state, _ := s.log.Partition(p.id)
	s.mu.Lock()
	if p.gap != nil {
		s.mu.Unlock()
		return
	}
	held := p.held
	p.gap, p.gapAt, p.gapSince, p.held = g, state, time.Now(), false
	s.mu.Unlock()
	if held {
		s.handler.Release(p.id) // for the other reason
	}
	s.metrics.gap(ctx, g)
	s.cfg.Logger.ErrorContext(ctx, "gap in the log: the partition is no longer read", "topic", p.id.Topic,
		"partition", p.id.ID, "reason", g.Reason, "next", g.Next, "detail", g.Detail)
	s.handler.Hold(p.id, g.Error())
}

// kick asks for a refresh of the metadata.
func (s *Source) kick() {
	select {
	case s.kicked <- struct{}{}:
	default:
	}
}
