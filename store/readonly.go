package store

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// ErrReadOnly: the disk takes no writes; what it holds is served.
var ErrReadOnly = errors.New("the store's disk has become read-only")

// readOnly tells that the disk takes no writes for now. File systems make
// themselves read-only after an error, and stay so until somebody has looked at
// them. Nothing of what is committed is in doubt then: writes wait, intake waits
// behind them, and what was there before goes on being served.
type readOnly struct {
	atomic.Bool
	fs   vfs.FS
	path string
}

// probeName is a file that tells whether the disk takes writes again.
const probeName = "probe"

// refuses asks the disk.
func (r *readOnly) refuses() bool {
	f, err := r.fs.Create(r.path, "probe")
	if err == nil {
		err = errors.Join(f.Close(), r.fs.Remove(r.path))
	}
	return isReadOnly(err)
}

func isReadOnly(err error) bool { return errors.Is(err, syscall.EROFS) }

// sawReadOnly notes that a write was refused.
func (db *DB) sawReadOnly() {
	if !db.readOnly.Swap(true) {
		db.o.Logger.Error("the disk has become read-only: what is committed is served, intake and new exports wait; look at the kernel's log, repair the file system and mount it for writing", "path", db.dir)
	}
}

// leaveReadOnly notes that writes are taken again.
func (db *DB) leaveReadOnly() {
	if !db.readOnly.Swap(false) {
		return
	}
	db.o.Logger.Info("the disk can be written again: intake goes on")
	db.mu.Lock()
	if !db.noRoom.IsZero() {
		db.noRoom = time.Now()
	}
	db.room.Broadcast()
	db.mu.Unlock()
	signal(db.full)
}

// writable is ErrReadOnly while the disk takes no writes.
func (db *DB) writable() error {
	if db.readOnly.Load() {
		return ErrReadOnly
	}
	return nil
}

// waitWritable holds the index's writes as long as the disk is read-only: it
// cannot take one back. It tells whether that was why one was refused.
func (db *DB) waitWritable() bool {
	if !db.readOnly.refuses() {
		return false
	}
	db.sawReadOnly()
	for db.readOnly.refuses() {
		time.Sleep(time.Second)
	}
	db.leaveReadOnly()
	return true
}

// asFull lets a read-only disk look like a full one to vfs.OnDiskFull, which
// then stops all writes, asks us what to do, and tries once more. Not so for a
// sync: after one that failed nobody knows what a second one means.
type asFull struct{ vfs.FS }

// readOnlyError is both.
type readOnlyError struct{ error }

func (e readOnlyError) Unwrap() error { return syscall.ENOSPC }

func full(err error) error {
	if isReadOnly(err) {
		return readOnlyError{fmt.Errorf("%w: %w", ErrReadOnly, err)}
	}
	return err
}

func (fs asFull) Unwrap() vfs.FS { return fs.FS }

func (fs asFull) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return asFullFile(fs.FS.Create(name, c))
}

func (fs asFull) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return asFullFile(fs.FS.OpenReadWrite(name, c, opts...))
}

func (fs asFull) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return asFullFile(fs.FS.ReuseForWrite(from, to, c))
}

func (fs asFull) Link(from, to string) error                { return full(fs.FS.Link(from, to)) }
func (fs asFull) Remove(name string) error                  { return full(fs.FS.Remove(name)) }
func (fs asFull) RemoveAll(name string) error               { return full(fs.FS.RemoveAll(name)) }
func (fs asFull) Rename(from, to string) error              { return full(fs.FS.Rename(from, to)) }
func (fs asFull) MkdirAll(d string, perm os.FileMode) error { return full(fs.FS.MkdirAll(d, perm)) }

type fullFile struct{ vfs.File }

func asFullFile(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, full(err)
	}
	return fullFile{f}, nil
}

func (f fullFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return n, full(err)
}

func (f fullFile) WriteAt(p []byte, at int64) (int, error) {
	n, err := f.File.WriteAt(p, at)
	return n, full(err)
}
