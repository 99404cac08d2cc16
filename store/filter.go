package store

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// Filter keeps, of the rows that extents list, those whose lines match. It reads
// them all, one block at a time; step is told of each. A block that cannot be read
// is left out, and how many rows of it count is added to lost. The window must be
// that of the extents; what is kept is Whole or Picked, so it is of any. match may
// not keep the line.
func (s *Snapshot) Filter(ctx context.Context, since, upto fhir.Instant, ext []Extent, match func(line []byte) bool, step func()) (kept []Extent, lost int, err error) {
	lost, err = s.blocks(ctx, since, upto, ext, step, func(x Extent, text []byte, counts []bool) error {
		y, i := Extent{Segment: x.Segment, Block: x.Block}, 0
		for line := range bytes.Lines(text) {
			if counts[i] = counts[i] && match(line); counts[i] {
				y.Rows++
				y.Bytes += int64(len(line))
			}
			i++
		}
		switch {
		case y.Rows == 0:
		case y.Rows == x.Rows && x.Whole: // a block that is sent as it lies
			kept = append(kept, x)
		default:
			y.Picked = picked(counts)
			kept = append(kept, y)
		}
		return nil
	})
	return kept, lost, err
}

// Lines calls fn for the lines of the rows that extents list, in order, and else
// is as Filter.
func (s *Snapshot) Lines(ctx context.Context, since, upto fhir.Instant, ext []Extent, fn func(line []byte) error, step func()) (lost int, err error) {
	return s.blocks(ctx, since, upto, ext, step, func(_ Extent, text []byte, counts []bool) error {
		i := 0
		for line := range bytes.Lines(text) {
			if counts[i] {
				if err := fn(line); err != nil {
					return err
				}
			}
			i++
		}
		return nil
	})
}

// Compartments is Lines with the Patients in whose compartments each row lies. fn
// may not keep the slices.
func (s *Snapshot) Compartments(ctx context.Context, since, upto fhir.Instant, ext []Extent, fn func(line []byte, patients []string) error, step func()) (lost int, err error) {
	var d dirReading
	defer d.close()
	var patients []string
	unknown := 0
	lost, err = s.blocks(ctx, since, upto, ext, step, func(x Extent, text []byte, counts []bool) error {
		links, err := d.links(s, x)
		if errors.Is(err, ErrCorrupt) || errors.Is(err, syscall.EIO) {
			unknown += x.Rows
			return nil
		}
		if err != nil {
			return err
		}
		i := 0
		for line := range bytes.Lines(text) {
			if counts[i] {
				patients = patients[:0]
				for _, p := range links.Patients.Of(i) {
					patients = append(patients, links.Patients.Names[p])
				}
				if err := fn(line, patients); err != nil {
					return err
				}
			}
			i++
		}
		return nil
	})
	return lost + unknown, err
}

// A dirReading reads directories beside bodies, one at a time as well.
type dirReading struct {
	seg *seg
	dir *segment.Directory
}

func (r *dirReading) close() {
	if r.seg != nil {
		_ = r.dir.Close() // was only read
	}
	r.seg = nil
}

// of is the directory of a segment.
func (r *dirReading) of(s *Snapshot, g *seg) (dir *segment.Directory, err error) {
	if r.seg == g {
		return r.dir, nil
	}
	r.close()
	if r.dir, err = s.directory(g); err != nil {
		return nil, err
	}
	r.seg = g
	return r.dir, nil
}

func (r *dirReading) links(s *Snapshot, x Extent) (links segment.Links, err error) {
	dir, err := r.of(s, s.seg(segment.ID(x.Segment)))
	if err != nil {
		return links, err
	}
	return dir.Links(x.Block)
}

// blocks calls fn for each extent with the text of its block, and which of the
// rows in it count.
func (s *Snapshot) blocks(ctx context.Context, since, upto fhir.Instant, ext []Extent, step func(), fn func(x Extent, text []byte, counts []bool) error) (lost int, err error) {
	v := s.span(since, upto)
	var r reading
	defer r.close()
	for _, x := range ext {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if s.of != nil && s.of.revoked.Load() {
			return 0, ErrRevoked
		}
		text, counts, err := r.block(s, x, v)
		switch {
		case errors.Is(err, ErrCorrupt), errors.Is(err, syscall.EIO):
			lost += x.Rows
		case err != nil:
			return 0, err
		default:
			if err := fn(x, text, counts); err != nil {
				return 0, err
			}
		}
		step()
	}
	return lost, nil
}

// A reading reads blocks one by one. Extents of a segment stand together, so one
// body is open at a time.
type reading struct {
	seg  *seg
	body vfs.File
	text []byte
}

func (r *reading) close() {
	if r.seg != nil {
		_ = r.body.Close() // was only read
	}
	r.seg = nil
}

// block reads an extent's block, and which of the rows in it count.
func (r *reading) block(s *Snapshot, x Extent, v span) (text []byte, counts []bool, err error) {
	g := s.seg(segment.ID(x.Segment))
	if r.seg != g {
		r.close()
		if r.body, err = g.r.OpenBody(); err != nil {
			return nil, nil, err
		}
		r.seg = g
	}
	if r.text, err = g.r.Lines(r.text[:0], r.body, x.Block); err != nil {
		return nil, nil, err
	}
	if x.Whole {
		return r.text, slices.Repeat([]bool{true}, int(g.r.Blocks()[x.Block].Rows)), nil
	}
	_, counts, err = s.counts(g, x, v.of(g))
	return r.text, counts, err
}
