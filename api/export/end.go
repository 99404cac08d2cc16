package export

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidemark/api/access"
	"tidemark/store"
	"tidemark/store/fhir"
)

// Access tells whose a job is and what it can hold, as it was frozen when it started;
// of one that has ended, whose it was. ErrNotFound if there is none.
func (j *Jobs) Access(id string) (Access, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	job := j.jobs[id]
	if job == nil || !time.Now().Before(job.expires) {
		return Access{}, ErrNotFound
	}
	return job.access, nil
}

// FileType is the type of file n of a job, counted from 1; 0 for errors and for blocks
// of many types.
func (j *Jobs) FileType(id string, n int) (fhir.Type, error) {
	_, r, release, err := j.open(id)
	if err != nil {
		return 0, err
	}
	defer release()
	if n < 1 || n > len(r.Files) {
		return 0, ErrNotFound
	}
	return r.Files[n-1].Type, nil
}

// EndOf ends all jobs of some clients, for rights were taken from them (decisions.md 6),
// whoever issued the tokens by which they were started: a serial is one client's for ever,
// and where another issuer's tokens count today, those of the one before may count again.
//
// The jobs are ErrTakenBack from now on, downloads stop at the next block, planning at once,
// and the disk and their places are free. It is durable when it returns, and may be asked for
// again after an error: then the jobs are closed, but a restart may open them. Nobody's
// jobs stay.
func (j *Jobs) EndOf(ctx context.Context, serials ...uint64) (n int, err error) {
	j.starting.Lock() // kick-offs under way are jobs then
	defer j.starting.Unlock()
	for id, a := range j.close(serials) {
		if ctx.Err() != nil {
			return n, errors.Join(err, ctx.Err())
		}
		e := j.db.Revoke(id, remains(a, true))
		if e == nil || errors.Is(e, store.ErrNotFound) {
			n++
			continue
		}
		err = errors.Join(err, e)
	}
	if err != nil {
		return n, fmt.Errorf("end the export jobs of a client: %w", err)
	}
	return n, nil
}

// close refuses the jobs of some clients from now on, and stops their planning.
func (j *Jobs) close(serials []uint64) map[string]access.Owner {
	j.mu.Lock()
	defer j.mu.Unlock()
	ids := map[string]access.Owner{}
	for id, job := range j.jobs {
		owner := job.access.Owner
		if owner == "" || !slices.Contains(serials, owner.Serial()) || job.ended && !job.taken {
			continue
		}
		job.end()
		if job.taken = true; job.cancel != nil {
			job.cancel()
		}
		ids[id] = owner
	}
	return ids
}

// endWeaker ends a job that was started when less was withheld from everybody. One that
// cannot be ended on the disk is ended here, and again at the next start.
func (j *Jobs) endWeaker(job *job, id string) {
	owner := job.access.Owner
	job.end()
	job.taken = true
	if err := j.db.Revoke(id, remains(owner, true)); err != nil && !errors.Is(err, store.ErrNotFound) {
		j.o.Logger.Warn("an export job that holds what is withheld now is ended, but keeps its place on the disk until the next start", "error", err)
	}
}

// end notes that a job holds nothing any more.
func (job *job) end() {
	job.ended, job.pending = true, false
	job.access = Access{Owner: job.access.Owner, Types: []fhir.Type{}}
}

// remains is the rule of a job that has ended: its constraints may name Patients.
func remains(owner access.Owner, taken bool) []byte {
	b, err := rule{Access: &Access{Owner: owner, Types: []fhir.Type{}}, Taken: taken}.encode()
	if err != nil {
		panic(err) // it has nothing that could not be written
	}
	return b
}
