//go:build integration

package source

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tidemark/store"
	"tidemark/store/fhir"
)

// A real is a topic of its own on a real Kafka, with what a test does to it.
type real struct {
	t      *testing.T
	broker string
	topic  string
	admin  *kgo.Client
}

// newReal makes a topic. The configs are names and values in turn.
func newReal(t *testing.T, partitions int32, configs ...string) *real {
	t.Helper()
	r := absentReal(t)
	r.create(partitions, configs...)
	return r
}

// absentReal names a topic that does not exist.
func absentReal(t *testing.T) *real {
	t.Helper()
	r := &real{t: t, broker: os.Getenv("KAFKA_BROKERS"), topic: fmt.Sprintf("source-%d", time.Now().UnixNano())}
	if r.broker == "" {
		t.Fatal("KAFKA_BROKERS is not set: run make integration")
	}
	r.admin = r.client()
	return r
}

func (r *real) client(opts ...kgo.Opt) *kgo.Client {
	r.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(r.broker), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MetadataMinAge(50 * time.Millisecond), // a new topic is asked for again soon
	}, opts...)...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(cl.Close)
	return cl
}

// insist repeats what the broker may refuse for a while: a name is taken until
// the topic that had it is gone for good.
func (r *real) insist(what string, try func(context.Context) error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience) // also in cleanups
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			r.t.Fatalf("%s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// create makes the topic. Unless configs say otherwise it keeps its records,
// however old their timestamps are.
func (r *real) create(partitions int32, configs ...string) {
	r.t.Helper()
	configs = append([]string{"retention.ms", "-1"}, configs...)
	req := kmsg.NewPtrCreateTopicsRequest()
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = r.topic, partitions, 1
	for i := 0; i < len(configs); i += 2 {
		rt.Configs = append(rt.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: configs[i], Value: &configs[i+1]})
	}
	req.Topics = append(req.Topics, rt)
	r.insist("create topic", func(ctx context.Context) error {
		res, err := req.RequestWith(ctx, r.admin)
		if err != nil {
			return err
		}
		return kerr.ErrorForCode(res.Topics[0].ErrorCode)
	})
	r.t.Cleanup(r.delete)
}

// delete removes the topic, if it is there.
func (r *real) delete() {
	r.t.Helper()
	req := kmsg.NewPtrDeleteTopicsRequest()
	rt := kmsg.NewDeleteTopicsRequestTopic()
	rt.Topic = &r.topic
	req.Topics, req.TopicNames = append(req.Topics, rt), append(req.TopicNames, r.topic)
	r.insist("delete topic", func(ctx context.Context) error {
		res, err := req.RequestWith(ctx, r.admin)
		if err != nil {
			return err
		}
		if err := kerr.ErrorForCode(res.Topics[0].ErrorCode); !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return err
		}
		return nil
	})
}

// deleteRecords deletes what lies before an offset of partition 0.
func (r *real) deleteRecords(before int64) {
	r.t.Helper()
	req := kmsg.NewPtrDeleteRecordsRequest()
	rt := kmsg.NewDeleteRecordsRequestTopic()
	rt.Topic = r.topic
	rt.Partitions = append(rt.Partitions, kmsg.DeleteRecordsRequestTopicPartition{Partition: 0, Offset: before})
	req.Topics = append(req.Topics, rt)
	r.insist("delete records", func(ctx context.Context) error {
		res, err := req.RequestWith(ctx, r.admin)
		if err != nil {
			return err
		}
		return kerr.ErrorForCode(res.Topics[0].Partitions[0].ErrorCode)
	})
}

// hurryCleaner lets the log cleaner look for work ten times a second instead
// of every 15 s, until the test ends.
func (r *real) hurryCleaner() {
	r.t.Helper()
	value := "100"
	set := func(op kmsg.IncrementalAlterConfigOp, value *string) {
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		all := kmsg.NewIncrementalAlterConfigsRequestResource()
		all.ResourceType = kmsg.ConfigResourceTypeBroker
		all.Configs = append(all.Configs, kmsg.IncrementalAlterConfigsRequestResourceConfig{Name: "log.cleaner.backoff.ms", Op: op, Value: value})
		req.Resources = append(req.Resources, all)
		r.insist("configure the log cleaner", func(ctx context.Context) error {
			res, err := req.RequestWith(ctx, r.admin)
			if err != nil {
				return err
			}
			return kerr.ErrorForCode(res.Resources[0].ErrorCode)
		})
	}
	set(kmsg.IncrementalAlterConfigOpSet, &value)
	r.t.Cleanup(func() { set(kmsg.IncrementalAlterConfigOpDelete, nil) })
}

// restart restarts the broker that make integration has started.
func (r *real) restart() {
	r.t.Helper()
	if out, err := exec.Command("../../deploy/dev/kafka/kafka", "restart").CombinedOutput(); err != nil {
		r.t.Fatalf("restart the broker: %v\n%s", err, out)
	}
}

// log fetches all of a partition's record batches as the broker has stored
// them, with a client that is not ours.
func (r *real) log(id store.Partition) []kmsg.RecordBatch {
	r.t.Helper()
	where := kmsg.NewPtrMetadataRequest()
	mt := kmsg.NewMetadataRequestTopic()
	mt.Topic = &id.Topic
	where.Topics = append(where.Topics, mt)
	meta, err := where.RequestWith(r.t.Context(), r.admin)
	if err != nil {
		r.t.Fatal(err)
	}
	var (
		log  []kmsg.RecordBatch
		next int64
	)
	for {
		req := kmsg.NewPtrFetchRequest()
		req.MaxBytes, req.SessionEpoch = 50<<20, -1
		rt := kmsg.NewFetchRequestTopic()
		rt.Topic, rt.TopicID = id.Topic, meta.Topics[0].TopicID
		rp := kmsg.NewFetchRequestTopicPartition()
		rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = id.ID, next, 50<<20
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		res, err := r.admin.Broker(int(meta.Topics[0].Partitions[id.ID].Leader)).RetriableRequest(r.t.Context(), req)
		if err != nil {
			r.t.Fatal(err)
		}
		p := res.(*kmsg.FetchResponse).Topics[0].Partitions[0]
		if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
			r.t.Fatal(err)
		}
		for data := p.RecordBatches; len(data) > prefixSize; {
			size := min(len(data), prefixSize+int(binary.BigEndian.Uint32(data[8:])))
			var b kmsg.RecordBatch
			if err := b.ReadFrom(data[:size]); err != nil {
				break // cut: comes with the next answer
			}
			log = append(log, b)
			next = b.FirstOffset + int64(b.LastOffsetDelta) + 1
			data = data[size:]
		}
		if next >= p.HighWatermark {
			return log
		}
	}
}

func (r *real) config() Config {
	return Config{
		Brokers: []string{r.broker}, Topics: []Topics{{Name: r.topic}}, MaxWait: 50 * time.Millisecond,
		Refresh: 200 * time.Millisecond, RetryMin: 10 * time.Millisecond, RetryMax: 200 * time.Millisecond, Grace: time.Minute,
	}
}

// reads starts a source of its own at an offset and fails the test unless it
// delivers exactly these records and comes to the end.
func (r *real) reads(cfg Config, id store.Partition, from, end int64, want ...got) []Record {
	r.t.Helper()
	f := newFakeStore()
	f.states[id] = store.PartitionState{Next: from, LeaderEpoch: -1, Seen: fhir.None}
	_, stop := run(r.t, cfg, f)
	f.wait(r.t, fmt.Sprintf("the end of %v at %d from %d", id, end, from), func() bool {
		as := f.answers[id]
		return len(as) > 0 && as[len(as)-1].Next >= end
	})
	stop()
	if diff := cmp.Diff(want, f.records(id)); diff != "" {
		r.t.Fatalf("records of %v from offset %d (-want +got):\n%s", id, from, diff)
	}
	if n := f.states[id].Next; n != end || len(f.held) > 0 {
		r.t.Fatalf("next offset %d, want %d; held: %v", n, end, f.held)
	}
	var records []Record
	for _, a := range f.answers[id] {
		records = append(records, a.Records...)
	}
	return records
}

// consumes reads as many records with franz-go's consumer, whose authors had
// no part in our reader.
func (r *real) consumes(id store.Partition, n int) []*kgo.Record {
	r.t.Helper()
	cl := r.client(kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{id.Topic: {id.ID: kgo.NewOffset().AtStart()}}))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	var records []*kgo.Record
	for len(records) < n {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			r.t.Fatalf("%d of %d records consumed: %v", len(records), n, err)
		}
		records = append(records, fetches.Records()...)
	}
	return records
}

func consumed(records []*kgo.Record) []got {
	var out []got
	for _, k := range records {
		v := string(k.Value)
		if k.Value == nil {
			v = "<null>"
		}
		out = append(out, got{k.Offset, v})
	}
	return out
}

// barred waits until a source has found a gap in its first partition, and
// returns it.
func barred(t *testing.T, s *Source, f *fakeStore, want Reason) Gap {
	t.Helper()
	waitStatus(t, s, func(p PartitionStatus) bool { return p.Gap != nil })
	p := s.Status().Partitions[0]
	if p.Gap.Reason != want {
		t.Fatalf("gap %+v, want %s", *p.Gap, want)
	}
	f.waitHeld(t, p.Partition)
	return *p.Gap
}
