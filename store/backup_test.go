package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
)

// TestRestoreMissesNothing: a backup is taken, a client's chain goes on beyond
// it, the store is lost. What is restored reads the topic again from where the
// backup stood, records come late among it, and the chain goes on: nothing is
// missed, what comes twice is counted, a new epoch tells. Once more with the
// restored index lost, too.
func TestRestoreMissesNothing(t *testing.T) {
	for _, reindex := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			fs := vfs.NewMem()
			o := Options{FS: fs, Allowance: time.Millisecond, SettleAfter: time.Minute}
			db := mustOpen(t, "store", o)
			f := newFeed(t, db)
			var topic []Change // all that was ever written
			truth, client := map[string]string{}, map[string]string{}
			write := func(id, text string, at fhir.Instant) {
				ch := patientChange(id, at, text)
				topic = append(topic, ch)
				truth[ch.Key.String()] = text
			}
			feed := func() {
				for int(f.next) < len(topic) {
					n := min(len(topic), int(f.next)+7)
					list := slices.Clone(topic[f.next:n])
					for i := range list {
						list[i].Body = slices.Clone(list[i].Body)
					}
					for i := range list {
						list[i].Offset = f.next + int64(i)
					}
					f.next = int64(n)
					// While the end is not reached nothing but the promise says how far exports reached.
					b := Batch{Partition: part0, Changes: list, Next: f.next, End: int64(len(topic)), LeaderEpoch: -1, Asked: db.Now()}
					if err := errors.Join(db.Apply(t.Context(), b), db.Flush()); err != nil {
						t.Fatal(err)
					}
				}
				f.advance(time.Second)
			}
			since, epoch, repeats := fhir.None, uint64(1), 0
			export := func(name string) {
				t.Helper()
				s := pinNow(t, db, name)
				defer s.Close()
				for key, line := range windowOf(t, s, since, name) {
					_, text, _ := strings.Cut(line, `"text":"`)
					text, _, _ = strings.Cut(text, `"`)
					if client[key] == text {
						repeats++
					}
					client[key] = text
				}
				if s.Watermark() < since {
					t.Errorf("%s: the watermark fell", name)
				}
				since, epoch = s.Watermark(), s.Epoch()
			}
			f.advance(time.Second)
			for i := range 60 {
				write(fmt.Sprintf("p%d", i%40), fmt.Sprint("before ", i), db.Now()-fhir.Instant((60-i)*1000))
			}
			feed()
			export("one")
			f.advance(time.Hour)
			rewriteAll(t, db)
			backup, err := db.Backup(t.Context(), "backups", false)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 30 {
				write(fmt.Sprintf("p%d", i*2), fmt.Sprint("after ", i), fhir.None)
			}
			feed()
			export("two")
			given := db.meta.NextSeq
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if err := fs.RemoveAll("store"); err != nil {
				t.Fatal(err)
			}
			if err := Restore(t.Context(), backup.Path, "store", "", o, io.Discard); err != nil {
				t.Fatal(err)
			}
			if reindex {
				if err := fs.RemoveAll("store/index"); err != nil {
					t.Fatal(err)
				}
				if err := Reindex(context.Background(), "store", o, io.Discard); err != nil {
					t.Fatal(err)
				}
			}
			db = mustOpen(t, "store", o)
			defer func() { db.Close() }()
			if _, err := db.Check(true); err != nil {
				t.Fatal(err)
			}
			if !reindex && db.meta.NextSeq <= given {
				t.Errorf("the next row gets the number %d, the lost store had given %d", db.meta.NextSeq, given)
			}
			f = newFeed(t, db)
			if int(f.next) != 60 {
				t.Fatalf("reading goes on at %d, the backup stood at 60", f.next)
			}
			repeats = 0
			write("p0", "late", since-3_600_000) // an hour before the client's transactionTime
			write("new", "late", since-3_600_000)
			feed()
			f.advance(time.Minute)
			export("three")
			if !maps.Equal(truth, client) {
				t.Errorf("the client (-source +client):\n%s", cmp.Diff(truth, client))
			}
			if epoch < 2 {
				t.Errorf("epoch %d", epoch)
			}
			if repeats == 0 || repeats > 30 {
				t.Errorf("%d resources came again, want some, but only what came since the backup", repeats)
			}
		})
	}
}

// TestBackupsShareFiles: a second backup links what did not change, a backup
// that did not end is none, and one that lost a byte is refused.
func TestBackupsShareFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		db := mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		f.commit(patientChange("a", fhir.None, strings.Repeat("x", 1000)))
		first, err := db.Backup(t.Context(), "backups", true)
		if err != nil || first.Linked != 0 || first.Copied == 0 {
			t.Fatalf("first: %+v, %v", first, err)
		}
		f.advance(time.Second)
		f.commit(patientChange("b", fhir.None, "y"))
		f.advance(time.Second)
		second, err := db.Backup(t.Context(), "backups", false)
		if err != nil || second.Linked <= first.Copied || len(second.Segments) != 4 {
			t.Fatalf("second: %+v, %v", second, err)
		}
		if err := fs.MkdirAll("backups/tidemark-29990101T000000.000Z/segments", 0o700); err != nil {
			t.Fatal(err)
		}
		list, err := Backups(fs, "backups")
		if err != nil || len(list) != 2 || list[1].Path != second.Path {
			t.Errorf("backups: %+v, %v", list, err)
		}
		if err := Restore(t.Context(), "backups/tidemark-29990101T000000.000Z", "r1", "", Options{FS: fs}, io.Discard); err == nil {
			t.Error("a backup that did not end was restored")
		}
		if err := Restore(t.Context(), second.Path, "store", "", Options{FS: fs}, io.Discard); err == nil || !strings.Contains(err.Error(), "not empty") {
			t.Errorf("over a store: %v", err)
		}
		writeFile(t, fs, fs.PathJoin(first.Path, "segments", first.Segments[1].Name), []byte("short"))
		if err := Restore(t.Context(), first.Path, "r2", "", Options{FS: fs}, io.Discard); err == nil || !strings.Contains(err.Error(), first.Segments[1].Name) {
			t.Errorf("a damaged backup: %v", err)
		}
	})
}

// TestBackupOutlivesCrash: a backup into folders that it had to make is there
// after a crash that loses all that was not synced, and so is what is made of it.
func TestBackupOutlivesCrash(t *testing.T) {
	fs := vfs.NewCrashableMem()
	db := mustOpen(t, "store", Options{FS: fs})
	f := newFeed(t, db)
	f.commit(patientChange("p1", fhir.None, "x"))
	b, err := db.Backup(t.Context(), "far/away", false)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	fs = fs.CrashClone(vfs.CrashCloneCfg{})
	if err := Restore(t.Context(), b.Path, "new/store", "", Options{FS: fs}, io.Discard); err != nil {
		t.Fatal(err)
	}
	fs = fs.CrashClone(vfs.CrashCloneCfg{})
	db = mustOpen(t, "new/store", Options{FS: fs})
	if got := bodies(t, db); !strings.Contains(got, `"p1"`) {
		t.Errorf("the restored store holds %q", got)
	}
}

// TestRestoreKeepsErased: a backup from before an erasure holds what was
// erased. The erasure names it; restored with the list of a later one, it is
// not there.
func TestRestoreKeepsErased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		db, f, o, _ := canaryFeed(t, fs)
		defer db.Close()
		before, err := db.Backup(t.Context(), "backups", true)
		if err != nil {
			t.Fatal(err)
		}
		done, err := db.Erase(t.Context(), Erasure{Key: fhir.Key{Type: patientType, ID: "anna"}, Compartment: true})
		if err != nil || !slices.Equal(done.Elsewhere, []string{"backup " + before.Path}) {
			t.Fatalf("erased %+v, %v", done, err)
		}
		f.advance(time.Second)
		after, err := db.Backup(t.Context(), "backups", false)
		if err != nil {
			t.Fatal(err)
		}
		if where := found(t, fs, after.Path, "CANARY"); len(where) > 0 {
			t.Errorf("a backup taken afterwards holds the canary in %v", where)
		}
		if err := Restore(t.Context(), before.Path, "restored", after.Path+"/"+erasedFile, o, io.Discard); err != nil {
			t.Fatal(err)
		}
		if where := found(t, fs, "restored", "CANARY"); len(where) > 0 {
			t.Errorf("what was restored holds the canary in %v", where)
		}
		again := mustOpen(t, "restored", o)
		defer again.Close()
		if _, err := again.Check(true); err != nil {
			t.Error(err)
		}
	})
}
