package access

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/api/clients"
)

// A Quota is what a client may have in a day: jobs that it starts, and bytes that are
// sent to it. A day is one of UTC.
type Quota struct {
	Jobs  int   // limits.jobs_per_client_day; 0: no limit
	Bytes int64 // limits.bytes_per_client_day; 0: no limit
	Now   func() time.Time

	mu   sync.Mutex
	day  string // that is counted
	used map[Owner]*use
	news bool // since it was stored the last time

	fs  vfs.FS // where it is kept, after Keep
	dir string
}

// A use is what a client had of its quota today.
type use struct {
	Jobs  int   `json:"jobs,omitempty"`
	Bytes int64 `json:"bytes,omitempty"`
}

// A QuotaError says that a client had all that it may have today, and when it may come
// again.
type QuotaError struct {
	Limit string // the key of the limit in the configuration
	Value int64
	After time.Duration
}

func (e *QuotaError) Error() string { return fmt.Sprintf("%s: %d is reached", e.Limit, e.Value) }

// Start counts a job, unless it is one too many. Limits of the client's own go before those
// of all.
func (q *Quota) Start(o Owner, own clients.Limits) error {
	limit := cmp.Or(own.JobsPerDay, q.Jobs)
	if limit <= 0 {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.today(o)
	if u.Jobs >= limit {
		return &QuotaError{"limits.jobs_per_client_day", int64(limit), q.tomorrow()}
	}
	u.Jobs++
	q.news = true
	return nil
}

// Undo takes a job back that could not be started after all.
func (q *Quota) Undo(o Owner) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if u := q.today(o); u.Jobs > 0 {
		u.Jobs--
		q.news = true
	}
}

// Send refuses to begin to send while all bytes of a day are used up. What has begun is
// sent to its end, for half a file is of no use to anybody.
func (q *Quota) Send(o Owner, own clients.Limits) error {
	limit := cmp.Or(own.BytesPerDay, q.Bytes)
	if limit <= 0 {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.today(o).Bytes >= limit {
		return &QuotaError{"limits.bytes_per_client_day", limit, q.tomorrow()}
	}
	return nil
}

// Sent counts bytes that went out.
func (q *Quota) Sent(o Owner, own clients.Limits, bytes int64) {
	if cmp.Or(own.BytesPerDay, q.Bytes) <= 0 || bytes == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.today(o).Bytes += bytes
	q.news = true
}

// today is what a client had since midnight. Called with mu held.
func (q *Quota) today(o Owner) *use {
	if day := q.now().Format(time.DateOnly); day != q.day {
		q.day, q.used = day, map[Owner]*use{}
	}
	u := q.used[o]
	if u == nil {
		u = &use{}
		q.used[o] = u
	}
	return u
}

// tomorrow is how long it is until all is counted anew.
func (q *Quota) tomorrow() time.Duration {
	now := q.now()
	return now.Truncate(24 * time.Hour).Add(24 * time.Hour).Sub(now)
}

func (q *Quota) now() time.Time {
	if q.Now == nil {
		return time.Now().UTC()
	}
	return q.Now().UTC()
}

// quotaForm is how a day is kept.
type quotaForm struct {
	Day  string         `json:"day"`
	Used map[Owner]*use `json:"used"`
}

// Store is what is to be kept of the day, nil if there is no news.
func (q *Quota) Store() ([]byte, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.news {
		return nil, nil
	}
	q.news = false
	return json.Marshal(quotaForm{q.day, q.used})
}

// Load takes in what Store has given.
func (q *Quota) Load(kept []byte) error {
	var form quotaForm
	if err := json.Unmarshal(kept, &form); err != nil {
		return errors.New("it does not hold what clients had in a day")
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.day, q.used = form.Day, map[Owner]*use{}
	for o, u := range form.Used {
		if u != nil {
			q.used[o] = u
		}
	}
	return nil
}
