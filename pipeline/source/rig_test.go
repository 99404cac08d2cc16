package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tidemark/store"
	"tidemark/store/fhir"
)

// patience is how long a test waits for what should happen.
const patience = 20 * time.Second

func newCluster(t testing.TB, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func newProducer(t testing.TB, c *kfake.Cluster, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(c.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner())}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// produce writes values to a partition and waits for it.
func produce(t testing.TB, cl *kgo.Client, id store.Partition, vs ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var rs []*kgo.Record
	for _, v := range vs {
		rs = append(rs, &kgo.Record{Topic: id.Topic, Partition: id.ID, Key: text("k"), Value: text(v)})
	}
	if err := cl.ProduceSync(ctx, rs...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func at(topic string, id int32) store.Partition { return store.Partition{Topic: topic, ID: id} }

// A fakeStore is the Log and the Handler of a source in tests: it keeps what
// arrives, as the store would.
type fakeStore struct {
	mu      sync.Mutex
	changed chan struct{}
	now     fhir.Instant
	states  map[store.Partition]store.PartitionState
	found   []store.Discovery
	answers map[store.Partition][]*Answer
	held    map[store.Partition]string
	handle  func(*Answer) error // called without the lock, may be nil
}

// errDiscard says that an answer need not be kept.
var errDiscard = errors.New("discard")

func newFakeStore() *fakeStore {
	return &fakeStore{
		changed: make(chan struct{}), now: 1000,
		states:  map[store.Partition]store.PartitionState{},
		answers: map[store.Partition][]*Answer{}, held: map[store.Partition]string{},
	}
}

func (f *fakeStore) update(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeStore) Now() fhir.Instant {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now++
	return f.now
}

func (f *fakeStore) Partition(id store.Partition) (store.PartitionState, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.states[id]
	return s, ok
}

func (f *fakeStore) Discover(_ context.Context, d store.Discovery) error {
	f.update(func() {
		f.found = append(f.found, d)
		for _, p := range d.Partitions {
			if _, ok := f.states[p.Partition]; !ok {
				f.states[p.Partition] = store.PartitionState{Next: p.Start, LeaderEpoch: -1, TopicID: p.TopicID, Seen: fhir.None}
			}
		}
	})
	return nil
}

func (f *fakeStore) Handle(_ context.Context, a *Answer) error {
	if f.handle != nil {
		if err := f.handle(a); errors.Is(err, errDiscard) {
			return nil
		} else if err != nil {
			return err
		}
	}
	f.update(func() {
		s := f.states[a.Partition]
		s.Next, s.LeaderEpoch = a.Next, a.LeaderEpoch
		if a.Next >= a.End {
			s.Seen = a.Asked
		}
		f.states[a.Partition] = s
		f.answers[a.Partition] = append(f.answers[a.Partition], a)
	})
	return nil
}

func (f *fakeStore) Hold(id store.Partition, reason string) {
	f.update(func() { f.held[id] = reason })
}

func (f *fakeStore) Release(id store.Partition) {
	f.update(func() { delete(f.held, id) })
}

// wait waits until cond, called with the lock held, is true.
func (f *fakeStore) wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		f.mu.Lock()
		ok, changed := cond(), f.changed
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s: did not happen", what)
		}
	}
}

// records lists a partition's records so far. Called with the lock held.
func (f *fakeStore) records(id store.Partition) []got {
	var out []got
	for _, a := range f.answers[id] {
		out = append(out, gotten(a.Records)...)
	}
	return out
}

// sofar is records for callers without the lock: other answers may still come.
func (f *fakeStore) sofar(id store.Partition) []got {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.records(id)
}

// told lists a partition's answers so far.
func (f *fakeStore) told(id store.Partition) []*Answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.answers[id])
}

func (f *fakeStore) waitRecords(t testing.TB, id store.Partition, want ...got) {
	t.Helper()
	f.wait(t, fmt.Sprintf("records %v of %v", want, id), func() bool {
		have := f.records(id)
		if len(have) >= len(want) && !slices.Equal(have, want) {
			t.Fatalf("records of %v are %v, want %v", id, have, want)
		}
		return slices.Equal(have, want)
	})
}

func (f *fakeStore) waitNext(t testing.TB, id store.Partition, next int64) {
	t.Helper()
	f.wait(t, fmt.Sprintf("offset %d of %v", next, id), func() bool { return f.states[id].Next == next })
}

func (f *fakeStore) waitHeld(t testing.TB, id store.Partition) string {
	t.Helper()
	var reason string
	f.wait(t, fmt.Sprintf("hold of %v", id), func() bool { reason = f.held[id]; return reason != "" })
	return reason
}

// testConfig reads the named topics with short pauses.
func testConfig(c *kfake.Cluster, topics ...string) Config {
	cfg := Config{
		Brokers: c.ListenAddrs(), MaxWait: 20 * time.Millisecond, Refresh: 100 * time.Millisecond,
		RetryMin: 5 * time.Millisecond, RetryMax: 50 * time.Millisecond, Grace: time.Minute, RequestTimeout: 5 * time.Second,
	}
	for _, name := range topics {
		cfg.Topics = append(cfg.Topics, Topics{Name: name})
	}
	return cfg
}

// run starts a source and returns it with what stops it and waits.
func run(t testing.TB, cfg Config, f *fakeStore) (*Source, func()) {
	t.Helper()
	s, err := New(cfg, f)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, f) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(patience):
			t.Error("run does not end")
		}
	})
	t.Cleanup(stop)
	return s, stop
}

// answerFetch answers every Fetch of one topic with crafted record batches:
// all of those in log that lie at or behind the wanted offset.
type crafted struct {
	log     []byte
	aborted []Aborted
	start   int64
	end     int64
	code    int16
	fork    func(epoch int32, offset int64) *divergence // may be nil
}

func (c *crafted) from(offset int64) []byte {
	for data := c.log; len(data) > 0; {
		size, whole := batchSize(data)
		if !whole {
			return data
		}
		if b, _ := parseHeader(data[:size]); b.last >= offset {
			return data
		}
		data = data[size:]
	}
	return nil
}

func serve(t testing.TB, c *kfake.Cluster, logs func(topic string, id int32) crafted) {
	t.Helper()
	c.ControlKey(int16(kmsg.Fetch), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		req := kreq.(*kmsg.FetchRequest)
		if req.Version != fetchByID || req.SessionEpoch != -1 || req.IsolationLevel != 1 {
			t.Errorf("fetch v%d with session epoch %d, isolation level %d", req.Version, req.SessionEpoch, req.IsolationLevel)
		}
		res := req.ResponseKind().(*kmsg.FetchResponse)
		res.Version = req.Version
		for _, rt := range req.Topics {
			out := kmsg.NewFetchResponseTopic()
			out.Topic, out.TopicID = rt.Topic, rt.TopicID
			for _, rp := range rt.Partitions {
				l := logs(rt.Topic, rp.Partition)
				p := kmsg.NewFetchResponseTopicPartition()
				p.Partition, p.ErrorCode = rp.Partition, l.code
				p.HighWatermark, p.LastStableOffset, p.LogStartOffset = l.end, l.end, l.start
				p.RecordBatches = bytes.Clone(l.from(rp.FetchOffset))
				for _, a := range l.aborted {
					p.AbortedTransactions = append(p.AbortedTransactions,
						kmsg.FetchResponseTopicPartitionAbortedTransaction{ProducerID: a.ProducerID, FirstOffset: a.FirstOffset})
				}
				if l.fork != nil {
					if d := l.fork(rp.LastFetchedEpoch, rp.FetchOffset); d != nil {
						p.DivergingEpoch.Epoch, p.DivergingEpoch.EndOffset = d.epoch, d.end
						p.RecordBatches = nil
					}
				}
				out.Partitions = append(out.Partitions, p)
			}
			res.Topics = append(res.Topics, out)
		}
		return res, nil, true
	})
}

func testLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
