package main

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/metric/noop"

	"tidemark/cmd/tidemark/internal/config"
	"tidemark/store"
	"tidemark/store/fhir"
)

// copied are the numbers of the dead letters in a topic, and its records.
func copied(t *testing.T, brokers, topic string) (numbers []string, all []*kgo.Record) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		fetches := cl.PollFetches(ctx)
		cancel()
		if fetches.NumRecords() == 0 {
			return numbers, all
		}
		fetches.EachRecord(func(r *kgo.Record) {
			numbers, all = append(numbers, headerOf(r, "tidemark-number")), append(all, r)
		})
	}
}

func headerOf(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// Dead letters are in the topic as the records that they were, in order, and go on where they
// stood after a restart; brokers that refuse hold up nothing, and are told of.
func TestDeadLetterTopic(t *testing.T) {
	t.Parallel() // it mostly waits
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "x"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	brokers := cluster.ListenAddrs()[0]
	makeTopic(t, brokers, "dead", 3, nil)
	var away atomic.Bool
	refusing(cluster, "dead", &away)
	dir := deadStore(t)
	c := config.Default()
	c.Kafka.Brokers, c.DeadLetters.Topic = []string{brokers}, "dead"

	lives := func(life func(*store.DB, *letterTopic)) {
		db, err := store.Open(dir, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		l, err := newLetterTopic(c, db, noop.Meter{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.run(ctx) }()
		life(db, l)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what + ": did not happen")
			}
		}
	}
	remembers := func(db *store.DB, number string) func() bool {
		return func() bool { got, _ := db.Remembered("deadletters/copied/dead"); return string(got) == number }
	}
	lives(func(db *store.DB, _ *letterTopic) { until("all four are copied", remembers(db, "4")) })
	numbers, all := copied(t, brokers, "dead")
	if d := cmp.Diff([]string{"1", "2", "3", "4"}, numbers); d != "" {
		t.Error(d)
	}
	last := all[len(all)-1]
	want := map[string]string{"reason": "is no Bundle", "topic": "fhir-changes", "partition": "2", "offset": "4", "timestamp": "2023-11-14T22:13:20.004Z"}
	for name, text := range want {
		if got := headerOf(last, "tidemark-"+name); got != text {
			t.Errorf("header %s: %q, want %q", name, got, text)
		}
	}
	if string(last.Key) != "Patient/p1" || !strings.Contains(string(last.Value), `"active":true`) || headerOf(last, "trace") != "\xff\x00" {
		t.Errorf("the last record is %v", last)
	}

	away.Store(true)
	lives(func(db *store.DB, l *letterTopic) {
		discover(t, db, 7)
		letter := func(offset int64) store.Change {
			return store.Change{Offset: offset, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None, Dead: &store.DeadLetter{Reason: "no", Value: []byte("5")}}
		}
		b := store.Batch{Partition: aPartition, Next: 7, End: 7, Asked: db.Now(), Changes: []store.Change{letter(5), letter(6)}}
		if err := db.Apply(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if err := db.Flush(); err != nil {
			t.Fatal(err)
		}
		until("it is told", func() bool {
			var said strings.Builder
			return l.tell(&said) == nil && strings.Contains(said.String(), "not copied to dead since")
		})
		away.Store(false)
		until("the two are copied", remembers(db, "6"))
		if since, err := l.trouble(); !since.IsZero() || err != nil {
			until("the trouble is over", func() bool { since, _ := l.trouble(); return since.IsZero() })
		}
	})
	if numbers, _ := copied(t, brokers, "dead"); len(numbers) != 6 || numbers[5] != "6" {
		t.Errorf("after a restart: %q", numbers)
	}
}

func discover(t *testing.T, db *store.DB, end int64) {
	t.Helper()
	if err := db.Discover(store.Discovery{Complete: true, Partitions: []store.Discovered{{Partition: aPartition, End: end}}}); err != nil {
		t.Fatal(err)
	}
}

// What the topic does not take is cut, and says so: it must not hold up what follows.
func TestDeadLettersThatAreTooLargeAreCut(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "x"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	brokers := cluster.ListenAddrs()[0]
	makeTopic(t, brokers, "dead", 1, map[string]string{"max.message.bytes": "100000", "compression.type": "uncompressed"})
	c := config.Default()
	c.Kafka.Brokers, c.DeadLetters.Topic = []string{brokers}, "dead"
	l := &letterTopic{kafka: c.Kafka, topic: "dead", log: slog.New(slog.DiscardHandler)}
	row := func(n uint64, size int) store.DeadLetterRow {
		return store.DeadLetterRow{Bound: store.Bound{Seq: n}, Timestamp: fhir.None, DeadLetter: store.DeadLetter{Reason: "no", Value: make([]byte, size)}}
	}
	list := []entry{letterEntry(row(1, 10)), letterEntry(row(2, 200_000)), letterEntry(row(3, 10))}
	if err := l.send(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	numbers, all := copied(t, brokers, "dead")
	if d := cmp.Diff([]string{"1", "2", "3"}, numbers); d != "" {
		t.Fatal(d)
	}
	if got := all[1]; headerOf(got, "tidemark-cut") != "200000" || len(got.Value) != letterKept {
		t.Errorf("%d bytes are left, cut from %q", len(got.Value), headerOf(got, "tidemark-cut"))
	}
}
