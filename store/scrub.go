package store

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"time"

	"tidemark/store/segment"
)

// scrubLoop reads all live segments once in Options.Scrub, evenly, so that a
// flipped bit is found while a backup still has the right one. It begins
// somewhere, so that restarts do not keep it at the beginning.
func (db *DB) scrubLoop(ctx context.Context) {
	next := db.someSegment()
	for ctx.Err() == nil {
		s := db.holdNext(next)
		if s == nil {
			next = 0
			if !pause(ctx, time.Minute) {
				return
			}
			continue
		}
		next = s.id() + 1
		if err := db.scrub(ctx, s); err != nil && ctx.Err() == nil {
			db.found(s, err)
		}
		_ = db.release([]*seg{s})
	}
}

// someSegment is any number that a segment may have.
func (db *DB) someSegment() segment.ID {
	db.mu.Lock()
	defer db.mu.Unlock()
	return segment.ID(rand.Uint64N(uint64(db.meta.NextSegment)))
}

// holdNext holds the first live segment from id on, nil if there is none.
func (db *DB) holdNext(id segment.ID) *seg {
	db.mu.Lock()
	defer db.mu.Unlock()
	var next *seg
	for _, s := range db.view.all() {
		if s.id() >= id && !s.damaged && (next == nil || s.id() < next.id()) {
			next = s
		}
	}
	if next != nil {
		next.refs++
	}
	return next
}

// scrub proves one segment, block by block, and rests after each for as long as
// its share of all bytes is of the whole time.
func (db *DB) scrub(ctx context.Context, s *seg) error {
	return prove(s.r, func(bytes int64) error {
		all := max(db.storedBytes(), bytes)
		if !pause(ctx, time.Duration(float64(db.o.Scrub)*float64(bytes)/float64(all))) {
			return ctx.Err()
		}
		return nil
	})
}

func (db *DB) storedBytes() (n int64) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, s := range db.view.all() {
		n += s.r.BodySize()
	}
	return n
}

// prove reads a segment whole, and calls pace with the bytes of each block.
func prove(r *segment.Reader, pace func(bytes int64) error) error {
	body, err := r.OpenBody()
	if err != nil {
		return err
	}
	defer body.Close()
	dir, err := r.OpenDirectory()
	if err != nil {
		return err
	}
	defer dir.Close()
	var text []byte
	var rows []segment.Row
	for b := range r.Blocks() {
		if text, err = r.Lines(text[:0], body, b); err != nil {
			return err
		}
		if rows, err = dir.Rows(rows[:0], b); err != nil {
			return err
		}
		if err := pace(int64(r.Blocks()[b].Stored)); err != nil {
			return err
		}
	}
	return nil
}

// found notes that a segment is damaged, if that is what err says.
func (db *DB) found(s *seg, err error) {
	if !errors.Is(err, ErrCorrupt) && !errors.Is(err, fs.ErrNotExist) {
		return
	}
	db.mu.Lock()
	known := s.damaged
	s.damaged = true
	db.mu.Unlock()
	if known {
		return
	}
	db.o.Logger.Error("a segment is damaged: merges pass it by, exports that need it fail; stop the server and restore the file from a backup, or run `tidemark reindex` to go on without it",
		"file", s.r.BodyPath(), "error", err)
}

// damagedFiles names the bodies of live segments that cannot be read. Called
// with mu held.
func (db *DB) damagedFiles() (list []string) {
	for _, s := range db.view.all() {
		if s.damaged {
			list = append(list, s.id().BodyName())
		}
	}
	slices.Sort(list)
	return list
}

// pause waits, and tells whether ctx still holds.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
