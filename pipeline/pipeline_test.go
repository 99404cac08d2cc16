package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"tidemark/pipeline/decode"
	"tidemark/pipeline/source"
	"tidemark/store"
	"tidemark/store/fhir"
)

// patience is how long a test waits for what should happen.
const patience = 20 * time.Second

// A memory is a store in memory: every batch is durable at once, and it checks
// what the store relies on.
type memory struct {
	t testing.TB

	mu       sync.Mutex
	changed  chan struct{}
	now      fhir.Instant
	seq      uint64
	states   map[store.Partition]store.PartitionState
	topics   map[string][]byte
	held     map[store.Partition]string
	notes    map[string][]byte
	batches  []store.Batch
	letters  []store.DeadLetterRow
	complete bool
	refuse   error

	watermark fhir.Instant // None unless a test sets it
	waits     fhir.Instant
}

func newMemory(t testing.TB) *memory {
	return &memory{
		t: t, changed: make(chan struct{}), now: 1000, watermark: fhir.None, waits: fhir.None, states: map[store.Partition]store.PartitionState{},
		topics: map[string][]byte{}, held: map[store.Partition]string{}, notes: map[string][]byte{},
	}
}

// reopen is the store after a restart: only what is durable is left.
func (m *memory) reopen() *memory {
	n := newMemory(m.t)
	m.mu.Lock()
	defer m.mu.Unlock()
	n.now, n.seq, n.states, n.topics, n.letters = m.now, m.seq, maps.Clone(m.states), maps.Clone(m.topics), slices.Clone(m.letters)
	n.notes = maps.Clone(m.notes)
	return n
}

func (m *memory) touch() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *memory) Now() fhir.Instant {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now++
	return m.now
}

func (m *memory) Discover(d store.Discovery) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.complete = d.Complete
	for _, p := range d.Partitions {
		if _, ok := m.states[p.Partition]; !ok {
			m.states[p.Partition] = store.PartitionState{Next: p.Start, LeaderEpoch: -1, TopicID: p.TopicID, Seen: fhir.None}
		}
	}
	m.touch()
	return nil
}

func (m *memory) Apply(_ context.Context, b store.Batch) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return m.refuse
	}
	s, ok := m.states[b.Partition]
	if !ok {
		m.t.Errorf("a batch of %v, which was never discovered", b.Partition)
	}
	if b.Next < s.Next {
		m.t.Errorf("%v goes back from %d to %d", b.Partition, s.Next, b.Next)
	}
	s.Next, s.LeaderEpoch = b.Next, b.LeaderEpoch
	m.states[b.Partition] = s
	if b.Topic != nil {
		m.topics[b.Partition.Topic] = b.Topic
	}
	for _, n := range b.Notes {
		m.note(n.Name, n.Value)
	}
	m.letters = slices.DeleteFunc(m.letters, func(r store.DeadLetterRow) bool { return slices.Contains(b.Resolved, r.Bound) })
	last := int64(-1)
	for _, c := range b.Changes {
		if b.Resolved == nil && c.Offset < last || c.Offset >= b.Next {
			m.t.Errorf("%v: offset %d after %d in a batch that ends at %d", b.Partition, c.Offset, last, b.Next)
		}
		last = c.Offset
		m.seq++
		if c.Dead != nil {
			m.letters = append(m.letters, store.DeadLetterRow{
				Bound: store.Bound{Seq: m.seq}, Partition: b.Partition, Offset: c.Offset,
				Timestamp: c.Timestamp, DeadLetter: *c.Dead,
			})
		}
	}
	m.batches = append(m.batches, b)
	m.touch()
	return nil
}

func (m *memory) Decide(_ context.Context, d store.Decision) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.states[d.Partition] = store.PartitionState{Next: d.Next, LeaderEpoch: -1, TopicID: d.TopicID, Seen: m.now}
	m.touch()
	return nil
}

func (m *memory) Forget(p store.Partition) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.states, p)
	delete(m.held, p)
	m.touch()
	return nil
}

// Flush does nothing: each batch is durable at once.
func (m *memory) Flush() error { return nil }

func (m *memory) note(name string, what []byte) {
	if m.notes[name] = what; what == nil {
		delete(m.notes, name)
	}
}

func (m *memory) Remember(name string, what []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note(name, what)
	return nil
}

func (m *memory) Remembered(name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.notes[name], nil
}

func (m *memory) EachRemembered(prefix string, fn func(name string, what []byte) error) error {
	m.mu.Lock()
	all := maps.Clone(m.notes)
	m.mu.Unlock()
	for name, what := range all {
		if strings.HasPrefix(name, prefix) {
			if err := fn(name, what); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *memory) Rewind(p store.Partition, offset int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.states[p]
	s.Next = min(s.Next, offset)
	m.states[p] = s
	return nil
}

func (m *memory) ReachedBeside(string) fhir.Instant { return m.Reached() }

func (m *memory) Reached() fhir.Instant {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.watermark
}

func (m *memory) Wait(least fhir.Instant) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waits = least
}

func (m *memory) Partition(p store.Partition) (store.PartitionState, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.states[p]
	return s, ok
}

func (m *memory) Topic(name string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.topics[name]
}

func (m *memory) Hold(p store.Partition, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held[p] == "" {
		m.held[p] = reason
	}
	m.touch()
}

func (m *memory) Release(p store.Partition) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.held, p)
	m.touch()
}

func (m *memory) Committed() map[store.Partition]int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[store.Partition]int64{}
	for p, s := range m.states {
		out[p] = s.Next
	}
	return out
}

func (m *memory) DeadLetters(topic string, fn func(store.DeadLetterRow) error) error {
	m.mu.Lock()
	rows := slices.Clone(m.letters)
	m.mu.Unlock()
	for _, r := range rows {
		if topic == "" || r.Partition.Topic == topic {
			if err := fn(r); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *memory) wait(what string, cond func() bool) {
	m.t.Helper()
	deadline := time.After(patience)
	for {
		m.mu.Lock()
		ok, changed := cond(), m.changed
		m.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			m.mu.Lock()
			m.t.Fatalf("%s: did not happen; states %v, held %v, %d dead letters", what, m.states, m.held, len(m.letters))
		}
	}
}

func (m *memory) waitNext(id store.Partition, next int64) {
	m.t.Helper()
	m.wait(fmt.Sprintf("offset %d of %v", next, id), func() bool { return m.states[id].Next == next })
}

// ids lists what was applied of a partition: ids of resources, or the reasons
// of dead letters.
func (m *memory) ids(id store.Partition) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, b := range m.batches {
		for _, c := range b.Changes {
			switch {
			case b.Partition != id:
			case c.Dead != nil:
				out = append(out, "dead: "+c.Dead.Reason)
			default:
				out = append(out, c.Key.ID)
			}
		}
	}
	return out
}

func (m *memory) state(name string) topicState {
	m.mu.Lock()
	defer m.mu.Unlock()
	var s topicState
	if b := m.topics[name]; b != nil {
		if err := json.Unmarshal(b, &s); err != nil {
			m.t.Fatal(err)
		}
	}
	return s
}

// A prefixed decoder takes values that begin with the name of its format; a
// gate that is closed is a registry that is away.
type prefixed struct {
	format string
	gate   *gate
}

type gate struct {
	mu     sync.Mutex
	closed bool
	tried  int
}

func (g *gate) set(closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = closed
}

func (g *gate) try() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tried++
	return !g.closed
}

func (d prefixed) Decode(rec decode.Record) ([]store.Change, error) {
	name, rest, _ := strings.Cut(string(rec.Value), ":")
	if name == "gated" && !d.gate.try() {
		return nil, errors.New("registry is away")
	}
	if name != "gated" && name != d.format {
		return nil, &decode.Error{Topic: rec.Topic, Partition: rec.Partition, Offset: rec.Offset, Reason: "not " + d.format}
	}
	if rest == "dropped" {
		return nil, nil
	}
	patient, _ := fhir.ParseType("Patient")
	return []store.Change{{Key: fhir.Key{Type: patient, ID: rest}, Offset: rec.Offset, Timestamp: rec.Timestamp}}, nil
}

// A rig is a broker and a pipeline with the topic "t".
type rig struct {
	t       testing.TB
	cluster *kfake.Cluster
	client  *kgo.Client
	gate    *gate
	opts    Options
}

func newRig(t testing.TB, partitions int32) *rig {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, "t"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	r := &rig{t: t, cluster: c, gate: &gate{}}
	r.connect()
	r.opts = Options{
		Source: source.Config{
			Brokers: c.ListenAddrs(), MaxWait: 20 * time.Millisecond, Refresh: 100 * time.Millisecond,
			RetryMin: 5 * time.Millisecond, RetryMax: 50 * time.Millisecond,
		},
		Topics: []Topic{{Name: "t", Format: "a", StopAfter: 3}},
		NewDecoder: func(format string, _ decode.Options) (decode.Decoder, error) {
			if format == "" {
				return nil, errors.New("no format")
			}
			return prefixed{format, r.gate}, nil
		},
	}
	return r
}

// connect makes a new producer.
func (r *rig) connect() {
	r.t.Helper()
	var err error
	r.client, err = kgo.NewClient(kgo.SeedBrokers(r.cluster.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.client.Close)
}

func (r *rig) produce(id store.Partition, vs ...string) {
	r.t.Helper()
	var rs []*kgo.Record
	for _, v := range vs {
		rs = append(rs, &kgo.Record{Topic: id.Topic, Partition: id.ID, Key: []byte("k"), Value: []byte(v)})
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if err := r.client.ProduceSync(ctx, rs...).FirstErr(); err != nil {
		r.t.Fatal(err)
	}
}

// run starts a pipeline into s and returns it with what stops it and waits.
func (r *rig) run(s Store) (*Pipeline, func()) {
	r.t.Helper()
	p, err := New(r.opts, s)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				r.t.Errorf("run: %v", err)
			}
		case <-time.After(patience):
			r.t.Error("run does not end")
		}
	})
	r.t.Cleanup(stop)
	return p, stop
}

func at(topic string, id int32) store.Partition { return store.Partition{Topic: topic, ID: id} }

func wantIDs(t testing.TB, m *memory, id store.Partition, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, m.ids(id)); diff != "" {
		t.Errorf("applied of %v (-want +got):\n%s", id, diff)
	}
}

func TestAppliesInOrder(t *testing.T) {
	r := newRig(t, 3)
	m := newMemory(t)
	want := map[store.Partition][]string{}
	for i := range 60 {
		id := at("t", int32(i%3))
		r.produce(id, fmt.Sprintf("a:%d", i))
		want[id] = append(want[id], fmt.Sprint(i))
	}
	_, stop := r.run(m)
	for id := range want {
		m.waitNext(id, 20)
		wantIDs(t, m, id, want[id]...)
	}
	m.wait("an answer without records", func() bool { b := m.batches[len(m.batches)-1]; return len(b.Changes) == 0 && b.Next == b.End })
	stop()
	if !m.complete {
		t.Error("the store was not told that everything is there")
	}
	for _, b := range m.batches {
		if b.Topic != nil {
			t.Errorf("good records changed the topic's state to %s", b.Topic)
		}
	}
}

func TestDeadLettersTravelAlong(t *testing.T) {
	r := newRig(t, 1)
	id := at("t", 0)
	r.produce(id, "a:1", "x:secret", "a:2", "a:dropped", "x:secret", "x:secret")
	m := newMemory(t)
	p, stop := r.run(m)
	m.waitNext(id, 6)
	stop()
	wantIDs(t, m, id, "1", "dead: not a", "2", "dead: not a", "dead: not a")
	if got, want := m.state("t"), (topicState{"a", 2}); got != want {
		t.Errorf("state %+v, want %+v", got, want)
	}
	if l := m.letters[0]; l.Offset != 1 || string(l.Value) != "x:secret" || string(l.Key) != "k" || l.Length != 8 {
		t.Errorf("dead letter %+v", l)
	}
	if s := p.Status().Topics[0]; s.DeadLetters != 2 || s.Held != "" {
		t.Errorf("topic status %+v", s)
	}
}

func TestHoldsATopicOfDeadLetters(t *testing.T) {
	r := newRig(t, 2)
	id, other := at("t", 0), at("t", 1)
	r.produce(id, "a:1", "x:", "x:", "x:", "x:", "a:2")
	m := newMemory(t)
	p, stop := r.run(m)
	m.wait("hold of both partitions", func() bool { return m.held[id] != "" && m.held[other] != "" })
	m.waitNext(id, 4)
	wantIDs(t, m, id, "1", "dead: not a", "dead: not a", "dead: not a")
	r.produce(other, "a:3")
	waitStopped(t, p, 2)
	stop()
	wantIDs(t, m, other)
	if !strings.Contains(m.held[id], "stop_after") || strings.Contains(m.held[id], "x:") {
		t.Errorf("reason %q", m.held[id])
	}
	if s := p.Status(); s.Topics[0].Held == "" || s.Partitions[0].Held == "" {
		t.Errorf("status %+v", s)
	}

	// It stays held after a restart,
	m = m.reopen()
	_, stop = r.run(m)
	m.wait("hold after a restart", func() bool { return m.held[id] != "" && m.held[other] != "" })
	stop()
	if n := m.states[id].Next; n != 4 {
		t.Errorf("a held topic was read on to %d", n)
	}

	// until somebody allows more.
	r.opts.Topics[0].StopAfter = -1
	m = m.reopen()
	_, stop = r.run(m)
	m.waitNext(id, 6)
	m.waitNext(other, 1)
	stop()
	wantIDs(t, m, id, "dead: not a", "2")
	if len(m.held) > 0 {
		t.Errorf("still held: %v", m.held)
	}
}

// waitStopped waits until so many partitions are no longer read.
func waitStopped(t testing.TB, p *Pipeline, n int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		stopped := 0
		for _, s := range p.source.Status().Partitions {
			if s.Stopped {
				stopped++
			}
		}
		if stopped == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d partitions have stopped, want %d", stopped, n)
		}
	}
}

func TestGoodRecordsEndARun(t *testing.T) {
	r := newRig(t, 1)
	id := at("t", 0)
	for range 4 {
		r.produce(id, "x:", "x:", "a:dropped")
	}
	m := newMemory(t)
	_, stop := r.run(m)
	m.waitNext(id, 12)
	stop()
	if len(m.held) > 0 || m.state("t").Run != 0 {
		t.Errorf("held %v, state %+v", m.held, m.state("t"))
	}
}

func TestChangedFormatDecodesAgain(t *testing.T) {
	r := newRig(t, 2)
	id, other := at("t", 0), at("t", 1)
	r.produce(id, "x:old", "a:1", "b:1", "x:never")
	m := newMemory(t)
	_, stop := r.run(m)
	m.waitNext(id, 4)
	r.produce(other, "b:2")
	m.wait("hold", func() bool { return len(m.held) == 2 })
	stop()
	if len(m.letters) != 4 {
		t.Fatalf("%d dead letters, want 4", len(m.letters))
	}

	r.opts.Topics[0].Format = "b"
	m = m.reopen()
	p, stop := r.run(m)
	r.produce(id, "b:3")
	m.waitNext(id, 5)
	m.wait("the new format", func() bool { return strings.Contains(string(m.topics["t"]), `"b"`) })
	stop()
	wantIDs(t, m, id, "1", "3")
	wantIDs(t, m, other, "2")
	// What lay before the last good record stays as it is.
	var left []string
	for _, l := range m.letters {
		left = append(left, string(l.Value))
	}
	slices.Sort(left)
	if diff := cmp.Diff([]string{"x:never", "x:old"}, left); diff != "" {
		t.Errorf("dead letters left (-want +got):\n%s", diff)
	}
	if got, want := m.state("t"), (topicState{"b", 0}); got != want || len(m.held) > 0 {
		t.Errorf("state %+v, want %+v; held %v", got, want, m.held)
	}
	for _, b := range m.batches {
		if b.Resolved != nil && b.Asked != fhir.None {
			t.Errorf("decoding again claims to know the end of the log at %v", b.Asked)
		}
	}
	if s := p.Status().Topics[0]; s.Format != "b" || s.DeadLetters != 0 {
		t.Errorf("status %+v", s)
	}
}

func TestWrongFormatAgainHoldsAgain(t *testing.T) {
	r := newRig(t, 1)
	id := at("t", 0)
	r.produce(id, "b:1", "b:2", "b:3")
	m := newMemory(t)
	_, stop := r.run(m)
	m.wait("hold", func() bool { return m.held[id] != "" })
	stop()
	r.opts.Topics[0].Format = "c"
	m = m.reopen()
	_, stop = r.run(m)
	m.wait("hold again", func() bool { return strings.Contains(m.held[id], `"c"`) })
	stop()
	r.opts.Topics[0].Format = "b"
	m = m.reopen()
	r.run(m)
	m.wait("nothing dead", func() bool { return len(m.letters) == 0 })
	wantIDs(t, m, id, "1", "2", "3")
}

// A crash while dead letters are decoded again must lose none of them.
func TestCrashWhileDecodingAgain(t *testing.T) {
	r := newRig(t, 2)
	r.opts.Topics[0].StopAfter = -1
	r.produce(at("t", 0), "b:1", "x:", "b:2")
	r.gate.set(true)
	m := newMemory(t)
	r.opts.NewDecoder = func(format string, _ decode.Options) (decode.Decoder, error) {
		if format == "a" { // knows nothing of gates
			return refusing{}, nil
		}
		return prefixed{format, r.gate}, nil
	}
	_, stop := r.run(m)
	m.waitNext(at("t", 0), 3)
	r.produce(at("t", 1), "b:3", "gated:4")
	m.wait("five dead letters", func() bool { return len(m.letters) == 5 })
	stop()

	r.opts.Topics[0].Format = "b"
	m = m.reopen()
	_, stop = r.run(m)
	m.wait("one partition done", func() bool { return len(m.letters) <= 3 })
	stop() // the other one waits for the gate
	if s := m.state("t"); s.Format != "a" || s.Run != 3 {
		t.Fatalf("state %+v, want 3 letters of the old format", s)
	}
	r.gate.set(false)
	m = m.reopen()
	_, stop = r.run(m)
	m.wait("the new format", func() bool { return strings.Contains(string(m.topics["t"]), `"b"`) })
	stop()
	if got, want := m.state("t"), (topicState{"b", 0}); got != want || len(m.letters) != 1 {
		t.Errorf("state %+v, want %+v, with %d dead letters", got, want, len(m.letters))
	}
}

type refusing struct{}

func (refusing) Decode(decode.Record) ([]store.Change, error) {
	return nil, &decode.Error{Reason: "refused"}
}

func TestWaitsForARegistry(t *testing.T) {
	r := newRig(t, 2)
	r.gate.set(true)
	r.produce(at("t", 0), "gated:1", "a:2")
	m := newMemory(t)
	p, _ := r.run(m)
	r.produce(at("t", 1), "a:3")
	m.waitNext(at("t", 1), 1) // goes on
	if s, _ := m.Partition(at("t", 0)); s.Next != 0 {
		t.Errorf("next %d past a record that waits", s.Next)
	}
	m.wait("it is known what waits", func() bool { return strings.HasPrefix(m.held[at("t", 0)], "offset 0 cannot be decoded yet") })
	why := func() (all []string) {
		for _, s := range p.Status().Partitions {
			all = append(all, s.why())
		}
		return all
	}
	if got := why(); !slices.Equal(got, []string{"decoding", ""}) {
		t.Errorf("status says that partitions wait for %q", got)
	}
	r.gate.set(false)
	m.waitNext(at("t", 0), 2)
	wantIDs(t, m, at("t", 0), "1", "2")
	m.wait("nothing waits", func() bool { return m.held[at("t", 0)] == "" })
	if got := why(); !slices.Equal(got, []string{"", ""}) {
		t.Errorf("status says that partitions wait for %q", got)
	}
}

func TestOversizedRecords(t *testing.T) {
	r := newRig(t, 1)
	r.opts.MaxRecord = 100_000
	value := "a:" + strings.Repeat("v", 200_000)
	r.produce(at("t", 0), value, "a:1")
	m := newMemory(t)
	_, stop := r.run(m)
	m.waitNext(at("t", 0), 2)
	stop()
	wantIDs(t, m, at("t", 0), "dead: "+oversize, "1")
	l := m.letters[0]
	if !l.Truncated || l.Length != int64(len(value)) || len(l.SHA256) != 64 || len(l.Value) != 64<<10 {
		t.Errorf("dead letter: truncated %v, length %d, hash %q, kept %d", l.Truncated, l.Length, l.SHA256, len(l.Value))
	}
}

func TestHoldsWhatIsAbsent(t *testing.T) {
	r := newRig(t, 1)
	r.opts.Topics = append(r.opts.Topics, Topic{Pattern: regexp.MustCompile("^later"), Format: "a"})
	m := newMemory(t)
	gone, later := at("gone", 0), at("later", 0)
	m.states[gone] = store.PartitionState{Next: 5, LeaderEpoch: -1, Seen: fhir.None}
	m.states[later] = store.PartitionState{LeaderEpoch: -1, Seen: fhir.None}
	r.run(m)
	m.wait("holds", func() bool {
		return strings.Contains(m.held[gone], "no longer configured") && strings.Contains(m.held[later], "broker does not have")
	})
	if err := r.cluster.CreateTopic("later", 1, nil); err != nil {
		t.Fatal(err)
	}
	r.produce(later, "a:1")
	m.waitNext(later, 1)
	m.wait("release", func() bool { return m.held[later] == "" && m.held[gone] != "" })
}

func TestGapsReachStoreAndStatus(t *testing.T) {
	r := newRig(t, 1)
	id := at("t", 0)
	r.produce(id, "a:1", "a:2")
	if err := r.cluster.DeleteRecords("t", 0, 2); err != nil {
		t.Fatal(err)
	}
	m := newMemory(t)
	m.states[id] = store.PartitionState{Next: 1, LeaderEpoch: -1, Seen: fhir.None}
	p, _ := r.run(m)
	m.wait("hold", func() bool { return strings.HasPrefix(m.held[id], "gap in t/0") })
	if s := p.Status().Partitions; len(s) > 0 && s[0].Gap == "" {
		t.Errorf("status %+v", s)
	}
}

func TestStoreErrorsEndRun(t *testing.T) {
	r := newRig(t, 1)
	m := newMemory(t)
	m.refuse = errors.New("sync failed")
	p, err := New(r.opts, m)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context()); !errors.Is(err, m.refuse) {
		t.Errorf("run ended with %v", err)
	}
}

func TestMirrorsOffsets(t *testing.T) {
	r := newRig(t, 2)
	r.opts.Group, r.opts.MirrorEvery = "lag", 10*time.Millisecond
	r.produce(at("t", 1), "a:1", "a:2")
	m := newMemory(t)
	m.states[at("gone", 0)] = store.PartitionState{Next: 5} // must not spoil it
	r.run(m)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := r.cluster.WaitGroupInfo(ctx, "lag", func(g *kfake.GroupInfo) bool {
		return g != nil && g.Commits["t"][1].Offset == 2 && len(g.Members) == 0
	})
	if err != nil {
		t.Error(err)
	}
}

func TestTelemetryHoldsNothingOfRecords(t *testing.T) {
	r := newRig(t, 1)
	id := at("t", 0)
	var log lockedBuffer
	reader := sdk.NewManualReader()
	r.opts.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.opts.Meter = sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("test")
	spans := tracetest.NewInMemoryExporter()
	r.opts.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)).Tracer("test")
	r.produce(id, "a:canary", "x:canary", "x:canary", "x:canary")
	m := newMemory(t)
	p, stop := r.run(m)
	m.wait("hold", func() bool { return m.held[id] != "" })
	var rm metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &rm); err != nil {
		t.Fatal(err)
	}
	all, err := json.Marshal(rm)
	if err != nil {
		t.Fatal(err)
	}
	status, err := json.Marshal(p.Status())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pipeline.records", "pipeline.bytes", "pipeline.dead_letters", "pipeline.lag", "pipeline.held"} {
		if !bytes.Contains(all, []byte(name)) {
			t.Errorf("no metric %s", name)
		}
	}
	stop()
	traces := fmt.Sprintf("%+v", spans.GetSpans())
	if !strings.Contains(traces, "pipeline.batch") {
		t.Error("no batch was traced")
	}
	for what, text := range map[string]string{
		"metrics": string(all), "log": log.String(), "status": string(status), "reason": m.held[id], "traces": traces,
	} {
		if strings.Contains(text, "canary") {
			t.Errorf("%s hold what a record held: %s", what, text)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestOptionFaults(t *testing.T) {
	_, err := New(Options{Topics: []Topic{{Name: "t", Format: "nonsense"}}}, newMemory(t))
	if err == nil || !strings.Contains(err.Error(), "nonsense") || !strings.Contains(err.Error(), "brokers") {
		t.Errorf("got %v, want both faults", err)
	}
}
