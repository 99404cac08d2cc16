package read

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"tidemark/api/access"
)

// Turns bound how many do something that costs the whole server, and divide it among
// clients: each has one turn, and one place among those who wait, however many requests
// it sends.
type turns struct {
	wait time.Duration // that a request waits for its turn at most

	all *semaphore.Weighted

	mu   sync.Mutex
	line map[access.Owner]*line
	took time.Duration // by a turn, of late
}

// A line is the requests of a client that are there.
type line struct {
	own  *semaphore.Weighted
	here int
}

func newTurns(width int64, wait time.Duration) *turns {
	return &turns{wait: wait, all: semaphore.NewWeighted(width), line: map[access.Owner]*line{}}
}

// A TurnError says that others were before, and when it may be one's turn.
type TurnError struct{ After time.Duration }

func (e *TurnError) Error() string { return "others were before for too long" }

// maxAfter is what we tell a client to wait at most.
const maxAfter = time.Minute

// enter waits for a turn; done ends it.
func (t *turns) enter(ctx context.Context, owner access.Owner) (done func(), err error) {
	l := t.join(owner)
	wait, cancel := context.WithTimeout(ctx, t.wait)
	defer cancel()
	if err := l.own.Acquire(wait, 1); err != nil {
		return nil, t.late(ctx, owner)
	}
	if err := t.all.Acquire(wait, 1); err != nil {
		l.own.Release(1)
		return nil, t.late(ctx, owner)
	}
	began := time.Now()
	return func() {
		t.all.Release(1)
		l.own.Release(1)
		t.mu.Lock()
		defer t.mu.Unlock()
		if took := time.Since(began); t.took == 0 {
			t.took = took
		} else {
			t.took = (t.took + took) / 2
		}
		t.leave(owner)
	}, nil
}

func (t *turns) join(owner access.Owner) *line {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.line[owner]
	if l == nil {
		l = &line{own: semaphore.NewWeighted(1)}
		t.line[owner] = l
	}
	l.here++
	return l
}

// leave is called with mu held.
func (t *turns) leave(owner access.Owner) {
	l := t.line[owner]
	if l.here--; l.here == 0 {
		delete(t.line, owner)
	}
}

// late is why a request has waited in vain. When it comes again those are before it that
// are now, of its client's each after a turn of every other client's. A turn took as long as
// the wait at least, if none has ended yet.
func (t *turns) late(ctx context.Context, owner access.Owner) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leave(owner)
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return err
	}
	took := t.took
	if took == 0 {
		took = t.wait
	}
	before := 1
	if l := t.line[owner]; l != nil {
		before += l.here
	}
	return &TurnError{min(max(time.Second, took*time.Duration(before*max(1, len(t.line)))), maxAfter)}
}
