package source

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/describeconfigs"
	"github.com/segmentio/kafka-go/protocol/findcoordinator"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
	"github.com/segmentio/kafka-go/protocol/offsetcommit"

	"tidemark/store"
)

// What ListOffsets calls the two ends of a log.
const (
	logStart int64 = -2
	logEnd   int64 = -1
)

// The isolation levels.
const (
	readUncommitted int8 = 0
	readCommitted   int8 = 1
)

// offsets asks one leader for one end of the logs of some partitions. Those
// with an error are missing in the answer.
func (w *wire) offsets(ctx context.Context, node int32, which int64, isolation int8, ids []store.Partition) (map[store.Partition]int64, error) {
	topics := map[string]*listoffsets.RequestTopic{}
	for _, id := range ids {
		t := topics[id.Topic]
		if t == nil {
			t = &listoffsets.RequestTopic{Topic: id.Topic}
			topics[id.Topic] = t
		}
		t.Partitions = append(t.Partitions, listoffsets.RequestPartition{
			Partition: id.ID, CurrentLeaderEpoch: -1, Timestamp: which,
		})
	}
	req := &listoffsets.Request{ReplicaID: -1, IsolationLevel: isolation}
	for _, t := range topics {
		req.Topics = append(req.Topics, *t)
	}
	res, err := w.call(ctx, node, req)
	if err != nil {
		return nil, fmt.Errorf("list offsets at broker %d: %w", node, err)
	}
	out := map[store.Partition]int64{}
	for _, t := range res.(*listoffsets.Response).Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode == 0 {
				out[store.Partition{Topic: t.Topic, ID: p.Partition}] = p.Offset
			}
		}
	}
	return out, nil
}

// bounds asks one leader for the log start offsets and the ends of partitions.
// Partitions that it cannot tell both of are missing.
func (w *wire) bounds(ctx context.Context, node int32, isolation int8, ids []store.Partition) (map[store.Partition][2]int64, error) {
	starts, err := w.offsets(ctx, node, logStart, isolation, ids)
	if err != nil {
		return nil, err
	}
	ends, err := w.offsets(ctx, node, logEnd, isolation, ids)
	if err != nil {
		return nil, err
	}
	out := map[store.Partition][2]int64{}
	for id, start := range starts {
		if end, ok := ends[id]; ok {
			out[id] = [2]int64{start, end}
		}
	}
	return out, nil
}

// Kafka's defaults.
const (
	topicResource    int8 = 2
	retentionDefault      = 24 * time.Hour
)

// A deleteRetention is how long a topic keeps deletions: 0 if it is not
// compacted, so for ever.
type deleteRetention struct {
	retention time.Duration
	err       error
}

// deleteRetention asks it of some topics.
func (w *wire) deleteRetention(ctx context.Context, topics map[string]bool) (map[string]deleteRetention, error) {
	req := &describeconfigs.Request{}
	for name := range topics {
		req.Resources = append(req.Resources, describeconfigs.RequestResource{
			ResourceType: topicResource,
			ResourceName: name, ConfigNames: []string{"cleanup.policy", "delete.retention.ms"},
		})
	}
	res, err := w.call(ctx, anyBroker, req)
	if err != nil {
		return nil, fmt.Errorf("describe topics: %w", err)
	}
	out := map[string]deleteRetention{}
	for _, r := range res.(*describeconfigs.Response).Resources {
		if r.ErrorCode != 0 {
			out[r.ResourceName] = deleteRetention{err: fmt.Errorf("describe topic %s: %w", r.ResourceName, kafka.Error(r.ErrorCode))}
			continue
		}
		config := map[string]string{}
		for _, e := range r.ConfigEntries {
			config[e.ConfigName] = e.ConfigValue
		}
		if strings.Contains(config["cleanup.policy"], "compact") {
			out[r.ResourceName] = parseRetention(config["delete.retention.ms"])
		}
	}
	return out, nil
}

var errKeepsNothing = errors.New("delete.retention.ms is 0")

func parseRetention(ms string) deleteRetention {
	n, err := strconv.ParseInt(ms, 10, 64)
	switch {
	case err != nil || n < 0:
		return deleteRetention{retention: retentionDefault}
	case n == 0:
		return deleteRetention{err: errKeepsNothing}
	}
	return deleteRetention{retention: time.Duration(min(n, int64(time.Duration(1<<63-1)/time.Millisecond))) * time.Millisecond}
}

// Commit stores offsets under a consumer group without joining it, for others
// to see how far we are. We never read them.
func (s *Source) Commit(ctx context.Context, group string, offsets map[store.Partition]int64) error {
	res, err := s.wire.call(ctx, anyBroker, &findcoordinator.Request{Key: group})
	if err != nil {
		return fmt.Errorf("find the coordinator of group %s: %w", group, err)
	}
	at := res.(*findcoordinator.Response)
	if at.ErrorCode != 0 {
		return fmt.Errorf("find the coordinator of group %s: %w", group, kafka.Error(at.ErrorCode))
	}
	res, err = s.wire.call(ctx, at.NodeID, commitRequest(group, offsets))
	if err != nil {
		return fmt.Errorf("commit offsets of group %s: %w", group, err)
	}
	var faults []error
	for _, t := range res.(*offsetcommit.Response).Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode != 0 {
				faults = append(faults, fmt.Errorf("commit offset of %s/%d in group %s: %w",
					t.Name, p.PartitionIndex, group, kafka.Error(p.ErrorCode)))
			}
		}
	}
	if len(faults) > 1 {
		return fmt.Errorf("%w and %d more", faults[0], len(faults)-1)
	}
	return errors.Join(faults...)
}

func commitRequest(group string, offsets map[store.Partition]int64) *offsetcommit.Request {
	topics := map[string]*offsetcommit.RequestTopic{}
	for id, next := range offsets {
		t := topics[id.Topic]
		if t == nil {
			t = &offsetcommit.RequestTopic{Name: id.Topic}
			topics[id.Topic] = t
		}
		t.Partitions = append(t.Partitions, offsetcommit.RequestPartition{
			PartitionIndex: id.ID, CommittedOffset: next, CommitTimestamp: time.Now().UnixMilli(), CommittedLeaderEpoch: -1,
		})
	}
	// A generation of -1 and no member id: not a member, only its offsets.
	req := &offsetcommit.Request{GroupID: group, GenerationID: -1, RetentionTimeMs: -1}
	for _, t := range topics {
		req.Topics = append(req.Topics, *t)
	}
	return req
}
