// Package export is the export job: a rule made at kick-off, from which the
// manifest and every byte of every file follow, the same at each request and
// after each restart.
//
// A job about whole types is ready when it is started: planning asks the store
// for counts, never for data. One about some Patients is planned behind the
// kick-off, from the directories. The package knows snapshots, windows and files;
// it refuses to know HTTP.
//
// One mutex guards the table of jobs; nothing is called while it is held. Another
// guards the rule of each job, and is taken before that one.
package export

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"tidemark/api/access"
	"tidemark/api/withhold"
	"tidemark/store"
)

// ErrNotFound says that there is no such job or file: it never existed, was
// deleted, or has expired.
var ErrNotFound = errors.New("no such export job or file")

// Options of the jobs. The zero value works.
type Options struct {
	Expires        time.Duration   // how long files stay (default 24 h)
	Limits         Limits          // when a file is full (default 256 MiB)
	MaxJobs        int             // whose files are kept (default 1000), half of them one client's at most
	MaxWorking     int             // that are planned at the same time (default 100)
	JobsPerOwner   int             // of one client, that are planned at the same time (0: no limit)
	PollsPerMinute int             // status requests per job (default 120)
	Workers        int             // jobs planned at the same time, at least 2 (default half of the processors)
	Bases          []string        // of absolute references to resources here
	Base           string          // of the URLs of Binaries here
	Inline         int64           // content of attachments up to so many bytes takes the place of its URL (default 0: none)
	Withhold       withhold.Policy // from everybody
	Checkpoint     time.Duration   // of work that a restart may cost a job that is planned (default 1 s; negative: none); one in blocks or with Provenance attached also a sixteenth of what it has worked
	Memory         int             // of what a job in blocks sorts at a time, bytes (default 64 MiB)
	Logger         *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Expires <= 0 {
		o.Expires = 24 * time.Hour
	}
	if o.Limits.Bytes == 0 {
		o.Limits.Bytes = 256 << 20
	}
	if o.MaxJobs <= 0 {
		o.MaxJobs = 1000
	}
	if o.MaxWorking <= 0 {
		o.MaxWorking = 100
	}
	if o.PollsPerMinute <= 0 {
		o.PollsPerMinute = 120
	}
	if o.Checkpoint == 0 {
		o.Checkpoint = time.Second
	}
	if o.Workers <= 0 {
		o.Workers = defaultWorkers()
	}
	o.Workers = max(o.Workers, minWorkers)
	if o.Memory == 0 {
		o.Memory = gatherMemory
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Jobs are the export jobs of one store.
type Jobs struct {
	db Store
	o  Options

	starting sync.RWMutex // kick-offs share it, and taking rights waits for them; before mu

	mu      sync.Mutex
	jobs    map[string]*job      // mirrors the store's pins: what is not here does not exist
	pending map[access.Owner]int // kick-offs under way, they count as jobs
	waiting []queued             // jobs to be planned, first come first served
	heavy   int                  // of those that are being planned
	wake    chan struct{}        // there are some
}

// A job is what is known of a job beside its rule.
type job struct {
	expires time.Time
	pending bool // it is to be planned, and stays as long as somebody asks for it
	ended   bool // an erasure has ended it: it says so until it expires, and holds nothing
	taken   bool // likewise EndOf
	access  Access
	readers int // downloads under way
	polls   bucket

	ruling    *sync.Mutex        // the rule is being replaced
	selection map[int]selection  // pieces of it, while somebody reads
	started   time.Time          // when this process began to plan it
	progress  Progress           // of planning
	wait      time.Duration      // before it was tried the last time
	cancel    context.CancelFunc // ends the planning
}

// New finds the jobs that outlived a restart.
func New(db Store, o Options) *Jobs {
	j := &Jobs{db: db, o: o.withDefaults(), jobs: map[string]*job{}, pending: map[access.Owner]int{}, wake: make(chan struct{}, 1)}
	for _, p := range db.Pinned() {
		if !isJob(p.ID) {
			continue
		}
		j.jobs[p.ID] = j.newJob(p.Expires)
		j.recall(j.jobs[p.ID], p)
	}
	return j
}

// recall takes up a job that outlived a restart. One whose rule cannot be read is
// nobody's, as one of which an erasure has left none: that shows when it is asked for.
func (j *Jobs) recall(job *job, p store.Pinned) {
	r, err := decodeRule(p.Rule)
	if err == nil {
		job.access = r.Access.of()
	}
	if p.Revoked {
		job.end()
		job.taken = r.Taken
		return
	}
	if err == nil && !j.o.Withhold.Within(&job.access.Withhold) {
		j.endWeaker(job, p.ID)
		return
	}
	if err == nil && r.Pending != nil {
		job.await(j.o.Expires) // its client could not ask
		j.queue(r.Pending.queued(p.ID))
	}
}

// await has a job that is to be planned stay for so long from now on, if nobody asks
// for it again.
func (j *job) await(long time.Duration) {
	j.pending, j.expires = true, time.Now().Add(long)
}

// Options are those that hold, with their defaults.
func (j *Jobs) Options() Options { return j.o }

func (j *Jobs) newJob(expires time.Time) *job {
	return &job{ruling: &sync.Mutex{}, expires: expires, polls: newBucket(j.o.PollsPerMinute)}
}

// Start makes a job and returns its id. A *Refusal says that there can be none.
func (j *Jobs) Start(ctx context.Context, q Request) (string, error) {
	if err := q.freeze(j.o.Withhold); err != nil {
		return "", fmt.Errorf("start an export job: %w", err)
	}
	owner := q.Access.of().Owner
	if err := j.reserve(ctx, owner, cmp.Or(q.AtOnce, j.o.JobsPerOwner)); err != nil {
		return "", err
	}
	j.starting.RLock()
	defer j.starting.RUnlock()
	if q.Still != nil && !q.Still() { // who ends his jobs sees all that are pinned after this
		j.mu.Lock()
		defer j.mu.Unlock()
		j.unreserve(owner)
		return "", ErrTakenBack
	}
	id := NewID()
	planned := true
	s, err := j.db.Pin(ctx, id, time.Now().Add(j.o.Expires), func(s Snapshot) ([]byte, error) {
		r, err := plan(s, q, j.o.Limits)
		if err != nil {
			return nil, err
		}
		planned = r.Pending == nil
		return r.encode()
	})
	j.mu.Lock()
	j.unreserve(owner)
	if err == nil {
		j.jobs[id] = j.newJob(s.Expires())
		j.jobs[id].pending, j.jobs[id].access = !planned, q.Access.of()
	}
	j.mu.Unlock()
	if err != nil {
		return "", fmt.Errorf("start an export job: %w", err)
	}
	// Not while the snapshot is made: others wait for that.
	if err := q.check(ctx, s, &j.o); err != nil {
		return "", errors.Join(fmt.Errorf("start an export job: %w", err), s.Close(), j.Delete(context.WithoutCancel(ctx), id))
	}
	_ = s.Close() // the pin stays; nothing was written that a failure could lose
	if !planned {
		j.queue(q.queued(id))
	}
	return id, nil
}

// jobID is the length of a job's id.
const jobID = 32

// NewID is 128 random bits: who knows it may read the files of what it names.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// amend changes the rule of a job, durably, and when it expires, unless that is the
// zero time.
func (j *Jobs) amend(id string, change func(r *rule), expires time.Time) (rule, error) {
	j.mu.Lock()
	job := j.jobs[id]
	j.mu.Unlock()
	if job == nil {
		return rule{}, ErrNotFound
	}
	job.ruling.Lock()
	defer job.ruling.Unlock()
	s, r, release, err := j.open(id)
	if err != nil {
		return rule{}, err
	}
	defer release()
	change(&r)
	b, err := r.encode()
	if err != nil {
		return rule{}, err
	}
	if bytes.Equal(b, s.Rule()) {
		return r, nil
	}
	return r, j.db.Amend(id, b, expires)
}

// expires is when a job goes.
func (j *Jobs) expires(id string) time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	if job := j.jobs[id]; job != nil {
		return job.expires
	}
	return time.Now()
}

// open finds a job and keeps it until release is called: no janitor takes
// away a job that is being read (Bulk Data, "Expires").
func (j *Jobs) open(id string) (s Snapshot, r rule, release func(), err error) {
	if !j.enter(id) {
		return nil, rule{}, nil, ErrNotFound
	}
	defer func() {
		if err != nil {
			j.leave(id)
		}
	}()
	if j.isTaken(id) {
		return nil, rule{}, nil, ErrTakenBack
	}
	s, err = j.db.Snapshot(id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, rule{}, nil, ErrNotFound
	}
	if err != nil {
		return nil, rule{}, nil, fmt.Errorf("open an export job: %w", err)
	}
	if r, err = decodeRule(s.Rule()); err != nil {
		_ = s.Close()
		return nil, rule{}, nil, fmt.Errorf("open an export job: %w", err)
	}
	return s, r, func() { _ = s.Close(); j.leave(id) }, nil
}

func (j *Jobs) isTaken(id string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.jobs[id] != nil && j.jobs[id].taken
}

// enter refuses an expired job even while a download that began in time keeps
// its files.
func (j *Jobs) enter(id string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	job, ok := j.jobs[id]
	if !ok || !time.Now().Before(job.expires) {
		return false
	}
	job.readers++
	return true
}

func (j *Jobs) leave(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if job, ok := j.jobs[id]; ok { // deleted meanwhile: nothing to count
		if job.readers--; job.readers == 0 {
			job.selection = nil
		}
	}
}

// Delete ends a job: from now on it is not found. Downloads under way finish.
func (j *Jobs) Delete(ctx context.Context, id string) error {
	if !j.enter(id) {
		return ErrNotFound
	}
	defer j.leave(id)
	err := j.db.Unpin(ctx, id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("delete an export job: %w", err)
	}
	j.mu.Lock()
	if job := j.jobs[id]; job != nil && job.cancel != nil {
		job.cancel()
	}
	delete(j.jobs, id)
	j.mu.Unlock()
	if err != nil { // another DELETE was first
		return ErrNotFound
	}
	return nil
}
