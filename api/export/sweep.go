package export

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"tidemark/api/access"
	"tidemark/store"
)

// sweepEvery is how late the files of an expired job may go: short against
// every sensible export.expires, long against the cost of a look.
const sweepEvery = time.Minute

// Run plans jobs and removes expired ones until ctx ends.
func (j *Jobs) Run(ctx context.Context) error {
	var g errgroup.Group
	for range j.o.Workers {
		g.Go(func() error { j.plan(ctx); return nil })
	}
	g.Go(func() error { return j.keepSweeping(ctx) })
	return g.Wait()
}

func (j *Jobs) keepSweeping(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			j.sweep(ctx)
		}
	}
}

// sweep removes the expired jobs that nobody reads, and sees which an erasure has ended.
func (j *Jobs) sweep(ctx context.Context) {
	j.seeEnded(ctx)
	for id, old := range j.expired() {
		err := j.db.Unpin(ctx, id)
		if err == nil || errors.Is(err, store.ErrNotFound) {
			continue
		}
		if ctx.Err() == nil {
			j.o.Logger.WarnContext(ctx, "remove an expired export job; the next sweep tries again", "err", err)
		}
		j.mu.Lock()
		j.jobs[id] = old
		j.mu.Unlock()
	}
}

// seeEnded marks the jobs that an erasure has ended, so that nobody has to wait for
// their places.
//
// An erasure leaves nothing of a rule. Whose the job was is put back, so that he is
// told after a restart, too; should that fail, nobody is.
func (j *Jobs) seeEnded(ctx context.Context) {
	for _, p := range j.db.Pinned() {
		if owner, left := j.seeEnd(p); left && owner != "" && len(p.Rule) == 0 {
			if err := j.db.Revoke(p.ID, remains(owner, false)); err != nil && !errors.Is(err, store.ErrNotFound) {
				j.o.Logger.WarnContext(ctx, "note whose export job was ended; the next sweep tries again", "err", err)
			}
		}
	}
}

// seeEnd notes that a job has ended. It tells whose it was, if it has.
func (j *Jobs) seeEnd(p store.Pinned) (owner access.Owner, ended bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	job := j.jobs[p.ID]
	if job == nil || !p.Revoked {
		return "", false
	}
	job.end()
	return job.access.Owner, true
}

// expired takes the jobs to be removed out of the table, so that nobody opens
// one while its files go.
func (j *Jobs) expired() map[string]*job {
	j.mu.Lock()
	defer j.mu.Unlock()
	gone := map[string]*job{}
	for id, job := range j.jobs {
		if job.readers == 0 && !time.Now().Before(job.expires) {
			gone[id] = job
			delete(j.jobs, id)
		}
	}
	return gone
}
