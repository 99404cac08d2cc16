package store

import (
	"errors"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A Scratch is a private file of a durable snapshot for what does not fit into
// memory while a job is done. It is not durable: whoever begins a job again clears
// what is left of it. A Scratch is written by one goroutine, then read by as many
// readers as need be.
type Scratch struct {
	p       *private
	written bool // all of it: the file is closed
}

// Scratch begins a file. Its name must be none of another file of the snapshot.
func (s *Snapshot) Scratch(name string) (*Scratch, error) {
	p, err := s.newPrivate(name)
	if err != nil {
		return nil, s.disguise(err)
	}
	return &Scratch{p: p}, nil
}

// Write appends to the file. ErrNoRoom says that the disk does not take it.
func (f *Scratch) Write(b []byte) (int, error) {
	if err := f.p.s.db.roomToMake(); err != nil {
		return 0, err
	}
	n, err := f.p.Write(b)
	return n, f.p.s.disguise(err)
}

// Open reads the file from its beginning; nothing can be written from then on.
func (f *Scratch) Open() (io.ReadCloser, error) {
	if err := f.end(); err != nil {
		return nil, f.p.s.disguise(err)
	}
	r, err := f.p.s.db.fs.Open(f.p.tmp, vfs.SequentialReadsOption)
	if err != nil {
		return nil, f.p.s.disguise(err)
	}
	return r, nil
}

func (f *Scratch) end() error {
	if f.written {
		return nil
	}
	f.written = true
	return f.p.s.db.unwritten(f.p.file.Close())
}

// Remove removes the file. Whoever reads it has closed it.
func (f *Scratch) Remove() error {
	err := f.end()
	return f.p.s.disguise(errors.Join(err, f.p.s.db.fs.Remove(f.p.tmp)))
}
