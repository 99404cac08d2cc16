package store

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidemark/store/disk"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// choose finds the segments that count: all that can be read, but for what a
// merge replaced and for the outputs of one that did not end.
func (r *reindex) choose() error {
	dir := SegmentsDir(r.fs, r.dir)
	readers, err := openSegments(r.fs, dir)
	if err != nil {
		return err
	}
	if len(readers) == 0 {
		return errors.New("it has no readable segment: an empty folder needs no index")
	}
	slices.SortFunc(readers, func(a, b *segment.Reader) int { return cmp.Compare(a.ID(), b.ID()) })
	r.meta = index.Meta{Store: readers[0].Footer().Store, NextMerge: 1, Newest: fhir.None, Closed: segment.NoBound, Forgotten: fhir.None, Restored: fhir.None}
	r.line = fhir.None
	if err := r.numbers(dir); err != nil {
		return err
	}
	for _, s := range readers {
		f := s.Footer()
		// Numbers once given are never given again, also those of what is lost:
		// clients have seen them as versionId.
		r.meta.Epoch = max(r.meta.Epoch, f.Epoch)
		r.meta.Commit = max(r.meta.Commit, f.Commits[1])
		r.meta.NextSeq = max(r.meta.NextSeq, f.Seqs[1]+1)
		r.meta.NextMerge = max(r.meta.NextMerge, f.Merge+1)
		if f.Store != r.meta.Store {
			return fmt.Errorf("segments of two stores lie in %s: %s is not of the store that %s belongs to; move one of them away", dir, s.ID().DirectoryName(), readers[0].ID().DirectoryName())
		}
	}
	known := slices.Clone(readers)
	readers = r.ended(readers)
	for _, s := range slices.Backward(readers) { // a merge comes before its inputs
		if covered(s, r.list) {
			continue
		}
		if err := whole(s); err != nil {
			fmt.Fprintf(r.out, "set aside: segment %s is not whole (%v): what only it held is missing until the source sends it again\n", s.ID().BodyName(), err)
			continue
		}
		r.list = append(r.list, s)
	}
	r.lines(known)
	var segs []*seg
	for _, s := range r.list {
		if w := s.Footer().Window; w != nil && w.To.Compare(r.meta.Closed) > 0 {
			r.meta.Closed = w.To
		}
		segs = append(segs, newSeg(s))
	}
	r.view = newView(segs, r.meta.Closed)
	return nil
}

// lines finds the greatest line that a commit had, also one whose rows are
// lost: it was promised. Those from before the promise was reset do not count.
func (r *reindex) lines(known []*segment.Reader) {
	var reset uint64
	for _, s := range r.list {
		reset = max(reset, s.Footer().Reset)
	}
	for _, s := range known {
		if f := s.Footer(); f.Commits[1] > reset || f.Reset == reset {
			r.line = max(r.line, f.Line)
		}
	}
}

// numbers finds the first segment number that no file has.
func (r *reindex) numbers(dir string) error {
	names, err := r.fs.List(dir)
	for _, n := range names {
		if id, ok := segment.ParseName(n); ok {
			r.meta.NextSegment = max(r.meta.NextSegment, id+1)
		}
	}
	return err
}

// ended leaves out the outputs of the one merge that may not have ended, the
// last: if not all of them are whole, its inputs are there and count.
func (r *reindex) ended(readers []*segment.Reader) []*segment.Reader {
	last := func(s *segment.Reader) bool { return s.Footer().Merge == r.meta.NextMerge-1 }
	have := map[segment.ID]bool{}
	wholeParts, parts := 0, 0
	for _, s := range readers {
		have[s.ID()] = true
		if f := s.Footer(); f.Merge != 0 && last(s) {
			if parts = f.Parts; whole(s) == nil {
				wholeParts++
			}
		}
	}
	if wholeParts == parts {
		return readers
	}
	for _, s := range readers {
		if f := s.Footer(); f.Merge != 0 && last(s) && slices.ContainsFunc(f.Inputs, func(id segment.ID) bool { return !have[id] }) {
			fmt.Fprintf(r.out, "lost: %d of the %d segments of merge %d, and what it merged is gone: their rows are missing until the source sends them again\n", parts-wholeParts, parts, f.Merge)
			return readers
		}
	}
	return slices.DeleteFunc(readers, func(s *segment.Reader) bool { return s.Footer().Merge != 0 && last(s) })
}

// covered tells whether later segments hold all rows of s that still count, so
// that it is the input of a merge, perhaps of one whose outputs were merged
// again.
func covered(s *segment.Reader, later []*segment.Reader) bool {
	f := s.Footer()
	for _, l := range later {
		g := l.Footer()
		switch {
		case g.Reset != 0 && slices.Contains(g.Inputs, s.ID()):
			return true
		case f.Window == nil && g.Window == nil: // ranges of live ones never overlap (invariant S5)
			if g.Seqs[0] <= f.Seqs[0] && f.Seqs[1] <= g.Seqs[1] {
				return true
			}
		case f.Window == nil:
			if newSeg(s).within(g.Window.To) {
				return true
			}
		case g.Window == nil:
		case *g.Window == *f.Window: // cleaned, or beside it in one merge
			if slices.ContainsFunc(s.Sections(), func(x segment.SectionInfo) bool { return l.Shares(x.Section) }) {
				return true
			}
		case g.Window.From.Compare(f.Window.From) <= 0 && f.Window.To.Compare(g.Window.To) <= 0: // widened
			return true
		}
	}
	return false
}

// whole proves a segment's body: one that a crash cut short has no index to say so.
func whole(s *segment.Reader) error {
	body, err := s.OpenBody()
	if err != nil {
		return err
	}
	defer body.Close()
	st, err := body.Stat()
	if err != nil {
		return err
	}
	if st.Size() != s.BodySize() {
		return fmt.Errorf("%w: %d bytes of %d", ErrCorrupt, st.Size(), s.BodySize())
	}
	var text []byte
	for b := range s.Blocks() {
		if text, err = s.Lines(text[:0], body, b); err != nil {
			return err
		}
	}
	return nil
}

// setAside moves files that no longer count out of the segments folder; nothing
// is deleted.
func (r *reindex) setAside(dir string) error {
	keep := map[segment.ID]bool{}
	for _, s := range r.list {
		keep[s.ID()] = true
	}
	names, err := r.fs.List(dir)
	if err != nil {
		return err
	}
	aside, moved := r.fs.PathJoin(r.dir, fmt.Sprintf("set-aside-%d", time.Now().UnixMilli())), 0
	for _, n := range names {
		id, ok := segment.ParseName(n)
		if !ok {
			continue
		}
		if keep[id] {
			continue
		}
		if err := disk.MakeDir(r.fs, aside); err != nil {
			return err
		}
		if err := r.fs.Rename(r.fs.PathJoin(dir, n), r.fs.PathJoin(aside, n)); err != nil {
			return err
		}
		moved++
		fmt.Fprintf(r.out, "set aside: %s (replaced by a merge, of one that did not end, or not whole) now lies in %s\n", n, aside)
	}
	if moved > 0 { // the new names first: a crash may leave two, never none
		if err := disk.SyncDir(r.fs, aside); err != nil {
			return err
		}
	}
	return disk.SyncDir(r.fs, dir)
}
