package source

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"tidemark/store"
	"tidemark/store/fhir"
)

func TestReadsFromTheStoresOffset(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(2, "t"))
	cl := newProducer(t, c)
	produce(t, cl, at("t", 0), "a", "b", "c")
	produce(t, cl, at("t", 1), "x")
	f := newFakeStore()
	f.states[at("t", 0)] = store.PartitionState{Next: 2, LeaderEpoch: -1, Seen: fhir.None}
	s, stop := run(t, testConfig(c, "t"), f)
	f.waitRecords(t, at("t", 0), got{2, "c"})
	f.waitRecords(t, at("t", 1), got{0, "x"})
	produce(t, cl, at("t", 0), "d")
	f.waitRecords(t, at("t", 0), got{2, "c"}, got{3, "d"})

	d := f.found[0]
	if !d.Complete || len(d.Partitions) != 2 || d.Partitions[0].End != 3 || d.Partitions[1].End != 1 {
		t.Errorf("discovery %+v", d)
	}
	if want := c.TopicInfo("t").TopicID; d.Partitions[0].TopicID != want {
		t.Errorf("topic id %x, want %x", d.Partitions[0].TopicID, want)
	}
	for _, p := range s.Status().Partitions {
		if p.Lag() != 0 || p.Gap != nil || p.Trouble != "" {
			t.Errorf("status %+v", p)
		}
	}
	stop()
}

func TestTellsEndsOfIdlePartitions(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(1, "t"))
	f := newFakeStore()
	run(t, testConfig(c, "t"), f)
	f.wait(t, "three answers without records", func() bool { return len(f.answers[at("t", 0)]) >= 3 })
	last := fhir.None
	for _, a := range f.told(at("t", 0)) {
		if a.Asked <= last || a.Next != 0 || a.End != 0 || len(a.Records) > 0 {
			t.Errorf("answer %+v", a)
		}
		last = a.Asked
	}
}

// TestAskedBeforeTheRequest lets a long time pass while the first fetch is at
// the broker: only what was stable before that lies below the end it tells, so
// an answer that dates itself later would promise records it has not seen.
func TestAskedBeforeTheRequest(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(1, "fhir"))
	f := newFakeStore()
	var atBroker fhir.Instant
	c.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) { // the first only
		f.update(func() {
			atBroker = f.now
			f.now += 1_000_000
		})
		return nil, nil, false
	})
	run(t, testConfig(c, "fhir"), f)
	id := at("fhir", 0)
	f.wait(t, "an answer", func() bool { return len(f.answers[id]) > 0 })
	f.mu.Lock()
	defer f.mu.Unlock()
	if got := f.answers[id][0].Asked; got > atBroker {
		t.Errorf("the answer says that it was asked for at %d; it reached the broker at %d", got, atBroker)
	}
}

func TestCodecsOnTheWire(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(1, "t"))
	f := newFakeStore()
	run(t, testConfig(c, "t"), f)
	var want []got
	for i, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()} {
		v := strings.Repeat("compress me ", 100) + strconv.Itoa(i)
		produce(t, newProducer(t, c, kgo.ProducerBatchCompression(codec)), at("t", 0), v)
		want = append(want, got{int64(i), v})
		f.waitRecords(t, at("t", 0), want...)
	}
}

func TestTransactions(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(1, "t"))
	id := at("t", 0)
	f := newFakeStore()
	s, _ := run(t, testConfig(c, "t"), f)
	txn := newProducer(t, c, kgo.TransactionalID("x"))
	plain := newProducer(t, c)
	end := func(how kgo.TransactionEndTry) {
		t.Helper()
		if err := txn.EndTransaction(t.Context(), how); err != nil {
			t.Fatal(err)
		}
	}
	begin := func() {
		t.Helper()
		if err := txn.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	produce(t, txn, id, "committed")
	end(kgo.TryCommit)
	begin()
	produce(t, txn, id, "aborted")
	produce(t, plain, id, "beside") // waits for the end of the open transaction
	f.waitNext(t, id, 2)
	end(kgo.TryAbort)
	f.waitRecords(t, id, got{0, "committed"}, got{3, "beside"})
	f.waitNext(t, id, 5)

	begin()
	produce(t, txn, id, "open")
	produce(t, plain, id, "hidden")
	waitStatus(t, s, func(p PartitionStatus) bool { return p.End == 5 && p.High == 7 })
	f.waitNext(t, id, 5)
	end(kgo.TryCommit)
	f.waitRecords(t, id, got{0, "committed"}, got{3, "beside"}, got{5, "open"}, got{6, "hidden"})
	f.waitNext(t, id, 8)
}

// waitStatus waits for what the first partition's status says.
func waitStatus(t testing.TB, s *Source, cond func(PartitionStatus) bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		st := s.Status()
		if len(st.Partitions) > 0 && cond(st.Partitions[0]) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("status stays %+v", st)
		}
	}
}

func TestCraftedLog(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(1, "t"))
	id := at("t", 0)
	log := join(t,
		testBatch{base: 0, last: 3, records: []testRecord{{delta: 1, value: text("b")}}}, // compacted
		testBatch{base: 4, last: 2}, // nothing left
		testBatch{base: 7, attrs: logAppendBit, baseTime: 1, maxTime: 5000, codec: kgo.CodecZstd, records: values("h", "i")}, // append time
		testBatch{base: 9, attrs: transactionBit, producer: 7, records: values("no")}, marker(10, 7, abortMarker),            // aborted
		testBatch{base: 11, attrs: transactionBit, producer: 7, records: values("yes")}, marker(12, 7, commitMarker), // same producer
		testBatch{base: 13, last: 6, records: []testRecord{{delta: 0, value: nil}, {delta: 1, value: text("")}}, codec: kgo.CodecGzip}, // tail missing
	)
	serve(t, c, func(string, int32) crafted { return crafted{log: log, aborted: []Aborted{{7, 9}}, end: 20} })
	f := newFakeStore()
	run(t, testConfig(c, "t"), f)
	f.waitRecords(t, id, got{1, "b"}, got{7, "h"}, got{8, "i"}, got{11, "yes"}, got{13, "<null>"}, got{14, ""})
	f.waitNext(t, id, 20)
	if ts := f.told(id)[0].Records[1].Timestamp; ts != 5000 {
		t.Errorf("log append time %d, want 5000", ts)
	}
}

func TestTopicsAndPartitionsThatAppear(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(1, "old"), kfake.AllowAutoTopicCreation())
	f := newFakeStore()
	cfg := testConfig(c, "later")
	cfg.Topics = append(cfg.Topics, Topics{Pattern: regexp.MustCompile(`\A(?:^fhir\..*)\z`)})
	s, _ := run(t, cfg, f)
	f.wait(t, "a discovery of nothing", func() bool { return len(f.found) > 0 })
	if diff := cmp.Diff([]string{"later", `^fhir\..*`}, s.Status().Missing); diff != "" {
		t.Errorf("missing topics (-want +got):\n%s", diff)
	}
	if f.found[0].Complete || c.TopicInfo("later") != nil {
		t.Error("a topic that does not exist counts as there, or was created by asking")
	}
	create := func(name string, n int32) {
		t.Helper()
		if err := c.CreateTopic(name, n, nil); err != nil {
			t.Fatal(err)
		}
	}
	cl := newProducer(t, c)
	create("later", 1)
	produce(t, cl, at("later", 0), "a")
	f.waitRecords(t, at("later", 0), got{0, "a"})
	create("fhir.x", 1)
	create("unfhir.x", 1)
	produce(t, cl, at("fhir.x", 0), "b")
	f.waitRecords(t, at("fhir.x", 0), got{0, "b"})
	f.wait(t, "completeness", func() bool { return f.found[len(f.found)-1].Complete })
	addPartitions(t, cl, "fhir.x", 3)
	newer := newProducer(t, c)
	produce(t, newer, at("fhir.x", 2), "c")
	f.waitRecords(t, at("fhir.x", 2), got{0, "c"})
	var names []store.Partition
	for _, p := range f.found[len(f.found)-1].Partitions {
		names = append(names, p.Partition)
	}
	want := []store.Partition{at("fhir.x", 0), at("fhir.x", 1), at("fhir.x", 2), at("later", 0)}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("partitions (-want +got):\n%s", diff)
	}
}

func addPartitions(t testing.TB, cl *kgo.Client, topic string, n int32) {
	t.Helper()
	req := kmsg.NewPtrCreatePartitionsRequest()
	rt := kmsg.NewCreatePartitionsRequestTopic()
	rt.Topic, rt.Count = topic, n
	req.Topics = append(req.Topics, rt)
	if _, err := req.RequestWith(t.Context(), cl); err != nil {
		t.Fatal(err)
	}
}

func TestSurvivesABrokerRestart(t *testing.T) {
	dir := t.TempDir()
	first := newCluster(t, kfake.SeedTopics(1, "t"), kfake.DataDir(dir))
	_, port, err := net.SplitHostPort(first.ListenAddrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(port)
	produce(t, newProducer(t, first), at("t", 0), "before")
	f := newFakeStore()
	cfg := testConfig(first, "t")
	cfg.Grace = time.Nanosecond // errors that last are told at once
	var log syncBuffer
	cfg.Logger = testLogger(&log)
	run(t, cfg, f)
	f.waitRecords(t, at("t", 0), got{0, "before"})
	first.Close()
	f.waitHeld(t, at("t", 0))
	second := newCluster(t, kfake.Ports(n), kfake.DataDir(dir))
	produce(t, newProducer(t, second), at("t", 0), "after")
	f.waitRecords(t, at("t", 0), got{0, "before"}, got{1, "after"})
	f.wait(t, "release", func() bool { return f.held[at("t", 0)] == "" })
	if lines := strings.Count(log.String(), "cannot be fetched"); lines != 1 {
		t.Errorf("the outage was logged %d times:\n%s", lines, log.String())
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestFollowsLeaders(t *testing.T) {
	c := newCluster(t, kfake.NumBrokers(3), kfake.SeedTopics(6, "t"))
	f := newFakeStore()
	run(t, testConfig(c, "t"), f)
	cl := newProducer(t, c)
	for i := range 5 {
		for id := range int32(6) {
			produce(t, cl, at("t", id), strconv.Itoa(i))
		}
		c.ShufflePartitionLeaders()
	}
	for id := range int32(6) {
		f.waitRecords(t, at("t", id), got{0, "0"}, got{1, "1"}, got{2, "2"}, got{3, "3"}, got{4, "4"})
	}
}

func TestGaps(t *testing.T) {
	id, other := at("t", 0), at("t", 1)
	for _, test := range []struct {
		name   string
		state  store.PartitionState
		before func(t *testing.T, c *kfake.Cluster, cl *kgo.Client)
		during func(t *testing.T, c *kfake.Cluster, cl *kgo.Client)
		reason Reason
	}{
		{
			name: "expired while away", state: store.PartitionState{Next: 1},
			before: func(t *testing.T, c *kfake.Cluster, _ *kgo.Client) { truncate(t, c, "t", 2) }, reason: Expired,
		},
		{name: "log ends before the offset", state: store.PartitionState{Next: 9}, reason: Truncated},
		{name: "another topic id", state: store.PartitionState{Next: 1, TopicID: [16]byte{1}}, reason: Recreated},
		{
			name: "recreated while reading",
			during: func(t *testing.T, c *kfake.Cluster, cl *kgo.Client) {
				if err := errors.Join(c.DeleteTopic("t"), c.CreateTopic("t", 2, nil)); err != nil {
					t.Fatal(err)
				}
			}, reason: Recreated,
		},
		{name: "older leader epoch than read before", state: store.PartitionState{Next: 1, LeaderEpoch: 99}, reason: Forked},
		{
			name: "away for longer than deletions stay", state: store.PartitionState{Next: 1, Seen: 500},
			before: func(t *testing.T, c *kfake.Cluster, cl *kgo.Client) {
				configure(t, cl, "t", "cleanup.policy", "compact")
			},
			reason: Away,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t, kfake.SeedTopics(2, "t"))
			cl := newProducer(t, c)
			produce(t, cl, id, "a", "b", "c")
			f := newFakeStore()
			f.now = fhir.FromTime(time.Now())
			if test.state.Next > 0 {
				if test.state.Seen == 0 {
					test.state.Seen = fhir.None
				}
				f.states[id] = test.state
			}
			if test.before != nil {
				test.before(t, c, cl)
			}
			s, _ := run(t, testConfig(c, "t"), f)
			if test.during != nil {
				f.waitNext(t, id, 3)
				test.during(t, c, cl)
			}
			reason := f.waitHeld(t, id)
			waitStatus(t, s, func(p PartitionStatus) bool { return p.Gap != nil })
			if g := s.Status().Partitions[0].Gap; g.Reason != test.reason || g.Partition != id {
				t.Errorf("gap %+v, want %s", g, test.reason)
			}
			if !strings.HasPrefix(reason, "gap in t/0 at offset ") {
				t.Errorf("reason %q", reason)
			}
			if test.during == nil { // the other partition goes on
				produce(t, newProducer(t, c), other, "x")
				f.waitRecords(t, other, got{0, "x"})
				if n := len(f.sofar(id)); n > 0 {
					t.Errorf("%d records were read behind the gap", n)
				}
			}
		})
	}
}

// An unclean election has cut the log below what was read, and others have
// taken the offsets. Where a batch begins just where we go on only the broker
// can tell, for we say of which epoch we have read last.
func TestForks(t *testing.T) {
	id := at("t", 0)
	old := testBatch{base: 0, epoch: 5, records: values("a", "b", "c", "d", "e", "f", "g", "h")}
	broker := func(epoch int32, offset int64) *divergence {
		if epoch == 5 && offset > 8 {
			return &divergence{epoch: 5, end: 8}
		}
		return nil
	}
	for name, l := range map[string]crafted{
		"a batch that begins below": {end: 12, log: join(t, old, testBatch{base: 8, epoch: 6, records: values("8", "9", "10", "11")})},
		"told by the broker": {
			end: 12, log: join(t, old, testBatch{base: 8, epoch: 6, records: values("8", "9")}, testBatch{base: 10, epoch: 6, records: values("10", "11")}),
			fork: broker,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, kfake.SeedTopics(1, "t"))
			serve(t, c, func(string, int32) crafted { return l })
			f := newFakeStore()
			f.states[id] = store.PartitionState{Next: 10, LeaderEpoch: 5, Joined: true, Seen: fhir.None}
			s, _ := run(t, testConfig(c, "t"), f)
			f.waitHeld(t, id)
			waitStatus(t, s, func(p PartitionStatus) bool {
				return p.Gap != nil && p.Gap.Reason == Forked && p.Gap.Next == 10 && p.Gap.End == 12
			})
			if n := len(f.sofar(id)); n > 0 {
				t.Errorf("%d records were read behind the gap", n)
			}
		})
	}
	// Without an election the same log is read as it is, epoch by epoch.
	c := newCluster(t, kfake.SeedTopics(1, "t"))
	log := join(t, testBatch{base: 0, epoch: 5, records: values("a", "b")}, testBatch{base: 2, epoch: 6, records: values("c")})
	serve(t, c, func(string, int32) crafted { return crafted{end: 3, log: log, fork: broker} })
	f := newFakeStore()
	run(t, testConfig(c, "t"), f)
	f.waitRecords(t, id, got{0, "a"}, got{1, "b"}, got{2, "c"})
}

// The brokers cannot be reached for two days while the process runs. The topic
// keeps deletions for one.
func TestAwayWhileRunning(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(2, "t"))
	id, other := at("t", 0), at("t", 1)
	cl := newProducer(t, c)
	configure(t, cl, "t", "cleanup.policy", "compact")
	configure(t, cl, "t", "delete.retention.ms", "86400000")
	produce(t, cl, id, "a", "b", "c")
	f := newFakeStore()
	f.now = fhir.FromTime(time.Now())
	seen := func(id store.Partition) {
		st := f.states[id]
		st.Seen = f.now
		f.states[id] = st
	}
	s, _ := run(t, testConfig(c, "t"), f)
	f.waitNext(t, id, 3)
	f.update(func() { seen(id) })

	var silent atomic.Bool
	silent.Store(true)
	asked := make(chan struct{}, 100)
	c.ControlKey(int16(kmsg.Fetch), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		if !silent.Load() {
			return nil, nil, false
		}
		select {
		case asked <- struct{}{}:
		default:
		}
		req := kreq.(*kmsg.FetchRequest)
		res := req.ResponseKind().(*kmsg.FetchResponse)
		res.Version, res.ErrorCode = req.Version, kerr.KafkaStorageError.Code
		return res, nil, true
	})
	<-asked
	<-asked // whatever was under way has been answered
	f.update(func() {
		f.now += 48 * 3600 * 1000
		seen(other)
	})
	produce(t, cl, id, "d")
	produce(t, cl, other, "x")
	silent.Store(false)
	f.waitHeld(t, id)
	f.waitRecords(t, other, got{0, "x"})
	waitStatus(t, s, func(p PartitionStatus) bool { return p.Gap != nil && p.Gap.Reason == Away && p.Gap.Next == 3 })
	// Somebody decides that it may go on.
	f.update(func() { seen(id) })
	f.waitRecords(t, id, got{0, "a"}, got{1, "b"}, got{2, "c"}, got{3, "d"})
}

// A topic that loses deletions when it is compacted is warned of, once.
func TestCompactedTopic(t *testing.T) {
	for policy, want := range map[string]int{"compact": 1, "compact,delete": 1, "delete": 0} {
		c := newCluster(t, kfake.SeedTopics(2, "rows", "resources"))
		cl := newProducer(t, c)
		for _, topic := range []string{"rows", "resources"} {
			configure(t, cl, topic, "cleanup.policy", policy)
			for n := range int32(2) {
				produce(t, cl, at(topic, n), "a")
			}
		}
		var log syncBuffer
		cfg := testConfig(c, "rows", "resources")
		cfg.Topics[0].Compacted = "deletions are lost"
		cfg.Logger = testLogger(&log)
		f := newFakeStore()
		run(t, cfg, f)
		for _, topic := range []string{"rows", "resources"} {
			for n := range int32(2) {
				f.waitNext(t, at(topic, n), 1)
			}
		}
		if got := strings.Count(log.String(), "deletions are lost"); got != want || strings.Contains(log.String(), "topic=resources") {
			t.Errorf("%s: %d warnings, want %d: %s", policy, got, want, log.String())
		}
	}
}

// What retention took before we came is gone for us: the log says so, once.
func TestLostBeginning(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(2, "t"))
	produce(t, newProducer(t, c), at("t", 0), "a", "b", "c")
	truncate(t, c, "t", 2)
	var log syncBuffer
	cfg := testConfig(c, "t")
	cfg.Logger = testLogger(&log)
	f := newFakeStore()
	_, stop := run(t, cfg, f)
	f.waitRecords(t, at("t", 0), got{2, "c"})
	stop()
	run(t, cfg, f) // it is known now
	produce(t, newProducer(t, c), at("t", 0), "d")
	f.waitRecords(t, at("t", 0), got{2, "c"}, got{3, "d"})
	if n := strings.Count(log.String(), "has lost its beginning"); n != 1 || !strings.Contains(log.String(), "partition=0 start=2") {
		t.Errorf("said %d times, want once:\n%s", n, log.String())
	}
}

// A topic is deleted, created again and written to while nothing is fetched
// and nothing is asked: not a record of the second may be taken for the first's.
func TestRecreatedBetweenFetches(t *testing.T) {
	id := at("t", 0)
	c := newCluster(t, kfake.SeedTopics(1, "t"))
	produce(t, newProducer(t, c), id, "a")
	f := newFakeStore()
	entered, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.handle = func(a *Answer) error {
		if len(a.Records) > 0 {
			once.Do(func() { close(entered) })
			<-leave
		}
		return nil
	}
	cfg := testConfig(c, "t")
	cfg.Ahead = 1 // nothing is fetched while something is handled
	cfg.Refresh = time.Hour
	s, _ := run(t, cfg, f)
	<-entered
	if err := errors.Join(c.DeleteTopic("t"), c.CreateTopic("t", 1, nil)); err != nil {
		t.Fatal(err)
	}
	produce(t, newProducer(t, c), id, "1", "2", "3")
	close(leave)
	f.waitHeld(t, id)
	waitStatus(t, s, func(p PartitionStatus) bool { return p.Gap != nil })
	if g := s.Status().Partitions[0].Gap; g.Reason != Recreated || g.Next != 1 {
		t.Errorf("gap %+v", g)
	}
	if d := cmp.Diff([]got{{0, "a"}}, f.sofar(id)); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}
}

func truncate(t testing.TB, c *kfake.Cluster, topic string, offset int64) {
	t.Helper()
	if err := c.DeleteRecords(topic, 0, offset); err != nil {
		t.Fatal(err)
	}
}

func configure(t testing.TB, cl *kgo.Client, topic, key, value string) {
	t.Helper()
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	r := kmsg.NewIncrementalAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	r.Configs = append(r.Configs, kmsg.IncrementalAlterConfigsRequestResourceConfig{Name: key, Value: &value})
	req.Resources = append(req.Resources, r)
	if _, err := req.RequestWith(t.Context(), cl); err != nil {
		t.Fatal(err)
	}
}

func TestGoesOnWhenAGapIsDecided(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(1, "t"))
	id := at("t", 0)
	produce(t, newProducer(t, c), id, "a", "b", "c")
	truncate(t, c, "t", 2)
	f := newFakeStore()
	f.states[id] = store.PartitionState{Next: 1, LeaderEpoch: -1, Seen: fhir.None}
	run(t, testConfig(c, "t"), f)
	f.waitHeld(t, id)
	f.update(func() { f.states[id] = store.PartitionState{Next: 2, LeaderEpoch: -1, Seen: fhir.None} })
	f.waitRecords(t, id, got{2, "c"})
	f.wait(t, "release", func() bool { return f.held[id] == "" })
}

func TestExpiresWhileReading(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(1, "t"))
	id := at("t", 0)
	cl := newProducer(t, c)
	produce(t, cl, id, "a")
	f := newFakeStore()
	entered, leave := make(chan struct{}), make(chan struct{})
	f.handle = func(a *Answer) error {
		if len(a.Records) > 0 {
			close(entered)
			<-leave
			return ErrStop
		}
		return nil
	}
	s, _ := run(t, testConfig(c, "t"), f)
	<-entered
	close(leave)
	waitStatus(t, s, func(p PartitionStatus) bool { return p.Stopped })
	produce(t, cl, id, "b")
	if n := len(f.sofar(id)); n > 0 {
		t.Errorf("%d records after the handler wanted no more", n)
	}
}

func TestHandlerErrorsEndRun(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(1, "t"))
	f := newFakeStore()
	full := errors.New("disk full")
	f.handle = func(*Answer) error { return full }
	s, err := New(testConfig(c, "t"), f)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), f); !errors.Is(err, full) {
		t.Errorf("run ended with %v, want %v", err, full)
	}
}

func TestErrorsOfPartitions(t *testing.T) {
	id, other := at("t", 0), at("t", 1)
	good := join(t, testBatch{base: 0, records: values("a")}, testBatch{base: 1, records: values("b")})
	bad := append([]byte(nil), good...)
	bad[len(bad)-1] ^= 1
	huge := testBatch{base: 1, records: values("b")}.bytes(t)
	huge[8] = 0x7f // claims two gigabytes
	for _, test := range []struct {
		name    string
		bad     crafted
		records int
		hold    string
	}{
		{"corrupt batch", crafted{log: bad, end: 2}, 1, "record batch of t/0 at offset 1: checksum does not match"},
		{"batch that never comes whole", crafted{log: huge, end: 2}, 0, "no whole record batch"},
		{"not allowed", crafted{code: int16(kafka.TopicAuthorizationFailed)}, 0, "Topic Authorization Failed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t, kfake.SeedTopics(2, "t"))
			var mu sync.Mutex
			log := test.bad
			serve(t, c, func(_ string, n int32) crafted {
				mu.Lock()
				defer mu.Unlock()
				if n == 1 {
					return crafted{log: good, end: 2}
				}
				return log
			})
			f := newFakeStore()
			run(t, testConfig(c, "t"), f)
			if reason := f.waitHeld(t, id); !strings.Contains(reason, test.hold) {
				t.Errorf("held because of %q, want %q", reason, test.hold)
			}
			f.waitRecords(t, other, got{0, "a"}, got{1, "b"})
			f.wait(t, "what lies before the error", func() bool { return len(f.records(id)) == test.records })
			mu.Lock()
			log = crafted{log: good, end: 2}
			mu.Unlock()
			f.waitRecords(t, id, got{0, "a"}, got{1, "b"})
			f.wait(t, "release", func() bool { return f.held[id] == "" })
		})
	}
}

func TestRetriesWithoutTelling(t *testing.T) {
	for _, code := range []kafka.Error{
		kafka.NotLeaderForPartition, kafka.LeaderNotAvailable, kafka.UnknownTopicOrPartition,
		kafka.FencedLeaderEpoch, kafka.UnknownLeaderEpoch, kafka.KafkaStorageError, kafka.Unknown, kafka.OffsetNotAvailable,
	} {
		c := newCluster(t, kfake.SeedTopics(1, "t"))
		var mu sync.Mutex
		fails := 3
		serve(t, c, func(string, int32) crafted {
			mu.Lock()
			defer mu.Unlock()
			if fails--; fails >= 0 {
				return crafted{code: int16(code)}
			}
			return crafted{log: join(t, testBatch{records: values("a")}), end: 1}
		})
		f := newFakeStore()
		_, stop := run(t, testConfig(c, "t"), f)
		f.waitRecords(t, at("t", 0), got{0, "a"})
		if len(f.held) > 0 {
			t.Errorf("%v: held: %v", code, f.held)
		}
		stop()
	}
}

func TestLargeAnswersArePinnedDown(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(3, "t"))
	giant := testBatch{records: []testRecord{{value: make([]byte, 20<<20)}}}.bytes(t)
	serve(t, c, func(_ string, n int32) crafted {
		if n == 1 {
			return crafted{log: giant, end: 1}
		}
		return crafted{log: join(t, testBatch{records: values("a")}), end: 1}
	})
	f := newFakeStore()
	cfg := testConfig(c, "t")
	cfg.MaxRecord, cfg.MaxBytes = 1<<20, 1<<20
	run(t, cfg, f)
	if reason := f.waitHeld(t, at("t", 1)); !strings.Contains(reason, "exceeds the limit") {
		t.Errorf("held because of %q", reason)
	}
	f.waitRecords(t, at("t", 0), got{0, "a"})
	f.waitRecords(t, at("t", 2), got{0, "a"})
}

func TestFetchAheadIsBounded(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(2, "t"))
	value := strings.Repeat("v", 10_000)
	cl := newProducer(t, c, kgo.ProducerBatchMaxBytes(64<<10), kgo.ProducerBatchCompression(kgo.NoCompression()))
	for id := range int32(2) {
		for range 40 {
			produce(t, cl, at("t", id), value, value, value, value, value)
		}
	}
	cfg := testConfig(c, "t")
	cfg.Ahead, cfg.PartitionMaxBytes, cfg.MaxBytes = 512<<10, 128<<10, 256<<10
	f := newFakeStore()
	gate := make(chan struct{})
	var once sync.Once
	blocked := make(chan struct{})
	f.handle = func(*Answer) error {
		once.Do(func() { close(blocked) })
		<-gate
		return nil
	}
	s, _ := run(t, cfg, f)
	<-blocked
	idle := func() (ahead int, busy bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, p := range s.partitions {
			ahead += p.ahead
			busy = busy || p.busy
		}
		return ahead, busy
	}
	waitStatus(t, s, func(PartitionStatus) bool { n, busy := idle(); return n >= cfg.Ahead/2 && !busy })
	if n, _ := idle(); n > cfg.Ahead+cfg.PartitionMaxBytes {
		t.Errorf("%d bytes are ahead, the bound is %d", n, cfg.Ahead)
	}
	close(gate)
	f.waitNext(t, at("t", 0), 200)
	f.waitNext(t, at("t", 1), 200)
}

func TestStalledPartitionsLeaveRoom(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(2, "t"))
	value := strings.Repeat("v", 10_000)
	cl := newProducer(t, c, kgo.ProducerBatchCompression(kgo.NoCompression()))
	for range 20 {
		produce(t, cl, at("t", 0), value, value, value, value, value)
	}
	cfg := testConfig(c, "t")
	cfg.Ahead, cfg.PartitionMaxBytes = 64<<10, 64<<10
	f := newFakeStore()
	release := make(chan struct{})
	var s *Source
	started := make(chan struct{})
	f.handle = func(a *Answer) error {
		<-started
		if a.Partition.ID == 0 && len(a.Records) > 0 {
			s.Stall(a.Partition)
			<-release
		}
		return nil
	}
	s, _ = run(t, cfg, f)
	close(started)
	produce(t, cl, at("t", 1), "x")
	f.waitRecords(t, at("t", 1), got{0, "x"})
	close(release)
	f.waitNext(t, at("t", 0), 100)
}

func TestOlderBrokers(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(1, "t"), kfake.MaxVersions(kversion.V2_4_0()))
	produce(t, newProducer(t, c), at("t", 0), "a")
	f := newFakeStore()
	run(t, testConfig(c, "t"), f)
	f.waitRecords(t, at("t", 0), got{0, "a"})
	if id := f.found[0].Partitions[0].TopicID; id != [16]byte{} {
		t.Errorf("topic id %x from a broker that has none", id)
	}
}

func TestSASL(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(1, "t"), kfake.EnableSASL(), kfake.Superuser("PLAIN", "p", "secret"),
		kfake.Superuser("SCRAM-SHA-256", "s2", "secret"), kfake.Superuser("SCRAM-SHA-512", "s5", "secret"))
	s2, err2 := scram.Mechanism(scram.SHA256, "s2", "secret")
	s5, err5 := scram.Mechanism(scram.SHA512, "s5", "secret")
	if err := errors.Join(err2, err5); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(c, "t")
	cfg.SASL = plain.Mechanism{Username: "p", Password: "secret"}
	f := newFakeStore()
	run(t, cfg, f)
	f.wait(t, "answers with PLAIN", func() bool { return len(f.answers) > 0 })
	cfg.SASL = s2
	f = newFakeStore()
	run(t, cfg, f)
	f.wait(t, "answers with SCRAM-SHA-256", func() bool { return len(f.answers) > 0 })
	cfg.SASL = s5
	f = newFakeStore()
	run(t, cfg, f)
	f.wait(t, "answers with SCRAM-SHA-512", func() bool { return len(f.answers) > 0 })
	cfg.SASL = plain.Mechanism{Username: "p", Password: "wrong"}
	s, _ := run(t, cfg, newFakeStore())
	for deadline := time.Now().Add(patience); s.Status().Trouble == ""; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a wrong password is no trouble")
		}
	}
	if strings.Contains(s.Status().Trouble, "wrong") {
		t.Error("the password is in the status")
	}
}

func TestCommit(t *testing.T) {
	c := newCluster(t, kfake.SeedTopics(2, "t"))
	s, err := New(testConfig(c, "t"), newFakeStore())
	if err != nil {
		t.Fatal(err)
	}
	want := map[store.Partition]int64{at("t", 0): 5, at("t", 1): 7}
	commitUntil(t, s, want)
	info := c.GroupInfo("g")
	if info == nil || info.Commits["t"][0].Offset != 5 || info.Commits["t"][1].Offset != 7 || len(info.Members) > 0 {
		t.Errorf("group %+v", info)
	}
}

func commitUntil(t testing.TB, s *Source, offsets map[store.Partition]int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		err := s.Commit(ctx, "g", offsets)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func TestConfigFaults(t *testing.T) {
	_, err := New(Config{Topics: []Topics{{}}}, newFakeStore())
	if err == nil || !strings.Contains(err.Error(), "brokers") || !strings.Contains(err.Error(), "name or a pattern") {
		t.Errorf("got %v, want both faults", err)
	}
}

func TestClasses(t *testing.T) {
	for want, err := range map[string]error{
		"corrupt": &Corrupt{}, "too large": &largeAnswer{}, "connection": errors.New("x"), "Leader Not Available": kafka.LeaderNotAvailable,
	} {
		if got := class(err); got != want {
			t.Errorf("class of %v is %q, want %q", err, got, want)
		}
	}
}

func TestTLS(t *testing.T) {
	web := httptest.NewTLSServer(nil) // for its certificate
	defer web.Close()
	c := newCluster(t, kfake.SeedTopics(1, "t"), kfake.TLS(&tls.Config{Certificates: web.TLS.Certificates}))
	cfg := testConfig(c, "t")
	cfg.TLS = web.Client().Transport.(*http.Transport).TLSClientConfig
	f := newFakeStore()
	run(t, cfg, f)
	f.wait(t, "answers over TLS", func() bool { return len(f.answers) > 0 })
	cfg.TLS = &tls.Config{}
	s, _ := run(t, cfg, newFakeStore())
	for deadline := time.Now().Add(patience); !strings.Contains(s.Status().Trouble, "certificate"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("a certificate nobody vouches for is no trouble: %q", s.Status().Trouble)
		}
	}
}

func FuzzParseResponses(f *testing.F) {
	fetch := kmsg.FetchResponse{Version: fetchByName, Topics: []kmsg.FetchResponseTopic{{
		Topic: "t", TopicID: topicID{7}, Partitions: []kmsg.FetchResponseTopicPartition{{
			Partition: 3, HighWatermark: 9, LastStableOffset: 8, RecordBatches: text("x"),
			AbortedTransactions: []kmsg.FetchResponseTopicPartitionAbortedTransaction{{ProducerID: 1, FirstOffset: 2}},
		}},
	}}}
	f.Add(fetch.AppendTo(nil))
	fetch.Version = fetchByID
	f.Add(append([]byte{0}, fetch.AppendTo(nil)...))
	name := "t"
	meta := kmsg.MetadataResponse{Version: metadataVersion, Topics: []kmsg.MetadataResponseTopic{{
		Topic: &name, TopicID: [16]byte{1},
		Partitions: []kmsg.MetadataResponseTopicPartition{{Partition: 1, Leader: 2, LeaderEpoch: 3, Replicas: []int32{2}}},
	}}}
	f.Add(append([]byte{0}, meta.AppendTo(nil)...))
	f.Fuzz(func(t *testing.T, body []byte) {
		if mine, err := parseFetch(body); err == nil {
			sameFetch(t, mine, fetchByName, body)
		}
		if mine, err := parseFetchByID(body); err == nil {
			c := cursor{b: body}
			c.tags() // of the header, which the other does not read
			sameFetch(t, mine, fetchByID, c.b)
		}
		if mine, err := parseMetadata(body); err == nil {
			c := cursor{b: body}
			c.tags() // of the header, which the other does not read
			theirs := kmsg.MetadataResponse{Version: metadataVersion}
			if err := theirs.ReadFrom(c.b); err != nil {
				return // it minds names that are null, which we do not look at
			}
			for i, rt := range theirs.Topics {
				if m := mine.topics[i]; m.id != rt.TopicID || len(m.partitions) != len(rt.Partitions) {
					t.Fatalf("got %+v, franz-go has %+v", m, rt)
				}
			}
		}
	})
}

// sameFetch compares what we read of a fetch answer with what franz-go does.
func sameFetch(t *testing.T, mine *fetchAnswer, version int16, body []byte) {
	theirs := kmsg.FetchResponse{Version: version}
	switch err := theirs.ReadFrom(body); {
	case err != nil && version == fetchByID:
		return // it minds what stands in tagged fields, which we pass over
	case err != nil:
		t.Fatalf("we take a fetch answer that franz-go refuses: %v", err)
	}
	var want []fetchedPartition
	for _, rt := range theirs.Topics {
		for _, rp := range rt.Partitions {
			p := fetchedPartition{
				topic: rt.Topic, topicID: rt.TopicID, id: rp.Partition, code: kafka.Error(rp.ErrorCode),
				high: rp.HighWatermark, end: rp.LastStableOffset, start: rp.LogStartOffset, data: rp.RecordBatches,
			}
			for _, a := range rp.AbortedTransactions {
				p.aborted = append(p.aborted, Aborted{ProducerID: a.ProducerID, FirstOffset: a.FirstOffset})
			}
			if d := rp.DivergingEpoch; d.Epoch >= 0 {
				p.fork = &divergence{epoch: d.Epoch, end: d.EndOffset}
			}
			want = append(want, p)
		}
	}
	if d := cmp.Diff(want, mine.partitions, cmp.AllowUnexported(fetchedPartition{}, divergence{}), cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("fetch answer of version %d (-franz-go +ours):\n%s", version, d)
	}
}

// Once an answer is refused, nothing behind it is handed over before it is: also if the
// partition is wanted again while some wait.
func TestAgainSkipsNothing(t *testing.T) {
	id := at("t", 0)
	c := newCluster(t, kfake.SeedTopics(1, "t"))
	produce(t, newProducer(t, c), id, "a")
	f := newFakeStore()
	var s *Source
	entered, leave := make(chan struct{}), make(chan struct{})
	first := true
	f.handle = func(a *Answer) error { // one goroutine calls it
		if len(a.Records) > 0 && first {
			first = false
			close(entered)
			<-leave
			return ErrStop
		}
		return nil
	}
	s, _ = run(t, testConfig(c, "t"), f)
	<-entered
	produce(t, newProducer(t, c), id, "b")
	waitStatus(t, s, func(p PartitionStatus) bool { return p.Next == 2 }) // fetched, and waits
	s.Again("t")                                                          // before it is known that it has stopped
	close(leave)
	f.wait(t, "both are read", func() bool { return f.states[id].Next == 2 })
	if d := cmp.Diff([]got{{0, "a"}, {1, "b"}}, f.sofar(id)); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}
}
