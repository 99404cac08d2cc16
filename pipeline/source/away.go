package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"

	"tidemark/store"
	"tidemark/store/fhir"
)

// A compacted topic keeps a deletion for delete.retention.ms. Whoever does not
// reach in that time what was the end once may have read a record whose
// deletion is gone when he comes to it. That is so after a long absence, and
// just so while brokers cannot be reached, or while reading lags.

// away is how long ago what is now to be read may have begun.
func (s *Source) away(state store.PartitionState) time.Duration {
	return s.log.Now().Time().Sub(state.Seen.Time())
}

// doubt says whether it must be known how long deletions stay before records
// are read of p; then p is not fetched until that is so.
func (s *Source) doubt(p *partition) bool {
	now := s.log.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p.doubted = now > p.safe
	return p.doubted
}

// unanswerable are the answers with which reading goes on unchecked.
var unanswerable = []error{errKeepsNothing, kafka.TopicAuthorizationFailed, kafka.ClusterAuthorizationFailed}

// reassure finds out for the partitions in doubt.
func (s *Source) reassure(ctx context.Context) {
	var doubted []*partition
	topics := map[string]bool{}
	for _, p := range s.known() {
		s.mu.Lock()
		if p.doubted && !p.busy {
			doubted, topics[p.id.Topic] = append(doubted, p), true
		}
		s.mu.Unlock()
	}
	if len(doubted) == 0 {
		return
	}
	answers, err := s.wire.deleteRetention(ctx, topics)
	for _, p := range doubted {
		a := answers[p.id.Topic]
		err := errors.Join(err, a.err)
		if unanswerable := slices.ContainsFunc(unanswerable, func(e error) bool { return errors.Is(err, e) }); err != nil && !unanswerable {
			s.fault(ctx, p, err)
			continue
		} else if unanswerable {
			s.cfg.Logger.WarnContext(ctx, "whether deletions are compacted away unseen is not checked",
				"topic", p.id.Topic, "partition", p.id.ID, "error", err)
		}
		if a.retention > 0 || errors.Is(a.err, errKeepsNothing) {
			s.warnCompacted(ctx, p.id.Topic)
		}
		s.weighAbsence(ctx, p, a.retention)
	}
}

// warnCompacted warns, once, of a topic that should not be compacted.
func (s *Source) warnCompacted(ctx context.Context, topic string) {
	i := slices.IndexFunc(s.cfg.Topics, func(t Topics) bool { return t.Match(topic) })
	if i < 0 || s.cfg.Topics[i].Compacted == "" || s.warned[topic] {
		return
	}
	s.warned[topic] = true
	s.cfg.Logger.WarnContext(ctx, "the topic is compacted", "topic", topic, "but", s.cfg.Topics[i].Compacted)
}

// weighAbsence decides about a partition whose topic keeps deletions for so
// long; 0 is without end.
func (s *Source) weighAbsence(ctx context.Context, p *partition, retention time.Duration) {
	state, ok := s.log.Partition(p.id)
	away, known := s.away(state), ok && state.Seen != fhir.None
	if retention > 0 && known && away > retention {
		s.mu.Lock()
		next, end := p.next, p.end
		p.doubted, p.retention = false, retention
		s.mu.Unlock()
		s.bar(ctx, p, &Gap{
			Partition: p.id, Reason: Away, Next: next, Start: -1, End: end,
			Detail: fmt.Sprintf("last read to its end %s ago, longer than the topic's delete.retention.ms (%s): deletions may have been compacted away unseen",
				away.Round(time.Second), retention),
		})
		return
	}
	safe := s.log.Now() + fhir.Instant(retentionDefault.Milliseconds()) // topics can be altered: ask again
	if retention > 0 && known {
		safe = state.Seen + fhir.Instant(retention.Milliseconds())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.doubted, p.safe = false, safe
	if l := s.leaders[p.leader]; l != nil {
		l.signal()
	}
}
