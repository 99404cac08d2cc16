package store

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// Filter keeps, of the rows that extents list, those whose lines match. It reads
// them all, one block at a time; step is told of each. A block that cannot be read
// is left out, and how many rows of it count is added to lost. The window must be
// that of the extents. match may not keep the line.
func (s *Snapshot) Filter(ctx context.Context, since, upto fhir.Instant, ext []Extent, match func(line []byte) bool, step func()) (kept []Extent, lost int, err error) {
	v := s.span(since, upto)
	f := filtering{match: match}
	defer f.close()
	for _, x := range ext {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		if s.of != nil && s.of.revoked.Load() {
			return nil, 0, ErrRevoked
		}
		y, err := f.block(s, x, v)
		switch {
		case errors.Is(err, ErrCorrupt):
			lost += x.Rows
		case err != nil:
			return nil, 0, err
		case y.Rows > 0:
			kept = append(kept, y)
		}
		step()
	}
	return kept, lost, nil
}

// filtering is a Filter at work. Extents of a segment stand together, so one body
// is open at a time.
type filtering struct {
	match func(line []byte) bool
	seg   *seg
	body  vfs.File
	text  []byte
}

func (f *filtering) close() {
	if f.seg != nil {
		_ = f.body.Close() // was only read
	}
	f.seg = nil
}

func (f *filtering) read(g *seg, b int) (err error) {
	if f.seg != g {
		f.close()
		if f.body, err = g.r.OpenBody(); err != nil {
			return err
		}
		f.seg = g
	}
	f.text, err = g.r.Lines(f.text[:0], f.body, b)
	return err
}

// block is what is left of an extent.
func (f *filtering) block(s *Snapshot, x Extent, v span) (Extent, error) {
	g := s.seg(segment.ID(x.Segment))
	if err := f.read(g, x.Block); err != nil {
		return x, err
	}
	counts := slices.Repeat([]bool{true}, int(g.r.Blocks()[x.Block].Rows))
	if !x.Whole {
		var err error
		if _, counts, err = s.counts(g, x, v.of(g)); err != nil {
			return x, err
		}
	}
	y, i := Extent{Segment: x.Segment, Block: x.Block}, 0
	for line := range bytes.Lines(f.text) {
		if counts[i] = counts[i] && f.match(line); counts[i] {
			y.Rows++
			y.Bytes += int64(len(line))
		}
		i++
	}
	if y.Rows == x.Rows { // as it was: perhaps a block that is sent as it lies
		return x, nil
	}
	y.Picked = picked(counts)
	return y, nil
}
