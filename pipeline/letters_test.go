package pipeline

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/store"
	"tidemark/store/fhir"
)

func TestSelection(t *testing.T) {
	one := int32(1)
	row := store.DeadLetterRow{
		Bound: store.Bound{Seq: 7, Instant: 100}, Partition: at("t", 1), DeadLetter: store.DeadLetter{Reason: "no resourceType (none at all)"},
	}
	for _, test := range []struct {
		name string
		sel  Selection
		want bool
	}{
		{"all", All(), true},
		{"number", Selection{Numbers: []uint64{1, 7}, Since: fhir.None, Until: fhir.None}, true},
		{"another number", Selection{Numbers: []uint64{1}, Since: fhir.None, Until: fhir.None}, false},
		{"topic", Selection{Topic: "t", Since: fhir.None, Until: fhir.None}, true},
		{"another topic", Selection{Topic: "u", Since: fhir.None, Until: fhir.None}, false},
		{"partition", Selection{Partition: &one, Since: fhir.None, Until: fhir.None}, true},
		{"another partition", Selection{Partition: new(int32), Since: fhir.None, Until: fhir.None}, false},
		{"since, at it", Selection{Since: 100, Until: fhir.None}, true},
		{"since, before", Selection{Since: 101, Until: fhir.None}, false},
		{"until, at it", Selection{Since: fhir.None, Until: 100}, false},
		{"until, before", Selection{Since: fhir.None, Until: 101}, true},
		{"part of the reason", Selection{Reason: "RESOURCEtype (", Since: fhir.None, Until: fhir.None}, true},
		{"another reason", Selection{Reason: "json", Since: fhir.None, Until: fhir.None}, false},
		{"pattern", Selection{Reason: "no * (none*", Since: fhir.None, Until: fhir.None}, true},
		{"pattern of a part", Selection{Reason: "resource?ype", Since: fhir.None, Until: fhir.None}, false},
	} {
		if got := test.sel.Match()(row); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// Dead letters from before the newest run are decoded again when somebody asks for it, at
// the places they have; the others stay.
func TestReplay(t *testing.T) {
	r, m := newRig(t, 1), newMemory(t)
	r.opts.Topics[0].StopAfter = -1
	r.produce(at("t", 0), "a:1", "b:2", "a:3", "c:4", "b:dropped", "a:6")
	_, stop := r.run(m)
	m.waitNext(at("t", 0), 6)
	stop()

	n := m.reopen()
	r.opts.Topics[0].Format = "b"
	p, _ := r.run(n)
	r.produce(at("t", 0), "b:7")
	n.waitNext(at("t", 0), 7)
	if got := len(n.letters); got != 3 {
		t.Fatalf("%d dead letters before, want 3", got)
	}
	got, err := p.Replay(t.Context(), All())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Replayed{Resolved: 2, Changes: 1, Still: map[string]int{"not b": 1}}, got); diff != "" {
		t.Errorf("replayed (-want +got):\n%s", diff)
	}
	wantIDs(t, n, at("t", 0), "7", "2")
	n.mu.Lock()
	defer n.mu.Unlock()
	last := n.batches[len(n.batches)-1]
	if last.Changes[0].Offset != 1 || last.Next != 7 || last.Asked != fhir.None {
		t.Errorf("applied at offset %d, next %d, asked %v: want the record's own place and nothing new of the partition", last.Changes[0].Offset, last.Next, last.Asked)
	}
	if len(n.letters) != 1 || n.letters[0].Offset != 3 {
		t.Errorf("left: %v", n.letters)
	}
}

// A registry that is away ends a replay and is no record's fault; what was decoded before is applied.
func TestReplayEndsWhereARegistryIsAway(t *testing.T) {
	r, m := newRig(t, 1), newMemory(t)
	r.opts.Topics[0].StopAfter = -1
	r.produce(at("t", 0), "b:1", "b:2", "a:3")
	p, _ := r.run(m)
	m.waitNext(at("t", 0), 3)
	m.mu.Lock()
	m.letters[0].Value, m.letters[1].Value = []byte("a:1"), []byte("gated:2")
	m.mu.Unlock()
	r.gate.set(true)
	got, err := p.Replay(t.Context(), All())
	if err == nil || !strings.Contains(err.Error(), "registry is away") || got.Resolved != 1 {
		t.Fatalf("replayed %v, error %v", got, err)
	}
	r.gate.set(false)
	if got, err = p.Replay(t.Context(), All()); err != nil || got.Resolved != 1 {
		t.Fatalf("replayed %v, error %v", got, err)
	}
	wantIDs(t, m, at("t", 0), "dead: not a", "dead: not a", "3", "1", "2")
}

// A topic that is held for its dead letters is read again, without a restart, once they are
// decided about.
func TestATopicIsReadAgainOnceItsDeadLettersAreDropped(t *testing.T) {
	r, m := newRig(t, 2), newMemory(t)
	p, _ := r.run(m)
	r.produce(at("t", 0), "b:1", "b:2", "b:3", "a:4")
	m.wait("held", func() bool { return m.held[at("t", 0)] != "" && m.held[at("t", 1)] != "" })
	r.produce(at("t", 1), "a:5")

	sel := All()
	sel.Numbers = []uint64{2}
	if n, err := p.Drop(t.Context(), sel); n != 1 || err != nil {
		t.Fatalf("dropped %d, error %v", n, err)
	}
	if got := m.state("t").Run; got != 2 {
		t.Errorf("a run of %d, want 2", got)
	}
	m.waitNext(at("t", 0), 4)
	m.waitNext(at("t", 1), 1)
	m.wait("released", func() bool { return len(m.held) == 0 })
	if got := m.ids(at("t", 0)); got[len(got)-1] != "4" {
		t.Errorf("applied: %q", got)
	}
	if n, err := Drop(t.Context(), m, All()); n != 2 || err != nil || len(m.letters) != 0 {
		t.Errorf("dropped %d, error %v, %d left", n, err, len(m.letters))
	}
}

// One that decodes shows that the topic's format is not wrong: with it the run ends.
func TestAReplayedRecordEndsTheRun(t *testing.T) {
	r := &run{numbers: []uint64{10, 20, 30, 40}}
	if got := r.upTo([]store.Bound{{Seq: 20}, {Seq: 5}}); got != 2 {
		t.Errorf("up to 20: %d", got)
	}
	if got := r.upTo([]store.Bound{{Seq: 15}}); got != 0 {
		t.Errorf("up to 15, later: %d", got)
	}
	if got := r.upTo([]store.Bound{{Seq: 35}}); got != 1 {
		t.Errorf("up to 35: %d", got)
	}
	if got := r.these([]store.Bound{{Seq: 40}, {Seq: 41}}); got != 1 || len(r.numbers) != 0 {
		t.Errorf("these: %d, left %v", got, r.numbers)
	}
}
