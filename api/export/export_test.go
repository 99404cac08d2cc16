package export_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/api/apitest"
	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
)

func instant(t testing.TB, s string) fhir.Instant {
	t.Helper()
	i, _, err := fhir.ParseInstant(s)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func newStore(t testing.TB, patients int) *apitest.Store {
	db := apitest.New(instant(t, "2026-01-02T12:00:00Z"))
	for i := range patients {
		k, err := fhir.ParseKey(fmt.Sprintf("Patient/%d", i))
		if err != nil {
			t.Fatal(err)
		}
		db.Put(k, instant(t, "2026-01-01T12:00:00Z")+fhir.Instant(i), apitest.Links{})
	}
	return db
}

func everything() export.Request {
	return export.Request{URL: "http://tidemark.test/fhir/$export", Since: fhir.None, Upto: fhir.None}
}

func start(t testing.TB, j *export.Jobs, q export.Request) string {
	t.Helper()
	id, err := j.Start(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func read(t testing.TB, j *export.Jobs, id string, n int, zip bool) string {
	t.Helper()
	d, err := j.Open(t.Context(), id, n)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var b bytes.Buffer
	if err := d.Write(&b, zip, 0, d.Size(zip)); err != nil {
		t.Fatal(err)
	}
	if int64(b.Len()) != d.Size(zip) {
		t.Errorf("Size says %d, %d bytes came", d.Size(zip), b.Len())
	}
	return b.String()
}

// A job's manifest and files are the same after a restart, whatever changed.
func TestJobOutlivesRestart(t *testing.T) {
	db := newStore(t, 5)
	q := everything()
	q.Types = []fhir.Type{1, 2}
	q.Notes = []outcome.Issue{{Severity: outcome.Warning, Code: outcome.NotSupported, Text: "left out"}}
	patient, _ := fhir.ParseType("Patient")
	q.Types = append(q.Types, patient)
	j := export.New(db, export.Options{Limits: export.Limits{Resources: 2}})
	id := start(t, j, q)
	want, err := j.Manifest(id)
	if err != nil {
		t.Fatal(err)
	}
	if len(want.Files) != 4 {
		t.Fatalf("%d files, want 3 of Patients and 1 of errors", len(want.Files))
	}
	before := read(t, j, id, 3, false)

	k, _ := fhir.ParseKey("Patient/4")
	db.Put(k, instant(t, "2026-01-03T00:00:00Z"), apitest.Links{})
	db.SetWatermark(instant(t, "2026-01-03T00:00:00Z"))
	again := export.New(db.Restart(), export.Options{})
	got, err := again.Manifest(id)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("manifest after a restart (-want +got):\n%s", diff)
	}
	if after := read(t, again, id, 3, false); after != before {
		t.Errorf("file after a restart:\n%s\nbefore:\n%s", after, before)
	}
}

// The file of errors is an ordinary gzip, in bytes that no library can change.
func TestTextFile(t *testing.T) {
	for _, size := range []int{1, 100, 1<<16 - 1, 1 << 16, 200_000} {
		q := everything()
		q.Notes = []outcome.Issue{{Text: strings.Repeat("x", size)}}
		j := export.New(newStore(t, 0), export.Options{})
		id := start(t, j, q)
		want := read(t, j, id, 1, false)
		zr, err := gzip.NewReader(strings.NewReader(read(t, j, id, 1, true)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(zr)
		if err != nil || string(got) != want {
			t.Errorf("size %d: %v, %d bytes of %d", size, err, len(got), len(want))
		}
	}
}

func TestUnknownJobsAndFiles(t *testing.T) {
	db := newStore(t, 1)
	j := export.New(db, export.Options{})
	id := start(t, j, everything())
	for _, n := range []int{-1, 0, 2, 1 << 40} {
		if _, err := j.Open(t.Context(), id, n); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("file %d: %v", n, err)
		}
	}
	for _, id := range []string{"", "x", strings.Repeat("0", 32)} {
		if _, err := j.Manifest(id); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("job %q: %v", id, err)
		}
		if err := j.Delete(t.Context(), id); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("job %q: %v", id, err)
		}
		if err := j.Poll(id); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("job %q: %v", id, err)
		}
	}
	if n := db.Open(); n != 0 {
		t.Errorf("%d snapshots left open", n)
	}
}

// Of many that delete a job, one did.
func TestDeleteOnce(t *testing.T) {
	j := export.New(newStore(t, 1), export.Options{})
	id := start(t, j, everything())
	var wg sync.WaitGroup
	var mu sync.Mutex
	deleted := 0
	for range 8 {
		wg.Go(func() {
			err := j.Delete(context.Background(), id)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				deleted++
			} else if !errors.Is(err, export.ErrNotFound) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if deleted != 1 || j.Len() != 0 {
		t.Errorf("deleted %d times, %d jobs left", deleted, j.Len())
	}
}

// Expired jobs go, but never under a download (Bulk Data, "Expires").
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newStore(t, 1)
		j := export.New(db, export.Options{Expires: time.Hour, MaxJobs: 2})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- j.Run(ctx) }()
		read, idle := start(t, j, everything()), start(t, j, everything())
		d, err := j.Open(ctx, read, 1)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour - time.Second)
		if _, err := j.Manifest(idle); err != nil {
			t.Errorf("a second before it expires: %v", err)
		}
		time.Sleep(time.Second)
		for _, id := range []string{idle, read} {
			if _, err := j.Manifest(id); !errors.Is(err, export.ErrNotFound) {
				t.Errorf("when it expires: %v", err)
			}
		}
		time.Sleep(2 * time.Minute)
		if n := len(db.Pinned()); n != 1 {
			t.Errorf("%d pins while one is read, want 1", n)
		}
		if err := d.Write(io.Discard, false, 0, d.Size(false)); err != nil {
			t.Errorf("a download that began in time: %v", err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if n := len(db.Pinned()); n != 0 {
			t.Errorf("%d pins after the download", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A failure to unpin is tried again.
func TestSweepRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newStore(t, 1)
		j := export.New(db, export.Options{Expires: time.Minute})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- j.Run(ctx) }()
		start(t, j, everything())
		db.Fail(errors.New("disk full"))
		time.Sleep(5*time.Minute + time.Second) // no sweep is under way
		db.Fail(nil)
		if len(db.Pinned()) != 1 || j.Len() != 1 {
			t.Error("a job vanished though it could not be unpinned")
		}
		time.Sleep(2 * time.Minute)
		if len(db.Pinned()) != 0 || j.Len() != 0 {
			t.Error("an expired job stayed")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestJobLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newStore(t, 1)
		j := export.New(db, export.Options{Expires: time.Hour, MaxJobs: 2})
		start(t, j, everything())
		db.Fail(errors.New("not now"))
		if _, err := j.Start(t.Context(), everything()); err == nil {
			t.Error("no error")
		}
		db.Fail(nil)
		start(t, j, everything()) // the failed one took no place
		_, err := j.Start(t.Context(), everything())
		busy, ok := errors.AsType[*export.BusyError](err)
		if !ok || busy.Limit != "limits.jobs_kept" || busy.After != time.Hour { // who waits as long comes in
			t.Fatalf("third job: %v", err)
		}
		time.Sleep(time.Hour - 10*time.Second)
		_, err = j.Start(t.Context(), everything())
		if busy, ok = errors.AsType[*export.BusyError](err); !ok || busy.After != 10*time.Second {
			t.Errorf("10 s before one expires: %v", err)
		}
		time.Sleep(10 * time.Second)
		start(t, j, everything()) // expired ones make room without the janitor
	})
}

// TestErasureFreesPlaces: a job that an erasure has ended says so until it expires, and
// nobody waits for its place, also after a restart.
func TestErasureFreesPlaces(t *testing.T) {
	for _, restart := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) { erasureFreesPlaces(t, restart) })
	}
}

func erasureFreesPlaces(t *testing.T, restart bool) {
	db := newStore(t, 1)
	o := export.Options{MaxJobs: 2, Expires: time.Hour}
	j := export.New(db, o)
	old := start(t, j, everything())
	start(t, j, everything())
	db.Erase()
	time.Sleep(20 * time.Second)
	if restart {
		db = db.Restart()
		j = export.New(db, o)
		if n := j.Len(); n != 0 {
			t.Errorf("after a restart files of %d jobs are kept", n)
		}
	}
	start(t, j, everything())
	if n := j.Len(); n != 1 {
		t.Errorf("files of %d jobs are kept, want those of the new one", n)
	}
	if _, err := j.Manifest(old); !errors.Is(err, store.ErrRevoked) {
		t.Errorf("the one that was ended: %v", err)
	}
	time.Sleep(time.Hour - 30*time.Second) // what expires in ten seconds holds no place
	start(t, j, everything())
	_, err := j.Start(t.Context(), everything())
	if busy, ok := errors.AsType[*export.BusyError](err); !ok || busy.After != 30*time.Second {
		t.Errorf("%v, want to come again when the new one expires", err)
	}
}

// A client that keeps to Retry-After is served each time.
func TestPollLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := export.New(newStore(t, 1), export.Options{PollsPerMinute: 30})
		id, other := start(t, j, everything()), start(t, j, everything())
		for i := range 30 {
			if err := j.Poll(id); err != nil {
				t.Fatalf("poll %d: %v", i, err)
			}
		}
		for range 5 {
			busy, ok := errors.AsType[*export.BusyError](j.Poll(id))
			if !ok || busy.After != 2*time.Second {
				t.Fatalf("poll over the limit: %v", busy)
			}
			time.Sleep(busy.After)
			if err := j.Poll(id); err != nil {
				t.Errorf("after waiting as told: %v", err)
			}
		}
		if err := j.Poll(other); err != nil {
			t.Errorf("another job: %v", err)
		}
		time.Sleep(time.Hour)
		for i := range 30 {
			if err := j.Poll(id); err != nil {
				t.Fatalf("poll %d of the next minute: %v", i, err)
			}
		}
		if err := j.Poll(id); err == nil {
			t.Error("more than a minute's share was saved up")
		}
	})
}

// Ids are long enough that nobody guesses one.
func TestIDs(t *testing.T) {
	j := export.New(newStore(t, 0), export.Options{})
	seen := map[string]bool{}
	for range 50 {
		id := start(t, j, everything())
		if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" || seen[id] {
			t.Errorf("id %q", id)
		}
		seen[id] = true
	}
}

// other answers otherwise than at kick-off.
type other struct{ export.Store }

func (o other) Snapshot(id string) (export.Snapshot, error) {
	s, err := o.Store.Snapshot(id)
	return lying{s}, err
}

type lying struct{ export.Snapshot }

func (l lying) Rule() []byte {
	return []byte(strings.Replace(string(l.Snapshot.Rule()), `"rows":1,`, `"rows":2,`, 1))
}

// Should the extents ever differ from the manifest, a client gets an error
// instead of other rows.
func TestExtentsThatChanged(t *testing.T) {
	j := export.New(other{newStore(t, 1)}, export.Options{})
	id := start(t, j, everything())
	if _, err := j.Open(t.Context(), id, 1); err == nil || errors.Is(err, export.ErrNotFound) {
		t.Errorf("opened though the store lies: %v", err)
	}
}

// TestPlanningOutlastsExpiry: a job whose planning takes longer than files stay is there
// as long as somebody asks for it, also across a restart, and then its files stay as
// long as those of others. One for which nobody asks goes.
func TestPlanningOutlastsExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newStore(t, 3)
		took := 5 * time.Hour
		db.OnLines = func() { time.Sleep(took) }
		o := export.Options{Expires: time.Hour, Checkpoint: -1}
		j := export.New(db, o)
		stop := runs(t, j)
		q := everything()
		q.Elements = []string{"id"}
		asked, alone := start(t, j, q), start(t, j, q)
		asks := func(d time.Duration) {
			t.Helper()
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(40 * time.Minute) {
				if err := j.Poll(asked); err != nil {
					t.Fatal(err)
				}
				working(t, j, asked)
			}
		}
		asks(3 * time.Hour)
		if _, err := j.Manifest(alone); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("nobody has asked for three hours: %v", err)
		}
		time.Sleep(50 * time.Minute)
		before := db.Restart()
		stopped := make(chan struct{})
		go func() { stop(); close(stopped) }()
		db = before
		db.OnLines = func() { time.Sleep(took) }
		time.Sleep(20 * time.Minute) // without a server
		j = export.New(db, o)
		defer runs(t, j)()
		asks(4 * time.Hour)
		<-stopped
		ready := time.Now()
		for ; ; time.Sleep(10 * time.Minute) {
			_, err := j.Manifest(asked)
			if _, working := errors.AsType[*export.WorkingError](err); !working {
				break
			}
			if err := j.Poll(asked); err != nil {
				t.Fatal(err)
			}
			ready = time.Now()
		}
		m, err := j.Manifest(asked)
		if err != nil || m.Expires.Sub(ready) < time.Hour {
			t.Fatalf("%v: ready at %v, expires at %v", err, ready, m.Expires)
		}
		time.Sleep(time.Until(m.Expires) - time.Second)
		if _, err := j.Manifest(asked); err != nil {
			t.Errorf("a second before it expires: %v", err)
		}
		again := export.New(db.Restart(), o) // it is durable
		if _, err := again.Manifest(asked); err != nil {
			t.Errorf("a second before it expires, after a restart: %v", err)
		}
		time.Sleep(2 * time.Second)
		if _, err := j.Manifest(asked); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("when it has expired: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if n := len(db.Pinned()); n != 0 {
			t.Errorf("%d pins stay", n)
		}
	})
}
