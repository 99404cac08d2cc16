package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"strings"

	"tidemark/store/disk"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// Holds is how many bytes of segments' bodies a snapshot keeps on the disk.
func (s *Snapshot) Holds() (n int64) {
	for _, g := range s.segs {
		n += g.r.BodySize()
	}
	return n
}

// Copy writes an output file beside its durable snapshot, block for block: Made
// opens it under the same name, with the same bytes, and needs no segment. With it
// goes a list of the resources in it, for erasures to look at. A copy that an earlier
// attempt has left is taken as it is.
func (s *Snapshot) Copy(ctx context.Context, name string, sec segment.Section, since, upto fhir.Instant, ext []Extent) error {
	f, err := s.File(ctx, name, sec, since, upto, ext)
	if err != nil {
		return err
	}
	if !s.copied(name, f) {
		err = s.copy(name, sec, s.span(since, upto), ext, f)
	}
	return errors.Join(err, f.Close())
}

// copied tells whether there is a copy of a file already, whole.
func (s *Snapshot) copied(name string, f *File) bool {
	c, err := s.Made(name)
	if err != nil {
		return false
	}
	same := c.Size() == f.Size() && c.CRC32() == f.CRC32()
	return c.Close() == nil && same
}

func (s *Snapshot) copy(name string, sec segment.Section, v span, ext []Extent, f *File) error {
	if err := s.db.roomToMake(f.GzipSize()); err != nil {
		return err
	}
	if sec.Kind == segment.Live { // before the copy has a name: none is without its list
		if err := s.keepKeys(name, ext, v); err != nil {
			return err
		}
	}
	p, err := s.newPrivate(name + ".made")
	if err != nil {
		return s.disguise(err)
	}
	if err := f.copyTo(p); err != nil {
		return s.disguise(errors.Join(err, p.discard()))
	}
	return s.disguise(p.keep())
}

// copyTo writes the blocks and their table. What is damaged is not copied.
func (f *File) copyTo(p *private) error {
	parts := make([]part, 0, len(f.blocks))
	var text []byte
	at := int64(0)
	for _, b := range f.blocks {
		if err := f.db.roomToMake(b.stored); err != nil {
			return err
		}
		file, err := f.file(b.path)
		if err != nil {
			return err
		}
		data := make([]byte, b.stored)
		if _, err := file.ReadAt(data, b.at); err != nil {
			return fmt.Errorf("read %s at %d: %w", b.path, b.at, err)
		}
		if text, err = segment.Inflate(text[:0], segment.Block{Data: data, Sum: b.sum}); err != nil {
			return fmt.Errorf("read %s at %d: %w; run `tidemark check`", b.path, b.at, err)
		}
		if _, err := p.Write(data); err != nil {
			return err
		}
		parts = append(parts, part{p.path, at, b.stored, b.sum})
		at += b.stored
	}
	return writeTable(p, parts)
}

// KeepKeys keeps the list of the resources that extents of living rows hold beside a
// durable snapshot, durably, for erasures to look at: for who makes files of them that
// are to need no segment, before any of these has a name.
func (s *Snapshot) KeepKeys(name string, since, upto fhir.Instant, ext []Extent) error {
	return s.keepKeys(name, ext, s.span(since, upto))
}

func (s *Snapshot) keepKeys(name string, ext []Extent, v span) error {
	keys, err := s.keys(ext, v)
	if err != nil {
		return s.disguise(err)
	}
	_, err = s.Keep(name+keysSuffix, keys)
	return err
}

// Detach is Amend for a snapshot of which Copy has made all files: it lets go of
// its segments, so that they can leave the disk. Who reads them may finish.
func (db *DB) Detach(id string, rule []byte) error {
	held, err := db.amend(id, func(p *index.Pin) { p.Rule, p.Segments = rule, nil })
	return errors.Join(err, db.release(held))
}

// keysSuffix is that of the list of what a copy holds: a line for each resource,
// Type/id and those in whose compartments it lies, between tabs; last a CRC-32.
const keysSuffix = ".keys"

func (s *Snapshot) keys(ext []Extent, v span) ([]byte, error) {
	var list bytes.Buffer
	var rows []segment.Row
	var dirs dirReading
	defer dirs.close()
	for _, e := range ext {
		g := s.seg(segment.ID(e.Segment))
		_, counts, err := s.counts(g, e, v.of(g))
		if err != nil {
			return nil, err
		}
		dir, err := dirs.of(s, g)
		if err != nil {
			return nil, err
		}
		if rows, err = dir.Rows(rows[:0], e.Block); err != nil {
			return nil, err
		}
		for i, ok := range counts {
			if ok {
				list.WriteString(rows[i].Key.String() + "\t" + strings.Join(rows[i].Patients, "\t") + "\n")
			}
		}
	}
	fmt.Fprintf(&list, "%08x\n", crc32.ChecksumIEEE(list.Bytes()))
	return list.Bytes(), nil
}

// revokeCopies ends the detached snapshots that hold what was erased. Called with
// pinning held: none is being detached.
func (db *DB) revokeCopies() ([]string, error) {
	var pins []*pinned
	db.mu.Lock()
	for _, p := range db.pins {
		if !p.revoked.Load() {
			pins = append(pins, p)
		}
	}
	db.mu.Unlock()
	var ids []string
	list := db.erased.Load()
	for _, p := range pins {
		hit, err := db.copiesHold(p.id, list)
		if err != nil {
			return ids, hide(err, p.id)
		}
		if !hit {
			continue
		}
		held, err := db.revokeOne(p, nil)
		if err := errors.Join(err, db.release(held), db.removePrivate(p.id)); err != nil {
			return ids, err
		}
		ids = append(ids, p.id)
	}
	return ids, nil
}

// copiesHold tells whether a snapshot's copies hold anything that the list
// refuses, or names. What cannot be read may.
func (db *DB) copiesHold(id string, list *erasedList) (bool, error) {
	dir := db.privateDir(id)
	names, err := db.fs.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	for _, n := range names {
		if !strings.HasSuffix(n, keysSuffix) {
			continue
		}
		data, err := disk.Read(db.fs, db.fs.PathJoin(dir, n))
		if err != nil {
			return false, err
		}
		if list.refusesAny(data) {
			return true, nil
		}
	}
	return false, err
}

// refusesAny tells whether a list of keys has one that is refused, or is damaged.
func (l *erasedList) refusesAny(data []byte) bool {
	text, whole := cutSum(data)
	if !whole {
		return true
	}
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		key, err := fhir.ParseKey(f[0])
		if err != nil || l.refuses(key, f[1:]) || l.names(f[1:]) {
			return true
		}
	}
	return false
}
