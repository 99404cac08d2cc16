//go:build integration

package source

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tidemark/store"
	"tidemark/store/fhir"
)

// These run against a real Kafka: make integration starts one.

// transact writes values in a transaction and leaves it open.
func transact(t *testing.T, cl *kgo.Client, id store.Partition, vs ...string) {
	t.Helper()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	produce(t, cl, id, vs...)
}

func endTransaction(t *testing.T, cl *kgo.Client, how kgo.TransactionEndTry) {
	t.Helper()
	if err := cl.EndTransaction(t.Context(), how); err != nil {
		t.Fatal(err)
	}
}

func TestIntegrationTransactions(t *testing.T) {
	r := newReal(t, 1)
	id := at(r.topic, 0)
	f := newFakeStore()
	run(t, r.config(), f)
	a := r.client(kgo.TransactionalID(r.topic + "-a"))
	b := r.client(kgo.TransactionalID(r.topic + "-b"))
	var want []got
	next := int64(0)
	for i := range 20 {
		transact(t, a, id, "a")
		transact(t, b, id, "b")
		produce(t, a, id, "a again") // a batch behind another transaction's
		how := kgo.TryAbort
		if i%3 == 0 {
			how, want = kgo.TryCommit, append(want, got{next, "a"})
		}
		want = append(want, got{next + 1, "b"})
		if how == kgo.TryCommit {
			want = append(want, got{next + 2, "a again"})
		}
		endTransaction(t, a, how)
		endTransaction(t, b, kgo.TryCommit)
		next += 5 // with two markers
		f.waitNext(t, id, next)
	}
	f.waitRecords(t, id, want...)
	r.reads(r.config(), id, 0, next, want...)
	if diff := cmp.Diff(want, consumed(r.consumes(id, len(want)))); diff != "" {
		t.Errorf("another client's records (-want +got):\n%s", diff)
	}
}

func TestIntegrationOpenTransactionHidesWhatLiesBehindIt(t *testing.T) {
	r := newReal(t, 2)
	id, other := at(r.topic, 0), at(r.topic, 1)
	f := newFakeStore()
	s, _ := run(t, r.config(), f)
	txn, plain := r.client(kgo.TransactionalID(r.topic)), r.client()
	produce(t, plain, id, "before")
	f.waitRecords(t, id, got{0, "before"})
	want := []got{{0, "before"}}
	next := int64(1)
	for _, how := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort} {
		transact(t, txn, id, "open")
		produce(t, plain, id, "hidden")
		waitStatus(t, s, func(p PartitionStatus) bool { return p.End == next && p.High == next+2 })
		r.reads(r.config(), id, 0, next, want...) // one who begins now
		late := newFakeStore()
		run(t, r.config(), late)
		late.waitNext(t, id, next)
		if d := late.found[0].Partitions[0]; d.End != next {
			t.Errorf("found with its end at %d, want %d", d.End, next)
		}
		v := fmt.Sprintf("beside %d", next)
		produce(t, plain, other, v) // hides nothing elsewhere
		f.wait(t, "the other partition's record", func() bool {
			rs := f.records(other)
			return len(rs) > 0 && rs[len(rs)-1].Value == v
		})
		f.waitRecords(t, id, want...)

		endTransaction(t, txn, how)
		if how == kgo.TryCommit {
			want = append(want, got{next, "open"})
		}
		want = append(want, got{next + 1, "hidden"})
		next += 3
		for _, f := range []*fakeStore{f, late} {
			f.waitRecords(t, id, want...)
			f.waitNext(t, id, next)
		}
	}
}

// A written record is what a test knows of a record of a compacted topic.
type written struct {
	got
	key     string
	aborted bool
}

// The cleaner eats records at the head, in the middle and at the tail of
// batches, leaves the last batch of a producer without any record, and takes
// away aborted transactions. From every offset exactly the survivors come.
func TestIntegrationCompaction(t *testing.T) {
	// A batch whose timestamp lies a second behind the last one's begins a new
	// segment; all segments but the newest are cleaned.
	r := newReal(t, 1, "cleanup.policy", "compact", "segment.ms", "1000", "min.cleanable.dirty.ratio", "0.01",
		"min.compaction.lag.ms", "0", "message.timestamp.after.max.ms", "9223372036854775807")
	r.hurryCleaner()
	id := at(r.topic, 0)
	log, active := writeRounds(t, r, id, 40)
	end := log[len(log)-1].Offset + 1
	want := survivors(log, active)
	stored := cleaned(t, r, id, len(want))

	tails, empty := 0, 0
	for _, b := range stored {
		last := b.FirstOffset + int64(b.LastOffsetDelta)
		inside := slices.DeleteFunc(slices.Clone(want), func(g got) bool { return g.Offset < b.FirstOffset || g.Offset > last })
		switch {
		case b.NumRecords == 0:
			empty++
		case b.Attributes&controlBit == 0 && inside[len(inside)-1].Offset < last:
			tails++
		}
	}
	t.Logf("%d of %d records survived in %d batches, %d with an eaten tail, %d empty", len(want), len(log), len(stored), tails, empty)
	if tails == 0 || empty == 0 {
		t.Fatal("the log has no batch with an eaten tail, or none without records")
	}
	if diff := cmp.Diff(want, consumed(r.consumes(id, len(want)))); diff != "" {
		t.Fatalf("another client's records (-want +got):\n%s", diff)
	}
	for from := range end {
		r.reads(r.config(), id, from, end, slices.DeleteFunc(slices.Clone(want), func(g got) bool { return g.Offset < from })...)
	}
	r.reads(r.config(), id, end, end)
	single := r.config()
	single.PartitionMaxBytes, single.MaxBytes = 1, 1 // one batch an answer, also the empty ones
	r.reads(single, id, 0, end, want...)
}

// writeRounds writes rounds of records, each into a segment of its own, by
// several producers with several codecs, and returns them with the offset at
// which the newest segment begins.
func writeRounds(t *testing.T, r *real, id store.Partition, rounds int) (log []written, active int64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 3))
	opts := []kgo.Opt{kgo.ManualFlushing()} // a round is one batch
	producers := make([]*kgo.Client, len(codecs()))
	renew := func(i int) { producers[i] = r.client(append(opts, kgo.ProducerBatchCompression(codecs()[i].codec))...) }
	for i := range producers {
		renew(i)
	}
	txn := r.client(append(opts, kgo.TransactionalID(r.topic))...)
	clock := time.Now().Add(time.Hour) // ahead of the markers', which the broker stamps: they begin no segment
	for round := range rounds {
		one := rng.IntN(len(producers))
		cl, how, transaction := producers[one], kgo.TryCommit, round%8 == 3
		if transaction {
			cl, how = txn, kgo.TransactionEndTry(round%16 == 3)
			if err := txn.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
		}
		clock = clock.Add(10 * time.Second)
		var batch []*kgo.Record
		for n := range 1 + rng.IntN(6) {
			rec := &kgo.Record{
				Topic: id.Topic, Partition: id.ID, Timestamp: clock,
				Key: text(strconv.Itoa(rng.IntN(30))), Value: text(fmt.Sprintf("%d.%d", round, n)),
			}
			if rng.IntN(10) == 0 {
				rec.Value = nil
			}
			batch = append(batch, rec)
			cl.Produce(t.Context(), rec, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Error(err)
				}
			})
		}
		if err := cl.Flush(t.Context()); err != nil || t.Failed() {
			t.Fatal("round not written", err)
		}
		if transaction {
			endTransaction(t, txn, how)
		}
		if rng.IntN(2) == 0 {
			renew(one) // what it wrote last is never forgotten, even when no record of it is left
		}
		active = batch[0].Offset
		for i, g := range consumed(batch) {
			log = append(log, written{got: g, key: string(batch[i].Key), aborted: transaction && how == kgo.TryAbort})
		}
	}
	return log, active
}

// survivors is what the cleaner leaves: of each key the last record before the
// newest segment, and that segment.
func survivors(log []written, active int64) (out []got) {
	newest := map[string]int64{}
	for _, w := range log {
		if w.Offset < active && !w.aborted {
			newest[w.key] = w.Offset
		}
	}
	for _, w := range log {
		if w.Offset >= active || newest[w.key] == w.Offset && !w.aborted {
			out = append(out, w.got)
		}
	}
	return out
}

// cleaned waits until the stored log has as many records as survive.
func cleaned(t *testing.T, r *real, id store.Partition, want int) []kmsg.RecordBatch {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		log, n := r.log(id), 0
		for _, b := range log {
			if b.Attributes&controlBit == 0 {
				n += int(b.NumRecords)
			}
		}
		if n == want {
			return log
		}
		if time.Now().After(deadline) {
			t.Fatalf("the stored log has %d records, want %d after the cleaner's work", n, want)
		}
	}
}

// Who gives the time: with LogAppendTime the broker, in the header of a batch
// whose records keep the producer's.
func TestIntegrationTimestamps(t *testing.T) {
	old := time.Date(2001, 2, 3, 4, 5, 6, 7e6, time.UTC)
	for _, kind := range []string{"CreateTime", "LogAppendTime"} {
		t.Run(kind, func(t *testing.T) {
			r := newReal(t, 1, "message.timestamp.type", kind)
			id := at(r.topic, 0)
			var want []got
			for i, codec := range codecs() {
				cl := r.client(kgo.ProducerBatchCompression(codec.codec), kgo.ManualFlushing())
				for n := range 3 {
					rec := &kgo.Record{Topic: id.Topic, Value: text(codec.name), Timestamp: old.Add(time.Duration(n) * time.Hour)}
					cl.Produce(t.Context(), rec, nil)
					want = append(want, got{int64(3*i + n), codec.name})
				}
				before := time.Now().Truncate(time.Millisecond)
				if err := cl.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				records := r.reads(r.config(), id, 0, int64(len(want)), want...)
				oracle := r.consumes(id, len(want))
				for n, rec := range records {
					if rec.Timestamp != fhir.FromTime(oracle[n].Timestamp) {
						t.Errorf("offset %d: timestamp %v, another client has %v", n, rec.Timestamp.Time(), oracle[n].Timestamp)
					}
				}
				for n, rec := range records[3*i:] {
					ts := rec.Timestamp.Time()
					switch kind {
					case "CreateTime":
						if want := old.Add(time.Duration(n) * time.Hour); !ts.Equal(want) {
							t.Errorf("%s: record %d has the time %v, want the producer's %v", codec.name, n, ts, want)
						}
					default:
						if ts.Before(before) || ts.After(time.Now()) {
							t.Errorf("%s: record %d has the time %v, want the broker's between %v and now", codec.name, n, ts, before)
						}
					}
				}
			}
		})
	}
}

type namedCodec struct {
	name  string // as topics' compression.type has it
	id    int16
	codec kgo.CompressionCodec
}

func codecs() []namedCodec {
	return []namedCodec{
		{"uncompressed", codecNone, kgo.NoCompression()},
		{"gzip", codecGzip, kgo.GzipCompression()},
		{"snappy", codecSnappy, kgo.SnappyCompression()},
		{"lz4", codecLZ4, kgo.Lz4Compression()},
		{"zstd", codecZstd, kgo.ZstdCompression()},
	}
}

// Batches as franz-go compresses them, and as Java's libraries do, which the
// broker uses when a topic wants another codec: snappy then comes in frames.
func TestIntegrationCodecs(t *testing.T) {
	var values []string
	rng := rand.New(rand.NewPCG(1, 2))
	for i, size := range []int{0, 1, 100, 40_000, 300_000, 900_000} {
		var b strings.Builder
		for b.Len() < size {
			fmt.Fprintf(&b, `{"resourceType":"Observation","id":"%d-%x","status":"final"}`, i, rng.Uint64())
		}
		values = append(values, b.String()[:size])
	}
	var want []got
	for i, v := range values {
		want = append(want, got{int64(i), v})
	}
	for _, codec := range codecs() {
		for _, by := range []string{"producer", "broker"} {
			t.Run(codec.name+" by the "+by, func(t *testing.T) {
				compression, producers := "producer", codec.codec
				if by == "broker" {
					compression, producers = codec.name, kgo.GzipCompression()
				}
				r := newReal(t, 1, "compression.type", compression)
				id := at(r.topic, 0)
				cl := r.client(kgo.ProducerBatchCompression(producers))
				produce(t, cl, id, values[:len(values)-1]...) // many in a batch
				produce(t, cl, id, values[len(values)-1])
				batches := 0
				for _, b := range r.log(id) {
					if got := b.Attributes & compressionBits; got == codec.id {
						batches++
					} else if b.Length > 200 { // who compresses leaves small batches alone if that makes them no smaller
						t.Errorf("batch at %d is stored with codec %d, want %d", b.FirstOffset, got, codec.id)
					}
				}
				if batches == 0 {
					t.Fatal("nothing is stored with this codec")
				}
				r.reads(r.config(), id, 0, int64(len(want)), want...)
			})
		}
	}
}

func TestIntegrationTopicsAndPartitionsThatAppear(t *testing.T) {
	r, matched := absentReal(t), absentReal(t)
	matched.topic = "pattern." + matched.topic
	cfg := r.config()
	cfg.Topics = append(cfg.Topics, Topics{Pattern: regexp.MustCompile("^" + regexp.QuoteMeta(matched.topic) + "$")})
	f := newFakeStore()
	s, _ := run(t, cfg, f)
	f.wait(t, "a discovery of nothing", func() bool { return len(f.found) > 0 && !f.found[0].Complete })
	if missing := s.Status().Missing; len(missing) != 2 {
		t.Errorf("missing: %v, want both", missing)
	}
	r.create(1)
	produce(t, r.client(), at(r.topic, 0), "a")
	f.waitRecords(t, at(r.topic, 0), got{0, "a"})
	matched.create(1)
	produce(t, r.client(), at(matched.topic, 0), "b")
	f.waitRecords(t, at(matched.topic, 0), got{0, "b"})
	f.wait(t, "completeness", func() bool { return f.found[len(f.found)-1].Complete })
	if missing := s.Status().Missing; len(missing) != 0 {
		t.Errorf("still missing: %v", missing)
	}

	addPartitions(t, r.admin, r.topic, 3)
	var cl *kgo.Client
	r.insist("produce to an added partition", func(ctx context.Context) error {
		cl = r.client() // one that knows it
		return cl.ProduceSync(ctx, &kgo.Record{Topic: r.topic, Partition: 2, Value: text("c")}).FirstErr()
	})
	f.waitRecords(t, at(r.topic, 2), got{0, "c"})
	produce(t, cl, at(r.topic, 0), "d")
	f.waitRecords(t, at(r.topic, 0), got{0, "a"}, got{1, "d"})
	var found []store.Partition
	for _, p := range f.found[len(f.found)-1].Partitions {
		found = append(found, p.Partition)
		if p.TopicID == [16]byte{} {
			t.Errorf("%v has no topic id", p.Partition)
		}
	}
	want := []store.Partition{at(matched.topic, 0), at(r.topic, 0), at(r.topic, 1), at(r.topic, 2)}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("partitions (-want +got):\n%s", diff)
	}
	if len(f.held) > 0 {
		t.Errorf("held: %v", f.held)
	}
}

// One writer goes on while the broker restarts, a transaction is open across
// it; nothing is lost, nothing comes twice, and the epochs of leaders that
// rise by it are no gap, neither for who reads on nor for who comes later.
func TestIntegrationBrokerRestart(t *testing.T) {
	r := newReal(t, 2)
	id, other := at(r.topic, 0), at(r.topic, 1)
	txn, cl := r.client(kgo.TransactionalID(r.topic)), r.client()
	f := newFakeStore()
	s, _ := run(t, r.config(), f)
	transact(t, txn, other, "open")
	var (
		want    []got
		writing sync.WaitGroup
		enough  = make(chan struct{})
	)
	writing.Go(func() {
		for n := int64(0); ; n++ {
			v := strconv.FormatInt(n, 10)
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: r.topic, Key: text("k"), Value: text(v)}).FirstErr(); err != nil {
				t.Errorf("record %d: %v", n, err)
				return
			}
			want = append(want, got{n, v})
			select {
			case <-enough:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	more := func(n int) {
		t.Helper()
		f.wait(t, "more records", func() bool { return len(f.records(id)) >= n })
	}
	more(50)
	f.mu.Lock()
	epoch := f.states[id].LeaderEpoch
	f.mu.Unlock()
	r.restart()
	f.mu.Lock()
	n := len(f.records(id))
	f.mu.Unlock()
	more(n + 50)
	close(enough)
	writing.Wait()
	endTransaction(t, txn, kgo.TryCommit)
	f.waitRecords(t, id, want...)
	f.waitRecords(t, other, got{0, "open"})
	f.waitNext(t, other, 2) // the marker is of the next epoch, and so in an answer of its own
	if got := f.states[id].LeaderEpoch; got <= epoch {
		t.Errorf("leader epoch %d after the restart, %d before: it does not rise?", got, epoch)
	}
	if len(f.held) > 0 {
		t.Errorf("held: %v", f.held)
	}
	for _, p := range s.Status().Partitions {
		if p.Gap != nil || p.Trouble != "" || p.Lag() != 0 {
			t.Errorf("status %+v", p)
		}
	}

	later := newFakeStore()
	later.states[id] = store.PartitionState{Next: 25, LeaderEpoch: epoch, Seen: fhir.None}
	run(t, r.config(), later)
	later.waitRecords(t, id, want[25:]...)
	t.Logf("%d records, %d of them acknowledged after the restart", len(want), len(want)-n)
}

func TestIntegrationGaps(t *testing.T) {
	// reading starts a source that has handled "a" but sees no more before it
	// is let go on.
	reading := func(t *testing.T, r *real, cfg Config) (*Source, *fakeStore, func()) {
		t.Helper()
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
		produce(t, r.client(), at(r.topic, 0), "a")
		cfg.Ahead = 1 // nothing is fetched while something is handled
		s, _ := run(t, cfg, f)
		<-entered
		release := sync.OnceFunc(func() { close(leave) })
		t.Cleanup(release)
		return s, f, release
	}
	// away starts a source whose store has read up to next.
	away := func(t *testing.T, r *real, state store.PartitionState) (*Source, *fakeStore) {
		t.Helper()
		f := newFakeStore()
		f.now = fhir.FromTime(time.Now())
		f.states[at(r.topic, 0)] = state
		s, _ := run(t, r.config(), f)
		return s, f
	}
	nothingOf := func(t *testing.T, f *fakeStore, id store.Partition, want ...got) {
		t.Helper()
		f.mu.Lock()
		defer f.mu.Unlock()
		if diff := cmp.Diff(want, f.records(id)); diff != "" {
			t.Errorf("records beside a gap (-want +got):\n%s", diff)
		}
	}
	idOf := func(t *testing.T, r *real) topicID {
		t.Helper()
		f := newFakeStore()
		_, stop := run(t, r.config(), f)
		f.waitNext(t, at(r.topic, 0), 3)
		stop()
		return f.found[0].Partitions[0].TopicID
	}

	t.Run("records deleted while reading", func(t *testing.T) {
		r := newReal(t, 1)
		id := at(r.topic, 0)
		s, f, goOn := reading(t, r, r.config())
		produce(t, r.client(), id, "b", "c", "d")
		r.deleteRecords(3)
		goOn()
		if g := barred(t, s, f, Expired); g.Next != 1 || g.Start != 3 {
			t.Errorf("gap %+v", g)
		}
		nothingOf(t, f, id, got{0, "a"})
		// Somebody decides to go on behind the gap.
		f.update(func() { f.states[id] = store.PartitionState{Next: 3, LeaderEpoch: -1, Seen: fhir.None} })
		f.waitRecords(t, id, got{0, "a"}, got{3, "d"})
		f.wait(t, "release", func() bool { return f.held[id] == "" })
	})
	t.Run("records deleted while away", func(t *testing.T) {
		r := newReal(t, 1)
		id := at(r.topic, 0)
		produce(t, r.client(), id, "a", "b", "c")
		r.deleteRecords(2)
		s, f := away(t, r, store.PartitionState{Next: 1, LeaderEpoch: 0, Seen: fhir.None})
		if g := barred(t, s, f, Expired); g.Next != 1 || g.Start != 2 || g.End != 3 {
			t.Errorf("gap %+v", g)
		}
		nothingOf(t, f, id)
	})
	t.Run("records deleted up to where we are", func(t *testing.T) {
		r := newReal(t, 1)
		id := at(r.topic, 0)
		produce(t, r.client(), id, "a", "b", "c")
		r.deleteRecords(2)
		r.reads(r.config(), id, 2, 3, got{2, "c"})
	})
	t.Run("all records deleted", func(t *testing.T) {
		r := newReal(t, 1)
		id := at(r.topic, 0)
		produce(t, r.client(), id, "a", "b", "c")
		r.deleteRecords(3)
		f := newFakeStore()
		run(t, r.config(), f)
		f.waitNext(t, id, 3) // whoever comes first begins where the log begins
		produce(t, r.client(), id, "d")
		f.waitRecords(t, id, got{3, "d"})
	})
	t.Run("recreated while reading", func(t *testing.T) {
		r := newReal(t, 1)
		id := at(r.topic, 0)
		f := newFakeStore()
		produce(t, r.client(), id, "a", "b", "c")
		s, _ := run(t, r.config(), f)
		f.waitNext(t, id, 3)
		r.delete()
		r.create(1)
		produce(t, r.client(), id, "1", "2", "3", "4")
		barred(t, s, f, Recreated)
		nothingOf(t, f, id, got{0, "a"}, got{1, "b"}, got{2, "c"})
	})
	t.Run("recreated while busy", func(t *testing.T) {
		r := newReal(t, 1)
		id := at(r.topic, 0)
		cfg := r.config()
		cfg.Refresh = time.Hour // what is fetched next must tell it
		s, f, goOn := reading(t, r, cfg)
		r.delete()
		r.create(1)
		produce(t, r.client(), id, "1", "2", "3", "4")
		goOn()
		barred(t, s, f, Recreated)
		f.waitNext(t, id, 1)
		nothingOf(t, f, id, got{0, "a"})
	})
	t.Run("recreated while away", func(t *testing.T) {
		r := newReal(t, 1)
		id := at(r.topic, 0)
		produce(t, r.client(), id, "a", "b", "c")
		before := idOf(t, r)
		r.delete()
		r.create(1)
		produce(t, r.client(), id, "1", "2", "3", "longer than before")
		s, f := away(t, r, store.PartitionState{Next: 3, LeaderEpoch: 0, TopicID: before, Seen: fhir.None})
		if g := barred(t, s, f, Recreated); g.Next != 3 || g.End != 4 {
			t.Errorf("gap %+v", g)
		}
		nothingOf(t, f, id)
	})
	t.Run("the log ends before our offset", func(t *testing.T) {
		r := newReal(t, 1)
		produce(t, r.client(), at(r.topic, 0), "a", "b")
		s, f := away(t, r, store.PartitionState{Next: 99, LeaderEpoch: -1, Seen: fhir.None})
		if g := barred(t, s, f, Truncated); g.Next != 99 || g.End != 2 {
			t.Errorf("gap %+v", g)
		}
	})
	t.Run("the log has gone on from below", func(t *testing.T) {
		r := newReal(t, 1)
		id := at(r.topic, 0)
		produce(t, r.client(), id, "a", "b")
		before := r.log(id)[0].PartitionLeaderEpoch
		r.restart() // the next epoch begins at offset 2
		produce(t, r.client(), id, "c")
		produce(t, r.client(), id, "d")
		s, f := away(t, r, store.PartitionState{Next: 3, LeaderEpoch: before, Seen: fhir.None})
		if g := barred(t, s, f, Forked); g.Next != 3 || g.End != 4 {
			t.Errorf("gap %+v", g)
		}
		nothingOf(t, f, id)
		_, f = away(t, r, store.PartitionState{Next: 2, LeaderEpoch: before, Seen: fhir.None})
		f.waitRecords(t, id, got{2, "c"}, got{3, "d"})
	})
	t.Run("away longer than deletions stay", func(t *testing.T) {
		r := newReal(t, 1, "cleanup.policy", "compact,delete", "delete.retention.ms", "60000")
		id := at(r.topic, 0)
		produce(t, r.client(), id, "a", "b")
		now := fhir.FromTime(time.Now())
		s, f := away(t, r, store.PartitionState{Next: 1, LeaderEpoch: -1, Seen: now - 61_000})
		barred(t, s, f, Away)
		nothingOf(t, f, id)
		_, f = away(t, r, store.PartitionState{Next: 1, LeaderEpoch: -1, Seen: now - 30_000})
		f.waitRecords(t, id, got{1, "b"})
	})
}

// Our offsets are mirrored into a consumer group that has no members.
func TestIntegrationCommit(t *testing.T) {
	r := newReal(t, 2)
	s, err := New(r.config(), newFakeStore())
	if err != nil {
		t.Fatal(err)
	}
	defer s.wire.close()
	want := map[int32]int64{0: 5, 1: 7}
	commitUntil(t, s, map[store.Partition]int64{at(r.topic, 0): want[0], at(r.topic, 1): want[1]})
	req := kmsg.NewPtrOffsetFetchRequest()
	group := kmsg.NewOffsetFetchRequestGroup()
	group.Group = "g"
	topic := kmsg.NewOffsetFetchRequestGroupTopic()
	topic.Topic, topic.Partitions = r.topic, []int32{0, 1}
	group.Topics = append(group.Topics, topic)
	req.Groups = append(req.Groups, group)
	res, err := req.RequestWith(t.Context(), r.admin)
	if err != nil {
		t.Fatal(err)
	}
	committed := map[int32]int64{}
	for _, p := range res.Groups[0].Topics[0].Partitions {
		committed[p.Partition] = p.Offset
	}
	if diff := cmp.Diff(want, committed); diff != "" {
		t.Errorf("committed offsets (-want +got):\n%s", diff)
	}
}
