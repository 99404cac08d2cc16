package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/compaction"
	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// rewriteAll does all that the plan finds.
func rewriteAll(t testing.TB, db *DB) {
	t.Helper()
	for {
		r, err := db.rewrite(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if r.job.Kind == compaction.Nothing {
			return
		}
	}
}

// advance lets time pass, tells the store that nothing came, and promises.
func (f *feed) advance(d time.Duration) {
	f.t.Helper()
	time.Sleep(d)
	f.apply()
	if err := f.db.heartbeat(); err != nil {
		f.t.Fatal(err)
	}
}

// TestForget: the last state before a deletion goes after LastState, the
// deletion itself after Deleted, and with it the last that the index knows. What
// exports are told of that is in Forgotten.
func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := Options{FS: fs, SettleAfter: time.Minute, LastState: 10 * time.Minute, Deleted: time.Hour, Allowance: time.Millisecond}
		db := mustOpen(t, "store", o)
		defer func() { db.Close() }()
		f := newFeed(t, db)
		f.advance(time.Second)
		start := db.Promised()
		f.commit(patientChange("gone", fhir.None, "SECRET"), patientChange("stays", fhir.None, ""))
		f.advance(time.Second)
		f.commit(Change{Key: fhir.Key{Type: patientType, ID: "gone"}, Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None})
		state := func() string {
			t.Helper()
			rewriteAll(t, db)
			if _, err := db.Check(true); err != nil {
				t.Fatal(err)
			}
			_, err := db.newest(fhir.Key{Type: patientType, ID: "gone"})
			return fmt.Sprintf("body %v, deletion %v, known %v, forgotten %v", strings.Contains(bodies(t, db), "SECRET"),
				strings.Contains(bodies(t, db), "DELETE"), err == nil, db.meta.Forgotten > start)
		}
		for _, step := range []struct {
			wait time.Duration
			want string
		}{
			{5 * time.Minute, "body true, deletion true, known true, forgotten false"},
			{10 * time.Minute, "body false, deletion true, known true, forgotten false"},
			{30 * time.Minute, "body false, deletion true, known true, forgotten false"},
		} {
			f.advance(step.wait)
			if got := state(); got != step.want {
				t.Errorf("after %v: %s, want %s", step.wait, got, step.want)
			}
		}
		f.advance(30 * time.Minute)
		for i := range 20 { // deletions are dropped when there is work, not for their own sake
			f.commit(patientChange("stays", fhir.None, fmt.Sprint(i)))
			f.advance(time.Minute)
			rewriteAll(t, db)
		}
		if got, want := state(), "body false, deletion false, known false, forgotten true"; got != want {
			t.Errorf("in the end: %s, want %s", got, want)
		}
		f.commit(patientChange("gone", fhir.None, "again"))
		f.advance(time.Second)
		snap := pinNow(t, db, "job")
		defer snap.Close()
		if got, err := content(snap); err != nil || !strings.Contains(got["Patient/gone"], "again") {
			t.Errorf("what came back: %q, %v", got["Patient/gone"], err)
		}
		if err := errors.Join(db.Close(), fs.RemoveAll("store/index"), Reindex(context.Background(), "store", o, io.Discard)); err != nil {
			t.Fatal(err)
		}
		db = mustOpen(t, "store", o)
		if _, err := db.Check(true); err != nil {
			t.Error(err)
		}
	})
}

// TestForgetDepartures: who asks what has left a Patient from before the horizon
// is told that not all of it is known, also if nothing was ever deleted.
func TestForgetDepartures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{FS: vfs.NewMem(), SettleAfter: time.Minute, Deleted: time.Hour, Allowance: time.Millisecond}
		db := mustOpen(t, "store", o)
		defer db.Close()
		f := newFeed(t, db)
		f.advance(time.Second)
		f.commit(observationOf("o", "a", ""))
		f.advance(time.Minute)
		before := db.Promised()
		moved := observationOf("o", "b", "")
		f.commit(moved)
		for i := range 90 {
			f.advance(time.Minute)
			f.commit(patientChange("stays", fhir.None, fmt.Sprint(i)))
			rewriteAll(t, db)
			known := strings.Contains(bodies(t, db), `"departed":["a"]`)
			if told := db.meta.Forgotten == fhir.None; known != told {
				t.Fatalf("minute %d: the departure is known: %t, forgotten up to %v", i, known, db.meta.Forgotten)
			}
		}
		if at := db.meta.Forgotten; at <= before || at > before+2*60_000 {
			t.Errorf("forgotten up to %v, the departure was soon after %v", at, before)
		}
	})
}

// bodies is the NDJSON of all live segments.
func bodies(t testing.TB, db *DB) string {
	t.Helper()
	var text []byte
	for _, s := range db.view.all() {
		body, err := s.r.OpenBody()
		if err != nil {
			t.Fatal(err)
		}
		for b := range s.r.Blocks() {
			if text, err = s.r.Lines(text, body, b); err != nil {
				t.Fatal(err)
			}
		}
		body.Close()
	}
	return string(text)
}

// TestDeletionOutlivesWhatItKeepsDead: as long as a row that the deletion ended
// still lies in a segment, reindex needs the deletion to know that it is dead.
func TestDeletionOutlivesWhatItKeepsDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		// The last state is kept for longer than deletions are told: nobody may
		// configure that, but merges must not depend on it.
		o := Options{FS: fs, SettleAfter: time.Minute, LastState: 10 * time.Hour, Deleted: time.Hour, Allowance: time.Millisecond}
		db := mustOpen(t, "store", o)
		defer func() { db.Close() }()
		f := newFeed(t, db)
		f.advance(time.Second)
		f.commit(patientChange("gone", fhir.None, ""))
		f.advance(time.Second)
		f.commit(Change{Key: fhir.Key{Type: patientType, ID: "gone"}, Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None})
		for i := range 150 {
			f.commit(patientChange("other", fhir.None, fmt.Sprint(i)))
			f.advance(time.Minute)
			rewriteAll(t, db)
		}
		if err := errors.Join(db.Close(), fs.RemoveAll("store/index"), Reindex(t.Context(), "store", o, io.Discard)); err != nil {
			t.Fatal(err)
		}
		db = mustOpen(t, "store", o)
		got, err := wholeContent(db)
		if err != nil || len(got) != 1 {
			t.Errorf("after reindex %d resources live, want 1: %v", len(got), err)
		}
	})
}

// TestMergePassesByDamage: a body with a flipped bit makes one merge fail. The
// next one takes others, the log names the file and the way out.
func TestMergePassesByDamage(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	db := mustOpen(t, dir, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	defer db.Close()
	f := newFeed(t, db)
	for i := range 17 {
		f.commit(patientChange(fmt.Sprintf("p%d", i), fhir.None, "x"))
	}
	bad := db.view.fresh[2].r
	path := filepath.Join(dir, "segments", bad.ID().BodyName())
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	body[segment.HeaderSize+5] ^= 0x10
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Merge(t.Context()); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a merge of damaged bytes: %v", err)
	}
	if !strings.Contains(log.String(), bad.ID().BodyName()) || !strings.Contains(log.String(), "tidemark reindex") {
		t.Errorf("the log: %s", &log)
	}
	rewriteAll(t, db)
	if n := db.view.len(); n > 10 {
		t.Errorf("%d segments are left: the others were not merged", n)
	}
	f.commit(patientChange("after", fhir.None, "x"))
}

// TestReindexAfterHalfAMerge: a crash left some of the outputs of a merge, and
// the index is lost: what it merged counts, whichever of the outputs are there.
func TestReindexAfterHalfAMerge(t *testing.T) {
	for missing := range 3 {
		synctest.Test(t, func(t *testing.T) {
			fs := vfs.NewMem()
			o := Options{FS: fs, SettleAfter: time.Minute, Allowance: time.Millisecond, smallFile: 1}
			db := mustOpen(t, "store", o)
			f := newFeed(t, db)
			f.advance(time.Second)
			f.commit(patientChange("a", fhir.None, strings.Repeat("x", 1000)), patientChange("gone", fhir.None, "x"), observationOf("o", "a", "x"))
			f.advance(time.Second)
			f.commit(Change{Key: fhir.Key{Type: patientType, ID: "gone"}, Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None})
			f.advance(time.Hour)
			inputs := copyFiles(t, fs, "store/segments")
			if r, err := db.rewrite(t.Context()); err != nil || r.job.Kind != compaction.Settle || len(r.outputs) != 3 {
				t.Fatalf("%v with %d outputs, %v", r.job.Kind, len(r.outputs), err)
			}
			lost := db.view.settled[missing].r
			want := bodies(t, db)
			if err := errors.Join(db.Close(), fs.RemoveAll("store/index"), fs.Remove(lost.BodyPath())); err != nil {
				t.Fatal(err)
			}
			for name, data := range inputs {
				writeFile(t, fs, "store/segments/"+name, data)
			}
			if err := Reindex(t.Context(), "store", o, io.Discard); err != nil {
				t.Fatal(err)
			}
			db = mustOpen(t, "store", o)
			defer db.Close()
			if _, err := db.Check(true); err != nil {
				t.Error(err)
			}
			got := bodies(t, db)
			for line := range strings.Lines(want) {
				if strings.Count(got, line) != 1 {
					t.Errorf("without output %d: %d times %s", missing, strings.Count(got, line), line)
				}
			}
			if all, err := wholeContent(db); err != nil || len(all) != 1 {
				t.Errorf("without output %d: %d patients live, want 1 (%v)", missing, len(all), err)
			}
		})
	}
}

// TestCleanWhatExportsPaidFor: rows that die here and there make most blocks
// dirty long before they are a fifth of a segment. Once an export has
// recompressed them the segment is cleaned, and the next export sends stored
// blocks, also where the last states of what was deleted are kept.
func TestCleanWhatExportsPaidFor(t *testing.T) {
	for _, removed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
			defer db.Close()
			f := newFeed(t, db)
			f.advance(time.Second)
			const n, each = 400, 10_000 // 19 rows in a block
			var list, again []Change
			for i := range n {
				list = append(list, patientChange(fmt.Sprintf("p%d", i), fhir.None, strings.Repeat(fmt.Sprint(i), each/3)))
			}
			f.commit(list...)
			f.advance(time.Second)
			for i := 0; i < n; i += 10 {
				c := patientChange(fmt.Sprintf("p%d", i), fhir.None, "new")
				if removed {
					c = Change{Key: c.Key, Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None}
				}
				again = append(again, c)
			}
			f.commit(again...)
			f.advance(time.Second)
			if did, err := db.Merge(t.Context()); did || err != nil {
				t.Fatalf("merged before any export asked for it: %t, %v", did, err)
			}
			dirty := func(job string) (n int) {
				s := pinNow(t, db, job)
				defer s.Close()
				ext, err := s.Extents(patients, fhir.None, s.Watermark())
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range ext {
					if !e.Whole {
						n++
					}
				}
				if _, err := content(s); err != nil {
					t.Fatal(err)
				}
				return n
			}
			before := dirty("first")
			did, err := db.Merge(t.Context())
			if err != nil || !did {
				t.Fatalf("after an export (last states kept: %t): merged %t, %v", removed, did, err)
			}
			if after := dirty("second"); before < 10 || after > 0 {
				t.Errorf("%d blocks dirty before, %d after (last states kept: %t)", before, after, removed)
			}
			if kept := db.view.fresh[0].r.Section(lastStates(patients)); removed != (kept.From < kept.To) {
				t.Errorf("blocks %d to %d are last states", kept.From, kept.To)
			}
			if did, err := db.Merge(t.Context()); did || err != nil {
				t.Errorf("merged again: %t, %v", did, err)
			}
		})
	}
}

// TestLastStates: what was deleted is kept for a while where no export meets it.
// A reindex that finds it beside the segment that it was cleaned out of, or
// without the deletion, does not raise it.
func TestLastStates(t *testing.T) {
	for _, lost := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			fs := vfs.NewMem()
			o := Options{FS: fs, SettleAfter: time.Minute, Allowance: time.Millisecond, smallFile: 1}
			db := mustOpen(t, "store", o)
			f := newFeed(t, db)
			f.advance(time.Second)
			f.commit(patientChange("gone", fhir.None, "SECRET"), observationOf("o", "gone", "x"))
			f.advance(time.Hour)
			rewriteAll(t, db) // settles
			f.commit(Change{Key: fhir.Key{Type: patientType, ID: "gone"}, Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None})
			f.advance(2 * time.Second)
			before := copyFiles(t, fs, "store/segments")
			rewriteAll(t, db) // cleans: not one row of the type is left
			s := pinNow(t, db, "job")
			if ext, err := s.Extents(patients, fhir.None, s.Watermark()); err != nil || len(ext) != 0 || len(s.Sections(Live)) != 1 {
				t.Errorf("an export would look at %d blocks, and at %v, %v", len(ext), s.Sections(Live), err)
			}
			s.Close()
			history, err := db.History(fhir.Key{Type: patientType, ID: "gone"})
			if err != nil || len(history) != 2 || history[0].Section != lastStates(patients) || history[0].Death != history[1].Instant {
				t.Fatalf("history: %+v, %v", history, err)
			}
			if line, err := db.Body(history[0]); err != nil || !strings.Contains(string(line), "SECRET") {
				t.Errorf("the last state: %q, %v", line, err)
			}
			deletion := strings.TrimSuffix(history[1].Segment, ".dir")
			if err := errors.Join(db.Close(), fs.RemoveAll("store/index")); err != nil {
				t.Fatal(err)
			}
			for name, data := range before {
				writeFile(t, fs, "store/segments/"+name, data)
			}
			if lost {
				if err := fs.Remove("store/segments/" + deletion + ".ndjson.gz"); err != nil {
					t.Fatal(err)
				}
			}
			if err := Reindex(t.Context(), "store", o, io.Discard); err != nil {
				t.Fatal(err)
			}
			db = mustOpen(t, "store", o)
			defer db.Close()
			if _, err := db.Check(true); err != nil {
				t.Error(err)
			}
			if all, err := wholeContent(db); err != nil || len(all) != 0 {
				t.Errorf("%d patients live (%v)", len(all), err)
			}
			if n := strings.Count(bodies(t, db), "SECRET"); n != 1 {
				t.Errorf("the last state lies in %d rows", n)
			}
			if _, err := db.newest(fhir.Key{Type: patientType, ID: "gone"}); errors.Is(err, ErrUnknown) != lost {
				t.Errorf("deletion lost %t: %v", lost, err)
			}
		})
	}
}

// TestJoinCopiesBlocks: what intake compressed is compressed once. Blocks that
// lose no row lie in what neighbours were joined to as they were, bit for bit,
// and they are all but a twentieth of it.
func TestJoinCopiesBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		const segments, blocks, each = 8, 45, 9_900 // 20 rows in a block
		noise := rand.NewChaCha8([32]byte{1})
		change := func(n, i int) Change {
			text := make([]byte, each/2)
			_, _ = noise.Read(text)
			return patientChange(fmt.Sprintf("p%d-%d", n, i), fhir.None, fmt.Sprintf("%x", text))
		}
		for n := range segments {
			var list []Change
			for i := range blocks * 20 {
				list = append(list, change(n, i))
			}
			if n > 0 { // what came together before changes together: one row in 150
				for i := range 6 {
					list = append(list, change(n-1, 100+i))
				}
			}
			f.commit(list...)
			f.advance(time.Second)
		}
		type block struct {
			sum    segment.Sum
			stored int32
		}
		came := map[block]bool{}
		rows, dead := int64(0), int64(0)
		for _, s := range db.view.fresh {
			rows, dead = rows+s.rows, dead+s.buried
			for i := range s.r.Blocks() {
				came[block{s.r.Blocks()[i].Sum, s.r.Blocks()[i].Stored}] = true
			}
		}
		r, err := db.rewrite(t.Context())
		if err != nil || r.job.Kind != compaction.Join || len(r.outputs) != 1 || dead == 0 || dead*10 > rows {
			t.Fatalf("%v of %d rows, %d of them dead, %v", r.job.Kind, rows, dead, err)
		}
		var copied, all int64
		for i := range r.outputs[0].Blocks() {
			b := &r.outputs[0].Blocks()[i]
			if all += int64(b.Stored); came[block{b.Sum, b.Stored}] {
				copied += int64(b.Stored)
			}
		}
		if share := float64(copied) / float64(all); share < 0.95 {
			t.Errorf("%.3f of the bytes are blocks that came, want 0.95 (%d of %d rows dead)", share, dead, rows)
		}
	})
}
