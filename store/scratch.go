package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"tidemark/store/disk"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A Scratch is a private file of a durable snapshot for what does not fit into
// memory while a job is done, or is not to be done twice. It is durable once Keep
// has returned; others are for this process only, and whoever goes on with a job
// sweeps them away. A Scratch is written by one goroutine, then read by as many
// readers as need be.
type Scratch struct {
	own     []byte // what is written, not the caller's
	s       *Snapshot
	path    string
	file    vfs.File // nil: all of it is written
	size    int64
	durable bool
}

// scratchSuffix tells them from files that others write meanwhile.
const scratchSuffix = ".scratch"

func (s *Snapshot) scratchPath(name string) string {
	return s.db.fs.PathJoin(s.db.privateDir(s.of.id), name+scratchSuffix)
}

// Scratch begins a file. One of that name that is left of another process is
// replaced.
func (s *Snapshot) Scratch(name string) (*Scratch, error) {
	path := s.scratchPath(name)
	file, err := s.createPrivate(path)
	if err != nil {
		return nil, s.disguise(err)
	}
	return &Scratch{s: s, path: path, file: file}, nil
}

// FindScratch finds a file of which Keep has returned, also after a restart.
// ErrCorrupt says that it is not there, or not as long as it was: who wrote it says
// how long that is. What is in it is the reader's to check.
func (s *Snapshot) FindScratch(name string, size int64) (*Scratch, error) {
	if s.of.revoked.Load() {
		return nil, ErrRevoked
	}
	path := s.scratchPath(name)
	switch info, err := s.db.fs.Stat(path); {
	case errors.Is(err, os.ErrNotExist):
		return nil, s.disguise(fmt.Errorf("%w: a snapshot's scratch file is gone", ErrCorrupt))
	case err != nil:
		return nil, s.disguise(err)
	case info.Size() != size:
		return nil, s.disguise(fmt.Errorf("%w: a snapshot's scratch file has %d bytes, not %d", ErrCorrupt, info.Size(), size))
	}
	return &Scratch{s: s, path: path, size: size, durable: true}, nil
}

// SweepScratch removes all scratch files of the snapshot but those of some names.
func (s *Snapshot) SweepScratch(but ...string) error {
	dir := s.db.privateDir(s.of.id)
	names, err := s.db.fs.List(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, n := range names {
		if name, is := strings.CutSuffix(n, scratchSuffix); is && !slices.Contains(but, name) {
			err = errors.Join(err, s.db.fs.Remove(s.db.fs.PathJoin(dir, n)))
		}
	}
	return s.disguise(err)
}

// Write appends to the file. ErrNoRoom says that the disk does not take it.
func (f *Scratch) Write(b []byte) (int, error) {
	if err := f.s.db.roomToMake(0); err != nil {
		return 0, err
	}
	f.own = append(f.own[:0], b...) // a vfs.File may change what it is given, an io.Writer may not
	n, err := f.file.Write(f.own)
	f.size += int64(n)
	return n, f.s.disguise(f.s.db.unwritten(err))
}

// Size is how many bytes were written.
func (f *Scratch) Size() int64 { return f.size }

// Open reads the file from its beginning; nothing can be written from then on.
func (f *Scratch) Open() (io.ReadCloser, error) {
	if err := f.end(); err != nil {
		return nil, f.s.disguise(err)
	}
	r, err := f.s.db.fs.Open(f.path, vfs.SequentialReadsOption)
	if err != nil {
		return nil, f.s.disguise(err)
	}
	return r, nil
}

func (f *Scratch) end() error {
	if f.file == nil {
		return nil
	}
	file := f.file
	f.file = nil
	return f.s.db.unwritten(file.Close())
}

// Keep makes the file durable: FindScratch finds it from then on. Nothing can be
// written any more.
func (f *Scratch) Keep() error {
	if f.durable {
		return nil
	}
	db := f.s.db
	if err := db.unwritten(f.sync()); err != nil {
		return f.s.disguise(err)
	}
	if err := errors.Join(disk.SyncDir(db.fs, db.privateDir(f.s.of.id)), disk.SyncDir(db.fs, db.jobsDir())); err != nil {
		return f.s.disguise(db.unwritten(err))
	}
	f.durable = true
	return nil
}

func (f *Scratch) sync() error {
	file := f.file
	if f.file = nil; file == nil { // it was read before
		var err error
		if file, err = f.s.db.fs.OpenReadWrite(f.path, "segment"); err != nil {
			return err
		}
	}
	return errors.Join(file.Sync(), file.Close())
}

// Remove removes the file. Whoever reads it has closed it.
func (f *Scratch) Remove() error {
	err := f.end()
	return f.s.disguise(errors.Join(err, f.s.db.fs.Remove(f.path)))
}
