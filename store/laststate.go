package store

import (
	"bytes"
	"context"
	"errors"
	"syscall"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// LastStates calls fn for the lines of resources of a type that were deleted behind
// an instant, up to the watermark, and have not come back: of each as it was when
// it was deleted, as long as that is kept (Options.LastState), and as it was before
// if that ended in the same instant. fn may not keep the line. What is damaged is
// passed by.
func (s *Snapshot) LastStates(ctx context.Context, t fhir.Type, since fhir.Instant, fn func(line []byte) error) error {
	gone := map[string]fhir.Instant{}
	deleted := segment.Section{Kind: segment.Deleted, Type: t}
	err := s.Rows(ctx, deleted, since, s.pin.Watermark, func(row *segment.Row) error {
		gone[row.Key.ID] = row.Instant
		return nil
	})
	if err != nil || len(gone) == 0 {
		return err
	}
	var r reading
	defer r.close()
	for _, g := range s.segs {
		for _, kind := range []segment.Kind{segment.Live, segment.Last} {
			info := g.r.Section(segment.Section{Kind: kind, Type: t})
			for b := info.From; b < info.To; b++ {
				if err := ctx.Err(); err != nil {
					return err
				}
				if s.of != nil && s.of.revoked.Load() {
					return ErrRevoked
				}
				err := s.lastIn(&r, g, b, gone, since, fn)
				if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, syscall.EIO) {
					return err
				}
			}
		}
	}
	return nil
}

// lastIn calls fn for the lines of a block whose resources were deleted when the
// lines ended.
func (s *Snapshot) lastIn(r *reading, g *seg, b int, gone map[string]fhir.Instant, since fhir.Instant, fn func(line []byte) error) error {
	ended := map[uint64]fhir.Instant{}
	s.db.mu.Lock()
	for _, d := range g.dead[b].until(s.pin.Watermark) {
		if d.at > since {
			ended[d.seq] = d.at
		}
	}
	s.db.mu.Unlock()
	if len(ended) == 0 {
		return nil
	}
	rows, err := g.r.Rows(b)
	if err != nil {
		return err
	}
	text, _, err := r.block(s, Extent{Segment: uint64(g.id()), Block: b, Whole: true}, span{})
	if err != nil {
		return err
	}
	i, after := -1, s.span(since, s.pin.Watermark).of(g).after
	for line := range bytes.Lines(text) {
		i++
		at, was := ended[rows[i].Seq]
		if deletion, is := gone[rows[i].Key.ID]; !was || !is || deletion != at || rows[i].Bound().Compare(after) <= 0 {
			continue
		}
		if err := fn(line); err != nil {
			return err
		}
	}
	return nil
}
