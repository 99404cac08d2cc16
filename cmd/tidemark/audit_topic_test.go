package main

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tidemark/api/audit"
	"tidemark/cmd/tidemark/internal/config"
)

// linesIn are the AuditEvents of a trail, and their ids.
func linesIn(t *testing.T, dir string) (texts, ids []string) {
	t.Helper()
	r, err := audit.Walk(audit.Disk, dir, func(l *audit.Line) error {
		texts = append(texts, string(l.Text))
		id, _, _ := strings.Cut(strings.TrimPrefix(string(l.Text), `{"resourceType":"AuditEvent","id":"`), `"`)
		ids = append(ids, id)
		return nil
	})
	if err != nil || len(r.Breaks) > 0 {
		t.Fatalf("%v %v", r.Breaks, err)
	}
	return texts, ids
}

// published is what a topic has: each line once, where it first came, and its key.
func published(t *testing.T, brokers, topic string) (texts, ids []string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.ConsumeTopics(topic))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	partition := int32(-1)
	for left := recordsIn(t, brokers, topic); left > 0; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		left -= int64(fetches.NumRecords())
		for r := range fetches.RecordsAll() {
			if partition >= 0 && r.Partition != partition {
				t.Fatal("the lines are in several partitions, which have no order")
			}
			if partition = r.Partition; !slices.Contains(ids, string(r.Key)) {
				texts, ids = append(texts, string(r.Value)), append(ids, string(r.Key))
			}
		}
	}
	return texts, ids
}

// recordsIn is how many records a topic holds.
func recordsIn(t *testing.T, brokers, topic string) (n int64) {
	t.Helper()
	conn, err := kafka.DialContext(t.Context(), "tcp", brokers)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	partitions, err := conn.ReadPartitions(topic)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range partitions {
		leader, err := kafka.DialPartition(t.Context(), "tcp", brokers, p)
		if err != nil {
			t.Fatal(err)
		}
		first, last, err := leader.ReadOffsets()
		if err := errors.Join(err, leader.Close()); err != nil {
			t.Fatal(err)
		}
		n += last - first
	}
	return n
}

// TestAuditTopicSmall: lines go one by one where a topic takes no more, in their order.
func TestAuditTopicSmall(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "fhir-changes"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	brokers := cluster.ListenAddrs()[0]
	makeTopic(t, brokers, "audit", 3, map[string]string{"max.message.bytes": "2000", "compression.type": "uncompressed"})
	to := &auditTopic{kafka: config.Kafka{Brokers: []string{brokers}}, topic: "audit", server: "https://a.example/fhir"}
	dir := filepath.Join(t.TempDir(), "audit")
	trail, err := audit.Open(audit.Options{Dir: dir, Required: true, Publisher: to})
	if err != nil {
		t.Fatal(err)
	}
	defer trail.Close()
	for range 50 {
		if err := trail.Record(t.Context(), audit.Event{Action: audit.KickOff, Client: "c", Parameters: []audit.Parameter{{Name: "_type", Value: "Patient"}}}); err != nil {
			t.Fatal(err)
		}
	}
	ended, stop := context.WithCancel(t.Context())
	stop() // what is left then goes all the same
	if err := publishTrail(ended, trail); err != nil {
		t.Fatal(err)
	}
	texts, ids := linesIn(t, dir)
	gotTexts, gotIDs := published(t, brokers, "audit")
	if d := cmp.Diff(texts, gotTexts) + cmp.Diff(ids, gotIDs); d != "" || len(ids) != 51 {
		t.Error(d)
	}
	if err := trail.Record(t.Context(), audit.Event{Action: audit.KickOff, Client: "c", Scopes: strings.Repeat("x", 3000)}); err != nil {
		t.Fatal(err)
	}
	if err := trail.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), "max.message.bytes") {
		t.Errorf("a line that is too large: %v", err)
	}
}

// refusing has brokers take nothing for a topic while away says so.
func refusing(cluster *kfake.Cluster, topic string, away *atomic.Bool) {
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		p := req.(*kmsg.ProduceRequest)
		if !away.Load() || len(p.Topics) != 1 || p.Topics[0].Topic != topic {
			return nil, nil, false
		}
		refused := kmsg.NewProduceResponseTopicPartition()
		refused.Partition, refused.ErrorCode = p.Topics[0].Partitions[0].Partition, int16(kafka.TopicAuthorizationFailed)
		of := kmsg.NewProduceResponseTopic()
		of.Topic, of.Partitions = topic, append(of.Partitions, refused)
		answer := req.ResponseKind().(*kmsg.ProduceResponse)
		answer.Topics = append(answer.Topics, of)
		return answer, nil, true
	})
}

// TestAuditTopic: brokers that are away hold up nobody and are told of; after a kill and
// a restart the topic has every line of the files, in their order.
func TestAuditTopic(t *testing.T) {
	t.Parallel() // it mostly waits
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "fhir-changes"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	brokers := cluster.ListenAddrs()[0]
	makeTopic(t, brokers, "audit", 3, nil)
	var away atomic.Bool
	refusing(cluster, "audit", &away)
	r := newRig(t, brokers, "fhir-changes", nil, append(quick, "--set", "audit.topic=audit")...)
	r.start()
	dir := filepath.Join(r.store(), config.AuditName)
	asks := func(n int) {
		t.Helper()
		for range n {
			if got := r.get("/fhir/Patient/nobody"); !strings.HasPrefix(got, "404") {
				t.Fatal(got)
			}
		}
	}
	asks(20)
	r.until("the topic has what is on record", func() bool {
		_, ids := linesIn(t, dir)
		_, got := published(t, brokers, "audit")
		return len(ids) > 20 && slices.Equal(ids, got)
	})
	away.Store(true)
	asks(20)
	r.until("the metrics say that it is behind", func() bool {
		metrics := r.get("/metrics")
		return strings.Contains(metrics, "\ntidemark_audit_unpublished_bytes ") && !strings.Contains(metrics, "\ntidemark_audit_unpublished_bytes 0\n")
	})
	r.until("it is told, with the reason", func() bool {
		got, code := ends(t, "inspect", "--store", r.store())
		return code == 0 && strings.Contains(got, "audit.topic lacks ") && strings.Contains(got, "Authorization")
	})
	asks(5)
	r.kill()
	away.Store(false)
	r.start()
	asks(5)
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	texts, _ := linesIn(t, dir)
	got, _ := published(t, brokers, "audit")
	if d := cmp.Diff(texts, got); d != "" {
		t.Errorf("the files have %d lines, the topic %d: %s", len(texts), len(got), d)
	}
}
