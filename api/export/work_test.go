package export_test

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tidemark/api/apitest"
	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/store/fhir"
)

// groupStore has a Group of one Patient, with an Observation that refers to a
// Practitioner.
func groupStore(t testing.TB) *apitest.Store {
	t.Helper()
	db := apitest.New(instant(t, "2026-01-02T12:00:00Z"))
	at := instant(t, "2026-01-01T12:00:00Z")
	for ref, l := range map[string]apitest.Links{
		"Group/g":         {Patients: []string{"p"}, Members: []string{"Patient/p"}},
		"Group/nests":     {Members: []string{"Group/defined"}},
		"Group/defined":   {More: `,"actual":false`},
		"Patient/p":       {Patients: []string{"p"}},
		"Observation/o":   {Patients: []string{"p"}, Refers: []fhir.Key{key(t, "Practitioner/dr")}},
		"Practitioner/dr": {},
	} {
		db.Put(key(t, ref), at, l)
	}
	return db
}

func key(t testing.TB, ref string) fhir.Key {
	t.Helper()
	k, err := fhir.ParseKey(ref)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ofGroup(id string) export.Request {
	return export.Request{Level: export.Group, Group: id, URL: "http://tidemark.test/fhir/Group/" + id + "/$export", Since: fhir.None, Upto: fhir.None}
}

// runs plans and sweeps until it is called, and waits.
func runs(t *testing.T, j *export.Jobs) func() {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func working(t *testing.T, j *export.Jobs, id string) *export.WorkingError {
	t.Helper()
	_, err := j.Manifest(id)
	w, ok := errors.AsType[*export.WorkingError](err)
	if !ok {
		t.Fatalf("got %v, want a job at work", err)
	}
	return w
}

// A job about some Patients is planned behind the kick-off. What a process does
// not finish the next one begins again.
func TestPlanning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := groupStore(t)
		enter, leave := make(chan struct{}), make(chan struct{})
		db.OnRead = func() { enter <- struct{}{}; <-leave }
		j := export.New(db, export.Options{})
		id := start(t, j, ofGroup("g"))
		if w := working(t, j, id); w.Progress != (export.Progress{}) || w.After != time.Second {
			t.Errorf("before anybody plans: %+v", w)
		}
		stop := runs(t, j)
		for range 2 {
			<-enter
			leave <- struct{}{}
		}
		<-enter
		time.Sleep(8 * time.Second)
		first := working(t, j, id)
		if first.Progress.Share <= 0 || first.Progress.Share >= 1 || first.After != 4*time.Second {
			t.Errorf("amid the work: %+v", first)
		}
		if _, err := j.Open(t.Context(), id, 1); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("a file of a job that is planned: %v", err)
		}
		db = db.Restart() // as it is on the disk now
		db.OnRead = nil
		close(leave)
		go func() {
			for range enter {
			}
		}()
		stop()
		close(enter)

		j = export.New(db, export.Options{})
		working(t, j, id)
		stop = runs(t, j)
		synctest.Wait()
		m, err := j.Manifest(id)
		if err != nil || len(m.Files) != 4 {
			t.Fatalf("after a restart: %v, files %+v", err, m.Files)
		}
		want := read(t, j, id, 2, false)
		stop()
		if got := read(t, export.New(db.Restart(), export.Options{}), id, 2, false); got != want || got == "" {
			t.Errorf("after another restart %q, before %q", got, want)
		}
	})
}

// DELETE ends the planning.
func TestDeleteWhilePlanning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := groupStore(t)
		enter, leave := make(chan struct{}), make(chan struct{})
		calls := 0
		db.OnRead = func() { calls++; enter <- struct{}{}; <-leave }
		j := export.New(db, export.Options{})
		stop := runs(t, j)
		id := start(t, j, ofGroup("g"))
		<-enter
		if err := j.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		leave <- struct{}{}
		synctest.Wait()
		if calls != 1 || len(db.Pinned()) != 0 || j.Len() != 0 {
			t.Errorf("%d sections were read, %d pins and %d jobs are left", calls, len(db.Pinned()), j.Len())
		}
		db.OnRead = nil
		id = start(t, j, ofGroup("g")) // the planner is free again
		synctest.Wait()
		if _, err := j.Manifest(id); err != nil {
			t.Error(err)
		}
		stop()
	})
}

// Whatever goes wrong while a job is planned is that job's end alone.
func TestPlanningPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, fault := range map[string]func(*apitest.Store){
			"panic": func(*apitest.Store) { panic("a fault of ours") },
			"error": func(db *apitest.Store) { db.Break(errors.New("what nobody has thought of")) },
		} {
			db := groupStore(t)
			j := export.New(db, export.Options{})
			stop := runs(t, j)
			db.OnRead = func() { fault(db) }
			id := start(t, j, ofGroup("g"))
			synctest.Wait()
			db.OnRead = nil
			db.Break(nil)
			failed, ok := errors.AsType[*export.FailedError](second(j.Manifest(id)))
			if !ok || failed.Issues[0].Severity != outcome.Fatal {
				t.Errorf("%s: no job that failed", name)
			}
			id = start(t, j, ofGroup("g"))
			synctest.Wait()
			if _, err := j.Manifest(id); err != nil {
				t.Errorf("%s: the next job: %v", name, err)
			}
			stop()
		}
	})
}

func second(_ export.Manifest, err error) error { return err }

// What the disk does not take is tried again; what cannot be done is said.
func TestPlanningFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := groupStore(t)
		j := export.New(db, export.Options{})
		id, nests := start(t, j, ofGroup("g")), start(t, j, ofGroup("nests"))
		db.OnRead = func() { db.Fail(errors.New("disk full")) }
		stop := runs(t, j)
		synctest.Wait()
		db.OnRead = nil
		db.Fail(nil)
		working(t, j, id)
		time.Sleep(time.Minute)
		if _, err := j.Manifest(id); err != nil {
			t.Errorf("once there is room: %v", err)
		}
		_, err := j.Manifest(nests)
		failed, ok := errors.AsType[*export.FailedError](err)
		if !ok || len(failed.Issues) != 1 || failed.Issues[0].Code != outcome.NotSupported {
			t.Errorf("a Group with a definition in it: %v", err)
		}
		stop()
		var refusal *export.Refusal
		if _, err := j.Start(t.Context(), ofGroup("defined")); !errors.As(err, &refusal) || refusal.NotFound {
			t.Errorf("a definition: %v", err)
		}
		if len(db.Pinned()) != 2 {
			t.Errorf("%d pins, want 2", len(db.Pinned()))
		}
	})
}

// A job whose files find no room is made once there is.
func TestMakingWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cut, blocks := ofGroup("g"), ofGroup("g")
		cut.Elements, blocks.By = []string{"id"}, key(t, "Patient/p").Type
		for _, q := range []export.Request{cut, blocks} {
			db := groupStore(t)
			j := export.New(db, export.Options{Memory: 1}) // nothing is sorted without a file
			db.Fill(true)
			id := start(t, j, q)
			stop := runs(t, j)
			synctest.Wait()
			db.Fill(false)
			working(t, j, id)
			time.Sleep(time.Minute)
			m, err := j.Manifest(id)
			if err != nil || len(m.Files) == 0 || !m.Files[0].Made {
				t.Errorf("%v, %v", m.Files, err)
			}
			stop()
		}
	})
}

// A job whose files find no room is not tried again and again: each time it fills the
// disk.
func TestMakingWaitsLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := groupStore(t)
		var tries atomic.Int64
		db.OnLines = func() { tries.Add(1) }
		j := export.New(db, export.Options{})
		db.Fill(true)
		id := start(t, j, export.Request{Since: fhir.None, Upto: fhir.None, Elements: []string{"id"}, Types: []fhir.Type{key(t, "Patient/a").Type}})
		stop := runs(t, j)
		time.Sleep(time.Hour)
		if n := tries.Load(); n < 20 || n > 40 {
			t.Errorf("tried %d times in an hour", n)
		}
		db.Fill(false)
		time.Sleep(2 * time.Minute)
		if _, err := j.Manifest(id); err != nil {
			t.Errorf("two minutes after there is room: %v", err)
		}
		stop()
	})
}

// Jobs that read bodies leave a planner to those that do not, and come one after
// the other where two are planned at a time.
func TestHeavyJobsMakeWay(t *testing.T) {
	for workers, atOnce := range map[int]int{0: 1, 1: 1, 2: 1, 3: 2, 9: 2} { // there are two
		heavyJobs(t, workers, atOnce)
	}
}

func heavyJobs(t *testing.T, workers, atOnce int) {
	synctest.Test(t, func(t *testing.T) {
		old := runtime.GOMAXPROCS(2)
		defer runtime.GOMAXPROCS(old)
		db := groupStore(t)
		enter, leave := make(chan struct{}, 10), make(chan struct{})
		db.OnLines = func() { enter <- struct{}{}; <-leave }
		j := export.New(db, export.Options{Workers: workers})
		heavy := export.Request{Since: fhir.None, Upto: fhir.None, Elements: []string{"id"}, Types: []fhir.Type{key(t, "Patient/a").Type}}
		first, second := start(t, j, heavy), start(t, j, heavy)
		stop := runs(t, j)
		synctest.Wait()
		lightJob(t, j)
		working(t, j, first)
		working(t, j, second)
		if len(enter) != atOnce {
			t.Errorf("%d workers: %d heavy jobs at once, want %d", workers, len(enter), atOnce)
		}
		close(leave)
		synctest.Wait()
		ready(t, j, first)
		ready(t, j, second)
		stop()
	})
}

// lightJob does not wait for those that read bodies.
func lightJob(t *testing.T, j *export.Jobs) {
	t.Helper()
	id := start(t, j, ofGroup("g"))
	synctest.Wait()
	ready(t, j, id)
}

func ready(t *testing.T, j *export.Jobs, id string) {
	t.Helper()
	if _, err := j.Manifest(id); err != nil {
		t.Errorf("a job is not ready: %v", err)
	}
}

// Nor does a Group whose members are named by identifiers keep others waiting,
// though the kick-off cannot know that one in it does: all Patients are read.
func TestIdentifyingMakesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := runtime.GOMAXPROCS(2)
		defer runtime.GOMAXPROCS(old)
		db := groupStore(t)
		at := instant(t, "2026-01-01T12:00:00Z")
		db.Put(key(t, "Group/in"), at, apitest.Links{Members: []string{fhir.ByIdentifier(nil, []byte("7"))}})
		db.Put(key(t, "Group/out"), at, apitest.Links{Members: []string{"Group/in", "Patient/p"}})
		enter, leave := make(chan struct{}, 10), make(chan struct{})
		db.OnLines = func() { enter <- struct{}{}; <-leave }
		j := export.New(db, export.Options{})
		stop := runs(t, j)
		first, second := start(t, j, ofGroup("out")), start(t, j, ofGroup("in"))
		synctest.Wait()
		lightJob(t, j)
		if len(enter) != 1 {
			t.Errorf("%d jobs read Patients at once, want 1", len(enter))
		}
		close(leave)
		synctest.Wait()
		ready(t, j, first)
		ready(t, j, second)
		stop()
	})
}
