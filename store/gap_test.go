package store

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
)

// appliesAt applies changes of a partition whose first has an offset; the log ends behind them.
func appliesAt(t *testing.T, db *DB, p Partition, offset int64, changes ...Change) {
	t.Helper()
	for i := range changes {
		changes[i].Offset = offset + int64(i)
	}
	next := offset + int64(len(changes))
	b := Batch{Partition: p, Changes: changes, Next: next, End: next, LeaderEpoch: -1, Asked: db.Now()}
	if err := db.Apply(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
}

func discovers(t *testing.T, db *DB, list ...Discovered) {
	t.Helper()
	if err := db.Discover(Discovery{Complete: true, Partitions: list}); err != nil {
		t.Fatal(err)
	}
}

// newestBody is the newest version of a patient.
func newestBody(t *testing.T, db *DB, id string) string {
	t.Helper()
	list, err := db.History(fhir.Key{Type: patientType, ID: id})
	if err != nil || len(list) == 0 {
		t.Fatalf("history of %s: %d, %v", id, len(list), err)
	}
	body, err := db.Body(list[len(list)-1])
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func deadReasons(t *testing.T, db *DB) (reasons []string) {
	t.Helper()
	if err := db.DeadLetters("", func(r DeadLetterRow) error { reasons = append(reasons, r.Reason); return nil }); err != nil {
		t.Fatal(err)
	}
	return reasons
}

func checks(t *testing.T, db *DB) {
	t.Helper()
	if _, err := db.Check(true); err != nil {
		t.Error(err)
	}
}

// A topic that was deleted and created anew counts its offsets from the beginning. Once that
// is decided it is read from there, what it says is newer than what was said at greater
// offsets of the log before, and so it is after a crash, and in an index that is made anew.
func TestDecideReadsAnotherLog(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := Options{FS: fs, Allowance: time.Millisecond}
	db := mustOpen(t, "store", o)
	old, fresh := [16]byte{1}, [16]byte{2}
	discovers(t, db, Discovered{Partition: part0, TopicID: old, End: 3})
	appliesAt(t, db, part0, 0, patientChange("a", fhir.None, "1"), patientChange("b", fhir.None, "1"), patientChange("a", fhir.None, "2"))
	appliesAt(t, db, part0, 3, patientChange("c", fhir.None, "1")) // with a promise, which rests on the partition
	err := db.Decide(context.Background(), Decision{Partition: part0, Next: 0, TopicID: fresh, Anew: true, Lost: DeadLetter{Reason: "lost", Truncated: true}})
	if err != nil {
		t.Fatal(err)
	}
	lost := db
	o.FS = fs.CrashClone(vfs.CrashCloneCfg{})
	db = mustOpen(t, "store", o)
	defer lost.Close()
	if st, _ := db.Partition(part0); st.Next != 0 || st.TopicID != fresh || st.LeaderEpoch != -1 || !st.Joined {
		t.Errorf("after a crash: %+v", st)
	}
	if got := deadReasons(t, db); len(got) != 1 || got[0] != "lost" {
		t.Errorf("dead letters: %q", got)
	}
	checks(t, db)
	stood := db.Status().Watermark
	discovers(t, db, Discovered{Partition: part0, TopicID: fresh, End: 2})
	if w := db.Status().Watermark; w != stood {
		t.Errorf("the watermark moved from %v to %v before anything was read", stood, w)
	}
	appliesAt(t, db, part0, 0, patientChange("b", fhir.None, "3"), patientChange("a", fhir.None, "4"))
	for id, want := range map[string]string{"a": "4", "b": "3"} {
		if got := newestBody(t, db, id); !strings.Contains(got, want) {
			t.Errorf("newest of %s is %s, want %s", id, got, want)
		}
	}
	time.Sleep(3 * time.Millisecond) // the allowance: the store's clock is the machine's
	appliesAt(t, db, part0, 2)
	if w := db.Status().Watermark; w <= stood {
		t.Errorf("the watermark stays at %v though all is read", w)
	}
	checks(t, db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Reindex(context.Background(), "store", o, io.Discard); err != nil {
		t.Fatal(err)
	}
	db = mustOpen(t, "store", o)
	defer db.Close()
	if st, _ := db.Partition(part0); st.Next != 2 {
		t.Errorf("after reindex it goes on at %d, want 2", st.Next)
	}
}

// The watermark goes on without a partition that is forgotten; what came of it stays, and if
// it comes back it is read from its beginning.
func TestForgetAPartition(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := Options{FS: fs, Allowance: time.Millisecond}
	db := mustOpen(t, "store", o)
	gone := Partition{Topic: "gone", ID: 3}
	discovers(t, db, Discovered{Partition: part0, End: 1}, Discovered{Partition: gone, End: 5})
	appliesAt(t, db, gone, 0, patientChange("a", fhir.None, "1"))
	appliesAt(t, db, part0, 0, patientChange("b", fhir.None, "1"))
	if w := db.Status().Watermark; w != fhir.None {
		t.Fatalf("the bootstrap is over before gone has joined: %v", w)
	}
	if err := db.Forget(gone); err != nil {
		t.Fatal(err)
	}
	if w := db.Status().Watermark; w == fhir.None {
		t.Error("the bootstrap waits for a partition that is forgotten")
	}
	if err := db.Forget(gone); err == nil {
		t.Error("it is forgotten twice")
	}
	appliesAt(t, db, gone, 1, patientChange("late", fhir.None, "1")) // was on its way
	if _, err := db.History(fhir.Key{Type: patientType, ID: "late"}); err == nil {
		t.Error("what was forgotten is taken in")
	}
	appliesAt(t, db, part0, 1, patientChange("b", fhir.None, "2"))
	lost := db
	o.FS = fs.CrashClone(vfs.CrashCloneCfg{})
	db = mustOpen(t, "store", o)
	defer lost.Close()
	defer db.Close()
	if _, known := db.Partition(gone); known || len(db.Committed()) != 1 || len(db.Status().Partitions) != 1 {
		t.Errorf("it is known: %v, %v", db.Committed(), db.Status().Partitions)
	}
	if got := newestBody(t, db, "a"); !strings.Contains(got, "1") {
		t.Errorf("what came of it is %s", got)
	}
	checks(t, db)
	discovers(t, db, Discovered{Partition: part0, End: 2}, Discovered{Partition: gone, Start: 0, End: 1})
	if st, known := db.Partition(gone); !known || st.Next != 0 || st.Joined {
		t.Errorf("come back: %+v", st)
	}
	appliesAt(t, db, gone, 0, patientChange("a", fhir.None, "3"))
	if got := newestBody(t, db, "a"); !strings.Contains(got, "3") {
		t.Errorf("newest of a is %s: what came back is older than what was forgotten", got)
	}
	checks(t, db)
}

// A partition that comes back with the log that it had goes on where that ended. Another log,
// and one that has lost records, is read from its beginning and says nothing by its offsets.
func TestForgetTheSameLog(t *testing.T) {
	mine := [16]byte{1}
	for name, f := range map[string]Discovered{
		"the same": {TopicID: mine, End: 2}, "another": {TopicID: [16]byte{2}, End: 2}, "shorter": {TopicID: mine, End: 1}, "unknown": {End: 2},
		"expired": {TopicID: mine, Start: 3, End: 4},
	} {
		fs := vfs.NewCrashableMem()
		o := Options{FS: fs, Allowance: time.Millisecond}
		db := mustOpen(t, "store", o)
		f.Partition = Partition{Topic: "gone", ID: 3}
		discovers(t, db, Discovered{Partition: part0}, Discovered{Partition: f.Partition, TopicID: mine, End: 2})
		appliesAt(t, db, f.Partition, 0, patientChange("a", 1000, "older"))
		appliesAt(t, db, f.Partition, 1, patientChange("a", 1000, "newer"))
		if err := db.Forget(f.Partition); err != nil {
			t.Fatal(err)
		}
		lost := db
		o.FS = fs.CrashClone(vfs.CrashCloneCfg{})
		db = mustOpen(t, "store", o)
		discovers(t, db, Discovered{Partition: part0}, f)
		next := f.Start
		if name == "the same" {
			next = 2
		}
		if st, known := db.Partition(f.Partition); !known || st.Next != next || st.Joined != (name == "the same") {
			t.Errorf("%s: it goes on as %+v, want at %d", name, st, next)
		}
		appliesAt(t, db, f.Partition, next, patientChange("a", 1000, "again"))
		if got := newestBody(t, db, "a"); !strings.Contains(got, "again") {
			t.Errorf("%s: the newest is %s", name, got)
		}
		checks(t, db)
		for _, open := range []*DB{db, lost} {
			if err := open.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// What resolves dead letters moves no partition, whatever it says: a decision about a gap may
// have moved it meanwhile.
func TestWhatIsDecodedAgainMovesNothing(t *testing.T) {
	db := mustOpen(t, "store", Options{FS: vfs.NewMem()})
	defer db.Close()
	discovers(t, db, Discovered{Partition: part0, End: 2})
	appliesAt(t, db, part0, 0, patientChange("a", fhir.None, "1"))
	b := Batch{Partition: part0, Next: 9, End: 9, LeaderEpoch: 4, Asked: fhir.None, Resolved: []Bound{}, Topic: []byte("x")}
	if err := db.Apply(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	if st, _ := db.Partition(part0); st.Next != 1 || st.LeaderEpoch != -1 {
		t.Errorf("it goes on at %d, epoch %d", st.Next, st.LeaderEpoch)
	}
}
