package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/semaphore"

	"tidemark/store/disk"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

func (db *DB) segmentsDir() string { return SegmentsDir(db.fs, db.dir) }

func (db *DB) jobsDir() string { return db.fs.PathJoin(db.dir, "jobs") }

// Disk is the file system of stores that are not in memory.
var Disk = vfs.Default

// SegmentsDir is where a store in dir keeps its segments.
func SegmentsDir(fs vfs.FS, dir string) string { return fs.PathJoin(dir, "segments") }

// IndexDir is where a store in dir keeps its index.
func IndexDir(fs vfs.FS, dir string) string { return fs.PathJoin(dir, "index") }

// Open opens the store in dir, or creates one. What a crash left unfinished is
// removed; whatever else does not belong is refused, never deleted (invariant S3).
func Open(dir string, o Options) (*DB, error) {
	o = o.withDefaults()
	db := newDB(dir, o)
	err := errors.Join(disk.MakeDir(o.FS, dir), o.FS.MkdirAll(db.segmentsDir(), 0o700), o.FS.MkdirAll(db.jobsDir(), 0o700))
	if err == nil {
		db.lock, err = lockDir(o.FS, dir)
	}
	if isReadOnly(err) {
		return nil, fmt.Errorf("open store %s: %w: look at the kernel's log, repair the file system and mount it for writing", dir, ErrReadOnly)
	}
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	db.readOnly.fs, db.readOnly.path = o.FS, o.FS.PathJoin(dir, probeName)
	db.openReserve()
	if err := db.openIndex(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", dir, err), db.lock.Close())
	}
	if err := db.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", dir, err), db.kv.Close(), db.lock.Close())
	}
	if err := db.enforceDue(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", dir, err), db.Close())
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
	path, o := IndexDir(db.fs, db.dir), index.Options{FS: db.indexFS(), Cache: db.o.Cache, Still: db.o.still, Logger: pebbleLog{db.o.Logger}}
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
		dir: dir, o: o, fs: o.FS, promised: fhir.None, stored: fhir.None, waits: fhir.None,
		parts: map[Partition]*partition{}, numbers: map[uint64]Partition{}, topics: map[string][]byte{},
		view: newView(nil, segment.NoBound),
		segs: map[segment.ID]*seg{}, pins: map[string]*pinned{},
		cutting: semaphore.NewWeighted(maxCutting), chunks: segment.NewChunks(chunksKept),
		full: make(chan struct{}, 1), first: make(chan struct{}, 1),
	}
	db.room = sync.NewCond(&db.mu)
	db.m = newInstruments(db)
	return db
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
	m := index.Meta{NextSegment: 1, NextSeq: 1, Epoch: 1, NextMerge: 1, Newest: fhir.None, Closed: segment.NoBound, Forgotten: fhir.None, Restored: fhir.None}
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
	if err := errors.Join(kv.Set(index.AboutsKey(), nil, pebble.NoSync), kv.Set(index.MetaKey(), m.Encode(), pebble.Sync), kv.Close()); err != nil {
		return err
	}
	if err := db.fs.Rename(fresh, path); err != nil {
		return err
	}
	return disk.SyncDir(db.fs, db.dir)
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
	if err := errors.Join(db.fs.RemoveAll(db.runsDir()), db.fs.RemoveAll(db.fs.PathJoin(db.dir, "index.backup")), db.tidyJobs(), disk.Tidy(db.fs, db.dir), disk.SyncDir(db.fs, db.segmentsDir()), disk.SyncDir(db.fs, db.dir), w.err); err != nil {
		return err
	}
	return b.Commit(pebble.Sync)
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
		if p := db.pins[j]; p == nil || p.revoked.Load() {
			if err := db.removePrivate(j); err != nil {
				return err
			}
		}
	}
	return nil
}
