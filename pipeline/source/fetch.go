package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/segmentio/kafka-go/protocol/fetch"

	"tidemark/store"
	"tidemark/store/fhir"
)

// A leader fetches the partitions that one broker leads, one request at a
// time with all of them.
type leader struct {
	node   int32
	wake   chan struct{}
	parser *Parser
	turn   int     // rotates the partitions: the first always gets a batch
	swell  float64 // how far answers inflated lately
	asked  bool    // whether the broker takes topic ids
	ids    bool    // it does

	// Guarded by Source.mu.
	alone int // so many requests carry one partition: a batch is too large
}

func (s *Source) newLeader(node int32) *leader {
	return &leader{node: node, wake: make(chan struct{}, 1), parser: NewParser(s.cfg.MaxRecord), swell: 1}
}

func (l *leader) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// lead fetches until ctx ends.
func (s *Source) lead(ctx context.Context, l *leader) error {
	for ctx.Err() == nil {
		claimed, again := s.claim(l)
		if len(claimed) == 0 {
			pause(ctx, again, l.wake)
			continue
		}
		throttled := s.fetch(ctx, l, claimed)
		s.unclaim(claimed)
		if throttled > 0 {
			pause(ctx, throttled, nil)
		}
	}
	return nil
}

// pause waits for d, for a signal or for the end of ctx.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-wake:
	}
}

// A claim is a partition in a fetch that is under way. A partition that moves
// to another leader meanwhile is not claimed there before this fetch is done,
// so its answers stay in order.
type claim struct {
	*partition
	from        int64
	leaderEpoch int32
	topicID     topicID
}

// claim takes the partitions that can be fetched now, or says when to look
// again.
func (s *Source) claim(l *leader) ([]claim, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, again, ahead := time.Now(), s.cfg.Refresh, 0
	var claimed []claim
	for _, p := range s.partitions {
		if p.leader != l.node {
			continue
		}
		if !p.aside {
			ahead += p.ahead
		}
		if p.ready(now) {
			claimed = append(claimed, claim{p, p.next, p.leaderEpoch, p.topicID})
		} else if p.open() && p.retryAt.After(now) {
			again = min(again, p.retryAt.Sub(now))
		}
	}
	if ahead >= s.share() {
		return nil, s.cfg.Refresh // settle wakes us
	}
	claimed = l.rotate(claimed)
	for _, c := range claimed {
		c.busy = true
	}
	return claimed, again
}

// share is the part of Config.Ahead that one leader may have fetched before
// its next request; as much again comes with that.
func (s *Source) share() int { return max(1, s.cfg.Ahead/2/max(1, len(s.leaders))) }

// rotate orders the partitions so that each is first in its turn.
func (l *leader) rotate(claimed []claim) []claim {
	if len(claimed) == 0 {
		return nil
	}
	slices.SortFunc(claimed, func(a, b claim) int { return comparePartitions(a.id, b.id) })
	l.turn++
	at := l.turn % len(claimed)
	if l.alone > 0 {
		l.alone--
		return claimed[at : at+1]
	}
	return slices.Concat(claimed[at:], claimed[:at])
}

func (s *Source) unclaim(claimed []claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range claimed {
		c.busy = false
		if l := s.leaders[c.leader]; l != nil {
			l.signal() // it may have moved
		}
	}
}

// fetch sends one request, hands out its answer and returns how long the
// broker wants us to wait.
func (s *Source) fetch(ctx context.Context, l *leader, claimed []claim) time.Duration {
	asked := s.log.Now() // before it is sent: what is stable now lies below the ends in the answer
	answer, err := s.exchange(ctx, l, claimed)
	if ctx.Err() != nil {
		return 0
	}
	if err != nil {
		l.asked = false // it may come back as an older or newer broker
		s.fetchFailed(ctx, l, claimed, fmt.Errorf("fetch from broker %d: %w", l.node, err))
		return 0
	}
	parts := make(map[store.Partition]claim, len(claimed))
	for _, c := range claimed {
		parts[c.id] = c
	}
	for _, f := range answer.partitions {
		id := store.Partition{Topic: f.topic, ID: f.id}
		if c, ok := parts[id]; ok {
			delete(parts, id)
			s.take(ctx, l, c, f, asked, id == claimed[0].id)
		}
	}
	return min(answer.throttle, s.cfg.RetryMax)
}

func (s *Source) exchange(ctx context.Context, l *leader, claimed []claim) (*fetchAnswer, error) {
	if !l.asked {
		var err error
		if l.ids, err = s.wire.offersFetchByID(ctx, l.node); err != nil {
			return nil, err
		}
		l.asked = true
	}
	req := &rawFetch{Request: s.request(l, claimed), node: l.node, client: s.cfg.ClientID, limit: s.answerLimit()}
	if l.ids {
		req.ids, req.epochs = topicIDs(claimed), epochs(claimed)
	}
	res, err := s.wire.send(ctx, s.cfg.MaxWait, req)
	if err != nil {
		return nil, err
	}
	return res.(*fetchAnswer), nil
}

// topicIDs collects the ids of the topics to fetch, nil if one is not known.
func topicIDs(claimed []claim) map[string]topicID {
	ids := map[string]topicID{}
	for _, c := range claimed {
		if c.topicID == (topicID{}) {
			return nil
		}
		ids[c.id.Topic] = c.topicID
	}
	return ids
}

// epochs collects the leader epochs that were read last.
func epochs(claimed []claim) map[store.Partition]int32 {
	m := make(map[store.Partition]int32, len(claimed))
	for _, c := range claimed {
		m[c.id] = c.epoch
	}
	return m
}

// answerLimit is the largest response we are ready to hold: a full one and one
// batch beyond the limit for records.
func (s *Source) answerLimit() int { return s.cfg.MaxBytes + max(2*s.cfg.MaxRecord, minInflated) }

func (s *Source) request(l *leader, claimed []claim) fetch.Request {
	s.mu.Lock()
	share := s.share()
	s.mu.Unlock()
	req := fetch.Request{
		ReplicaID:      -1,
		MaxWaitTime:    int32(s.cfg.MaxWait.Milliseconds()),
		MinBytes:       1,
		MaxBytes:       int32(max(min(float64(s.cfg.MaxBytes), float64(share)/l.swell), 1)),
		IsolationLevel: 1,  // read committed
		SessionEpoch:   -1, // without session: every answer tells the end of every partition
	}
	for _, c := range claimed { // a topic again for each run of its partitions: the order counts
		if n := len(req.Topics); n == 0 || req.Topics[n-1].Topic != c.id.Topic {
			req.Topics = append(req.Topics, fetch.RequestTopic{Topic: c.id.Topic})
		}
		t := &req.Topics[len(req.Topics)-1]
		t.Partitions = append(t.Partitions, fetch.RequestPartition{
			Partition: c.id.ID, CurrentLeaderEpoch: c.leaderEpoch, FetchOffset: c.from,
			LogStartOffset: -1, PartitionMaxBytes: int32(s.cfg.PartitionMaxBytes),
		})
	}
	return req
}

func (s *Source) fetchFailed(ctx context.Context, l *leader, claimed []claim, err error) {
	if _, large := errors.AsType[*largeAnswer](err); large && len(claimed) > 1 {
		// One partition's batch is to blame; alone it will show itself.
		s.mu.Lock()
		l.alone = len(claimed)
		s.mu.Unlock()
		return
	}
	for _, c := range claimed {
		s.fault(ctx, c.partition, err)
	}
	s.kick()
}

// take handles what an answer says of one partition.
func (s *Source) take(ctx context.Context, l *leader, c claim, f fetchedPartition, asked fhir.Instant, first bool) {
	if f.code != 0 {
		s.fault(ctx, c.partition, f.code)
		s.kick()
		return
	}
	if f.start > c.from {
		s.bar(ctx, c.partition, expired(c.id, c.from, f.start, f.end))
		return
	}
	if d := f.fork; d != nil {
		gap := forked(c.id, c.from, "the log's leader epoch %d ends at offset %d, below what was read of epoch %d", d.epoch, d.end, c.epoch)
		gap.Start, gap.End = f.start, f.end
		s.bar(ctx, c.partition, gap)
		return
	}
	if len(f.data) > 0 && s.doubt(c.partition) {
		s.kick()
		return
	}
	parsed, err := l.parser.ParseBatches(Portion{Partition: c.id, From: c.from, Epoch: c.epoch, Aborted: f.aborted, Data: f.data})
	if err == nil && parsed.Next == c.from && len(f.data) > 0 && first {
		// Only the first partition is sure of a whole batch.
		err = &Corrupt{c.id, c.from, "the broker sent no whole record batch"}
	}
	l.weigh(len(f.data), parsed.Size)
	s.deliver(c, f, parsed, asked)
	if gap, ok := errors.AsType[*Gap](err); ok {
		gap.Start, gap.End = f.start, f.end
		s.bar(ctx, c.partition, gap)
	} else if err != nil {
		s.fault(ctx, c.partition, err)
		s.kick() // another leader may have a sound copy
	} else {
		s.recover(ctx, c.partition)
	}
}

// weigh follows how far answers inflate, so that MaxBytes, which counts
// compressed bytes, keeps its promise.
func (l *leader) weigh(stored, inflated int) {
	if stored > 64<<10 {
		l.swell = max(1, 0.8*l.swell+0.2*float64(inflated)/float64(stored))
	}
}

// idleTell is how often the unchanged end of an idle partition is passed on
// while others are busy and answers come by the hundred.
const idleTell = 50 * time.Millisecond

func (s *Source) deliver(c claim, f fetchedPartition, parsed Parsed, asked fhir.Instant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.end, c.high = f.end, f.high
	now := time.Now()
	idle := parsed.Next == c.from && now.Sub(c.told) < idleTell
	if idle || !c.open() { // a gap may have been found meanwhile
		return
	}
	c.next, c.epoch, c.told = parsed.Next, parsed.LeaderEpoch, now
	size := parsed.Size + len(parsed.Records)*recordSize
	c.pending++
	c.ahead += size
	c.queue <- &Answer{ // has room: ready looked, and nobody else writes
		Partition: c.id, Records: parsed.Records, Next: parsed.Next, LeaderEpoch: parsed.LeaderEpoch,
		Asked: asked, End: f.end, Size: size,
	}
}

// recordSize is what a Record takes besides its bytes.
const recordSize = 104

func forked(id store.Partition, next int64, how string, args ...any) *Gap {
	return &Gap{
		Partition: id, Reason: Forked, Next: next, Start: -1, End: -1,
		Detail: fmt.Sprintf(how, args...) + ": the brokers have lost records that were read, and have given their offsets to others",
	}
}

func expired(id store.Partition, next, start, end int64) *Gap {
	return &Gap{
		Partition: id, Reason: Expired, Next: next, Start: start, End: end,
		Detail: fmt.Sprintf("the log now starts at offset %d: records in between have expired or were deleted", start),
	}
}
