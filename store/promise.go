package store

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/index"
)

// setClock fixes Now: never behind what was promised or stored.
func (db *DB) setClock() {
	start := time.Now()
	wall := fhir.FromTime(start)
	base := wall
	if db.promised != fhir.None {
		base = max(base, db.promised+fhir.Instant(db.o.Allowance.Milliseconds()))
	}
	base = max(base, db.meta.Newest)
	// The base was cut to a millisecond: the clock runs from where that began,
	// else a change stamped this instant would seem to come from the future.
	db.clock = clock{base: base, start: start.Add(-time.Duration(start.Nanosecond() % int(time.Millisecond)))}
	if back := time.Duration(base-wall) * time.Millisecond; back > db.o.MaxClockStep {
		db.o.Logger.Warn("the wall clock is behind what this store has promised; change instants will run ahead of it until it catches up. If it was years ahead once, see `tidemark promise --help`",
			"behind", back)
	}
}

// heartbeat stores, while nothing else does, how far we stand: else an idle
// month would look like a month away.
func (db *DB) heartbeat() error {
	if db.readOnly.Load() {
		return nil
	}
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	b := db.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	db.mu.Lock()
	if db.failed != nil {
		defer db.mu.Unlock()
		return db.failed
	}
	line := db.watermark()
	for name, p := range db.parts {
		if p.seen > p.durable.Seen && p.progress != nil && p.durable.Next == p.progress.Next() { // nothing waits for a commit
			p.durable.Seen = p.seen
			w.set(index.PartitionKey(name), p.durable.Encode())
		}
	}
	db.mu.Unlock()
	joins := db.promise(&w, line)
	if err := errors.Join(w.err, b.Commit(pebble.Sync)); err != nil {
		return db.fail(fmt.Errorf("store the heartbeat: %w", err))
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.kept(line, joins)
	return nil
}

// promise adds to a batch that nothing will become visible at or before line
// any more, and the joins that this rests on. A batch of a pin may race with a
// commit's, so it touches no key that the commit writes: promises and joins
// have keys of their own.
func (db *DB) promise(w *batchWriter, line fhir.Instant) (joins []*partition) {
	if line == fhir.None {
		return nil
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	older := func(p fhir.Instant) bool { return p <= line }
	for _, p := range db.promises {
		if p < line {
			w.delete(index.PromiseKey(p))
		}
	}
	db.promises = append(slices.DeleteFunc(db.promises, older), line)
	w.set(index.PromiseKey(line), nil)
	for name, p := range db.parts {
		if p.joined && !p.stored {
			w.set(index.JoinedKey(name), p.durable.Encode())
			joins = append(joins, p)
		}
	}
	return joins
}

// kept notes that a batch with a promise is durable. Called with mu held.
func (db *DB) kept(line fhir.Instant, joins []*partition) {
	db.promised, db.stored = max(db.promised, line), max(db.stored, line)
	for _, p := range joins {
		p.stored = true
	}
}
