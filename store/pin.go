package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/semaphore"

	"tidemark/store/disk"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// A Snapshot is what an export reads: a watermark and the segments that hold
// everything visible at it. Close it when done.
type Snapshot struct {
	db   *DB
	pin  index.Pin
	segs []*seg
	of   *pinned // the durable snapshot that it reads, nil if it is not durable

	choice    *choosing // nil: all rows
	forgotten fhir.Instant
	stands    Cut
}

// A Cut is where in Kafka a snapshot was taken.
type Cut struct {
	Lag        time.Duration // of the watermark behind the clock
	Partitions []Covered     // by topic and number
}

// Covered is how far a partition is in a snapshot.
type Covered struct {
	Partition Partition
	Next      int64 // what lies below is in the snapshot, but for changes whose instant lies behind its watermark
	Behind    int64 // offsets from Next to the end that the broker told last
}

// pinned is a durable snapshot. DB.mu guards what changes.
type pinned struct {
	id      string
	pin     index.Pin
	segs    []*seg
	readers int                            // Snapshots not closed yet
	revoked atomic.Bool                    // it held what was erased: nothing of it is sent any more
	ended   bool                           // unpinned: the private files go with the last reader
	damaged bool                           // a private file cannot be read
	cuts    map[string]*semaphore.Weighted // output files being cut

	keeping sync.Mutex // what the index has of it is being written
}

// Pinned describes a durable snapshot without opening it.
type Pinned struct {
	ID               string
	Created, Expires time.Time
	Rule             []byte
	Revoked          bool // it was ended before its time: nobody can open it any more
	Damaged          bool // a file that was made or copied beside it was found damaged
}

// Pin takes a snapshot at the present watermark and makes it durable under id
// until Unpin. rule plans over the snapshot and returns what the owner wants
// kept with it. One synced batch holds promise, pin and rule, and nothing waits
// for a commit. ErrNotReady before the bootstrap is over.
func (db *DB) Pin(_ context.Context, id string, expires time.Time, rule func(*Snapshot) ([]byte, error)) (*Snapshot, error) {
	db.pinning.RLock()
	defer db.pinning.RUnlock()
	if err := db.writable(); err != nil {
		return nil, err
	}
	s, err := db.snapshotReady(true)
	if err != nil {
		return nil, err
	}
	s.pin.Expires = fhir.FromTime(expires)
	if s.pin.Rule, err = rule(s); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := db.whileOpen(func() error { return db.keep(id, s) }); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// keep makes s durable under id.
func (db *DB) keep(id string, s *Snapshot) error {
	b := db.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	w.set(index.PinKey(id), s.pin.Encode())
	joins := db.promise(&w, s.pin.Watermark)
	if err := errors.Join(w.err, b.Commit(pebble.Sync)); err != nil {
		return db.fail(fmt.Errorf("store a snapshot: %w", err))
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.kept(s.pin.Watermark, joins)
	s.of = &pinned{id: id, pin: s.pin, segs: s.segs, readers: 1}
	db.pins[id] = s.of
	for _, g := range s.segs {
		g.refs++
	}
	return nil
}

// Present is a snapshot at the present watermark that is not durable: for who
// reads at once and closes it. ErrNotReady before the bootstrap is over.
func (db *DB) Present() (*Snapshot, error) { return db.snapshotReady(false) }

// snapshotReady takes a snapshot at the watermark, and raises the promise in
// memory at once: whatever is sealed from now on lies after it. Where in Kafka that
// was nobody asks of one that is only read.
func (db *DB) snapshotReady(stands bool) (*Snapshot, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.failed != nil {
		return nil, db.failed
	}
	w := db.watermark()
	if w == fhir.None {
		return nil, ErrNotReady
	}
	db.promised = max(db.promised, w)
	s := db.snapshot(w)
	if stands {
		s.stands = db.cut(w)
	}
	return s, nil
}

// cut is where a snapshot at w stands. Called with mu held.
func (db *DB) cut(w fhir.Instant) Cut {
	c := Cut{Lag: max(0, time.Duration(db.Now()-w)*time.Millisecond), Partitions: make([]Covered, 0, len(db.parts))}
	for name, p := range db.parts {
		if p.durable.Forgotten {
			continue
		}
		end := p.durable.Next
		if p.progress != nil {
			end = max(end, p.progress.End())
		}
		c.Partitions = append(c.Partitions, Covered{name, p.durable.Next, end - p.durable.Next})
	}
	slices.SortFunc(c.Partitions, func(a, b Covered) int { return a.Partition.Compare(b.Partition) })
	return c
}

// snapshot pins the present view in memory. Called with mu held.
func (db *DB) snapshot(w fhir.Instant) *Snapshot {
	s := &Snapshot{db: db, segs: db.view.all(), forgotten: db.meta.Forgotten, pin: index.Pin{
		Watermark: w, Epoch: db.meta.Epoch, Created: fhir.FromTime(time.Now()), Closed: db.view.closed,
	}}
	for _, g := range s.segs {
		g.refs++
		s.pin.Segments = append(s.pin.Segments, g.id())
	}
	return s
}

// always is a watermark at which everything committed is decided.
const always fhir.Instant = math.MaxInt64

// snapshotNow is a snapshot of everything committed, for our own reading.
func (db *DB) snapshotNow() *Snapshot {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.snapshot(always)
}

// Snapshot opens a durable snapshot, also after a restart.
func (db *DB) Snapshot(id string) (*Snapshot, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	p := db.pins[id]
	if p == nil {
		return nil, ErrNotFound
	}
	if p.revoked.Load() {
		return nil, ErrRevoked
	}
	for _, g := range p.segs {
		g.refs++
	}
	p.readers++
	return &Snapshot{db: db, pin: p.pin, segs: p.segs, of: p}, nil
}

// Amend replaces, durably, what is kept with a snapshot: its owner has found out
// what the rule for it is, and perhaps when it expires; the zero time leaves that.
func (db *DB) Amend(id string, rule []byte, expires time.Time) error {
	_, err := db.amend(id, func(p *index.Pin) {
		if p.Rule = rule; !expires.IsZero() {
			p.Expires = fhir.FromTime(expires)
		}
	})
	return err
}

// amend changes what the index has of a snapshot. It returns the segments that are let
// go of: all, if the change leaves none.
func (db *DB) amend(id string, change func(*index.Pin)) (held []*seg, err error) {
	if err := db.writable(); err != nil {
		return nil, err
	}
	db.pinning.RLock()
	defer db.pinning.RUnlock()
	err = db.whileOpen(func() error {
		db.mu.Lock()
		p := db.pins[id]
		db.mu.Unlock()
		if p == nil {
			return ErrNotFound
		}
		p.keeping.Lock()
		defer p.keeping.Unlock()
		db.mu.Lock()
		pin, there := p.pin, db.pins[id] == p
		db.mu.Unlock()
		switch {
		case !there:
			return ErrNotFound
		case pin.Revoked:
			return ErrRevoked
		}
		change(&pin)
		if err := db.kv.Set(index.PinKey(id), pin.Encode(), pebble.Sync); err != nil {
			return db.fail(fmt.Errorf("store a snapshot: %w", err))
		}
		db.mu.Lock()
		defer db.mu.Unlock()
		if p.pin = pin; pin.Segments == nil {
			held, p.segs = p.segs, nil
		}
		return nil
	})
	return held, err
}

// Pinned lists the durable snapshots, the oldest first.
func (db *DB) Pinned() []Pinned {
	db.mu.Lock()
	list := make([]Pinned, 0, len(db.pins))
	for _, p := range db.pins {
		list = append(list, Pinned{ID: p.id, Created: p.pin.Created.Time(), Expires: p.pin.Expires.Time(), Rule: p.pin.Rule, Revoked: p.pin.Revoked, Damaged: p.damaged})
	}
	db.mu.Unlock() // there may be thousands, and everybody who asks for a published page lists them
	slices.SortFunc(list, func(a, b Pinned) int { return a.Created.Compare(b.Created) })
	return list
}

// Unpin ends a durable snapshot: nobody can open it any more. Its segments and
// private files go when the last who reads them is done.
func (db *DB) Unpin(_ context.Context, id string) error {
	p, err := db.end(id)
	if err != nil {
		return err
	}
	return errors.Join(db.leave(p, 0), db.release(p.segs))
}

// revoke ends the durable snapshots that hold any of some segments, so that
// their files go. What is left of them tells until they expire that they were
// ended. It returns their ids.
func (db *DB) revoke(segs []*seg) ([]string, error) {
	var hit []*pinned
	db.mu.Lock()
	for _, p := range db.pins {
		if slices.ContainsFunc(p.segs, func(s *seg) bool { return slices.Contains(segs, s) }) {
			hit = append(hit, p)
		}
	}
	db.mu.Unlock()
	var ids []string
	for _, p := range hit {
		held, err := db.revokeOne(p, nil) // the rule may name Patients
		if err != nil {
			return ids, err
		}
		if err := errors.Join(db.release(held), db.removePrivate(p.id)); err != nil {
			return ids, err
		}
		ids = append(ids, p.id)
	}
	return ids, nil
}

// Revoke ends a durable snapshot as an erasure does, whatever it holds: nobody can open
// it any more, who reads it is stopped at the next block, and what only it held leaves
// the disk. Until it expires rule is what is kept of it, in place of its own; that of one
// which has ended already is replaced. Durable when it returns; ErrNotFound if there
// is none.
func (db *DB) Revoke(id string, rule []byte) error {
	if err := db.writable(); err != nil {
		return err
	}
	db.pinning.RLock()
	defer db.pinning.RUnlock()
	db.mu.Lock()
	p := db.pins[id]
	db.mu.Unlock()
	if p == nil {
		return ErrNotFound
	}
	held, err := db.revokeOne(p, rule)
	return errors.Join(err, db.release(held), db.removePrivate(id))
}

// revokeOne durably ends a snapshot, with what is left of its rule, and returns what it
// held.
func (db *DB) revokeOne(p *pinned, rule []byte) (held []*seg, err error) {
	err = db.whileOpen(func() error {
		p.keeping.Lock()
		defer p.keeping.Unlock()
		db.mu.Lock()
		gone, there := p.pin, db.pins[p.id] == p
		db.mu.Unlock()
		if !there || gone.Revoked && rule == nil {
			return nil // its owner was first, or another who ends it
		}
		gone.Revoked, gone.Segments, gone.Rule = true, nil, rule
		if err := db.kv.Set(index.PinKey(p.id), gone.Encode(), pebble.Sync); err != nil {
			return db.fail(fmt.Errorf("end a snapshot: %w", err))
		}
		p.revoked.Store(true)
		db.mu.Lock()
		defer db.mu.Unlock()
		held = p.segs
		p.pin, p.segs = gone, nil
		return nil
	})
	return held, err
}

// end durably forgets a snapshot.
func (db *DB) end(id string) (p *pinned, err error) {
	if err := db.writable(); err != nil {
		return nil, err
	}
	err = db.whileOpen(func() error {
		db.mu.Lock()
		p = db.pins[id]
		delete(db.pins, id)
		db.mu.Unlock()
		if p == nil {
			return ErrNotFound
		}
		p.keeping.Lock()
		defer p.keeping.Unlock()
		if err := db.kv.Delete(index.PinKey(id), pebble.Sync); err != nil {
			return db.fail(fmt.Errorf("end a snapshot: %w", err))
		}
		db.mu.Lock()
		defer db.mu.Unlock()
		p.ended = true
		return nil
	})
	return p, err
}

// leave takes readers off a durable snapshot and removes the private files of
// one that has ended with its last reader.
func (db *DB) leave(p *pinned, readers int) error {
	db.mu.Lock()
	p.readers -= readers
	last := p.ended && p.readers == 0
	db.mu.Unlock()
	if !last {
		return nil
	}
	return db.removePrivate(p.id)
}

// Only lets go of all segments but those of some extents. A snapshot that stays
// for long should hold no more than it needs: what it holds cannot leave the disk,
// and what is erased there ends it. To be called at most once, while Pin makes
// the rule; extents of what is left are what they were.
func (s *Snapshot) Only(ext []Extent) error {
	needed := map[segment.ID]bool{}
	for i := range ext {
		needed[segment.ID(ext[i].Segment)] = true
	}
	var kept, free []*seg
	s.pin.Segments = nil
	for _, g := range s.segs {
		if !needed[g.id()] {
			free = append(free, g)
			continue
		}
		kept = append(kept, g)
		s.pin.Segments = append(s.pin.Segments, g.id())
	}
	s.segs = kept
	return s.db.release(free)
}

// Watermark is the instant at which the snapshot was cut.
func (s *Snapshot) Watermark() fhir.Instant { return s.pin.Watermark }

// Forgotten is up to where deletions and departures may not be known any more, None if all are:
// asked of a snapshot while Pin makes its rule.
func (s *Snapshot) Forgotten() fhir.Instant { return s.forgotten }

// Cut is where in Kafka the snapshot was taken: asked, too, while Pin makes its
// rule.
func (s *Snapshot) Cut() Cut { return s.stands }

// Epoch counts the times that this store was restored or reindexed: chains of
// `_since` are exact within one epoch.
func (s *Snapshot) Epoch() uint64 { return s.pin.Epoch }

// Rule is what Pin's rule returned.
func (s *Snapshot) Rule() []byte { return s.pin.Rule }

// Created is when the snapshot was taken.
func (s *Snapshot) Created() time.Time { return s.pin.Created.Time() }

// Expires is when the snapshot's owner may end it.
func (s *Snapshot) Expires() time.Time { return s.pin.Expires.Time() }

// Sections lists the sections of kind that have any row, visible or not.
func (s *Snapshot) Sections(kind segment.Kind) []segment.Section {
	seen := map[segment.Section]bool{}
	for _, g := range s.segs {
		for _, x := range g.r.Sections() {
			if x.Kind == kind {
				seen[x.Section] = true
			}
		}
	}
	list := make([]segment.Section, 0, len(seen))
	for x := range seen {
		list = append(list, x)
	}
	slices.SortFunc(list, segment.Section.Compare)
	return list
}

// Blocks is how many blocks a section has.
func (s *Snapshot) Blocks(sec segment.Section) (n int) {
	for _, g := range s.segs {
		info := g.r.Section(sec)
		n += info.To - info.From
	}
	return n
}

// Close gives the snapshot's segments back, after its Files were closed; a
// durable snapshot stays.
func (s *Snapshot) Close() error {
	segs, of := s.segs, s.of
	s.segs, s.of = nil, nil
	err := s.db.release(segs)
	if of != nil {
		err = errors.Join(err, s.db.leave(of, 1))
	}
	return err
}

// release drops one reference to each segment and unlinks those that were
// merged away and that nobody holds any more.
func (db *DB) release(segs []*seg) error {
	var free []*seg
	db.mu.Lock()
	for _, g := range segs {
		if g.refs--; g.refs == 0 && g.dropped {
			free = append(free, g)
			delete(db.segs, g.id())
		}
	}
	db.mu.Unlock()
	if len(free) == 0 {
		return nil
	}
	err := db.whileOpen(func() error { return db.discard(free) })
	if errors.Is(err, ErrClosed) {
		return nil // Open will do it
	}
	return err
}

// discard unlinks segments that the index lists as dropped, and only when the
// names are durably gone tells the index.
func (db *DB) discard(segs []*seg) error {
	b := db.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	var err error
	for _, g := range segs {
		err = errors.Join(err, db.unlink(&w, g.id()))
	}
	if err := errors.Join(err, disk.SyncDir(db.fs, db.segmentsDir()), w.err); err != nil {
		return fmt.Errorf("remove merged segments: %w", err)
	}
	return b.Commit(pebble.NoSync) // once more after a crash does no harm
}

func (db *DB) unlink(w *batchWriter, id segment.ID) error {
	if err := db.removeFiles(id); err != nil {
		return err
	}
	db.forget(w, id)
	return w.err
}

func (db *DB) removeFiles(id segment.ID) error { return removeSegment(db.fs, db.dir, id) }

// removeSegment removes the files of a segment, as far as they are there.
func removeSegment(disk vfs.FS, dir string, id segment.ID) error {
	for _, n := range []string{id.BodyName(), id.DirectoryName()} {
		if err := disk.Remove(disk.PathJoin(SegmentsDir(disk, dir), n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// forget removes a segment from the index. Key by key: Pebble keeps deleted
// ranges in memory until it flushes, which may be months, and each look goes
// through all of them.
func (db *DB) forget(w *batchWriter, id segment.ID) {
	w.delete(index.SegmentKey(id))
	err := index.Scan(db.kv, index.DeathsOf(id), func(k, _ []byte) error { w.delete(k); return w.err })
	w.err = errors.Join(w.err, err)
}
