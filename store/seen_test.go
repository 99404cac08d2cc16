package store

import (
	"context"
	"io"
	"testing"
	"time"

	"tidemark/store/fhir"
)

// TestSeen: a partition that lags has seen its log up to an end that it has
// reached since, and only what is durable counts.
func TestSeen(t *testing.T) {
	dir := t.TempDir()
	db := mustOpen(t, dir, Options{Allowance: time.Millisecond})
	f := newFeed(t, db)
	begin := db.Now()
	f.commit(patientChange("a", fhir.None, "1"))
	seen := func() fhir.Instant {
		t.Helper()
		st, ok := db.Partition(part0)
		if !ok {
			t.Fatal("unknown partition")
		}
		return st.Seen
	}
	if got := seen(); got < begin {
		t.Fatalf("seen at %v, read to the end at %v or later", got, begin)
	}
	lag := func(asked fhir.Instant, end int64) {
		t.Helper()
		ch := patientChange("b", fhir.None, "1")
		ch.Offset = f.next
		f.next++
		if err := db.Apply(context.Background(), Batch{Partition: part0, Changes: []Change{ch}, Next: f.next, End: end, LeaderEpoch: -1, Asked: asked}); err != nil {
			t.Fatal(err)
		}
	}
	db.ahead(time.Hour)
	first := db.Now()
	lag(first, f.next+2)
	db.ahead(time.Hour)
	second := db.Now()
	if lag(second, f.next+10); db.heartbeat() != nil || seen() >= first {
		t.Errorf("seen at %v before what was the end then is durable", seen())
	}
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := seen(); got != first {
		t.Errorf("seen at %v, want %v: the end of that time has been reached, that of %v has not", got, first, second)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	// Without the index it is known as far as was promised.
	if err := Reindex(context.Background(), dir, Options{}, io.Discard); err != nil {
		t.Fatal(err)
	}
	db = mustOpen(t, dir, Options{Allowance: time.Millisecond})
	defer db.Close()
	if got := seen(); got == fhir.None || got > first {
		t.Errorf("after reindex: seen at %v, want an instant up to %v", got, first)
	}
}
