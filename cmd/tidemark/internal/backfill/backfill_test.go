package backfill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/extract"
	"tidemark/store/fhir"
)

// A broker acknowledges what it is told to, in any order.
type broker struct {
	waiting []func(error)
	has     []*kgo.Record
	accepts int // records; then it is silent
	rng     *rand.Rand
}

func (b *broker) Put(_ context.Context, rec *kgo.Record, done func(error)) {
	if len(b.has) == b.accepts {
		return // it hangs
	}
	b.has = append(b.has, rec)
	b.waiting = append(b.waiting, done)
	if len(b.waiting) > 50 {
		b.answer(b.rng.IntN(len(b.waiting)))
	}
}

func (b *broker) answer(i int) {
	done := b.waiting[i]
	b.waiting = append(b.waiting[:i], b.waiting[i+1:]...)
	done(nil)
}

func (b *broker) Flush(ctx context.Context) error {
	if len(b.has) == b.accepts {
		<-ctx.Done()
		return ctx.Err()
	}
	for len(b.waiting) > 0 {
		b.answer(0)
	}
	return nil
}

func files(t *testing.T, n int) (*extract.File, string) {
	t.Helper()
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, "{\"resourceType\":\"Patient\",\"id\":\"p%d\"}\n", i)
	}
	path := filepath.Join(t.TempDir(), "Patient.ndjson")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return &extract.File{Name: path, Path: path, Size: int64(text.Len())}, filepath.Join(t.TempDir(), "load.json")
}

// Wherever brokers fall silent, what is noted is what they have, without a gap; with a
// second run they have all.
func TestSilence(t *testing.T) {
	for _, accepts := range []int{0, 1, 999, 1000, 1001, 2500, 4999} {
		synctest.Test(t, func(t *testing.T) {
			f, state := files(t, 5000)
			load := func(b *broker) (*Tally, error) {
				p, err := ReadProgress(state, "topic", "id", false)
				if err != nil {
					t.Fatal(err)
				}
				return Run(t.Context(), []*extract.File{f}, b, p, Options{At: fhir.None})
			}
			b := &broker{accepts: accepts, rng: rand.New(rand.NewPCG(1, uint64(accepts)))}
			if _, err := load(b); !errors.Is(err, errSilent) {
				t.Fatalf("%d: got %v, want that brokers are silent", accepts, err)
			}
			acknowledged := map[string]bool{}
			for _, rec := range b.has[:len(b.has)-len(b.waiting)] {
				acknowledged[string(rec.Key)] = true
			}
			again := &broker{accepts: -1, rng: b.rng}
			tally, err := load(again)
			if err != nil {
				t.Fatal(err)
			}
			for _, rec := range append(again.has, b.has...) {
				acknowledged[string(rec.Key)] = true
			}
			if got := int(tally.Before) + len(again.has); got != 5000 || len(acknowledged) != 5000 {
				t.Errorf("%d: %d lines before and %d sent, %d known", accepts, tally.Before, len(again.has), len(acknowledged))
			}
			if int(tally.Before) > len(b.has)-len(b.waiting) {
				t.Errorf("%d: %d lines count as sent, %d are acknowledged", accepts, tally.Before, len(b.has)-len(b.waiting))
			}
		})
	}
}

// What an acknowledgement says is an error ends the load, and what lies behind it does not count.
func TestRefused(t *testing.T) {
	f, state := files(t, 3000)
	refused := errors.New("refused")
	p, err := ReadProgress(state, "topic", "id", false)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	_, err = Run(t.Context(), []*extract.File{f}, putter(func(done func(error)) {
		if n++; n == 1500 {
			done(refused)
			return
		}
		done(nil)
	}), p, Options{At: fhir.None})
	if !errors.Is(err, refused) {
		t.Fatalf("got %v", err)
	}
	p, err = ReadProgress(state, "topic", "id", false)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.state.Files[nameOf(f)].Lines; got != 1000 {
		t.Errorf("%d lines count as sent, want the thousand before those with the refused one", got)
	}
}

type putter func(done func(error))

func (p putter) Put(_ context.Context, _ *kgo.Record, done func(error)) { p(done) }
func (putter) Flush(context.Context) error                              { return nil }

// Progress of another topic, or of one that was made anew, is none.
func TestProgressIsOfATopic(t *testing.T) {
	f, state := files(t, 10)
	sent := func(topic, id string, again bool) int {
		p, err := ReadProgress(state, topic, id, again)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		if _, err := Run(t.Context(), []*extract.File{f}, putter(func(done func(error)) { n++; done(nil) }), p, Options{At: fhir.None}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, test := range []struct {
		topic, id string
		again     bool
		want      int
	}{{"a", "1", false, 10}, {"a", "1", false, 0}, {"a", "2", false, 10}, {"b", "2", false, 10}, {"b", "2", false, 0}, {"b", "2", true, 10}} {
		if got := sent(test.topic, test.id, test.again); got != test.want {
			t.Errorf("%v: %d sent", test, got)
		}
	}
	if err := os.WriteFile(state, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadProgress(state, "b", "2", false); err == nil || !strings.Contains(err.Error(), "--again") {
		t.Errorf("got %v", err)
	}
}

// A record has the time that its resource says, as far as brokers take that.
func TestTimestamps(t *testing.T) {
	said, at := fhir.FromTime(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)), fhir.FromTime(time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC))
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	tests := []struct {
		name            string
		lastUpdated, at fhir.Instant
		ages            bool
		want            time.Time
	}{
		{"what it says", said, at, true, said.Time()},
		{"as of when it was so", fhir.None, at, true, at.Time()},
		{"nothing is known", fhir.None, fhir.None, true, now},
		{"a topic that forgets what is old", said, at, false, now},
		{"a time to come", fhir.FromTime(now.AddDate(1, 0, 0)), at, true, now},
	}
	for _, test := range tests {
		l := loader{o: Options{At: test.at, Ages: test.ages}, now: now}
		r := l.resource(&fhir.Resource{Key: fhir.Key{ID: "p"}, LastUpdated: test.lastUpdated})
		if !r.Timestamp.Equal(test.want) {
			t.Errorf("%s: got %v, want %v", test.name, r.Timestamp, test.want)
		}
	}
}

// A deletion says as of when it is known, in what the store compares and in its record's time.
func TestDeletionsAreDated(t *testing.T) {
	at := fhir.FromTime(time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC))
	patient, _ := fhir.ParseType("Patient")
	gone := func(key fhir.Key, ages bool) time.Time {
		l := loader{o: Options{Ages: ages}, now: at.Time().AddDate(1, 0, 0)}
		return l.deletion(key, at).Timestamp
	}
	if old, safe := gone(fhir.Key{}, true), gone(fhir.Key{}, false); !old.Equal(at.Time()) || !safe.After(old) {
		t.Errorf("of %v, and %v in a topic that forgets what is old", old, safe)
	}
	b := &broker{accepts: -1, rng: rand.New(rand.NewPCG(1, 1))}
	tally, err := Run(t.Context(), nil, b, nil, Options{Ages: true, First: func(del func(fhir.Key, fhir.Instant)) error { del(fhir.Key{Type: patient, ID: "p"}, at); return nil }})
	if err != nil || tally.Deleted != 1 || len(b.has) != 1 {
		t.Fatalf("%+v, %d records, %v", tally, len(b.has), err)
	}
	rec := b.has[0]
	if string(rec.Key) != "Patient/p" || rec.Value != nil || !rec.Timestamp.Equal(at.Time()) {
		t.Errorf("got %s of %v with %q", rec.Key, rec.Timestamp, rec.Value)
	}
	want := []kgo.RecordHeader{{Key: "fhir-op", Value: []byte("delete")}, {Key: "fhir-last-updated", Value: []byte("2026-01-02T03:04:05.006Z")}}
	if d := cmp.Diff(want, rec.Headers); d != "" {
		t.Error(d)
	}
}

// A type that readers pass over is not sent, and its lines count as done.
func TestDropped(t *testing.T) {
	f, state := files(t, 10)
	p, err := ReadProgress(state, "topic", "id", false)
	if err != nil {
		t.Fatal(err)
	}
	patient, _ := fhir.ParseType("Patient")
	tally, err := Run(t.Context(), []*extract.File{f}, putter(func(func(error)) { t.Error("sent") }), p, Options{At: fhir.None, Drop: map[fhir.Type]bool{patient: true}})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&Tally{Sent: map[fhir.Type]int64{}, Dropped: 10}, tally); d != "" {
		t.Error(d)
	}
	if got := p.state.Files[nameOf(f)].Lines; got != 10 {
		t.Errorf("%d lines are done", got)
	}
}

// Whatever files are called, what lists faults is NDJSON.
func TestFaultsAreJSON(t *testing.T) {
	want := []Fault{{"a\x7f\a <b>.ndjson", 1, "no id"}, {"Größe\u200b.ndjson", 2, "no id"}, {"\U000e0001", 3, "no id"}}
	var text bytes.Buffer
	list := Faults(&text)
	for _, f := range want {
		if err := list(f); err != nil {
			t.Fatal(err)
		}
	}
	var got []Fault
	for line := range bytes.Lines(text.Bytes()) {
		var f Fault
		if err := json.Unmarshal(line, &f); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		got = append(got, f)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
