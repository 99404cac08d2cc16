package export_test

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/api/export"
)

// TestJobsPerOwner: a client has so many jobs at a time that are worked on; whose files
// are ready does not count, nor does another's.
func TestJobsPerOwner(t *testing.T) {
	j := export.New(export.Of(makingStore(t, vfs.NewMem())), export.Options{JobsPerOwner: 2})
	begin := func(scopes string) error {
		_, err := j.Start(t.Context(), owned("#1", scopes))
		return err
	}
	const ready, worked = "system/*.rs", "system/*.rs?_id=1"
	for range 3 {
		if err := begin(ready); err != nil {
			t.Fatalf("a job that is ready at once: %v", err)
		}
	}
	one := start(t, j, owned("#1", worked))
	if err := begin(worked); err != nil {
		t.Fatal(err)
	}
	busy, is := errors.AsType[*export.BusyError](begin(ready))
	if !is || busy.Limit != "limits.jobs_per_client" || busy.Value != 2 || busy.After <= 0 {
		t.Errorf("the third job: %+v", busy)
	}
	if _, err := j.Start(t.Context(), owned("#2", worked)); err != nil {
		t.Errorf("another client's: %v", err)
	}
	q := owned("#1", worked)
	q.AtOnce = 3
	if _, err := j.Start(t.Context(), q); err != nil {
		t.Errorf("of a client that has a limit of its own: %v", err)
	}
	_, err := j.Start(t.Context(), q)
	if busy, is := errors.AsType[*export.BusyError](err); !is || busy.Value != 3 {
		t.Errorf("one above that: %v", err)
	}
	stop := runs(t, j)
	planned(t, j, one)
	stop()
	q = owned("#1", ready) // two may still be planned
	q.AtOnce = 3
	if _, err := j.Start(t.Context(), q); err != nil {
		t.Errorf("after one was done: %v", err)
	}
}

// TestJobsAtWork: so many jobs are worked on, whosever they are.
func TestJobsAtWork(t *testing.T) {
	j := export.New(export.Of(makingStore(t, vfs.NewMem())), export.Options{MaxWorking: 1})
	start(t, j, owned("#1", "system/*.rs"))
	start(t, j, owned("#1", "system/*.rs?_id=1"))
	_, err := j.Start(t.Context(), owned("#2", "system/*.rs"))
	if busy, is := errors.AsType[*export.BusyError](err); !is || busy.Limit != "limits.jobs" {
		t.Errorf("%v", err)
	}
}

// TestStillAtStart: who has lost something since he came in has no job, and its place is
// free.
func TestStillAtStart(t *testing.T) {
	j := export.New(export.Of(makingStore(t, vfs.NewMem())), export.Options{MaxJobs: 1})
	q := owned("#1", "system/*.rs")
	q.Still = func() bool { return false }
	if _, err := j.Start(t.Context(), q); !errors.Is(err, export.ErrTakenBack) || j.Len() != 0 {
		t.Errorf("%v, %d jobs", err, j.Len())
	}
	q.Still = func() bool { return true }
	start(t, j, q)
}
