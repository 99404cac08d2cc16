package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/store/disk"
	"tidemark/store/fhir"
	"tidemark/store/segment"
	"tidemark/store/storetest"
)

var (
	part0    = Partition{Topic: "t", ID: 0}
	patients = segment.Section{Kind: segment.Live, Type: patientType}
)

// feed is one partition that is read to its end.
type feed struct {
	t    testing.TB
	db   *DB
	next int64
}

func newFeed(t testing.TB, db *DB) *feed {
	t.Helper()
	if err := db.Discover(Discovery{Complete: true, Partitions: []Discovered{{Partition: part0}}}); err != nil {
		t.Fatal(err)
	}
	st, _ := db.Partition(part0)
	return &feed{t: t, db: db, next: st.Next}
}

func (f *feed) apply(changes ...Change) {
	f.t.Helper()
	for i := range changes {
		changes[i].Offset = f.next
		f.next++
	}
	b := Batch{Partition: part0, Changes: changes, Next: f.next, End: f.next, LeaderEpoch: -1, Asked: f.db.Now()}
	if err := f.db.Apply(context.Background(), b); err != nil {
		f.t.Fatal(err)
	}
}

func (f *feed) commit(changes ...Change) {
	f.t.Helper()
	f.apply(changes...)
	if err := f.db.Flush(); err != nil {
		f.t.Fatal(err)
	}
}

func patientChange(id string, at fhir.Instant, text string) Change {
	return Change{
		Key: fhir.Key{Type: patientType, ID: id}, Version: NoVersion, LastUpdated: at, Time: fhir.None, Timestamp: fhir.None,
		Patients: []string{id}, Body: fmt.Appendf(nil, `{"resourceType":"Patient","id":"%s","text":"%s"}`, id, text),
	}
}

func mustOpen(t testing.TB, dir string, o Options) *DB {
	t.Helper()
	o.MergeOff, o.still = true, true
	if o.Cache == 0 {
		o.Cache = 1 << 20
	}
	db, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func pinNow(t testing.TB, db *DB, id string) *Snapshot {
	t.Helper()
	s, err := db.Pin(context.Background(), id, time.Now().Add(time.Hour), func(*Snapshot) ([]byte, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func count(t testing.TB, s *Snapshot, since, upto fhir.Instant) (rows int, bytes int64) {
	t.Helper()
	ext, err := s.Extents(patients, since, upto)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ext {
		rows, bytes = rows+e.Rows, bytes+e.Bytes
	}
	return rows, bytes
}

// TestPlanNeedsNoBodies: with all bodies moved away a plan still has exact
// counts, of clean, dirty and cut blocks.
func TestPlanNeedsNoBodies(t *testing.T) {
	dir := t.TempDir()
	db := mustOpen(t, dir, Options{})
	defer db.Close()
	// Until the topic list is complete nothing is promised, and instants are the
	// changes' own: blocks of many commits overlap, as history does.
	if err := db.Discover(Discovery{Partitions: []Discovered{{Partition: part0}}}); err != nil {
		t.Fatal(err)
	}
	f := &feed{t: t, db: db}
	base := db.Now() - 1_000_000
	for n := range 10 {
		var list []Change
		for i := range 300 {
			list = append(list, patientChange(fmt.Sprintf("p%d", (n*150+i)%1000), base+fhir.Instant(n*1000+i), strings.Repeat("x", 500+n)))
		}
		f.commit(list...)
	}
	newFeed(t, db).apply()
	bodies, err := filepath.Glob(filepath.Join(dir, "segments", "*.gz"))
	if err != nil || len(bodies) != 10 {
		t.Fatalf("%d bodies (%v)", len(bodies), err)
	}
	for _, b := range bodies {
		if err := os.Rename(b, b+".away"); err != nil {
			t.Fatal(err)
		}
	}
	s := pinNow(t, db, "plan")
	defer s.Close()
	since := base + 7_150
	wholeRows, wholeBytes := count(t, s, fhir.None, s.Watermark())
	cutRows, cutBytes := count(t, s, since, s.Watermark())
	for _, b := range bodies {
		if err := os.Rename(b+".away", b); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		since fhir.Instant
		rows  int
		bytes int64
	}{{fhir.None, wholeRows, wholeBytes}, {since, cutRows, cutBytes}} {
		ext, err := s.Extents(patients, c.since, s.Watermark())
		if err != nil {
			t.Fatal(err)
		}
		file, err := s.File(context.Background(), fmt.Sprintf("f%d", c.rows), patients, c.since, s.Watermark(), ext)
		if err != nil {
			t.Fatal(err)
		}
		var w lineWriter
		if err := errors.Join(file.WriteIdentity(&w, 0, file.Size()), file.Close()); err != nil {
			t.Fatal(err)
		}
		lines, err := w.byID()
		if err != nil || len(lines) != c.rows || file.Size() != c.bytes {
			t.Errorf("planned %d rows and %d bytes, read %d and %d (%v)", c.rows, c.bytes, len(lines), file.Size(), err)
		}
	}
	if wholeRows != 1000 || cutRows >= wholeRows || cutRows == 0 {
		t.Errorf("%d rows in all, %d since the middle", wholeRows, cutRows)
	}
}

// TestLateAfterCrash shows W, crashes at once, and lets a change of an hour
// before come: the next window holds it, a thousand times of a thousand.
func TestLateAfterCrash(t *testing.T) {
	missed, rounds := 0, storetest.Rounds(40)
	for range rounds {
		synctest.Test(t, func(t *testing.T) { missed += lateAfterCrash(t, 25) })
	}
	if missed > 0 {
		t.Errorf("%d of %d windows miss the late change", missed, 25*rounds)
	}
}

func lateAfterCrash(t *testing.T, times int) (missed int) {
	fs := vfs.NewCrashableMem()
	crash := func(db *DB) {
		t.Helper()
		clone := fs.CrashClone(vfs.CrashCloneCfg{})
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		fs = clone
	}
	since := fhir.None
	for n := range times + 1 {
		db := mustOpen(t, "store", Options{FS: fs, CommitInterval: 10 * time.Minute})
		f := newFeed(t, db)
		time.Sleep(2 * time.Second)
		f.apply()
		s := pinNow(t, db, fmt.Sprintf("w%d", n))
		if rows, _ := count(t, s, since, s.Watermark()); rows != min(n, 1) {
			missed++
		}
		since = s.Watermark()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		crash(db)
		db = mustOpen(t, "store", Options{FS: fs})
		newFeed(t, db).commit(patientChange(fmt.Sprintf("p%d", n), since-3_600_000, "late"))
		crash(db)
	}
	return missed
}

// TestClocks: a producer a year ahead and our own clock stepping back across a
// restart stop nothing.
func TestClocks(t *testing.T) {
	fs := vfs.NewMem()
	var promised fhir.Instant
	synctest.Test(t, func(t *testing.T) { // the bubble's clock starts at 2000
		time.Sleep(48 * time.Hour)
		db := mustOpen(t, "store", Options{FS: fs})
		defer db.Close()
		f := newFeed(t, db)
		f.commit(patientChange("ahead", db.Now()+365*86_400_000, "x"))
		time.Sleep(3 * time.Second)
		f.apply()
		s := pinNow(t, db, "a")
		defer s.Close()
		if rows, _ := count(t, s, fhir.None, s.Watermark()); rows != 1 {
			t.Errorf("a change from a year ahead is not exported: %d rows", rows)
		}
		if lag := db.Now() - s.Watermark(); lag > 2000 {
			t.Errorf("a producer a year ahead holds the watermark back by %d ms", lag)
		}
		promised = s.Watermark()
	})
	synctest.Test(t, func(t *testing.T) { // two days earlier
		db := mustOpen(t, "store", Options{FS: fs})
		defer db.Close()
		if db.Now() < promised {
			t.Errorf("the clock starts at %v, %v was promised", db.Now(), promised)
		}
		f := newFeed(t, db)
		f.commit(patientChange("late", fhir.FromTime(time.Now()), "x"))
		time.Sleep(3 * time.Second)
		f.apply()
		s := pinNow(t, db, "b")
		defer s.Close()
		if s.Watermark() <= promised {
			t.Errorf("the watermark stands still at %v", s.Watermark())
		}
		if rows, _ := count(t, s, promised, s.Watermark()); rows != 1 {
			t.Errorf("a change by the earlier clock is not in the next window: %d rows", rows)
		}
	})
}

// TestOneProcess: the second one is told what to do.
func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	db := mustOpen(t, dir, Options{})
	defer db.Close()
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second Open: %v", err)
	}
	if _, err := CheckDir(dir, Options{}, nil); !errors.Is(err, ErrLocked) {
		t.Errorf("a check beside it: %v", err)
	}
	if err := Reindex(context.Background(), dir, Options{}, &lineWriter{}); !errors.Is(err, ErrLocked) {
		t.Errorf("a reindex beside it: %v", err)
	}
}

// TestOpenRemovesDrafts: what was being written when the process died goes.
func TestOpenRemovesDrafts(t *testing.T) {
	fs := vfs.NewMem()
	if err := mustOpen(t, "store", Options{FS: fs}).Close(); err != nil {
		t.Fatal(err)
	}
	if err := disk.Replace(fs, "store", erasedFile+".new", []byte("half")); err != nil {
		t.Fatal(err)
	}
	if err := mustOpen(t, "store", Options{FS: fs}).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Stat("store/" + erasedFile + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there still: %v", err)
	}
}

// TestOpenRefusesWhatIsNotItsOwn: files that no commit of this index can have
// left are refused and stay.
func TestOpenRefusesWhatIsNotItsOwn(t *testing.T) {
	make := func(t *testing.T, commits int) string {
		dir := t.TempDir()
		db := mustOpen(t, dir, Options{})
		f := newFeed(t, db)
		for n := range commits {
			f.commit(patientChange(fmt.Sprintf("p%d", n), db.Now(), "x"))
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	copyFiles := func(t *testing.T, from, to string, id, as segment.ID) {
		for _, n := range []func(segment.ID) string{segment.ID.BodyName, segment.ID.DirectoryName} {
			b, err := os.ReadFile(filepath.Join(from, "segments", n(id)))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(to, "segments", n(as)), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	files := func(dir string) int {
		names, _ := filepath.Glob(filepath.Join(dir, "segments", "*"))
		return len(names)
	}
	for _, c := range []struct {
		name string
		do   func(t *testing.T, dir string)
	}{
		{"no index", func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "index")); err != nil {
				t.Fatal(err)
			}
		}},
		{"a segment of another store in the next place", func(t *testing.T, dir string) {
			copyFiles(t, make(t, 4), dir, 4, 4)
		}},
		{"a segment of a later index", func(t *testing.T, dir string) { copyFiles(t, dir, dir, 3, 9) }},
		{"the index of another store", func(t *testing.T, dir string) {
			other := make(t, 3)
			if err := errors.Join(os.RemoveAll(filepath.Join(dir, "index")), os.Rename(filepath.Join(other, "index"), filepath.Join(dir, "index"))); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := make(t, 3)
			c.do(t, dir)
			before := files(dir)
			if db, err := Open(dir, Options{Cache: 1 << 20}); !errors.Is(err, ErrReindex) {
				if err == nil {
					db.Close()
				}
				t.Errorf("Open says: %v", err)
			}
			if files(dir) != before {
				t.Errorf("%d files before, %d after", before, files(dir))
			}
		})
	}
	t.Run("a missing segment is named", func(t *testing.T) {
		dir := make(t, 3)
		name := segment.ID(2).DirectoryName()
		if err := os.Remove(filepath.Join(dir, "segments", name)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{Cache: 1 << 20}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Open says: %v", err)
		}
	})
	t.Run("a commit cut short is removed", func(t *testing.T) {
		dir := make(t, 3)
		for _, n := range []string{segment.ID(4).BodyName(), segment.ID(4).DirectoryName()} {
			if err := os.WriteFile(filepath.Join(dir, "segments", n), []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		db := mustOpen(t, dir, Options{})
		defer db.Close()
		if files(dir) != 6 {
			t.Errorf("%d files", files(dir))
		}
	})
}

// TestBackPressure: a full gathering makes Apply wait, one batch larger than
// everything passes alone, and a cancelled wait ends.
func TestBackPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), CommitSize: 100 << 10})
		defer db.Close()
		f := newFeed(t, db)
		f.apply(patientChange("large", db.Now(), strings.Repeat("x", 300<<10)))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			ch := patientChange("next", db.Now(), "x")
			ch.Offset = f.next
			done <- db.Apply(ctx, Batch{Partition: part0, Changes: []Change{ch}, Next: f.next + 1, End: f.next + 1, Asked: db.Now()})
		}()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("Apply did not wait: %v", err)
		default:
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled Apply: %v", err)
		}
		go func() {
			ch := patientChange("next", db.Now(), "x")
			ch.Offset = f.next
			done <- db.Apply(context.Background(), Batch{Partition: part0, Changes: []Change{ch}, Next: f.next + 1, End: f.next + 1, Asked: db.Now()})
		}()
		synctest.Wait()
		if err := db.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("Apply after the commit: %v", err)
		}
	})
}

// TestKickOffDuringCommit takes a snapshot while a commit is between its seal
// and its batch: the answer may not speak of instants that the commit is about
// to fill.
func TestKickOffDuringCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		sealed := make(chan struct{}, 1)
		var armed atomic.Bool
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileSync && strings.HasSuffix(op.Path, ".dir") && armed.CompareAndSwap(true, false) {
				sealed <- struct{}{}
				<-gate
			}
			return nil
		}))
		db := mustOpen(t, "store", Options{FS: fs, Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		f.commit(patientChange("a", db.Now(), "x"))
		time.Sleep(time.Second)
		f.apply()
		first := pinNow(t, db, "first")
		defer first.Close()

		late := patientChange("late", first.Watermark()-10, "x")
		f.apply(late)
		armed.Store(true)
		done := make(chan error, 1)
		go func() { done <- db.Flush() }()
		<-sealed
		time.Sleep(time.Minute)
		f.apply() // an idle answer: the broker's ends alone would let the watermark run
		during := pinNow(t, db, "during")
		defer during.Close()
		rows, _ := count(t, during, first.Watermark(), during.Watermark())
		close(gate)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		f.apply()
		after := pinNow(t, db, "after")
		defer after.Close()
		more, _ := count(t, after, during.Watermark(), after.Watermark())
		if rows != 0 || more != 1 {
			t.Errorf("%d rows during the commit, %d after it, want 0 and 1", rows, more)
		}
	})
}

// TestEveryCut asks for every window over a block of ten rows, one of which is
// dead from some instant on: the counts are those of a naive filter.
func TestEveryCut(t *testing.T) {
	db := mustOpen(t, "store", Options{FS: vfs.NewMem()})
	defer db.Close()
	if err := db.Discover(Discovery{Partitions: []Discovered{{Partition: part0}}}); err != nil {
		t.Fatal(err)
	}
	f := &feed{t: t, db: db}
	base := fhir.Instant(1000)
	var list []Change
	for i := range 10 {
		list = append(list, patientChange(fmt.Sprintf("p%d", i), base+fhir.Instant(i), "x"))
	}
	list = append(list, patientChange("p4", base+7, "again"))
	f.commit(list...)
	newFeed(t, db).apply()
	s := pinNow(t, db, "job")
	defer s.Close()
	for since := base - 1; since < base+11; since++ {
		for upto := base - 1; upto < base+11; upto++ {
			want := 0
			for i := range fhir.Instant(10) {
				if i != 4 && since < base+i && base+i <= upto {
					want++
				}
			}
			if since < base+7 && base+7 <= upto {
				want++
			}
			if got, _ := count(t, s, since, upto); got != want {
				t.Errorf("(%d, %d]: %d rows, want %d", since-base, upto-base, got, want)
			}
		}
	}
}

// TestLargeResource serves a resource larger than what is held in memory,
// whole and in parts, and notices a flipped byte in it.
func TestLargeResource(t *testing.T) {
	fs := vfs.NewMem()
	db := mustOpen(t, "store", Options{FS: fs})
	defer db.Close()
	f := newFeed(t, db)
	noise := make([]byte, 3<<20)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range noise {
		noise[i] = 'a' + byte(r.IntN(26))
	}
	f.commit(patientChange("before", db.Now()-9000, "x"), patientChange("large", db.Now()-8000, string(noise)), patientChange("behind", db.Now()-7000, "x"))
	f.apply()
	s := pinNow(t, db, "job")
	defer s.Close()
	ext, err := s.Extents(patients, fhir.None, s.Watermark())
	if err != nil {
		t.Fatal(err)
	}
	file, err := s.File(context.Background(), "f", patients, fhir.None, s.Watermark(), ext)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var whole, packed lineWriter
	if err := errors.Join(file.WriteIdentity(&whole, 0, file.Size()), file.WriteGzip(&packed, 0, file.GzipSize())); err != nil {
		t.Fatal(err)
	}
	if string(gunzip(t, packed.b)) != string(whole.b) || int64(len(whole.b)) != file.Size() {
		t.Fatalf("identity and gzip differ: %d bytes of %d", len(whole.b), file.Size())
	}
	for range 50 {
		from := r.Int64N(file.Size())
		n := r.Int64N(file.Size() - from)
		var part lineWriter
		if err := file.WriteIdentity(&part, from, n); err != nil || string(part.b) != string(whole.b[from:from+n]) {
			t.Fatalf("bytes [%d, %d): %d bytes, %v", from, from+n, len(part.b), err)
		}
	}
	path := "store/segments/" + segment.ID(1).BodyName()
	damaged, err := fs.OpenReadWrite(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := damaged.WriteAt([]byte{'#'}, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := damaged.Close(); err != nil {
		t.Fatal(err)
	}
	if err := file.WriteIdentity(&lineWriter{}, 0, file.Size()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a flipped byte: %v", err)
	}
}

// TestPresentIsNoFuture: a change stamped this instant, cut to a millisecond,
// does not lie ahead of our clock, in whatever part of a millisecond we started.
func TestPresentIsNoFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 20 {
			db := mustOpen(t, "store", Options{FS: vfs.NewMem()})
			for range 100 {
				time.Sleep(137 * time.Microsecond)
				if stamp := fhir.FromTime(time.Now()); stamp > db.Now() {
					t.Fatalf("%v is ahead of %v", stamp, db.Now())
				}
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestBusyPartitionJoins: answers that arrive during every commit do not keep a
// partition from joining once its first end is committed.
func TestBusyPartitionJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem()})
		defer db.Close()
		if err := db.Discover(Discovery{Complete: true, Partitions: []Discovered{{Partition: part0, End: 1}}}); err != nil {
			t.Fatal(err)
		}
		f := &feed{t: t, db: db}
		f.apply(patientChange("a", db.Now(), "x"))
		c := db.begin()
		f.apply(patientChange("b", db.Now(), "x")) // while the first commit is under way
		if err := c.run(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		f.apply(patientChange("c", db.Now(), "x"))
		if !db.Status().Ready {
			t.Error("the first end is committed, but the partition has not joined")
		}
	})
}

// TestFailedLookUpFailsTheCommit: a resource whose index entry cannot be read
// must not pass for one that was never seen.
func TestFailedLookUpFailsTheCommit(t *testing.T) {
	var broken atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind != errorfs.OpFileReadAt || !strings.HasSuffix(op.Path, ".sst") || !broken.Load() {
			return nil
		}
		// Pebble reads in the background as well. Once: the next seek succeeds.
		if bytes.Contains(debug.Stack(), []byte("(*commit)")) && broken.CompareAndSwap(true, false) {
			return errorfs.ErrInjected
		}
		return nil
	}))
	o := Options{FS: fs}
	db := mustOpen(t, "store", o)
	f := newFeed(t, db)
	for i := range 2000 {
		f.apply(patientChange(fmt.Sprintf("p%04d", i), db.Now(), "x"))
	}
	if err := errors.Join(db.Flush(), db.kv.Flush(), db.Close()); err != nil {
		t.Fatal(err)
	}
	db = mustOpen(t, "store", o) // with cold caches
	defer db.Close()
	f = newFeed(t, db)
	f.apply(patientChange("p0500", db.Now(), "y"), patientChange("p1500", db.Now(), "y"))
	broken.Store(true)
	err := db.Flush()
	if err == nil {
		t.Errorf("the commit took a resource that it could not look up for a new one (and one look-up has failed: %v)", !broken.Load())
	}
}
