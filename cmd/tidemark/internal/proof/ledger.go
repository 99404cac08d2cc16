// Package proof shows, from a hospital's own log, that a chain of exports
// delivered every change exactly once.
//
// It knows what was written (Ledger) and what a client received (Chain), and
// refuses to know the server: when a change became visible is the server's
// decision, so the proof rests on content, on order, and on the few things that
// transactionTime promises.
package proof

import (
	"fmt"
	"sync"
	"time"

	"tidemark/cmd/tidemark/internal/hospital"
)

// Options say what the proof may take for granted.
type Options struct {
	// Started is when the server began to read: what was acknowledged before
	// belongs to the first window. Zero: nothing was.
	Started time.Time

	// Allowance is the server's allowance for disorder. A change that was
	// acknowledged within half of it after its own time is on time, and must be
	// in the window in which that time lies. Zero: nothing is on time.
	Allowance time.Duration
}

// A Ledger holds everything that was written, in the order of writing.
type Ledger struct {
	opts Options

	mu        sync.Mutex
	byKey     map[string]*resource
	records   int
	pending   int // not acknowledged yet
	versions  int
	lastAcked int64
}

// resource is what became of one resource, in source order.
type resource struct {
	kind     string
	versions []version
	void     []uint64 // contents that were written and must never be delivered
}

// version is a state that a resource really took.
type version struct {
	facts
	deleted bool
	time    int64 // no visible change instant lies before it
	acked   int64 // 0: not yet
}

// NewLedger opens an empty ledger.
func NewLedger(opts Options) *Ledger {
	return &Ledger{opts: opts, byKey: map[string]*resource{}}
}

// A Receipt belongs to a record that is on its way to the broker.
type Receipt struct {
	res   *resource
	index int // of the version, unknown for a record that changes nothing
}

// Sent enters a record that is about to be produced. Records of one key come in
// the order in which the broker will hold them.
func (l *Ledger) Sent(rec hospital.Record) (Receipt, error) {
	f := facts{version: unknown, updated: unknown}
	if rec.Value != nil {
		var err error
		if f, err = read(rec.Value); err != nil {
			return Receipt{}, fmt.Errorf("enter a record: %w", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records++
	l.pending++
	res := l.resource(string(rec.Key))
	if !rec.Op.Changes() {
		if rec.Op == hospital.Stale {
			res.void = append(res.void, f.content)
		}
		return Receipt{res: res, index: unknown}, nil
	}
	l.versions++
	v := version{facts: f, deleted: rec.Value == nil, time: f.updated}
	if v.time == unknown {
		v.time = rec.Timestamp.UnixMilli()
	}
	res.versions = append(res.versions, v)
	return Receipt{res: res, index: len(res.versions) - 1}, nil
}

// Acked notes that the broker has the record for good.
func (l *Ledger) Acked(r Receipt, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending--
	l.lastAcked = max(l.lastAcked, at.UnixMilli())
	if r.index != unknown {
		r.res.versions[r.index].acked = at.UnixMilli()
	}
}

// Start says when the server began to read; see Options.Started.
func (l *Ledger) Start(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opts.Started = at
}

// LastAcked is when the newest acknowledgement came.
func (l *Ledger) LastAcked() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.UnixMilli(l.lastAcked)
}

func (l *Ledger) resource(key string) *resource {
	res := l.byKey[key]
	if res == nil {
		res = &resource{kind: kindOf(key)}
		l.byKey[key] = res
	}
	return res
}

func kindOf(key string) string {
	for i := range key {
		if key[i] == '/' {
			return key[:i]
		}
	}
	return key
}
