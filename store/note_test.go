package store

import (
	"context"
	"errors"
	"io"
	"maps"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
)

// TestRemember: what intake wants to know again is there after a crash, and in an index
// that is made anew.
func TestRemember(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := Options{FS: fs, Allowance: time.Millisecond, still: true}
	db := mustOpen(t, "store", o)
	newFeed(t, db).commit(patientChange("anna", fhir.None, "")) // a store without rows cannot be indexed anew
	want := func(name, what string) {
		t.Helper()
		if got, err := db.Remembered(name); err != nil || string(got) != what {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	want("a", "")
	for _, what := range []string{"1", "2"} {
		if err := db.Remember("a", []byte(what)); err != nil {
			t.Fatal(err)
		}
	}
	want("a", "2")
	if err := errors.Join(db.Remember("b", []byte("x")), db.Remember("b", nil)); err != nil {
		t.Fatal(err)
	}
	if err := db.EachRemembered("b", func(name string, _ []byte) error { return errors.New(name + " is remembered still") }); err != nil {
		t.Error(err)
	}
	o.FS = fs.CrashClone(vfs.CrashCloneCfg{})
	lost := db
	db = mustOpen(t, "store", o)
	want("a", "2")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Remember("a", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("a store that is closed remembers: %v", err)
	}
	if err := Reindex(context.Background(), "store", o, io.Discard); err != nil {
		t.Fatal(err)
	}
	db = mustOpen(t, "store", o)
	want("a", "2")
	db.Close()
	lost.Close()
}

// TestNotes: what a batch notes is known at once, and durable with the batch's offset, not
// before and not without.
func TestNotes(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := Options{FS: fs, Allowance: time.Millisecond, still: true}
	db := mustOpen(t, "store", o)
	f := newFeed(t, db)
	note := func(notes ...Note) {
		t.Helper()
		f.next++
		b := Batch{Partition: part0, Notes: notes, Next: f.next, End: f.next, LeaderEpoch: -1, Asked: db.Now()}
		if err := db.Apply(context.Background(), b); err != nil {
			t.Fatal(err)
		}
	}
	want := func(known map[string]string) {
		t.Helper()
		got := map[string]string{}
		err := db.EachRemembered("a", func(name string, what []byte) error {
			if again, err := db.Remembered(name); err != nil || string(again) != string(what) {
				t.Errorf("%s: %q, then %q, %v", name, what, again, err)
			}
			got[name] = string(what)
			return nil
		})
		if err != nil || !maps.Equal(got, known) {
			t.Errorf("known is %v, %v, want %v", got, err, known)
		}
	}
	note(Note{Name: "a1", Value: []byte("1")}, Note{Name: "a2", Value: []byte("2")}, Note{Name: "b", Value: []byte("3")})
	want(map[string]string{"a1": "1", "a2": "2"})
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	note(Note{Name: "a1"}, Note{Name: "a3", Value: []byte("x")}, Note{Name: "a3", Value: []byte("3")}, Note{Name: "a2", Value: []byte{}})
	newest := map[string]string{"a2": "", "a3": "3"}
	want(newest)
	lost := db
	o.FS = fs.CrashClone(vfs.CrashCloneCfg{})
	db = mustOpen(t, "store", o)
	want(map[string]string{"a1": "1", "a2": "2"})
	if st, _ := db.Partition(part0); st.Next != 1 {
		t.Errorf("the offset is %d, the notes are those of 1", st.Next)
	}
	db.Close()
	if err := lost.Flush(); err != nil {
		t.Fatal(err)
	}
	o.FS = fs.CrashClone(vfs.CrashCloneCfg{})
	lost.Close()
	db = mustOpen(t, "store", o)
	want(newest)
	if st, _ := db.Partition(part0); st.Next != 2 {
		t.Errorf("the offset is %d, the notes are those of 2", st.Next)
	}
	db.Close()
}

// TestRewind: a partition is read again, the watermark waits for it, and what was known
// changes nothing.
func TestRewind(t *testing.T) {
	o := Options{FS: vfs.NewMem(), Allowance: time.Millisecond, still: true}
	db := mustOpen(t, "store", o)
	f := newFeed(t, db)
	f.commit(patientChange("anna", 1000, "one"), patientChange("bert", 2000, "two"))
	f.commit() // which is behind them
	rows, was := db.Status().Rows, db.Status().Watermark
	db.Close()
	db = mustOpen(t, "store", o)
	defer db.Close()
	if err := db.Rewind(part0, 0); err == nil {
		t.Error("a partition is rewound that nobody has discovered")
	}
	f = newFeed(t, db)
	if err := db.Rewind(part0, 1); err != nil {
		t.Fatal(err)
	}
	if st, _ := db.Partition(part0); st.Next != 1 || !st.Joined {
		t.Errorf("read again from %d, joined %v", st.Next, st.Joined)
	}
	ahead := Batch{Partition: part0, Next: 1, End: 2, LeaderEpoch: -1, Asked: db.Now()}
	if err := db.Apply(context.Background(), ahead); err != nil {
		t.Fatal(err)
	}
	if w := db.Status().Watermark; w > was+1 && w > db.Promised() {
		t.Errorf("the watermark is %v while all before %v is read again", w, was)
	}
	f.next = 1
	f.commit(patientChange("bert", 2000, "two"))
	if now := db.Status().Rows; now != rows {
		t.Errorf("reading again made %d rows of %d", now, rows)
	}
}

// TestWait: while records wait for others the watermark stays below what they claim, and the
// bootstrap is not over.
func TestWait(t *testing.T) {
	db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond, still: true})
	defer db.Close()
	db.Wait(1000)
	f := newFeed(t, db)
	f.commit(patientChange("anna", 1000, ""))
	if w := db.Status().Watermark; w != fhir.None || db.Status().Ready {
		t.Errorf("the bootstrap is over at %v though something waits", w)
	}
	if r := db.Reached(); r < 2000 {
		t.Errorf("reached is %v, as if nothing had been read", r)
	}
	if r := db.ReachedBeside("another"); r <= db.Now() {
		t.Errorf("before the bootstrap is over all but one topic is read up to %v, and nobody may be told", r)
	}
	db.Wait(fhir.None)
	if w := db.Status().Watermark; w < 2000 {
		t.Errorf("the watermark is %v though nothing waits", w)
	}
	if r := db.ReachedBeside("another"); r != db.Reached() {
		t.Errorf("beside a topic that is not read all are read up to %v, of %v", r, db.Reached())
	}
	if r := db.ReachedBeside(part0.Topic); r <= db.Now() {
		t.Errorf("beside the only topic something is read up to %v", r)
	}
	pinned := pinNow(t, db, "a").Watermark() // which is promised
	f.commit()
	db.Wait(pinned + 5)
	for db.Reached() <= pinned+5 {
		time.Sleep(time.Millisecond)
		f.commit()
	}
	if w := db.Status().Watermark; w < pinned || w >= pinned+5 {
		t.Errorf("the watermark is %v while what waits claims %v", w, pinned+5)
	}
	db.Wait(1000)
	if w := db.Status().Watermark; w != pinned {
		t.Errorf("the watermark is %v, but %v was promised", w, pinned)
	}
	db.Wait(fhir.None)
	if w := db.Status().Watermark; w <= pinned+5 {
		t.Errorf("the watermark stays at %v", w)
	}
}
