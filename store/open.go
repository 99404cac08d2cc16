package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/semaphore"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

func (db *DB) segmentsDir() string { return SegmentsDir(db.fs, db.dir) }
func (db *DB) jobsDir() string     { return db.fs.PathJoin(db.dir, "jobs") }

// SegmentsDir is where a store in dir keeps its segments.
func SegmentsDir(fs vfs.FS, dir string) string { return fs.PathJoin(dir, "segments") }

// IndexDir is where a store in dir keeps its index.
func IndexDir(fs vfs.FS, dir string) string { return fs.PathJoin(dir, "index") }

// Open opens the store in dir, or creates one. What a crash left unfinished is
// removed; whatever else does not belong is refused, never deleted (invariant S3).
func Open(dir string, o Options) (*DB, error) {
	o = o.withDefaults()
	db := newDB(dir, o)
	for _, d := range []string{dir, db.segmentsDir(), db.jobsDir()} {
		if err := o.FS.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open store %s: %w", dir, err)
		}
	}
	lock, err := lockDir(o.FS, dir)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	db.lock = lock
	if err := db.openIndex(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", dir, err), lock.Close())
	}
	if err := db.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", dir, err), db.kv.Close(), lock.Close())
	}
	return db, nil
}

// lockDir takes the store's directory for this process.
func lockDir(fs vfs.FS, dir string) (io.Closer, error) {
	lock, err := fs.Lock(fs.PathJoin(dir, "LOCK"))
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrLocked, err)
	}
	return lock, nil
}

// openIndex opens the index. One that is not there is made under another name
// first: a crash while Pebble begins a database can leave one that it refuses.
func (db *DB) openIndex() (err error) {
	path, o := IndexDir(db.fs, db.dir), index.Options{FS: db.fs, Cache: db.o.Cache, Logger: pebbleLog{db.o.Logger}}
	if _, err := db.fs.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := db.create(path, o); err != nil {
			return err
		}
	}
	db.kv, err = index.Open(path, o)
	return err
}

func newDB(dir string, o Options) *DB {
	db := &DB{
		dir: dir, o: o, fs: o.FS, promised: fhir.None, stored: fhir.None,
		parts: map[Partition]*partition{}, numbers: map[uint64]Partition{}, topics: map[string][]byte{},
		segs: map[segment.ID]*seg{}, pins: map[string]*pinned{},
		cutting: semaphore.NewWeighted(maxCutting),
		full:    make(chan struct{}, 1), first: make(chan struct{}, 1),
	}
	db.room = sync.NewCond(&db.mu)
	db.m = newInstruments(db)
	return db
}

func (db *DB) load() error {
	if err := db.loadMeta(); err != nil {
		return err
	}
	steps := []func() error{db.loadPromise, db.loadPartitions, db.loadTopics, db.loadSegments, db.loadDeaths, db.loadPins, db.tidy}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	db.setClock()
	return nil
}

func (db *DB) loadMeta() error {
	v, closer, err := db.kv.Get(index.MetaKey())
	if err != nil {
		return fmt.Errorf("read the store's state: %w", err)
	}
	defer closer.Close()
	db.meta, err = index.DecodeMeta(v)
	return err
}

// create begins a store, unless there are segments that say there was one.
func (db *DB) create(path string, o index.Options) error {
	names, err := db.fs.List(db.segmentsDir())
	if err != nil {
		return err
	}
	for _, n := range names {
		if _, ok := segment.ParseName(n); ok {
			return fmt.Errorf("%w: %s holds segments, but there is no index", ErrReindex, db.segmentsDir())
		}
	}
	m := index.Meta{NextSegment: 1, NextSeq: 1, Epoch: 1, NextMerge: 1, Newest: fhir.None}
	if _, err := rand.Read(m.Store[:]); err != nil {
		return err
	}
	fresh := path + ".new"
	if err := db.fs.RemoveAll(fresh); err != nil {
		return err
	}
	if err := db.fs.MkdirAll(fresh, 0o700); err != nil { // it holds ids: nobody else may look
		return err
	}
	kv, err := index.Open(fresh, o)
	if err != nil {
		return err
	}
	if err := errors.Join(kv.Set(index.MetaKey(), m.Encode(), pebble.Sync), kv.Close()); err != nil {
		return err
	}
	if err := db.fs.Rename(fresh, path); err != nil {
		return err
	}
	return segment.SyncDir(db.fs, db.dir)
}

func (db *DB) loadPromise() error {
	return index.Scan(db.kv, index.Promises(), func(k, _ []byte) (err error) {
		db.promised, err = index.ParsePromiseKey(k)
		db.stored = db.promised
		db.promises = append(db.promises, db.promised)
		db.started = true
		return err
	})
}

func (db *DB) loadPartitions() error {
	err := index.Scan(db.kv, index.Partitions(), func(k, v []byte) error {
		name, err := index.ParsePartitionKey(k)
		if err != nil {
			return err
		}
		return db.loadPartition(name, v)
	})
	if err != nil {
		return err
	}
	return index.Scan(db.kv, index.Joined(), func(k, v []byte) error {
		name, err := index.ParsePartitionKey(k)
		if err != nil {
			return err
		}
		if db.parts[name] == nil { // it joined empty, and no commit has come since
			if err := db.loadPartition(name, v); err != nil {
				return err
			}
		}
		db.parts[name].joined, db.parts[name].stored = true, true
		return nil
	})
}

func (db *DB) loadPartition(name Partition, v []byte) error {
	st, err := index.DecodePartition(v)
	if err != nil {
		return err
	}
	db.parts[name] = &partition{durable: st, seen: st.Seen}
	db.numbers[st.Number] = name
	return nil
}

func (db *DB) loadTopics() error {
	return index.Scan(db.kv, index.Topics(), func(k, v []byte) error {
		db.topics[string(k[1:])] = slices.Clone(v)
		return nil
	})
}

func (db *DB) loadSegments() error {
	err := index.Scan(db.kv, index.Segments(), func(k, v []byte) error {
		id, err := index.ParseSegmentKey(k)
		if err != nil {
			return err
		}
		r, err := segment.Open(db.fs, db.segmentsDir(), id)
		if err != nil {
			if len(v) > 0 && v[0] == index.SegmentDropped && errors.Is(err, os.ErrNotExist) {
				db.ghosts = append(db.ghosts, id)
				return nil // unlinked, but the crash came before the index heard of it
			}
			return fmt.Errorf("the index lists segment %s: %w; restore the file from a backup, or run `tidemark reindex` to go on without it", id.DirectoryName(), err)
		}
		if r.Footer().Store != db.meta.Store {
			return fmt.Errorf("%w: %s belongs to another store", ErrReindex, id.DirectoryName())
		}
		s := newSeg(r)
		s.dropped = v[0] == index.SegmentDropped
		db.segs[id] = s
		if !s.dropped {
			db.view = append(db.view, s)
		}
		return nil
	})
	slices.SortFunc(db.view, func(a, b *seg) int { return compareSeqs(a, b) })
	return err
}

func (db *DB) loadDeaths() error {
	return index.Scan(db.kv, index.Deaths(), func(k, v []byte) error {
		id, err := index.ParseDeathsKey(k)
		if err != nil {
			return err
		}
		list, err := index.DecodeDeaths(nil, v)
		if s := db.segs[id]; s != nil && err == nil {
			s.bury(list)
		}
		return err
	})
}

func (db *DB) loadPins() error {
	return index.Scan(db.kv, index.Pins(), func(k, v []byte) error {
		p, err := index.DecodePin(v)
		if err != nil {
			return err
		}
		q := &pinned{id: string(k[1:]), pin: p}
		for _, id := range p.Segments {
			s := db.segs[id]
			if s == nil {
				return fmt.Errorf("%w: a pin holds segment %d, which is gone", ErrReindex, id)
			}
			s.refs++
			q.segs = append(q.segs, s)
		}
		db.pins[q.id] = q
		return nil
	})
}

// tidy removes what a crash left: the files of the one commit that can have
// been under way, of merges that did not end, of segments merged away, and
// private files of jobs that are gone.
func (db *DB) tidy() error {
	allotted := map[segment.ID]bool{db.meta.NextSegment: true}
	b := db.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	err := index.Scan(db.kv, index.Allotted(), func(k, _ []byte) error {
		id, err := index.ParseSegmentKey(k)
		allotted[id] = true
		w.delete(slices.Clone(k))
		return err
	})
	if err != nil {
		return err
	}
	for _, id := range db.ghosts { // one of the two files may be left
		allotted[id] = true
	}
	names, err := db.fs.List(db.segmentsDir())
	if err != nil {
		return err
	}
	for _, remove := range []bool{false, true} { // refuse before anything is removed
		for _, n := range names {
			if err := db.tidyFile(n, allotted, remove); err != nil {
				return err
			}
		}
	}
	for _, s := range db.segs {
		if s.dropped && s.refs == 0 {
			if err := db.unlink(&w, s.id()); err != nil {
				return err
			}
			delete(db.segs, s.id())
		}
	}
	for _, id := range db.ghosts {
		db.forget(&w, id)
	}
	if err := errors.Join(db.tidyJobs(), segment.SyncDir(db.fs, db.segmentsDir()), segment.SyncDir(db.fs, db.dir), db.syncParent(), w.err); err != nil {
		return err
	}
	return b.Commit(pebble.Sync)
}

// syncParent makes the store's own name durable, where we may.
func (db *DB) syncParent() error {
	if err := segment.SyncDir(db.fs, parent(db.fs, db.dir)); !errors.Is(err, os.ErrPermission) {
		return err
	}
	return nil
}

// parent is the folder that holds dir's name.
func parent(fs vfs.FS, dir string) string {
	if p := fs.PathDir(dir); p != "." || fs == vfs.Default {
		return p
	}
	return "" // what a memory file system calls its root
}

func (db *DB) tidyFile(name string, allotted map[segment.ID]bool, remove bool) error {
	id, ok := segment.ParseName(name)
	if !ok || db.segs[id] != nil {
		return nil
	}
	path := db.fs.PathJoin(db.segmentsDir(), name)
	if !allotted[id] {
		return fmt.Errorf("%w: %s is not in the index's catalogue", ErrReindex, path)
	}
	if r, err := segment.Open(db.fs, db.segmentsDir(), id); err == nil && r.Footer().Store != db.meta.Store {
		return fmt.Errorf("%w: %s belongs to another store", ErrReindex, path)
	}
	if !remove {
		return nil
	}
	db.o.Logger.Info("remove an unfinished segment file", "file", name)
	return db.fs.Remove(path)
}

func (db *DB) tidyJobs() error {
	jobs, err := db.fs.List(db.jobsDir())
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if db.pins[j] == nil {
			if err := db.fs.RemoveAll(db.fs.PathJoin(db.jobsDir(), j)); err != nil {
				return err
			}
		}
	}
	return nil
}

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
		db.o.Logger.Warn("the wall clock is behind what this store has promised; change instants will run ahead of it until it catches up",
			"behind", back)
	}
}

// heartbeat stores, while nothing else does, how far we stand: else an idle
// month would look like a month away.
func (db *DB) heartbeat() error {
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
		if p.seen > p.durable.Seen {
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

func compareSeqs(a, b *seg) int {
	switch x, y := a.r.Footer().Seqs[0], b.r.Footer().Seqs[0]; {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}
