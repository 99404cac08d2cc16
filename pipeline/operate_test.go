package pipeline

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"tidemark/pipeline/source"
	"tidemark/store"
	"tidemark/store/fhir"
)

// served is a pipeline into a store on disk.
type served struct {
	t *testing.T
	*Pipeline
	db *store.DB
}

// serve runs a pipeline into the store in dir until stop is called or the test ends.
func serve(t *testing.T, r *rig, dir string) (s served, stop func()) {
	t.Helper()
	db, err := store.Open(dir, store.Options{CommitInterval: 5 * time.Millisecond, Allowance: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- db.Run(ctx) }()
	p, end := r.run(db)
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		end()
		cancel()
		if err := errors.Join(<-done, db.Flush(), db.Close()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return served{t, p, db}, stop
}

func (s served) until(what string, cond func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: did not happen; store %+v, pipeline %+v", what, s.db.Status(), s.Status())
		}
	}
}

// passes waits until the watermark has passed this moment.
func (s served) passes() {
	s.t.Helper()
	now := s.db.Now()
	s.until("the watermark passes", func() bool { return s.db.Status().Watermark >= now })
}

// stands proves that the watermark does not move though answers come in.
func (s served) stands(what string) {
	s.t.Helper()
	w := s.db.Status().Watermark
	for deadline := time.Now().Add(100 * time.Millisecond); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if got := s.db.Status().Watermark; got != w {
			s.t.Fatalf("%s: the watermark moves from %v to %v", what, w, got)
		}
	}
}

func (s served) heldFor(id store.Partition, reason string) {
	s.t.Helper()
	s.until("held for "+reason, func() bool {
		for _, p := range s.db.Status().Partitions {
			if p.Partition == id && strings.Contains(p.Held, reason) {
				return true
			}
		}
		return false
	})
}

func (s served) reads(id store.Partition, next int64) {
	s.t.Helper()
	s.until("read", func() bool { st, ok := s.db.Partition(id); return ok && st.Next == next })
}

func (s served) letters() (reasons []string) {
	s.t.Helper()
	if err := s.db.Flush(); err != nil { // what is not committed is not listed
		s.t.Fatal(err)
	}
	if err := s.db.DeadLetters("", func(r store.DeadLetterRow) error { reasons = append(reasons, r.Reason); return nil }); err != nil {
		s.t.Fatal(err)
	}
	return reasons
}

// A topic that is paused is read no further, also after a restart, and holds the watermark;
// other topics go on.
func TestPause(t *testing.T) {
	r, dir, id := newRig(t, 1), t.TempDir(), at("t", 0)
	r.produce(id, "a:1")
	s, stop := serve(t, r, dir)
	s.reads(id, 1)
	s.passes()
	if err := s.Pause(t.Context(), "none", ""); err == nil {
		t.Error("a topic is paused that is not configured")
	}
	if err := s.Pause(t.Context(), "t", "moving"); err != nil {
		t.Fatal(err)
	}
	s.heldFor(id, "moving")
	s.until("nothing is under way", func() bool { return s.Pipeline.source.Status().Partitions[0].Stopped })
	r.produce(id, "a:2")
	s.stands("paused")
	stop()

	s, _ = serve(t, r, dir)
	s.heldFor(id, "tidemark topic resume t")
	s.stands("paused, after a restart")
	if got := s.Status().Topics[0]; !got.Paused || got.Held == "" {
		t.Errorf("status %+v", got)
	}
	if st, _ := s.db.Partition(id); st.Next != 1 {
		t.Errorf("read up to %d", st.Next)
	}
	if err := s.Resume(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	s.reads(id, 2)
	s.passes()
	if err := s.Resume(t.Context(), "t"); err == nil || s.Status().Topics[0].Held != "" {
		t.Errorf("resumed twice: %v", err)
	}
}

// An expired offset stops the watermark until somebody accepts that; then reading goes on from
// where the log begins, and what was lost stays known.
func TestAcceptWhatHasExpired(t *testing.T) {
	r, dir, id := newRig(t, 1), t.TempDir(), at("t", 0)
	r.produce(id, "a:1", "a:2")
	s, stop := serve(t, r, dir)
	s.reads(id, 2)
	s.passes()
	if _, err := s.Accept(t.Context(), "t", nil); err == nil || !strings.Contains(err.Error(), "no gap") {
		t.Errorf("accepted nothing: %v", err)
	}
	stop()
	r.produce(id, "a:3", "a:4", "a:5")
	if err := r.cluster.DeleteRecords("t", 0, 4); err != nil {
		t.Fatal(err)
	}
	s, _ = serve(t, r, dir)
	s.heldFor(id, "gap in t/0")
	s.stands("gap")
	if _, err := s.Accept(t.Context(), "t", new(int32(7))); err == nil {
		t.Error("a partition without a gap was accepted")
	}
	got, err := s.Accept(t.Context(), "t", nil)
	if err != nil || len(got) != 1 || got[0].From != 4 {
		t.Fatalf("accepted %+v, %v", got, err)
	}
	s.reads(id, 5)
	s.passes()
	if got := s.letters(); len(got) != 1 || got[0] != "a gap in the log (expired) was accepted: offsets 2 to 3 are not there any more" {
		t.Errorf("dead letters %q", got)
	}
	if got, err := s.Replay(t.Context(), All()); err != nil || got.Resolved != 0 || got.Still[cut] != 1 {
		t.Errorf("a gap was decoded: %+v, %v", got, err)
	}
	if st := s.db.Status().Partitions[0]; st.Held != "" {
		t.Errorf("still held: %s", st.Held)
	}
}

// A topic that was created anew, with more records than were read of the first: the watermark
// stops within seconds; accepted, all of it is read, and newer than what the first said.
func TestAcceptARecreatedTopic(t *testing.T) {
	r, dir, id := newRig(t, 1), t.TempDir(), at("t", 0)
	r.produce(id, "a:1", "a:2")
	s, _ := serve(t, r, dir)
	s.reads(id, 2)
	s.passes()
	if err := r.cluster.DeleteTopic("t"); err != nil {
		t.Fatal(err)
	}
	s.until("it is missed", func() bool { return s.Status().Partitions[0].Absent })
	if err := r.cluster.CreateTopic("t", 1, nil); err != nil {
		t.Fatal(err)
	}
	r.connect() // a producer that knew the first would ask for it
	r.produce(id, "a:2", "a:3", "a:4", "a:5")
	began := time.Now()
	s.heldFor(id, "another created under its name")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("that took %v", took)
	}
	s.stands("gap")
	s.until("accepted", func() bool { // what was read before is first taken in
		_, err := s.Accept(t.Context(), "t", nil)
		return err == nil
	})
	s.reads(id, 4)
	s.passes()
	if s.Status().Partitions[0].Absent {
		t.Error("it is said to be missing still")
	}
	patient, _ := fhir.ParseType("Patient")
	for _, p := range []string{"3", "4", "5"} {
		if list, err := s.db.History(fhir.Key{Type: patient, ID: p}); err != nil || len(list) != 1 {
			t.Errorf("Patient/%s: %v, %v", p, list, err)
		}
	}
	if got := s.letters(); len(got) != 1 || !strings.Contains(got[0], "(recreated)") {
		t.Errorf("dead letters %q", got)
	}
}

func TestDecide(t *testing.T) {
	id, one, two := at("t", 0), [16]byte{1}, [16]byte{2}
	state := store.PartitionState{Next: 10, LeaderEpoch: 3, TopicID: one}
	for _, test := range []struct {
		reason source.Reason
		now    source.Bounds
		next   int64
		anew   bool
	}{
		{source.Expired, source.Bounds{TopicID: one, Start: 14, End: 20}, 14, false},
		{source.Expired, source.Bounds{TopicID: two, Start: 14, End: 20}, 14, true},
		{source.Away, source.Bounds{TopicID: one, Start: 2, End: 20}, 10, false},
		{source.Truncated, source.Bounds{TopicID: one, Start: 2, End: 8}, 2, true},
		{source.Forked, source.Bounds{Start: 2, End: 12}, 2, true},
		{source.Recreated, source.Bounds{TopicID: two, Start: 0, End: 30}, 0, true},
	} {
		d := decide(&source.Gap{Partition: id, Reason: test.reason, Next: 10}, state, test.now)
		topic := one
		if test.now.TopicID == two {
			topic = two
		}
		if d.Partition != id || d.Next != test.next || d.Anew != test.anew || d.TopicID != topic || !d.Lost.Truncated || !strings.Contains(d.Lost.Reason, string(test.reason)) {
			t.Errorf("%s, log %+v: %+v", test.reason, test.now, d)
		}
	}
}

// A topic that is not there any more is forgotten only once somebody says so; one that is there
// and configured is not.
func TestForget(t *testing.T) {
	r, dir, gone := newRig(t, 1), t.TempDir(), at("gone", 0)
	r.opts.Topics = append(r.opts.Topics, Topic{Name: "gone", Format: "a"})
	if err := r.cluster.CreateTopic("gone", 1, nil); err != nil {
		t.Fatal(err)
	}
	r.produce(gone, "a:1")
	s, stop := serve(t, r, dir)
	s.reads(gone, 1)
	s.passes()
	if _, err := s.Forget(t.Context(), "gone", nil); err == nil || !strings.Contains(err.Error(), "take it out of topics") {
		t.Errorf("forgotten though it is read: %v", err)
	}
	if _, err := s.Forget(t.Context(), "never", nil); err == nil {
		t.Error("forgotten though it was never known")
	}
	if err := r.cluster.DeleteTopic("gone"); err != nil {
		t.Fatal(err)
	}
	s.until("it is missed", func() bool {
		for _, p := range s.Pipeline.source.Status().Partitions {
			if p.Partition == gone && p.Absent && !p.Busy {
				return true
			}
		}
		return false
	})
	for _, p := range s.Status().Partitions {
		if is := p.Partition == gone; is != p.Absent || is && (p.why() != "absent" || !strings.Contains(p.Trouble, "tidemark topic forget gone/0")) {
			t.Errorf("it is said of %v: %q, %s", p.Partition, p.why(), p.Trouble)
		}
	}
	s.until("the other topic is ahead", func() bool {
		st := s.db.Status()
		return st.Partitions[0].Partition == gone && st.Watermark == st.Partitions[0].Watermark
	})
	s.stands("deleted")
	s.until("forgotten", func() bool { _, err := s.Forget(t.Context(), "gone", nil); return err == nil })
	s.passes()
	stop()

	r.opts.Topics = r.opts.Topics[:1]
	s, _ = serve(t, r, dir)
	s.passes()
	if n := len(s.db.Status().Partitions); n != 1 {
		t.Errorf("%d partitions are known", n)
	}
}

// On a stopped store the configuration alone decides.
func TestForgetCold(t *testing.T) {
	m := newMemory(t)
	m.states[at("t", 0)], m.states[at("t", 1)], m.notes["joined/t/1"] = store.PartitionState{}, store.PartitionState{}, []byte("1")
	yes, no := func(string) bool { return true }, func(string) bool { return false }
	if _, err := Forget(m, "t", nil, yes); err == nil || len(m.states) != 2 {
		t.Errorf("forgotten though it is configured: %v", err)
	}
	got, err := Forget(m, "t", new(int32(1)), no)
	if err != nil || len(got) != 1 || got[0] != at("t", 1) || len(m.states) != 1 || len(m.notes) != 0 {
		t.Errorf("forgotten %v, %v; left %v, %v", got, err, m.states, m.notes)
	}
}
