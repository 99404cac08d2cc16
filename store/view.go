package store

import (
	"fmt"
	"slices"
	"sort"

	"tidemark/store/segment"
)

// A view is the segments that readers see. It is replaced, never changed.
//
// Rows up to closed count in settled segments only, all later ones in fresh
// segments only (invariant S7): a fresh segment that holds both stays until the
// line has passed all of it.
type view struct {
	fresh   []*seg // by sequence number: their ranges never overlap
	settled []*seg // by window, then by section: windows never overlap
	closed  segment.Bound
}

// newView sorts segs into a view.
func newView(segs []*seg, closed segment.Bound) *view {
	v := &view{closed: closed}
	for _, s := range segs {
		if s.window() == nil {
			v.fresh = append(v.fresh, s)
		} else {
			v.settled = append(v.settled, s)
		}
	}
	slices.SortFunc(v.fresh, compareSeqs)
	slices.SortFunc(v.settled, compareWindows)
	return v
}

// with is v with a commit's segment.
func (v *view) with(s *seg) *view {
	return &view{fresh: append(slices.Clip(v.fresh), s), settled: v.settled, closed: v.closed}
}

// all lists the segments, those with older rows first.
func (v *view) all() []*seg { return slices.Concat(v.settled, v.fresh) }

func (v *view) len() int { return len(v.settled) + len(v.fresh) }

// holder finds the segment in which a row lies, if it still lies anywhere.
func (v *view) holder(sec segment.Section, row segment.Bound) *seg {
	if row.Compare(v.closed) > 0 {
		return v.freshHolder(row.Seq)
	}
	i := sort.Search(len(v.settled), func(i int) bool { return v.settled[i].window().To.Compare(row) >= 0 })
	for ; i < len(v.settled) && v.settled[i].window().Holds(row); i++ {
		if s := v.settled[i]; s.r.Section(sec).To > 0 {
			return s
		}
	}
	return nil
}

func (v *view) freshHolder(seq uint64) *seg {
	i := sort.Search(len(v.fresh), func(i int) bool { return v.fresh[i].r.Footer().Seqs[1] >= seq })
	if i == len(v.fresh) || v.fresh[i].r.Footer().Seqs[0] > seq {
		return nil
	}
	return v.fresh[i]
}

// holder finds the segment in which a row lies that must be there.
func (db *DB) holder(sec segment.Section, row segment.Bound) (*seg, error) {
	if s := db.holding(sec, row); s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("%w: the row with sequence number %d lies in no segment: run `tidemark check`", ErrReindex, row.Seq)
}

// holding is holder for rows that may be gone: nil if no segment has the row.
func (db *DB) holding(sec segment.Section, row segment.Bound) *seg {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.view.holder(sec, row)
}

func compareSeqs(a, b *seg) int {
	switch x, y := a.r.Footer().Seqs[0], b.r.Footer().Seqs[0]; {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

func compareWindows(a, b *seg) int {
	if o := a.window().To.Compare(b.window().To); o != 0 {
		return o
	}
	return a.r.Sections()[0].Compare(b.r.Sections()[0].Section)
}
