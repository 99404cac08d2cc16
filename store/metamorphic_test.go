package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/compaction"
	"tidemark/store/fhir"
	"tidemark/store/storetest"
)

// TestMetamorphic takes the same changes in with other commit boundaries, batch
// sizes and merges: history before the bootstrap keeps its own instants, so
// every window must hold the same resources, whatever the files look like.
func TestMetamorphic(t *testing.T) {
	merges := map[compaction.Kind]int{}
	for seed := range storetest.Rounds(uint64(8)) {
		r := rand.New(rand.NewPCG(seed, 9))
		changes := historyOf(r, 600)
		var want []map[string]string
		for variant := range 6 {
			synctest.Test(t, func(t *testing.T) {
				got := windowsOf(t, r, changes, variant, merges)
				if variant == 0 {
					want = got
				} else if d := cmp.Diff(want, got); d != "" {
					t.Errorf("seed %d, variant %d (-first +this):\n%s", seed, variant, d)
				}
			})
		}
	}
	for k := compaction.Nothing; k <= compaction.Widen; k++ {
		t.Logf("%s: %d", k, merges[k])
		if merges[k] == 0 {
			t.Errorf("no merge was of the kind %s", k)
		}
	}
}

// historyOf makes versions of 80 patients with instants of their own. Each
// patient's instants rise, so none is moved by its predecessor.
func historyOf(r *rand.Rand, n int) []Change {
	last := map[string]int{}
	list := make([]Change, n)
	for i := range list {
		id := fmt.Sprintf("p%d", r.IntN(80))
		last[id]++
		at := fhir.Instant(946_684_000_000 + int64(last[id])*60_000 + int64(r.IntN(50_000)))
		list[i] = patientChange(id, at, fmt.Sprintf("%d %s", i, strings.Repeat("x", r.IntN(3000))))
		list[i].Version = int64(last[id])
		list[i].Offset = int64(i)
	}
	return list
}

// windowsOf reads ten windows of a store that took the changes in one way.
func windowsOf(t *testing.T, r *rand.Rand, changes []Change, variant int, merges map[compaction.Kind]int) []map[string]string {
	o := Options{FS: vfs.NewMem()}
	if variant > 3 { // rows settle as soon as they may
		o.SettleAfter, o.LastState = time.Millisecond, time.Millisecond
	}
	db := mustOpen(t, "store", o)
	defer db.Close()
	if err := db.Discover(Discovery{Partitions: []Discovered{{Partition: part0}}}); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(changes); {
		n := len(changes)
		if variant > 0 {
			n = min(len(changes), at+1+r.IntN(40*variant))
		}
		b := Batch{Partition: part0, Next: int64(n), End: int64(len(changes)), LeaderEpoch: -1, Asked: db.Now()}
		b.Changes = append(b.Changes, changes[at:n]...)
		if err := db.Apply(context.Background(), b); err != nil {
			t.Fatal(err)
		}
		if at = n; r.IntN(2) == 0 {
			if err := db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if variant > 2 {
			if _, err := db.Merge(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
	newFeed(t, db).apply()
	early := pinNow(t, db, "early") // which promises, so that rows may settle, and keeps what merges replace
	defer early.Close()
	if variant > 1 {
		mergeAll(t, db, merges)
	}
	if variant > 4 { // and the store grows old
		for range 5 {
			time.Sleep(30 * time.Minute)
			mergeAll(t, db, merges)
		}
		newFeed(t, db).apply()
	}
	if _, err := db.Check(true); err != nil {
		t.Fatal(err)
	}
	s := pinNow(t, db, "job")
	defer s.Close()
	var windows []map[string]string
	for i := range 10 {
		since := fhir.Instant(946_684_000_000 + i*50_000)
		windows = append(windows, windowOf(t, s, since, fmt.Sprint("w", i)))
		if d := cmp.Diff(windowOf(t, early, since, fmt.Sprint("w", i)), windows[i]); d != "" {
			t.Errorf("variant %d: the same window before and after the merges:\n%s", variant, d)
		}
	}
	return windows
}

func mergeAll(t *testing.T, db *DB, done map[compaction.Kind]int) {
	t.Helper()
	for {
		r, err := db.rewrite(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		done[r.job.Kind]++
		if r.job.Kind == compaction.Nothing {
			return
		}
	}
}

func windowOf(t *testing.T, s *Snapshot, since fhir.Instant, name string) map[string]string {
	ext, err := s.Extents(patients, since, s.Watermark())
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.File(context.Background(), name, patients, since, s.Watermark(), ext)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var w lineWriter
	if err := f.WriteIdentity(&w, 0, f.Size()); err != nil {
		t.Fatal(err)
	}
	m, err := w.byID()
	if err != nil {
		t.Fatal(err)
	}
	return m
}
