package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/segmentio/kafka-go"

	"tidemark/store"
)

// watch keeps the picture of topics, partitions and leaders fresh until ctx
// ends or the handler fails.
func (s *Source) watch(ctx context.Context) error {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval = s.cfg.RetryMin, s.cfg.RetryMax
	for {
		again, err := s.refresh(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		wait := s.cfg.Refresh
		if again {
			wait = min(wait, retry.NextBackOff())
		} else {
			retry.Reset()
		}
		pause(ctx, s.cfg.RetryMin, nil) // however many ask for it
		pause(ctx, wait, s.kicked)
	}
}

// refresh asks for the metadata and does what follows from them. It says
// whether to ask again soon.
func (s *Source) refresh(ctx context.Context) (again bool, err error) {
	topics, err := s.wire.metadata(ctx, s.names())
	s.complainOverdue()
	if err != nil {
		s.note(ctx, err)
		return true, nil
	}
	v := s.view(topics)
	s.renew(ctx, v)
	s.locate(ctx)
	s.reassure(ctx)
	s.reconsider()
	fresh := s.fresh(v)
	taken, err := s.takeUp(ctx, fresh)
	s.note(ctx, err)
	all := len(v.missing) == 0 && len(taken) == len(fresh)
	if len(taken) > 0 || s.told == nil || *s.told != all {
		if err := s.announce(ctx, all, taken); err != nil {
			return false, err
		}
		s.told = &all
	}
	s.start(ctx, taken)
	return len(taken) < len(fresh), nil
}

// names lists the topics to ask for; nil asks for all.
func (s *Source) names() []string {
	names := []string{}
	for _, t := range s.cfg.Topics {
		if t.Pattern != nil {
			return nil
		}
		names = append(names, t.Name)
	}
	return names
}

// note remembers whether the cluster can be asked, and logs when that changes.
func (s *Source) note(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return // that it ends says nothing of the cluster
	}
	s.mu.Lock()
	before := s.trouble
	s.trouble = ""
	if err != nil {
		s.trouble = err.Error()
	}
	s.mu.Unlock()
	switch {
	case err != nil && before == "":
		s.cfg.Logger.WarnContext(ctx, "the kafka cluster cannot be asked, retrying", "brokers", s.cfg.Brokers, "error", err)
	case err == nil && before != "":
		s.cfg.Logger.InfoContext(ctx, "the kafka cluster answers again", "brokers", s.cfg.Brokers)
	}
}

// A view is what the metadata say of the configured topics.
type view struct {
	partitions map[store.Partition]seen
	codes      map[string]kafka.Error // of topics with an error
	missing    []string
}

type seen struct {
	partitionMeta
	topicID topicID
}

func (s *Source) view(topics []topicMeta) view {
	v := view{partitions: map[store.Partition]seen{}, codes: map[string]kafka.Error{}}
	matched := make([]bool, len(s.cfg.Topics))
	for _, t := range topics {
		wanted := false
		for i, c := range s.cfg.Topics {
			if !t.internal && c.Match(t.name) {
				wanted = true
				matched[i] = matched[i] || t.code == 0
			}
		}
		switch {
		case wanted && t.code != 0:
			v.codes[t.name] = t.code
		case wanted:
			for _, p := range t.partitions {
				v.partitions[store.Partition{Topic: t.name, ID: p.id}] = seen{p, t.id}
			}
		}
	}
	for i, c := range s.cfg.Topics {
		if !matched[i] {
			v.missing = append(v.missing, v.describe(c))
		}
	}
	s.noteMissing(v.missing)
	return v
}

func (v view) describe(t Topics) string {
	if code := v.codes[t.Name]; code != 0 && code != kafka.UnknownTopicOrPartition {
		return fmt.Sprintf("%s (%s)", t.Name, code.Title())
	}
	return t.String()
}

func (s *Source) noteMissing(missing []string) {
	s.mu.Lock()
	before := s.missing
	s.missing = missing
	s.mu.Unlock()
	switch {
	case slices.Equal(before, missing):
	case len(missing) > 0:
		s.cfg.Logger.Warn("the broker does not have configured topics yet, waiting for them: create them, or take them out of topics", "topics", missing)
	default:
		s.cfg.Logger.Info("the broker has all configured topics now")
	}
}

// renew brings what we know of partitions up to date: their leaders, or that
// they are gone, or that another topic has taken the name.
func (s *Source) renew(ctx context.Context, v view) {
	for _, p := range s.known() {
		m, ok := v.partitions[p.id]
		code := v.codes[p.id.Topic]
		absent := !ok && (code == 0 || code == kafka.UnknownTopicOrPartition)
		s.mu.Lock()
		p.absent = p.absent && absent
		s.mu.Unlock()
		switch {
		case absent:
			s.fault(ctx, p, absence(p.id))
		case !ok:
			s.fault(ctx, p, code)
		case p.another(m.topicID):
			s.bar(ctx, p, recreated(p.id, p.next, -1, -1))
		case m.leader == noLeader:
			s.fault(ctx, p, kafka.LeaderNotAvailable)
		default:
			s.follow(p, m)
		}
	}
}

// absence is the error that the brokers do not have a partition that was read before: they
// may have it again, or somebody decides.
type absence store.Partition

func (a absence) Error() string {
	return fmt.Sprintf("the brokers do not have it any more: wait for it, or decide: tidemark topic forget %s/%d", a.Topic, a.ID)
}

func (absence) Unwrap() error { return kafka.UnknownTopicOrPartition }

func (p *partition) another(id topicID) bool {
	return p.topicID != (topicID{}) && id != (topicID{}) && p.topicID != id
}

// known lists the partitions that are meant to be read.
func (s *Source) known() []*partition {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*partition
	for _, p := range s.partitions {
		if p.open() {
			out = append(out, p)
		}
	}
	return out
}

func recreated(id store.Partition, next, start, end int64) *Gap {
	return &Gap{
		Partition: id, Reason: Recreated, Next: next, Start: start, End: end,
		Detail: "the topic was deleted and another created under its name: what was not yet read of the first is lost",
	}
}

// locate finds out why offsets lie outside their logs.
func (s *Source) locate(ctx context.Context) {
	byLeader := map[int32][]*partition{}
	for _, p := range s.known() {
		s.mu.Lock()
		if p.lost && p.leader >= 0 && !p.busy {
			byLeader[p.leader] = append(byLeader[p.leader], p)
		}
		s.mu.Unlock()
	}
	for node, ps := range byLeader {
		ids := make([]store.Partition, len(ps))
		for i, p := range ps {
			ids[i] = p.id
		}
		// Not the last stable offset: that may lie before what was read once.
		bounds, err := s.wire.bounds(ctx, node, readUncommitted, ids)
		if err != nil {
			continue // asked again with the next refresh
		}
		for _, p := range ps {
			if b, ok := bounds[p.id]; ok {
				s.judge(ctx, p, b[0], b[1])
			}
		}
	}
}

func (s *Source) judge(ctx context.Context, p *partition, start, end int64) {
	s.mu.Lock()
	next := p.next
	p.lost = false
	s.mu.Unlock()
	switch {
	case next < start:
		s.bar(ctx, p, expired(p.id, next, start, end))
	case next > end:
		s.bar(ctx, p, &Gap{
			Partition: p.id, Reason: Truncated, Next: next, Start: start, End: end,
			Detail: fmt.Sprintf("the log now ends at offset %d: the brokers have lost records that were read, and may give their offsets to others", end),
		})
	}
}

// reconsider forgets partitions with a gap about which somebody has decided:
// their state in the store is another one now; and those that are wanted again
// after they were stopped. They are taken up anew.
func (s *Source) reconsider() {
	s.mu.Lock()
	var barred []*partition
	for _, p := range s.partitions {
		switch {
		case p.busy || p.pending > 0:
		case p.dropped || p.gap == nil && p.stopped && p.again:
			s.forget(p)
		case p.gap != nil:
			barred = append(barred, p)
		case !p.stopped:
			p.again = false // nothing had stopped it
		}
	}
	s.mu.Unlock()
	for _, p := range barred {
		state, _ := s.log.Partition(p.id)
		if !p.decided(state, s.away(state)) {
			continue
		}
		s.mu.Lock()
		s.forget(p)
		s.mu.Unlock()
		s.handler.Release(p.id)
	}
}

// forget ends what is known of a partition that nobody reads. Called with mu held.
func (s *Source) forget(p *partition) {
	delete(s.partitions, p.id)
	close(p.queue) // nobody writes: it is neither busy nor ready
}

// decided says whether somebody has changed the stored state of a partition
// with a gap, other than by committing what was read before the gap.
func (p *partition) decided(state store.PartitionState, away time.Duration) bool {
	committed := p.gapAt.Next <= state.Next && state.Next <= p.next
	back := p.gap.Reason == Away && away <= p.retention
	return state.TopicID != p.gapAt.TopicID || !committed || back
}

// Bounds are what the brokers say of a partition now.
type Bounds struct {
	TopicID    [16]byte // zero if they do not tell
	Start, End int64    // log start offset, last stable offset
}

// ErrNone says that the brokers do not have a partition.
var ErrNone = errors.New("the brokers do not have it")

// Bounds asks the brokers about a partition: ErrNone if they do not have it.
func (s *Source) Bounds(ctx context.Context, id store.Partition) (Bounds, error) {
	topics, err := s.wire.metadata(ctx, []string{id.Topic})
	if err != nil {
		return Bounds{}, err
	}
	for _, t := range topics {
		if t.name != id.Topic {
			continue
		}
		if t.code != 0 && !errors.Is(t.code, kafka.UnknownTopicOrPartition) {
			return Bounds{}, t.code
		}
		for _, p := range t.partitions {
			if p.id == id.ID {
				return s.boundsAt(ctx, id, p.leader, t.id)
			}
		}
	}
	return Bounds{}, ErrNone
}

func (s *Source) boundsAt(ctx context.Context, id store.Partition, leader int32, topic topicID) (Bounds, error) {
	if leader == noLeader {
		return Bounds{}, kafka.LeaderNotAvailable
	}
	found, err := s.wire.bounds(ctx, leader, readCommitted, []store.Partition{id})
	if err != nil {
		return Bounds{}, err
	}
	b, ok := found[id]
	if !ok {
		return Bounds{}, fmt.Errorf("broker %d does not tell where the log of %v begins and ends", leader, id)
	}
	return Bounds{TopicID: topic, Start: b[0], End: b[1]}, nil
}

// fresh lists the partitions of a view that are not yet taken up.
func (s *Source) fresh(v view) map[store.Partition]seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[store.Partition]seen{}
	for id, m := range v.partitions {
		if s.partitions[id] == nil {
			out[id] = m
		}
	}
	return out
}

// takeUp finds out where the logs of new partitions begin and end and where to
// read on. Partitions about which a broker tells nothing now are left out.
func (s *Source) takeUp(ctx context.Context, fresh map[store.Partition]seen) ([]*partition, error) {
	var (
		byLeader = map[int32][]store.Partition{}
		taken    []*partition
		faults   []error
	)
	for id, m := range fresh {
		byLeader[m.leader] = append(byLeader[m.leader], id)
	}
	if orphans := byLeader[noLeader]; len(orphans) > 0 {
		faults = append(faults, fmt.Errorf("%d partitions have no leader now, one of topic %s", len(orphans), orphans[0].Topic))
		delete(byLeader, noLeader)
	}
	for node, ids := range byLeader {
		bounds, err := s.wire.bounds(ctx, node, readCommitted, ids)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		for id, b := range bounds {
			taken = append(taken, s.resume(id, fresh[id], b[0], b[1]))
		}
	}
	slices.SortFunc(taken, func(a, b *partition) int { return comparePartitions(a.id, b.id) })
	return taken, errors.Join(faults...)
}

// resume makes a partition that goes on where the store says, or has a gap.
func (s *Source) resume(id store.Partition, m seen, start, end int64) *partition {
	p := s.newPartition(id)
	p.topicID, p.leader, p.leaderEpoch = m.topicID, m.leader, m.epoch
	p.next, p.epoch, p.end = start, -1, end
	p.found = store.Discovered{Partition: id, TopicID: m.topicID, Start: start, End: end}
	state, ok := s.log.Partition(id)
	if !ok {
		if start > 0 {
			s.cfg.Logger.Warn("the log of a new partition has lost its beginning: exports lack what stood there, unless it was written again; "+
				"topics want compaction or retention.ms=-1", "topic", id.Topic, "partition", id.ID, "start", start)
		}
		return p
	}
	p.next, p.epoch = state.Next, state.LeaderEpoch
	switch old := (&partition{topicID: state.TopicID}); {
	case old.another(m.topicID):
		p.gap = recreated(id, p.next, start, end)
	case p.next < start:
		p.gap = expired(id, p.next, start, end)
	}
	if p.gapAt = state; p.gap != nil {
		// As it was stored, and with an end that is never reached: the gap must
		// outlive a restart, and the partition must not count as joined.
		p.found.TopicID, p.found.End = state.TopicID, max(end, p.next+1)
	}
	return p
}

// announce tells the handler what there is, and where it has gaps.
func (s *Source) announce(ctx context.Context, complete bool, taken []*partition) error {
	d := store.Discovery{Complete: complete}
	s.mu.Lock()
	for _, p := range s.partitions {
		d.Partitions = append(d.Partitions, p.found)
	}
	s.mu.Unlock()
	for _, p := range taken {
		d.Partitions = append(d.Partitions, p.found)
	}
	slices.SortFunc(d.Partitions, func(a, b store.Discovered) int { return comparePartitions(a.Partition, b.Partition) })
	if err := s.handler.Discover(ctx, d); err != nil {
		return fmt.Errorf("take up %d partitions: %w", len(taken), err)
	}
	for _, p := range taken {
		if g := p.gap; g != nil {
			p.gap = nil
			s.bar(ctx, p, g)
			continue
		}
		if state, ok := s.log.Partition(p.id); ok && state.Next != p.next { // the handler wants it read from elsewhere
			p.next, p.epoch, p.gapAt = state.Next, -1, state
		}
	}
	return nil
}

// start begins to read the partitions taken up.
func (s *Source) start(ctx context.Context, taken []*partition) {
	s.mu.Lock()
	for _, p := range taken {
		s.partitions[p.id] = p
		s.group.Go(func() error { return s.work(ctx, p) })
	}
	for _, p := range s.partitions {
		if p.leader >= 0 && s.leaders[p.leader] == nil {
			l := s.newLeader(p.leader)
			s.leaders[l.node] = l
			s.group.Go(func() error { return s.lead(ctx, l) })
		}
	}
	for _, l := range s.leaders {
		l.signal()
	}
	s.mu.Unlock()
}

// follow notes who leads a partition now and lets it be fetched.
func (s *Source) follow(p *partition, m seen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.leader, p.leaderEpoch, p.stale = m.leader, m.epoch, false
	if p.topicID == (topicID{}) {
		p.topicID = m.topicID
	}
}
