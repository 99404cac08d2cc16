package export

import (
	"context"
	"fmt"
	"time"

	"tidemark/api/access"
)

// A BusyError says that a limit was reached, and when to come again.
type BusyError struct {
	Limit string // the key of the limit in the configuration
	Value int
	After time.Duration
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("%s: %d is reached", e.Limit, e.Value)
}

// reserve takes a place among MaxJobs, of which half are for one client, after clearing away what has expired, and among
// those of the owner that are planned.
func (j *Jobs) reserve(ctx context.Context, owner access.Owner, atOnce int) error {
	if err := j.take(owner, atOnce); err == nil || err.Limit != maxJobs {
		return errOf(err)
	}
	j.sweep(ctx)
	return errOf(j.take(owner, atOnce))
}

// unreserve gives the place of a kick-off back. Called with mu held.
func (j *Jobs) unreserve(owner access.Owner) {
	if j.pending[owner]--; j.pending[owner] == 0 {
		delete(j.pending, owner)
	}
}

// The limits of jobs, as the configuration calls them.
const (
	maxJobs      = "limits.jobs_kept"
	maxWorking   = "limits.jobs"
	jobsPerOwner = "limits.jobs_per_client"
)

// errOf is an error that is nil if e is.
func errOf(e *BusyError) error {
	if e == nil {
		return nil
	}
	return e
}

func (j *Jobs) take(owner access.Owner, atOnce int) *BusyError {
	j.mu.Lock()
	defer j.mu.Unlock()
	begun := 0
	for _, n := range j.pending {
		begun += n
	}
	if j.held(anybodys)+begun >= j.o.MaxJobs {
		return &BusyError{Limit: maxJobs, Value: j.o.MaxJobs, After: j.untilFree(anybodys)}
	}
	own := func(o access.Owner) bool { return o == owner }
	// Jobs that are ready at once are worked on by nobody, so no other limit holds them.
	if share := max(1, j.o.MaxJobs/2); owner != "" && j.held(own)+j.pending[owner] >= share {
		return &BusyError{Limit: maxJobs, Value: share, After: j.untilFree(own)}
	}
	if n, wait := j.busy(anybodys); n+begun >= j.o.MaxWorking {
		return &BusyError{Limit: maxWorking, Value: j.o.MaxWorking, After: wait}
	}
	if n, wait := j.busy(own); atOnce > 0 && n+j.pending[owner] >= atOnce {
		return &BusyError{Limit: jobsPerOwner, Value: atOnce, After: wait}
	}
	j.pending[owner]++
	return nil
}

// busy is how many jobs of some owners are planned, and when the first of them may be
// done, as far as its progress tells. Called with mu held.
func (j *Jobs) busy(of func(access.Owner) bool) (n int, wait time.Duration) {
	wait = maxRetry
	for _, job := range j.jobs {
		if !job.pending || job.ended || !of(job.access.Owner) {
			continue
		}
		n++
		if share := job.progress.Share; share > 0 && !job.started.IsZero() {
			took := time.Since(job.started)
			wait = min(wait, time.Duration(float64(took)*(1-share)/share))
		}
	}
	return n, max(wait, time.Second)
}

// maxRetry is what we tell a client to wait for a job of which it is not known when it
// will be done.
const maxRetry = time.Minute

// anybodys are all owners.
func anybodys(access.Owner) bool { return true }

// untilFree is when the first job of some owners expires. Called with mu held.
func (j *Jobs) untilFree(of func(access.Owner) bool) time.Duration {
	wait := j.o.Expires
	for _, job := range j.jobs {
		if free := time.Until(job.expires); !job.ended && of(job.access.Owner) {
			wait = min(wait, free)
		}
	}
	return max(wait, time.Second)
}

// Len is the number of jobs whose files are kept.
func (j *Jobs) Len() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.held(anybodys)
}

// held is how many jobs of some owners have files that are kept. Called with mu held.
func (j *Jobs) held(of func(access.Owner) bool) (n int) {
	for _, job := range j.jobs {
		if !job.ended && of(job.access.Owner) {
			n++
		}
	}
	return n
}

// Poll counts a status request against the job's limit.
func (j *Jobs) Poll(id string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	job, ok := j.jobs[id]
	if !ok {
		return ErrNotFound
	}
	if wait := job.polls.take(time.Now()); wait > 0 {
		return &BusyError{Limit: "limits.polls_per_minute", Value: j.o.PollsPerMinute, After: wait}
	}
	if job.pending && time.Now().Before(job.expires) {
		job.await(j.o.Expires)
	}
	return nil
}
