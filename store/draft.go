package store

import (
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/disk"
	"tidemark/store/segment"
)

// A private is a file of a durable snapshot in the making. It has no name before
// all of it is on the disk.
type private struct {
	s         *Snapshot
	file      vfs.File
	tmp, path string
}

func (s *Snapshot) newPrivate(name string) (*private, error) {
	path := s.db.fs.PathJoin(s.db.privateDir(s.of.id), name)
	file, err := s.createPrivate(path + ".tmp")
	if err != nil {
		return nil, err
	}
	return &private{s, file, path + ".tmp", path}, nil
}

// createPrivate makes a file in the snapshot's directory.
func (s *Snapshot) createPrivate(path string) (vfs.File, error) {
	if err := s.db.roomToCut(); err != nil {
		return nil, err
	}
	if s.of.revoked.Load() { // an erasure has taken the directory away
		return nil, ErrRevoked
	}
	if err := s.db.fs.MkdirAll(s.db.privateDir(s.of.id), 0o700); err != nil {
		return nil, s.db.unwritten(err)
	}
	file, err := s.db.fs.Create(path, "segment")
	if err != nil {
		return nil, s.db.unwritten(err)
	}
	return file, nil
}

// Write stops, too, once the reserve is given up: a file that was begun before would
// take what that has left to the index.
func (p *private) Write(b []byte) (int, error) {
	if err := p.s.db.roomToCut(); err != nil {
		return 0, err
	}
	n, err := p.file.Write(b)
	return n, p.s.db.unwritten(err)
}

// discard removes what was written.
func (p *private) discard() error {
	return errors.Join(p.file.Close(), p.s.db.fs.Remove(p.tmp))
}

// keep makes the file durable, then gives it its name.
func (p *private) keep() error {
	db, fs := p.s.db, p.s.db.fs
	if err := db.unwritten(errors.Join(p.file.Sync(), p.file.Close())); err != nil {
		return errors.Join(err, fs.Remove(p.tmp))
	}
	if err := fs.Rename(p.tmp, p.path); err != nil {
		return errors.Join(db.unwritten(err), fs.Remove(p.tmp))
	}
	if p.s.of.revoked.Load() { // meanwhile: whoever removed the others may have been before us
		return errors.Join(ErrRevoked, fs.Remove(p.path))
	}
	return db.unwritten(errors.Join(disk.SyncDir(fs, db.privateDir(p.s.of.id)), disk.SyncDir(fs, db.jobsDir())))
}

// A Draft is an output file of lines that are no rows as they are stored. It is
// for one goroutine.
type Draft struct {
	p     *private
	parts []part
	at    int64
	text  []byte // lines of the next block
}

// Draft begins an output file of a durable snapshot. Its name must be none that
// File or Keep is called with; a file of that name that an earlier process has
// left is replaced.
func (s *Snapshot) Draft(name string) (*Draft, error) {
	if err := s.db.roomToMake(0); err != nil {
		return nil, err
	}
	p, err := s.newPrivate(name + ".made")
	if err != nil {
		return nil, s.disguise(err)
	}
	return &Draft{p: p}, nil
}

// disguise keeps the snapshot's id out of an error, and says so if it was erased.
func (s *Snapshot) disguise(err error) error {
	if err != nil && s.of.revoked.Load() { // an erasure has taken the directory away
		return ErrRevoked
	}
	return hide(err, s.of.id)
}

// Add appends a line, which ends in a newline.
func (d *Draft) Add(line []byte) error {
	if d.text = append(d.text, line...); len(d.text) < segment.BlockSize {
		return nil
	}
	return d.p.s.disguise(d.flush())
}

func (d *Draft) flush() error {
	if len(d.text) == 0 {
		return nil
	}
	if err := d.p.s.db.roomToMake(0); err != nil {
		return err
	}
	k := compressors.Get().(*segment.Compressor)
	block := k.Block(d.text)
	compressors.Put(k)
	d.text = d.text[:0]
	d.parts = append(d.parts, part{d.p.path, d.at, int64(len(block.Data)), block.Sum})
	d.at += int64(len(block.Data))
	_, err := d.p.Write(block.Data)
	return err
}

// CRC32 is the CRC-32 (IEEE) of the NDJSON, after Keep.
func (d *Draft) CRC32() uint32 {
	var s segment.Sum
	for _, p := range d.parts {
		s = s.Then(p.sum)
	}
	return s.CRC
}

// Keep ends the file. It is durable when Keep returns, and Made opens it.
func (d *Draft) Keep() error {
	err := d.flush()
	if err == nil {
		err = writeTable(d.p, d.parts)
	}
	if err != nil {
		return d.p.s.disguise(errors.Join(err, d.p.discard()))
	}
	return d.p.s.disguise(d.p.keep())
}

// Discard removes the file instead.
func (d *Draft) Discard() error { return d.p.s.disguise(d.p.discard()) }

// Clear removes what was kept beside a durable snapshot, whose owner could not end
// what it had begun.
func (s *Snapshot) Clear() error {
	return s.disguise(s.db.whileOpen(func() error { return s.db.removePrivate(s.of.id) }))
}

// Made opens an output file that a Draft has kept.
func (s *Snapshot) Made(name string) (*File, error) {
	if s.of.revoked.Load() {
		return nil, ErrRevoked
	}
	path := s.db.fs.PathJoin(s.db.privateDir(s.of.id), name+".made")
	parts, err := readCut(s.db.fs, path, -1)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: an output file of a snapshot is gone", ErrCorrupt)
	}
	if err != nil {
		return nil, s.disguise(err)
	}
	f := &File{db: s.db, of: s.of, blocks: parts, open: map[string]stored{}}
	f.lay()
	return f, nil
}
