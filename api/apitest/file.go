package apitest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
)

// Keep implements export.Snapshot.
func (p *Snapshot) Keep(name string, data []byte) (uint32, error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	p.kept[name] = data
	return crc32.ChecksumIEEE(data), p.store.fail
}

// Kept implements export.Snapshot.
func (p *Snapshot) Kept(name string, sum uint32) ([]byte, error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	if crc32.ChecksumIEEE(p.kept[name]) != sum {
		return nil, store.ErrCorrupt
	}
	return p.kept[name], nil
}

// Scratch implements export.Snapshot.
func (p *Snapshot) Scratch(name string) (export.Scratch, error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	if p.store.full {
		return nil, store.ErrNoRoom
	}
	return &scratch{p: p, name: name}, nil
}

type scratch struct {
	bytes.Buffer
	p    *Snapshot
	name string
}

// FindScratch implements export.Snapshot: what was kept outlives Restart.
func (p *Snapshot) FindScratch(name string, size int64) (export.Scratch, error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	b, kept := p.kept[name]
	if !kept || int64(len(b)) != size {
		return nil, store.ErrCorrupt
	}
	return &scratch{*bytes.NewBuffer(b), p, name}, nil
}

// SweepScratch implements export.Snapshot.
func (p *Snapshot) SweepScratch(but ...string) error {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	maps.DeleteFunc(p.kept, func(name string, _ []byte) bool {
		return isScratch(name) && !slices.Contains(but, name)
	})
	return nil
}

// isScratch tells scratch files by their names, which export gives them, from what
// else is kept.
func isScratch(name string) bool {
	_, err := strconv.Atoi(strings.TrimPrefix(name, "s"))
	return err == nil
}

// Spoil cuts a byte off each scratch file that was kept, and counts them.
func (s *Store) Spoil() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pins {
		p.kept = maps.Clone(p.kept)
		for name, b := range p.kept {
			if isScratch(name) {
				p.kept[name] = b[:len(b)-1]
				n++
			}
		}
	}
	return n
}

// Size implements export.Scratch.
func (s *scratch) Size() int64 { return int64(s.Len()) }

// Keep implements export.Scratch.
func (s *scratch) Keep() error { _, err := s.p.Keep(s.name, s.Bytes()); return err }

// Open implements export.Scratch.
func (s *scratch) Open() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(s.Bytes())), nil }

// Remove implements export.Scratch.
func (s *scratch) Remove() error {
	s.p.store.mu.Lock()
	defer s.p.store.mu.Unlock()
	delete(s.p.kept, s.name)
	return nil
}

// Draft implements export.Snapshot.
func (p *Snapshot) Draft(name string) (export.Draft, error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	if p.store.full {
		return nil, store.ErrNoRoom
	}
	return &draft{p: p, name: name}, nil
}

type draft struct {
	p    *Snapshot
	name string
	text []byte
}

// Add implements export.Draft.
func (d *draft) Add(line []byte) error { d.text = append(d.text, line...); return nil }

// Discard implements export.Draft.
func (d *draft) Discard() error { return nil }

// Keep implements export.Draft.
func (d *draft) Keep() error { _, err := d.p.Keep(d.name, d.text); return err }

// CRC32 implements export.Draft.
func (d *draft) CRC32() uint32 { return crc32.ChecksumIEEE(d.text) }

// Only implements export.Snapshot: rows of other extents are not found any more.
func (p *Snapshot) Only(ext []store.Extent) error {
	p.rows = slices.DeleteFunc(p.rows, func(r row) bool {
		return !slices.ContainsFunc(ext, func(x store.Extent) bool { return x.Segment == number(r.sec) })
	})
	return nil
}

// Copy implements export.Snapshot.
func (p *Snapshot) Copy(ctx context.Context, name string, sec store.Section, since, upto fhir.Instant, ext []store.Extent) error {
	f, err := p.File(ctx, name, sec, since, upto, ext)
	if err != nil {
		return err
	}
	_, err = p.Keep(name, f.(*File).lines)
	return err
}

// KeepKeys implements export.Snapshot: in the fake, Erase ends all snapshots.
func (p *Snapshot) KeepKeys(string, fhir.Instant, fhir.Instant, []store.Extent) error { return nil }

// Clear implements export.Snapshot.
func (p *Snapshot) Clear() error {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	clear(p.kept)
	return nil
}

// Made implements export.Snapshot.
func (p *Snapshot) Made(name string) (export.File, error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	return newFile(p.store, p.kept[name]), nil
}

// File implements export.Snapshot.
func (p *Snapshot) File(_ context.Context, _ string, _ store.Section, since, upto fhir.Instant, ext []store.Extent) (export.File, error) {
	return newFile(p.store, p.lines(nil, ext, since, upto)), nil
}

func newFile(s *Store, lines []byte) *File {
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	_, _ = zw.Write(lines)
	_ = zw.Close()
	return &File{s, lines, packed.Bytes()}
}

// A File is a fake of store.File.
type File struct {
	store         *Store
	lines, packed []byte
}

// Size and the others implement export.File.
func (f *File) Size() int64 { return int64(len(f.lines)) }

// GzipSize is the length of the gzip.
func (f *File) GzipSize() int64 { return int64(len(f.packed)) }

// CRC32 implements export.File.
func (f *File) CRC32() uint32 { return crc32.ChecksumIEEE(f.lines) }

// Close implements export.File.
func (f *File) Close() error { return nil }

// WriteGzip writes through io.ReaderFrom where there is one, as the real one
// does.
func (f *File) WriteGzip(w io.Writer, off, n int64) error { return f.write(w, f.packed[off:off+n]) }

// WriteIdentity writes NDJSON.
func (f *File) WriteIdentity(w io.Writer, off, n int64) error { return f.write(w, f.lines[off:off+n]) }

func (f *File) write(w io.Writer, b []byte) error {
	f.store.mu.Lock()
	f.store.writers = append(f.store.writers, w)
	short := f.store.short
	f.store.mu.Unlock()
	if short > 0 {
		_, err := w.Write(b[:short])
		return errors.Join(err, store.ErrCorrupt)
	}
	if to, ok := w.(io.ReaderFrom); ok {
		_, err := to.ReadFrom(&io.LimitedReader{R: bytes.NewReader(b), N: int64(len(b))})
		return err
	}
	_, err := w.Write(b)
	return err
}
