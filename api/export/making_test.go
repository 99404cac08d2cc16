package export_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
)

// makingStore is a real store of some Patients on a disk that can be made faulty.
func makingStore(t *testing.T, fs vfs.FS) *store.DB {
	t.Helper()
	db, err := store.Open("store", store.Options{FS: fs, Allowance: time.Millisecond, CommitInterval: time.Millisecond, MergeOff: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- db.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = db.Close() })
	part := store.Partition{Topic: "t"}
	if err := db.Discover(store.Discovery{Complete: true, Partitions: []store.Discovered{{Partition: part}}}); err != nil {
		t.Fatal(err)
	}
	var changes []store.Change
	var s fhir.Scanner
	asked := db.Now()
	for i := range 8 {
		kind := []string{"Encounter", "Patient"}[i%2]
		res, err := s.Scan(fmt.Appendf(nil, `{"resourceType":%q,"id":"%d","active":true}`, kind, i))
		if err != nil {
			t.Fatal(err)
		}
		changes = append(changes, store.Change{
			Key: res.Key, Body: slices.Clone(res.Body), Meta: res.Meta, Patients: res.Patients, Offset: int64(i),
			Version: store.NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: asked,
		})
	}
	if err := db.Apply(t.Context(), store.Batch{Partition: part, Changes: changes, Next: 8, End: 8, LeaderEpoch: -1, Asked: asked}); err != nil {
		t.Fatal(err)
	}
	for db.Status().Watermark < asked || db.Status().Gathering > 0 {
		if err := db.Apply(t.Context(), store.Batch{Partition: part, Next: 8, End: 8, LeaderEpoch: -1, Asked: db.Now()}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	return db
}

func leftOnDisk(t *testing.T, fs vfs.FS, id string) []string {
	t.Helper()
	names, err := fs.List(fs.PathJoin("store", "jobs", id))
	if err != nil && !strings.Contains(err.Error(), "not exist") {
		t.Fatal(err)
	}
	return names
}

// What a job has made before it failed for good, or found no more room, does not
// stay: the first is read by nobody, the second keeps the disk full.
func TestFilesOfWhatFailedStay(t *testing.T) {
	for _, c := range []string{"no room", "failed"} {
		t.Run(c, func(t *testing.T) {
			var faulty atomic.Bool
			var tried atomic.Int64
			fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
				switch {
				case !faulty.Load():
				case c == "no room" && op.Kind == errorfs.OpCreate && strings.Contains(op.Path, "f3.made"):
					tried.Add(1)
					return syscall.ENOSPC
				case c == "failed" && strings.Contains(op.Path, "segments") && op.Kind == errorfs.OpFileReadAt && tried.Load() > 0:
					return syscall.EINVAL
				case c == "failed" && op.Kind == errorfs.OpCreate && strings.Contains(op.Path, "f4.made"):
					tried.Add(1) // the files of the first type are all there but for the last
				}
				return nil
			}))
			db := makingStore(t, fs)
			faulty.Store(true)
			var log bytes.Buffer
			j := export.New(export.Of(db), export.Options{Limits: export.Limits{Bytes: 1 << 20, Resources: 1}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			q := export.Request{URL: "x", Since: fhir.None, Upto: fhir.None, Elements: []string{"id"}}
			id := start(t, j, q)
			stop := runs(t, j)
			defer func() {
				if stop(); log.Len() == 0 || strings.Contains(log.String(), id) {
					t.Errorf("the log is silent, or tells the job's id: %s", &log)
				}
			}()
			for range 500 {
				time.Sleep(10 * time.Millisecond)
				_, err := j.Manifest(id)
				_, failed := errors.AsType[*export.FailedError](err)
				if err == nil {
					t.Fatal("the job is done")
				}
				if failed || c == "no room" && tried.Load() > 0 {
					break
				}
			}
			time.Sleep(100 * time.Millisecond)
			if left := leftOnDisk(t, fs, id); len(left) > 0 {
				_, err := j.Manifest(id)
				t.Errorf("%v; on the disk stay %v", err, left)
			}
		})
	}
}

// What passes, as no free descriptor, is no reason to give a job up for good.
func TestPassingFaultEndsJob(t *testing.T) {
	var faulty, hit atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if faulty.Load() && op.Kind == errorfs.OpOpen && strings.Contains(op.Path, "segments") {
			hit.Store(true)
			return syscall.EMFILE
		}
		return nil
	}))
	db := makingStore(t, fs)
	faulty.Store(true)
	j := export.New(export.Of(db), export.Options{})
	id := start(t, j, export.Request{URL: "x", Since: fhir.None, Upto: fhir.None, Elements: []string{"id"}})
	stop := runs(t, j)
	defer stop()
	for i := 0; i < 500 && !hit.Load(); i++ {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	_, err := j.Manifest(id)
	if f, is := errors.AsType[*export.FailedError](err); is {
		t.Errorf("for good: %v", f.Issues)
	}
}

// readOnly is a store whose disk takes no writes for a moment.
type readOnly struct {
	export.Store
	once *atomic.Bool
}

func (r readOnly) Amend(id string, rule []byte, expires time.Time) error {
	if r.once.Swap(false) {
		return store.ErrReadOnly
	}
	return r.Store.Amend(id, rule, expires)
}

// TestReadOnlyForAMoment: a disk that can be written again when the job is given up
// would keep that for good.
func TestReadOnlyForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var once atomic.Bool
		j := export.New(readOnly{newStore(t, 3), &once}, export.Options{Checkpoint: -1})
		q := everything()
		q.Elements = []string{"id"}
		once.Store(true)
		id := start(t, j, q)
		defer runs(t, j)()
		time.Sleep(time.Minute)
		if _, err := j.Manifest(id); err != nil || once.Load() {
			t.Errorf("the disk was read-only: %v, want the job to be tried again", err)
		}
	})
}

// panics is a store whose drafts panic, and count who is done with them.
type panics struct {
	export.Store
	open *atomic.Int64
}

func (p panics) Snapshot(id string) (export.Snapshot, error) {
	s, err := p.Store.Snapshot(id)
	return panicking{s, p.open}, err
}

type panicking struct {
	export.Snapshot
	open *atomic.Int64
}

func (p panicking) Choosing(c store.Choice) export.Snapshot {
	return panicking{p.Snapshot.Choosing(c), p.open}
}

func (p panicking) Draft(string) (export.Draft, error) { p.open.Add(1); return panicDraft{p.open}, nil }

type panicDraft struct{ open *atomic.Int64 }

func (d panicDraft) Add([]byte) error { panic("a fault of ours") }
func (d panicDraft) Keep() error      { d.open.Add(-1); return nil }
func (d panicDraft) CRC32() uint32    { return 0 }
func (d panicDraft) Discard() error   { d.open.Add(-1); return nil }

// A panic amid a file leaves no open descriptor and no half file.
func TestPanicLeavesDraftOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Int64
		j := export.New(panics{groupStore(t), &open}, export.Options{})
		q := ofGroup("g")
		q.Elements = []string{"id"}
		id := start(t, j, q)
		stop := runs(t, j)
		synctest.Wait()
		if _, is := errors.AsType[*export.FailedError](second(j.Manifest(id))); !is {
			t.Fatal("no job that failed")
		}
		if n := open.Load(); n != 0 {
			t.Errorf("%d drafts are open", n)
		}
		stop()
	})
}

// Progress never goes back, also when a job is tried again.
func TestProgressGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := groupStore(t)
		var slow atomic.Bool
		db.OnRead = func() {
			if slow.Load() {
				time.Sleep(time.Minute)
			}
		}
		j := export.New(db, export.Options{})
		q := ofGroup("g")
		q.Elements = []string{"id"}
		db.Fill(true)
		id := start(t, j, q)
		stop := runs(t, j)
		synctest.Wait()
		before := working(t, j, id).Progress.Share
		slow.Store(true)
		time.Sleep(11 * time.Second)
		if after := working(t, j, id).Progress.Share; after < before {
			t.Errorf("%v, then %v", before, after)
		}
		slow.Store(false)
		stop()
	})
}

// Progress counts what is ready: the rows of the files that there are so far.
func TestProgressCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := groupStore(t)
		j := export.New(db, export.Options{Limits: export.Limits{Resources: 1}, Checkpoint: -1})
		q := ofGroup("g")
		q.Elements = []string{"id"}
		id := start(t, j, q)
		var seen []export.Progress
		db.OnLines = func() { seen = append(seen, working(t, j, id).Progress) }
		stop := runs(t, j)
		synctest.Wait()
		m, err := j.Manifest(id)
		if err != nil {
			t.Fatal(err)
		}
		amid := 0
		for i, p := range seen {
			rows := int64(0)
			for _, f := range m.Files[:p.Files] {
				rows += f.Rows
			}
			if p.Rows != rows || i > 0 && p.Files < seen[i-1].Files {
				t.Errorf("%+v: the files that are ready have %d rows", p, rows)
			}
			if p.Files > 0 && p.Files < len(m.Files) {
				amid++
			}
		}
		if amid == 0 {
			t.Errorf("nothing is ready before all is: %+v", seen)
		}
		stop()
	})
}

// One job that takes long does not keep all others from beginning.
func TestOneJobStarvesOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := groupStore(t)
		var reads atomic.Int64
		db.OnRead = func() {
			if reads.Add(1) == 1 { // whichever job is first has a lot to read
				time.Sleep(12 * time.Hour)
			}
		}
		j := export.New(db, export.Options{})
		one, other := start(t, j, ofGroup("g")), start(t, j, ofGroup("g"))
		stop := runs(t, j)
		time.Sleep(time.Hour)
		_, err1 := j.Manifest(one)
		_, err2 := j.Manifest(other)
		if (err1 == nil) == (err2 == nil) {
			t.Errorf("after an hour: %v and %v, want one that is done", err1, err2)
		}
		time.Sleep(12 * time.Hour)
		stop()
	})
}

// TestResume: a job that could not go on amid a type goes on from the file that
// was last whole, of which a client may know by then.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j *export.Jobs
		var id string
		var page export.Manifest
		var full atomic.Bool
		made := map[string]int{}
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind != errorfs.OpCreate || !strings.Contains(op.Path, ".made") {
				return nil
			}
			name, _, _ := strings.Cut(op.Path[strings.LastIndexByte(op.Path, '/')+1:], ".")
			if made[name]++; name != "f3" || !full.Swap(false) {
				return nil
			}
			var err error
			if page, err = j.Manifest(id); err != nil {
				t.Error(err)
			}
			return syscall.ENOSPC
		}))
		db := makingStore(t, fs)
		j = export.New(export.Of(db), export.Options{Limits: export.Limits{Resources: 1}, Checkpoint: -1})
		q := export.Request{URL: "x", Since: fhir.None, Upto: fhir.None, Elements: []string{"id"}, Partial: true}
		files := func() (text string) {
			m, err := j.Manifest(id)
			all := m.Files
			for n := 2; err == nil && m.More; n++ {
				m, err = j.Page(id, n)
				all = append(all, m.Files...)
			}
			if err != nil || len(all) != 8 {
				t.Fatalf("%v, %d files", err, len(all))
			}
			for n := range all {
				d, err := j.Open(t.Context(), id, n+1)
				if err != nil {
					t.Fatal(err)
				}
				var b bytes.Buffer
				if err := errors.Join(d.Write(&b, false, 0, d.Size(false)), d.Close()); err != nil {
					t.Fatal(err)
				}
				text += fmt.Sprintln(all[n].Type, all[n].Rows, *all[n].CRC) + b.String()
			}
			return text
		}
		id = start(t, j, q)
		stop := runs(t, j)
		synctest.Wait()
		stop()
		want := files()

		full.Store(true)
		clear(made)
		id = start(t, j, q)
		stop = runs(t, j)
		time.Sleep(time.Minute)
		stop()
		if got := files(); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		if len(page.Files) != 2 || !page.More || made["f1"] != 1 || made["f2"] != 1 || made["f3"] != 2 || made["f8"] != 1 {
			t.Errorf("the client knew of %d files; files were begun so often: %v", len(page.Files), made)
		}
	})
}
