package pipeline

import (
	"context"
	"strings"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"tidemark/store"
)

// A fullStore has no room for changes of the topic t until it is given some.
type fullStore struct {
	*memory
	waits chan store.Batch // those that find no room
	room  chan struct{}
}

func newFullStore(m *memory) *fullStore {
	return &fullStore{memory: m, waits: make(chan store.Batch, 10), room: make(chan struct{})}
}

func (f *fullStore) Apply(ctx context.Context, b store.Batch) error {
	if b.Partition.Topic == "t" && len(b.Changes) > 0 {
		f.waits <- b
		select {
		case <-f.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return f.memory.Apply(ctx, b)
}

func (f *fullStore) wait(t *testing.T) store.Batch {
	t.Helper()
	select {
	case b := <-f.waits:
		return b
	case <-time.After(patience):
		t.Fatal("no batch waits for room")
		return store.Batch{}
	}
}

// wantAnswers asks all that must not wait for the store.
func wantAnswers(t *testing.T, p *Pipeline, reader sdk.Reader) {
	t.Helper()
	id := at("t", 0)
	d := store.Discovery{Partitions: []store.Discovered{{Partition: id}}}
	for what, ask := range map[string]func(){
		"status":   func() { p.Status() },
		"metrics":  func() { _ = reader.Collect(t.Context(), &metricdata.ResourceMetrics{}) },
		"discover": func() { _ = intake{p}.Discover(t.Context(), d) },
		"hold":     func() { intake{p}.Hold(id, "test"); intake{p}.Release(id) },
		"is held":  func() { p.topic("t").isHeld() },
	} {
		done := make(chan struct{})
		go func() { defer close(done); ask() }()
		select {
		case <-done:
		case <-time.After(patience / 4):
			t.Errorf("%s waits for the store", what)
		}
	}
}

// Only what needs room waits for it, and whatever waits, the state that is
// stored last is the newest.
func TestOnlyBatchesWaitForTheStore(t *testing.T) {
	r := newRig(t, 3)
	reader := sdk.NewManualReader()
	r.opts.Meter = sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("test")
	r.opts.Topics = append(r.opts.Topics, Topic{Name: "u", Format: "a"})
	if err := r.cluster.CreateTopic("u", 1, nil); err != nil {
		t.Fatal(err)
	}
	m := newMemory(t)
	f := newFullStore(m)
	p, stop := r.run(f)
	r.produce(at("t", 0), "x:")
	f.wait(t)
	wantAnswers(t, p, reader)
	r.produce(at("u", 0), "a:1")
	m.waitNext(at("u", 0), 1)

	// The good record is counted behind the dead letter.
	r.produce(at("t", 1), "a:2")
	answers := 0
	m.wait("answers without records", func() bool {
		if b := m.batches[len(m.batches)-1]; b.Partition == at("t", 2) {
			answers++
		}
		return answers > 3
	})
	close(f.room)
	m.waitNext(at("t", 1), 1)
	m.waitNext(at("t", 0), 1)
	stop()
	if s := m.state("t"); s.Run != 0 {
		t.Errorf("state %+v is older than the last good record", s)
	}
}

// Dead letters that are decoded again wait like records.
func TestDecodingAgainWaitsForTheStore(t *testing.T) {
	r := newRig(t, 1)
	reader := sdk.NewManualReader()
	r.produce(at("t", 0), "b:1", "b:2")
	m := newMemory(t)
	_, stop := r.run(m)
	m.waitNext(at("t", 0), 2)
	stop()

	r.opts.Topics[0].Format = "b"
	r.opts.Meter = sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("test")
	m = m.reopen()
	f := newFullStore(m)
	p, stop := r.run(f)
	if b := f.wait(t); len(b.Resolved) != 2 {
		t.Fatalf("a batch of %d dead letters waits", len(b.Resolved))
	}
	wantAnswers(t, p, reader)
	close(f.room)
	m.wait("the new format", func() bool { return strings.Contains(string(m.topics["t"]), `"b"`) })
	stop()
	wantIDs(t, m, at("t", 0), "1", "2")
}

// A topic that is held says what to correct: of rows it is seldom the format.
func TestHeldSaysWhatToCorrect(t *testing.T) {
	for format, want := range map[string]string{
		"bundle":   "correct the topic's format and restart",
		"debezium": "correct the topic's format, preset or tables and restart",
		"avro":     "correct the topic's format, preset or tables and restart",
	} {
		if got := (&topic{name: "t", cfg: Topic{Format: format}}).reason(); !strings.Contains(got, want) {
			t.Errorf("%s: %q is not in %q", format, want, got)
		}
	}
}
