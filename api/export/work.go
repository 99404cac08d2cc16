package export

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"tidemark/api/outcome"
	"tidemark/store"
)

// A WorkingError says that a job is being planned.
type WorkingError struct {
	Progress Progress
	After    time.Duration // when to ask again
	Separate bool          // as the client wishes it told
}

func (e *WorkingError) Error() string { return "the export is being planned" }

// Progress is how far the planning of a job has come.
type Progress struct {
	Share float64 // of what there is to look through, up to 1
	Files int     // that are ready
	Rows  int64   // in them
}

// A FailedError says that a job cannot be done at all.
type FailedError struct {
	Issues   []outcome.Issue
	Separate bool // as the client wishes it told
}

// Error tells no more than how much there is to say: issues may name resources.
func (e *FailedError) Error() string {
	return fmt.Sprintf("the export failed: %d issues", len(e.Issues))
}

// defaultWorkers bounds how many jobs are planned at the same time if nobody says:
// that is work for processors, and intake and downloads want theirs.
func defaultWorkers() int { return runtime.GOMAXPROCS(0) / 2 }

// minWorkers: one of them is always for jobs that read directories only: they take
// moments, others may take minutes.
const minWorkers = 2

// A queued is a job to be planned.
type queued struct {
	id    string
	heavy bool // it reads bodies
}

func (q *Request) queued(id string) queued {
	return queued{id, q.readsBodies()}
}

// errHeavy says of a job that was to read directories only that it reads bodies.
var errHeavy = errors.New("the job reads bodies")

// queue has a job planned, after those of its kind that wait already.
func (j *Jobs) queue(q queued) {
	j.mu.Lock()
	j.waiting = append(j.waiting, q)
	j.mu.Unlock()
	j.signal()
}

func (j *Jobs) signal() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// next is a job to be planned, false if ctx ends before there is one.
func (j *Jobs) next(ctx context.Context) (queued, bool) {
	for {
		select {
		case <-ctx.Done():
			return queued{}, false
		case <-j.wake:
		}
		if q, more, ok := j.dequeue(); ok {
			if more {
				j.signal()
			}
			return q, true
		}
	}
}

// dequeue takes the first job that may be planned now.
func (j *Jobs) dequeue() (q queued, more, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := slices.IndexFunc(j.waiting, func(q queued) bool { return !q.heavy || j.heavy < j.o.Workers-1 })
	if i < 0 {
		return q, false, false
	}
	q = j.waiting[i]
	j.waiting = slices.Delete(j.waiting, i, i+1)
	if q.heavy {
		j.heavy++
	}
	return q, len(j.waiting) > 0, true
}

// done lets the next heavy job begin.
func (j *Jobs) done(q queued) {
	if !q.heavy {
		return
	}
	j.mu.Lock()
	j.heavy--
	j.mu.Unlock()
	j.signal()
}

// plan plans jobs until ctx ends. What is cut short then the next process takes up
// at its last checkpoint.
func (j *Jobs) plan(ctx context.Context) {
	for {
		q, ok := j.next(ctx)
		if !ok {
			return
		}
		err := j.planJob(ctx, q)
		j.done(q)
		switch {
		case errors.Is(err, errHeavy):
			j.queue(queued{q.id, true})
		case err == nil, ctx.Err() != nil, errors.Is(err, context.Canceled):
		case errors.Is(err, ErrNotFound), errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrRevoked), errors.Is(err, store.ErrClosed):
		default:
			wait := j.retry(q.id)
			j.o.Logger.ErrorContext(ctx, "plan an export job; it is tried again", "err", err, "after", wait)
			time.AfterFunc(wait, func() { j.queue(q) })
		}
	}
}

// retryPlanning is how long to wait when the disk does not take a plan. Again and
// again it gets longer: a job whose files do not fit fills the disk each time.
const (
	retryPlanning    = 10 * time.Second
	maxRetryPlanning = 2 * time.Minute
)

// retry is how long to wait until a job is tried again.
func (j *Jobs) retry(id string) time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	job := j.jobs[id]
	if job == nil { // deleted meanwhile
		return retryPlanning
	}
	job.wait = min(max(retryPlanning, 2*job.wait), maxRetryPlanning)
	return job.wait
}

func (j *Jobs) planJob(ctx context.Context, q queued) error {
	id := q.id
	s, r, release, err := j.open(id)
	if err != nil {
		return err
	}
	defer release()
	if r.Pending == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	j.begin(id, cancel)
	if r.Checkpoint == nil {
		if err := s.Clear(); err != nil { // what a process has left that was killed amid it
			return err
		}
	}
	keep := func(r *rule, c selection) error {
		if len(c) > 0 {
			if err := keepPiece(s, r, c); err != nil {
				return err
			}
		}
		return j.save(id, *r)
	}
	c, err := j.choose(ctx, q, s, &r, keep)
	switch refusal, is := errors.AsType[*Refusal](err); {
	case is: // of something that the kick-off does not look at: a nested Group
		r = r.failed(refusal.Issues)
	case ctx.Err() != nil, errors.Is(err, errHeavy), errors.Is(err, store.ErrRevoked), errors.Is(err, store.ErrClosed):
		return err
	case errors.Is(err, ErrPolicy):
		j.o.Logger.ErrorContext(ctx, "an export job cannot be planned under its policy", "err", err)
		r = r.failed([]outcome.Issue{{Severity: outcome.Fatal, Code: outcome.Exception, Text: Unappliable}})
	case passes(err), errors.Is(err, errAside) && len(r.Pages) == 0:
		return errors.Join(err, j.giveBack(id, s, err))
	case err != nil:
		j.o.Logger.ErrorContext(ctx, "an export job cannot be planned", "err", err)
		r = r.failed([]outcome.Issue{{
			Severity: outcome.Fatal, Code: outcome.Exception, Text: "the server cannot do something that this export needs; its log tells what",
		}})
	default:
		if err := keepPiece(s, &r, c); err != nil {
			return errors.Join(err, j.giveBack(id, s, err))
		}
		r.Pending, r.Checkpoint = nil, nil
	}
	if err := j.save(id, r); err != nil || r.Failure == nil {
		return err
	}
	return s.Clear() // nobody reads the files of what cannot be done
}

// save makes a rule durable that planning has brought forward. Pages are made by
// those who ask for them. What is planned can be had from now on as long as what was
// ready at once.
func (j *Jobs) save(id string, r rule) error {
	var expires time.Time
	if r.Pending == nil {
		expires = time.Now().Add(j.o.Expires)
	}
	_, err := j.amend(id, func(now *rule) {
		pages := now.Pages
		*now = r
		if r.Failure == nil {
			now.Pages = pages
		}
	}, expires)
	if err != nil || r.Pending != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if job := j.jobs[id]; job != nil {
		job.pending, job.expires = false, expires
	}
	return nil
}

// giveBack removes what a job has made that is tried again, so that it does not
// keep the disk full until then, unless a client was told of it, or the disk is not
// what is missing.
func (j *Jobs) giveBack(id string, s Snapshot, why error) error {
	kept := false
	_, err := j.amend(id, func(r *rule) {
		if kept = r.Checkpoint != nil && (len(r.Pages) > 0 || !errors.Is(why, store.ErrNoRoom) && !errors.Is(why, errAside)); !kept {
			r.Files, r.Pieces, r.Checkpoint = nil, nil, nil
		}
	}, time.Time{})
	if err != nil || kept {
		return err
	}
	return s.Clear()
}

// passes tells of an error that is none of the job's: with room, on a disk that can be
// written, with memory or file descriptors it can be done.
func passes(err error) bool {
	for _, e := range []error{store.ErrNoRoom, store.ErrReadOnly, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// failed is the rule of a job that cannot be done.
func (r rule) failed(why []outcome.Issue) rule {
	return rule{Level: r.Level, Face: r.Face, Separate: r.Separate, Request: r.Request, Since: r.Since, Upto: r.Upto, By: r.By, Access: r.Access, Failure: why}
}

// choose plans one job. A panic is a fault of this job alone: without this it
// would end the process, and the next one, which begins with the same job.
func (j *Jobs) choose(ctx context.Context, q queued, s Snapshot, r *rule, keep func(*rule, selection) error) (c selection, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic while planning\n%s", debug.Stack()) // not its value: it may hold anything
		}
	}()
	how := ifNone
	if q.heavy {
		how = now
	}
	return choose(ctx, s, r, j.o, how, keep, func(p Progress) { j.report(q.id, p) })
}

func (j *Jobs) begin(id string, cancel context.CancelFunc) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if job := j.jobs[id]; job != nil && !job.taken {
		job.started, job.cancel = time.Now(), cancel
	} else {
		cancel()
	}
}

func (j *Jobs) report(id string, p Progress) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if job := j.jobs[id]; job != nil && p.Share >= job.progress.Share { // it may be tried again
		job.progress = p
	}
}

// maxPoll bounds what we tell a client to wait: whoever is told to come in a
// minute comes in a minute, though the job may be ready in a second.
const maxPoll = 10 * time.Second

func (j *Jobs) working(id string, r rule) *WorkingError {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := &WorkingError{After: time.Second, Separate: r.Separate}
	if job := j.jobs[id]; job != nil && !job.started.IsZero() {
		e.Progress = job.progress
		e.After = min(max(e.After, time.Since(job.started)/2), maxPoll)
	}
	return e
}
