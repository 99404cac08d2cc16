package store

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/check"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// Check proves the invariants of the open store while nothing is committed or
// merged; bodies too if asked.
func (db *DB) Check(bodies bool) (check.Report, error) {
	db.merging.Lock()
	defer db.merging.Unlock()
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	if db.isClosed() {
		return check.Report{}, ErrClosed
	}
	s := check.Store{FS: db.fs, Index: db.kv, Segments: db.segmentsDir(), Bodies: bodies, Beside: checkBeside(db.fs, db.dir)}
	return s.Run()
}

// CheckDir proves the invariants of the store in dir, which no process may have
// open, and changes nothing.
func CheckDir(dir string, o Options, progress func(done, total int)) (check.Report, error) {
	o = o.withDefaults()
	if _, err := o.FS.Stat(IndexDir(o.FS, dir)); err != nil {
		return check.Report{}, fmt.Errorf("check store %s: there is no index: %w", dir, err)
	}
	lock, err := lockDir(o.FS, dir)
	if err != nil {
		return check.Report{}, fmt.Errorf("check store %s: %w", dir, err)
	}
	kv, err := index.Open(IndexDir(o.FS, dir), index.Options{FS: o.FS, Cache: o.Cache, ReadOnly: true, Logger: pebbleLog{o.Logger}})
	if err != nil {
		return check.Report{}, errors.Join(fmt.Errorf("check store %s: %w", dir, err), lock.Close())
	}
	s := check.Store{FS: o.FS, Index: kv, Segments: SegmentsDir(o.FS, dir), Bodies: true, Beside: checkBeside(o.FS, dir), Progress: progress}
	report, err := s.Run()
	return report, errors.Join(err, kv.Close(), lock.Close())
}

// openSegments opens the directories that can be read.
func openSegments(fsys vfs.FS, dir string) ([]*segment.Reader, error) {
	names, err := fsys.List(dir)
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	var list []*segment.Reader
	for _, n := range names {
		id, ok := segment.ParseName(n)
		if !ok || n != id.DirectoryName() {
			continue
		}
		r, err := segment.Open(fsys, dir, id)
		if err != nil {
			continue // unfinished, or removed while we looked
		}
		list = append(list, r)
	}
	return list, nil
}
