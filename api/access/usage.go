package access

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/api/clients"
)

// usageFile holds what clients had of their quotas today.
const usageFile = "usage.json"

// keepEvery is how much of that a crash may forget.
const keepEvery = 10 * time.Second

// Keep finds in dir what clients had today. One that is damaged is said and begun anew:
// it is a day's count, and nobody is to be kept out for it.
func (q *Quota) Keep(fs vfs.FS, dir string) error {
	q.fs, q.dir = fs, dir
	data, err := clients.ReadFile(fs, dir, usageFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = q.Load(data)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: today's quotas begin anew", fs.PathJoin(dir, usageFile), err)
	}
	return nil
}

// Run writes it down until ctx ends, and at the end. A disk that takes no writes is
// tried again.
func (q *Quota) Run(ctx context.Context) error {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return q.save()
		case <-tick.C:
			if q.save() != nil {
				q.again()
			}
		}
	}
}

func (q *Quota) save() error {
	data, err := q.Store()
	if err != nil || data == nil {
		return err
	}
	return clients.ReplaceFile(q.fs, q.dir, usageFile, data)
}

// again has the next save write what could not be written.
func (q *Quota) again() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.news = true
}
