package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/store/disk"
	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// The days on which two things go wrong at once: each test here was a way to get
// back what was erased, to lose a store, or to make a backup that was none.

var annaErased = Erasure{Key: fhir.Key{Type: patientType, ID: "anna"}, Compartment: true}

func letterOf(value string) Change {
	return Change{Dead: &DeadLetter{Reason: "no JSON", Value: []byte(value)}, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None}
}

func mustErase(t *testing.T, db *DB, e Erasure) Erased {
	t.Helper()
	done, err := db.Erase(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func mustBackUp(t *testing.T, db *DB, root string, copies bool) Backup {
	t.Helper()
	b, err := db.Backup(t.Context(), root, copies)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustRestore(t *testing.T, path, dir, erased string, o Options) *DB {
	t.Helper()
	if err := Restore(t.Context(), path, dir, erased, o, io.Discard); err != nil {
		t.Fatal(err)
	}
	return mustOpen(t, dir, o)
}

// TestErasePinnedAndMerged: a job's segments were merged away before the erasure.
func TestErasePinnedAndMerged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		db := mustOpen(t, "store", Options{FS: fs, SettleAfter: time.Minute, Allowance: time.Millisecond, smallFile: 1})
		defer db.Close()
		f := newFeed(t, db)
		f.advance(time.Second)
		f.commit(patientChange("anna", fhir.None, "CANARY 1"), patientChange("ben", fhir.None, "stays"))
		f.advance(time.Second)
		if err := pinNow(t, db, "job").Close(); err != nil {
			t.Fatal(err)
		}
		if err := db.Amend("job", []byte("an export of anna"), time.Time{}); err != nil {
			t.Fatal(err)
		}
		f.advance(time.Hour)
		rewriteAll(t, db)
		if done := mustErase(t, db, annaErased); len(done.Jobs) != 1 {
			t.Errorf("%d jobs were ended", len(done.Jobs))
		}
		if rule := db.Pinned()[0].Rule; len(rule) > 0 {
			t.Errorf("the rule of the job that was ended is still %q", rule)
		}
		if where := found(t, fs, "store", "CANARY"); len(where) > 0 {
			t.Errorf("the canary is in %v", where)
		}
		if _, err := db.Snapshot("job"); !errors.Is(err, ErrRevoked) {
			t.Errorf("the job: %v", err)
		}
	})
}

// TestEraseUnderDownload: what a reader still has open is said, and a reader that
// was slow cuts no file any more.
func TestEraseUnderDownload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		db := mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		f.advance(time.Second)
		f.commit(patientChange("anna", fhir.None, "CANARY 1"), patientChange("ben", fhir.None, "old"))
		f.advance(time.Second)
		f.commit(patientChange("ben", fhir.None, "new"))
		f.advance(time.Second)
		job := pinNow(t, db, "job")
		if done := mustErase(t, db, annaErased); !strings.Contains(fmt.Sprint(done.Elsewhere), "download under way") {
			t.Errorf("elsewhere: %v", done.Elsewhere)
		}
		if _, err := content(job); !errors.Is(err, ErrRevoked) {
			t.Errorf("a file that was to be cut: %v", err)
		}
		if err := job.Close(); err != nil {
			t.Fatal(err)
		}
		if where := found(t, fs, "store", "CANARY"); len(where) > 0 {
			t.Errorf("the canary is in %v", where)
		}
		if names, err := fs.List("store/jobs/job"); err == nil && len(names) > 0 {
			t.Errorf("files of the job: %v", names)
		}
	})
}

// TestEraseBesideUnpin: jobs are deleted while an erasure ends them. Nothing is
// released twice, and none comes back.
func TestEraseBesideUnpin(t *testing.T) {
	for range 20 {
		fs := vfs.NewMem()
		db := mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond})
		f := newFeed(t, db)
		f.advance(2 * time.Millisecond)
		f.commit(patientChange("anna", fhir.None, "CANARY 1"))
		f.commit(patientChange("ben", fhir.None, "x"))
		f.advance(2 * time.Millisecond)
		const jobs = 8
		for j := range jobs {
			if err := pinNow(t, db, fmt.Sprint("job", j)).Close(); err != nil {
				t.Fatal(err)
			}
		}
		var all sync.WaitGroup
		all.Go(func() { mustErase(t, db, annaErased) })
		for j := range jobs {
			all.Go(func() {
				for range 2000 { // until the erasure has ended one
					db.mu.Lock()
					begun := false
					for _, p := range db.pins {
						begun = begun || p.revoked.Load()
					}
					db.mu.Unlock()
					if begun {
						break
					}
				}
				if err := db.Unpin(context.Background(), fmt.Sprint("job", j)); err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		db.mu.Lock()
		for id, s := range db.segs {
			if s.refs != 0 {
				t.Errorf("segment %d has %d references, nobody holds any", id, s.refs)
			}
		}
		db.mu.Unlock()
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = mustOpen(t, "store", Options{FS: fs})
		if n := len(db.Pinned()); n > 0 {
			t.Errorf("after a restart there are %d jobs again", n)
		}
		if err := db.Close(); err != nil || t.Failed() {
			t.Fatal(err)
		}
	}
}

// TestAmendBesideUnpin: a job is deleted while its rule is stored. It stays
// deleted.
func TestAmendBesideUnpin(t *testing.T) {
	fs := vfs.NewMem()
	db := mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond})
	f := newFeed(t, db)
	f.commit(patientChange("ben", fhir.None, "x"))
	f.advance(5 * time.Millisecond)
	for i := range 50 {
		id := fmt.Sprint("job", i)
		s := pinNow(t, db, id)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for err := error(nil); !errors.Is(err, ErrNotFound); {
					if err = db.Amend(id, []byte("late"), time.Time{}); err != nil && !errors.Is(err, ErrNotFound) {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Go(func() {
			if err := db.Unpin(context.Background(), id); err != nil {
				t.Error(err)
			}
		})
		all.Wait()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := pinNow(t, db, "stays").Close(); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(9 * time.Hour).Truncate(time.Millisecond)
	if err := errors.Join(db.Amend("stays", nil, later), db.Amend("stays", []byte("the rule"), time.Time{}), db.Close()); err != nil {
		t.Fatal(err)
	}
	db = mustOpen(t, "store", Options{FS: fs})
	defer db.Close()
	if list := db.Pinned(); len(list) != 1 || string(list[0].Rule) != "the rule" || !list[0].Expires.Equal(later) {
		t.Errorf("after a restart: %+v", list)
	}
}

// TestEraseBesideDamage: a segment that cannot be read keeps nothing else from
// being erased, and is said.
func TestEraseBesideDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		db := mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		f.advance(time.Second)
		f.commit(letterOf("about nobody"))
		f.commit(patientChange("anna", fhir.None, "CANARY"))
		f.advance(time.Second)
		path := db.view.fresh[0].r.BodyPath()
		data := copyFiles(t, fs, "store/segments")[fs.PathBase(path)]
		data[20] ^= 0xff
		writeFile(t, fs, path, data)
		if _, err := db.Erase(t.Context(), annaErased); !errors.Is(err, ErrCorrupt) {
			t.Errorf("of the damaged segment is said: %v", err)
		}
		s := pinNow(t, db, "later")
		defer s.Close()
		if got, err := content(s); err != nil || len(got) > 0 {
			t.Errorf("still there: %v, %v", got, err)
		}
	})
}

// TestEraseLetters: dead letters go that name the Patient in whatever way JSON
// allows, or whose key is that of a resource in the compartment.
func TestEraseLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		keyed := letterOf(`{"resourceType":"Observation","id":"o1","text":"cut sho`)
		keyed.Dead.Key = []byte("Observation/o1")
		f.commit(letterOf(`{"resourceType":"Observation","subject":{"reference":"Patient\/anna"},"x":CANARY}`),
			letterOf(`{"resourceType":"Observation","subject":{"reference":"Patient\u002fanna"},"x":CANARY}`),
			patientChange("anna", fhir.None, ""), observationOf("o1", "anna", ""), keyed)
		f.advance(time.Second)
		if done := mustErase(t, db, annaErased); done.DeadLetters != 3 {
			t.Errorf("%d letters went", done.DeadLetters)
		}
		err := db.DeadLetters("", func(l DeadLetterRow) error {
			t.Errorf("left: %s", l.Value)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// TestEraseWhatMovesThere: a resource that lives moves into an erased
// compartment. Clients are told that it is gone, nobody keeps what it was.
func TestEraseWhatMovesThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		was, is := observationOf("left", "anna", "CANARY"), observationOf("left", "ben", "x")
		was.Version, is.Version = 1, 2
		f.commit(observationOf("o", "ben", "x"), patientChange("anna", fhir.None, ""), is)
		f.advance(time.Second)
		since := db.Promised()
		mustErase(t, db, annaErased)
		f.commit(observationOf("o", "anna", "CANARY"), was) // the one is news, the other a replay
		f.advance(time.Second)
		s := pinNow(t, db, "job")
		defer s.Close()
		if got := deletions(t, s, segment.Section{Kind: segment.Deleted, Type: observationType}, since); !got["Observation/o"] || len(got) != 1 {
			t.Errorf("deleted: %v", got)
		}
		if strings.Contains(bodies(t, db), "CANARY") {
			t.Error("the canary is stored")
		}
	})
}

// TestRestoreTellsErased: a client has what was erased; the store is lost, and the
// backup is from before it came.
func TestRestoreTellsErased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{FS: vfs.NewMem(), Allowance: time.Millisecond}
		db := mustOpen(t, "store", o)
		f := newFeed(t, db)
		f.commit(patientChange("ben", fhir.None, "x"))
		f.advance(time.Second)
		b := mustBackUp(t, db, "backups", true)
		f.commit(patientChange("anna", fhir.None, "x"))
		f.advance(time.Second)
		since := db.Promised()
		mustErase(t, db, annaErased)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		r := mustRestore(t, b.Path, "restored", "store/erased", o)
		defer r.Close()
		f = newFeed(t, r)
		f.commit(patientChange("anna", fhir.None, "x")) // from Kafka again
		f.advance(time.Second)
		s := pinNow(t, r, "client")
		defer s.Close()
		if got := deletions(t, s, segment.Section{Kind: segment.Deleted, Type: patientType}, since); !got["Patient/anna"] {
			t.Errorf("deleted: %v", got)
		}
	})
}

// TestRestoreCutShort: a restore ends before anybody looked at what was erased.
// Whoever opens the store does.
func TestRestoreCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dead atomic.Bool
		mem := vfs.NewMem()
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if dead.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
				return errorfs.ErrInjected
			}
			return nil
		}))
		db, f, o, _ := canaryFeed(t, fs)
		b := mustBackUp(t, db, "backups", true)
		mustErase(t, db, annaErased)
		f.advance(time.Second)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		err := Restore(t.Context(), b.Path, "restored", "store/erased", o, writerFunc(func(p []byte) {
			if strings.Contains(string(p), "lost: export jobs") {
				dead.Store(true)
			}
		}))
		dead.Store(false)
		if err == nil {
			t.Fatal("the restore was not cut short")
		}
		r := mustOpen(t, "restored", o)
		defer r.Close()
		if where := found(t, mem, "restored", "CANARY"); len(where) > 0 {
			t.Errorf("the canary is in %v", where)
		}
	})
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// TestRestoreDivergedLists: two lives of a store erased different things; a
// restore with both lists obeys both.
func TestRestoreDivergedLists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		db, _, o, _ := canaryFeed(t, fs)
		observation := func(id string) Erasure { return Erasure{Key: fhir.Key{Type: observationType, ID: id}} }
		mustErase(t, db, observation("o1"))
		b := mustBackUp(t, db, "backups", true)
		mustErase(t, db, observation("o3")) // CANARY 5
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		r := mustRestore(t, b.Path, "r1", "", o)
		newFeed(t, r)
		mustErase(t, r, observation("o4"))
		b = mustBackUp(t, r, "backups3", true)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		r = mustRestore(t, b.Path, "r2", "store/erased", o)
		defer r.Close()
		record, err := disk.Read(fs, "r2/erased")
		if err != nil || strings.Count(string(record), `"hash"`) != 3 || strings.Count(string(record), `"erased"`) < 3 {
			t.Errorf("the record of what was done is %s, %v", record, err)
		}
		newFeed(t, r).commit(observationOf("o4", "anna", "CANARY 6"))
		for _, text := range []string{"CANARY 5", "CANARY 6"} {
			if where := found(t, fs, "r2", text); len(where) > 0 {
				t.Errorf("%s is in %v", text, where)
			}
		}
	})
}

// TestEraseNamesBackups: those that failed half-way, and those that a restore or
// a reindex inherited.
func TestEraseNamesBackups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && strings.Contains(op.Path, "backups/") && strings.Contains(op.Path, "/index") && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
				return errorfs.ErrInjected
			}
			return nil
		}))
		db, _, o, _ := canaryFeed(t, fs)
		full.Store(true)
		if _, err := db.Backup(t.Context(), "backups", true); err == nil {
			t.Fatal("a backup onto a full disk succeeded")
		}
		full.Store(false)
		b := mustBackUp(t, db, "backups2", true)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(Restore(t.Context(), b.Path, "restored", "", o, io.Discard), Reindex(t.Context(), "store", o, io.Discard)); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"restored", "store"} {
			r := mustOpen(t, dir, o)
			newFeed(t, r)
			if got := fmt.Sprint(mustErase(t, r, annaErased).Elsewhere); !strings.Contains(got, "backups/") || !strings.Contains(got, "backups2/") {
				t.Errorf("%s: elsewhere: %s", dir, got)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestBackupsShareARoot: backups of several stores, and of several lives of one,
// lie side by side; each holds what its own store held.
func TestBackupsShareARoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{FS: noLinks{vfs.NewMem()}, Allowance: time.Millisecond}
		begin := func(db *DB, text string) Backup {
			t.Helper()
			f := newFeed(t, db)
			time.Sleep(time.Second)
			f.commit(patientChange("p", fhir.None, text))
			f.advance(time.Second)
			b := mustBackUp(t, db, "backups", false)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			return b
		}
		held := func(b Backup, dir, want string) {
			t.Helper()
			r := mustRestore(t, b.Path, dir, "", o)
			defer r.Close()
			if got := bodies(t, r); !strings.Contains(got, want) {
				t.Errorf("%s holds %q, not %s", b.Path, got, want)
			}
			if _, err := r.Check(true); err != nil {
				t.Error(err)
			}
		}
		first := begin(mustOpen(t, "a", o), "in a")
		held(begin(mustOpen(t, "b", o), "in b"), "of-b", "in b")
		held(begin(mustRestore(t, first.Path, "c", "", o), "in c"), "of-c", "in c")
		held(begin(mustRestore(t, first.Path, "d", "", o), "in d"), "of-d", "in d")
		held(first, "of-a", "in a")
	})
}

// noLinks is a disk of its own: nothing can be linked to from the store's.
type noLinks struct{ vfs.FS }

func (fs noLinks) Link(from, to string) error {
	if !strings.HasPrefix(from, "backups/") {
		return errors.New("another disk")
	}
	return fs.FS.Link(from, to)
}

// TestBackupBesideADamagedOne: it takes nothing from the damaged one, on the
// store's disk or another.
func TestBackupBesideADamagedOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, damage := range []int{0, 1} { // a directory, a body
			fs := noLinks{vfs.NewMem()}
			o := Options{FS: fs, Allowance: time.Millisecond}
			db := mustOpen(t, "store", o)
			f := newFeed(t, db)
			f.commit(patientChange("a", fhir.None, strings.Repeat("x", 1000)))
			f.advance(time.Second)
			first := mustBackUp(t, db, "backups", false)
			writeFile(t, fs, fs.PathJoin(first.Path, "segments", first.Segments[damage].Name), []byte("short"))
			f.advance(time.Second)
			second := mustBackUp(t, db, "backups", false)
			f.advance(time.Second)
			third := mustBackUp(t, db, "backups", false)
			if third.Linked == 0 {
				t.Error("nothing of a good backup was linked")
			}
			for i, b := range []Backup{second, third} {
				dir := fmt.Sprint("r", damage, i)
				if err := Restore(t.Context(), b.Path, dir, "", o, io.Discard); err != nil {
					t.Error(err)
				}
				if _, err := CheckDir(dir, o, nil); err != nil {
					t.Error(err)
				}
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestBackupIntoItself: Open clears away what is not the store's.
func TestBackupIntoItself(t *testing.T) {
	fs := vfs.NewMem()
	db := mustOpen(t, "store", Options{FS: fs})
	defer db.Close()
	newFeed(t, db).commit(patientChange("anna", fhir.None, ""))
	for _, root := range []string{"store", "store/jobs", "store/index.backup", "store/backups"} {
		if _, err := db.Backup(t.Context(), root, false); err == nil || !strings.Contains(err.Error(), "own directory") {
			t.Errorf("into %s: %v", root, err)
		}
	}
	if _, err := db.Backup(t.Context(), "store-backups", false); err != nil {
		t.Error(err)
	}
}

// TestResolvedLetterExpires: a dead letter is resolved when it is so old that a
// merge forgets it.
func TestResolvedLetterExpires(t *testing.T) {
	for _, settle := range []time.Duration{24 * time.Hour, 10000 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			o := Options{FS: vfs.NewMem(), Allowance: time.Millisecond, SettleAfter: settle}
			db := mustOpen(t, "store", o)
			defer func() { db.Close() }()
			f := newFeed(t, db)
			f.advance(time.Second)
			list := []Change{letterOf("x")}
			for i := range 10 {
				list = append(list, patientChange(fmt.Sprint("p", i), fhir.None, strings.Repeat("v1", 500)))
			}
			f.commit(list...)
			f.advance(48 * time.Hour)
			rewriteAll(t, db)
			f.advance(100 * 24 * time.Hour) // behind retention.dead_letters
			rewriteAll(t, db)
			var letter []Bound
			if err := db.DeadLetters("", func(l DeadLetterRow) error { letter = append(letter, l.Bound); return nil }); err != nil || len(letter) != 1 {
				t.Fatal(err, letter)
			}
			for i := range 8 {
				f.commit(patientChange(fmt.Sprint("p", i), fhir.None, strings.Repeat("v2", 500)))
				f.advance(time.Second)
			}
			f.next++
			b := Batch{Partition: part0, Next: f.next, End: f.next, LeaderEpoch: -1, Asked: db.Now(), Resolved: letter}
			if err := errors.Join(db.Apply(t.Context(), b), db.Flush()); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				time.Sleep(time.Second)
				rewriteAll(t, db)
				if _, err := db.Check(true); err != nil {
					t.Error(err)
				}
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				db = mustOpen(t, "store", o)
				newFeed(t, db)
			}
		})
	}
}

// TestReindexTwiceGivesNoNumberTwice: the first one set the newest segment aside.
func TestReindexTwiceGivesNoNumberTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		o := Options{FS: fs, Allowance: time.Millisecond}
		db := mustOpen(t, "store", o)
		f := newFeed(t, db)
		f.commit(patientChange("a", fhir.None, "x"))
		f.advance(time.Second)
		f.commit(patientChange("b", fhir.None, "x"))
		f.advance(time.Second)
		path, meta := db.view.fresh[1].r.BodyPath(), db.meta
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		writeFile(t, fs, path, []byte("short"))
		for range 2 {
			time.Sleep(time.Second)
			if err := Reindex(t.Context(), "store", o, io.Discard); err != nil {
				t.Fatal(err)
			}
			db = mustOpen(t, "store", o)
			if m := db.meta; m.NextSeq < meta.NextSeq || m.NextSegment < meta.NextSegment || m.Epoch <= meta.Epoch {
				t.Errorf("given again: row %d, segment %d, epoch %d", m.NextSeq, m.NextSegment, m.Epoch)
			}
			meta = db.meta
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
