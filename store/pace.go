package store

import (
	"context"
	"time"
)

// A pacer lets a merge take no more than its share of processor and disk: it
// rests after each block that it wrote, as long as its bounds ask for.
type pacer struct {
	db     *DB
	worked time.Time     // since when it works
	debt   time.Duration // rest not taken yet
}

// leastRest is what a pacer rests at least: shorter sleeps would be longer than
// asked for.
const leastRest = 2 * time.Millisecond

func newPacer(db *DB) *pacer { return &pacer{db: db, worked: time.Now()} }

// wait rests after bytes were written, unless merges have fallen behind.
func (p *pacer) wait(ctx context.Context, bytes int64) error {
	worked := time.Since(p.worked)
	rest := time.Duration(float64(bytes)/float64(p.db.o.WriteRate)*float64(time.Second)) - worked
	if c := p.db.o.Cores; c < 1 {
		rest = max(rest, time.Duration(float64(worked)*(1/c-1)))
	}
	p.debt = max(0, p.debt+rest)
	if p.db.hurry() {
		p.debt = 0
	}
	if p.debt >= leastRest {
		t := time.NewTimer(p.debt)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		p.debt = 0
	}
	p.worked = time.Now()
	return nil
}

// hurry tells that merges have fallen behind: then nothing bounds them.
func (db *DB) hurry() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.o.MergeOff || len(db.view.fresh) >= manySegments
}
