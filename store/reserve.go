package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"tidemark/store/disk"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/dustin/go-humanize"
)

// A reserve is a file that holds room on the disk for the index: when that finds
// the disk full it is given up, and deletions of expired jobs, merges that clean
// and the end of what is under way still find room. Intake waits until it is
// back.
//
// The bodies of segments never use it: a commit without room waits long before,
// and no private file of an export is begun or goes on while it is away.
type reserve struct {
	fs   vfs.FS
	path string
	size int64

	mu   sync.Mutex
	held bool
}

// ReserveName is the file's name in the store's directory.
const ReserveName = "reserve"

// give is called by the file system when it found no room; it must be quick.
func (r *reserve) give(log func()) func() {
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.held {
			return
		}
		r.held = false
		if err := r.fs.Remove(r.path); err == nil {
			log()
		}
	}
}

// tight tells that the reserve was given up and is not back.
func (r *reserve) tight() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.size > 0 && !r.held
}

// take makes the file anew, once the disk has room for it and for as much again.
// It is whole or not there: what a crash left is made anew.
func (r *reserve) take() error {
	if !r.tight() {
		return nil
	}
	if st, err := r.fs.Stat(r.path); err == nil && st.Size() == r.size {
		r.hold()
		return nil
	}
	if usage, err := r.fs.GetDiskUsage(r.fs.PathDir(r.path)); err == nil && usage.AvailBytes < 2*uint64(r.size) {
		return fmt.Errorf("%w: %s are free, twice %s must be", ErrNoRoom, humanize.IBytes(usage.AvailBytes), humanize.IBytes(uint64(r.size)))
	}
	if err := r.fill(); err != nil {
		return errors.Join(err, r.fs.Remove(r.path))
	}
	r.hold()
	return nil
}

func (r *reserve) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = true
}

// fill writes what no file system stores in less room.
func (r *reserve) fill() error {
	f, err := r.fs.Create(r.path, "reserve")
	if err != nil {
		return err
	}
	page := make([]byte, 1<<20)
	noise := rand.NewChaCha8([32]byte{})
	for left := r.size; left > 0 && err == nil; left -= int64(len(page)) {
		page = page[:min(left, int64(len(page)))]
		_, _ = noise.Read(page)
		_, err = f.Write(page)
	}
	return errors.Join(err, disk.SyncClose(f))
}

// openReserve is called before the index is opened: its file system gives the
// reserve up.
func (db *DB) openReserve() {
	db.reserve = reserve{fs: db.o.FS, path: db.fs.PathJoin(db.dir, ReserveName), size: db.o.Reserve}
	if err := db.reserve.take(); err != nil {
		db.o.Logger.Error("no reserve could be made on the disk: intake waits until there is room", "size", humanize.IBytes(uint64(db.o.Reserve)), "error", err)
	}
}

func (db *DB) indexFS() vfs.FS {
	give := db.reserve.give(func() {
		db.o.Logger.Error("the disk is full: the reserve was given up, intake waits until it is back; delete export jobs, or make room",
			"reserve", humanize.IBytes(uint64(db.reserve.size)))
	})
	return vfs.OnDiskFull(asFull{db.fs}, func() {
		if !db.waitWritable() {
			give()
		}
	})
}

// watchDisk makes the reserve anew as soon as there is room, and finds out when a
// disk can be written again, until ctx ends.
func (db *DB) watchDisk(ctx context.Context) {
	for pause(ctx, time.Second) {
		if db.readOnly.Load() {
			if !db.readOnly.refuses() {
				db.leaveReadOnly()
			}
			continue
		}
		if !db.reserve.tight() || db.reserve.take() != nil { // said when it was given up
			continue
		}
		db.o.Logger.Info("there is room again: the reserve is back, intake goes on")
		db.mu.Lock()
		if !db.noRoom.IsZero() {
			db.noRoom = time.Now()
		}
		db.room.Broadcast()
		db.mu.Unlock()
		signal(db.full)
	}
}
