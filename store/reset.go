package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"time"

	"tidemark/store/compaction"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// ErrNotAhead: the promise does not lie ahead of the clock, so there is nothing
// to repair.
var ErrNotAhead = errors.New("what is promised does not lie ahead of the clock")

// ResetPromise repairs the store in dir after its clock was far ahead: nothing
// was lost, but every change since has an instant of that future, and so has
// each transactionTime. Afterwards all of it lies at or before now, everything
// up to now is promised, and the index is new; a new epoch begins. Clients whose
// _since is of the future take a full export.
//
// No process may have the store open. What is replaced is put aside, as Reindex
// does; interrupted, it can be started again.
func ResetPromise(ctx context.Context, dir string, o Options, out io.Writer) error {
	return rebuild(ctx, dir, o, out, fhir.FromTime(time.Now()))
}

// lower rewrites everything that has an instant after r.reset: its rows get
// that instant, which keeps them in the order in which they came.
//
// They settle at once, in windows that end there: closed is then what is
// promised.
func (r *reindex) lower(ctx context.Context) error {
	promised, err := r.promised()
	if err != nil {
		return err
	}
	if promised <= r.reset {
		return fmt.Errorf("%w: it is %v, the clock says %v", ErrNotAhead, promised, r.reset)
	}
	fmt.Fprintf(r.out, "everything up to %v was promised; from now on everything up to %v is\n", promised, r.reset)
	l := &lowering{reindex: r, closed: r.view.closed, from: segment.NoBound}
	for _, s := range r.view.settled {
		if to := s.window().To; to.Instant > r.reset {
			l.inputs = append(l.inputs, s)
		} else {
			l.from = to // of the last window that stays as it is
		}
	}
	if len(l.inputs) == 0 && !slices.ContainsFunc(r.view.fresh, func(s *seg) bool { return s.last > r.reset }) {
		return nil
	}
	l.inputs = append(l.inputs, r.view.fresh...)
	if err := l.plan(); err != nil {
		return err
	}
	outputs, err := l.write(ctx)
	if err != nil {
		for i := range l.parts {
			err = errors.Join(err, removeSegment(r.fs, r.dir, r.meta.NextSegment+segment.ID(i)))
		}
		return fmt.Errorf("lower instants: %w", err)
	}
	r.meta.NextSegment += segment.ID(len(l.parts))
	r.meta.NextMerge++
	r.meta.Closed = segment.Upto(r.reset)
	r.list = slices.DeleteFunc(r.list, func(s *segment.Reader) bool {
		return slices.ContainsFunc(l.inputs, func(in *seg) bool { return in.r == s })
	})
	r.list = append(r.list, outputs...)
	var segs []*seg
	for _, s := range r.list {
		segs = append(segs, newSeg(s))
	}
	r.view = newView(segs, r.meta.Closed)
	return nil
}

// promised is the latest instant that an answer can have shown, as far as
// segments and the old index, if it is there, tell.
func (r *reindex) promised() (fhir.Instant, error) {
	at := r.line
	for _, s := range r.view.all() {
		at = max(at, s.last)
	}
	path := IndexDir(r.fs, r.dir)
	if _, err := r.fs.Stat(path); err != nil {
		return at, nil //nolint:nilerr // reindex needs none either
	}
	old, err := index.Open(path, index.Options{FS: r.fs, Cache: r.o.Cache, Logger: pebbleLog{r.o.Logger}})
	if err != nil {
		return at, err
	}
	err = index.Scan(old, index.Promises(), func(k, _ []byte) error {
		p, err := index.ParsePromiseKey(k)
		at = max(at, p)
		return err
	})
	return at, errors.Join(err, old.Close())
}

// A lowering writes rows of the future with another instant.
type lowering struct {
	*reindex
	inputs  []*seg
	closed  segment.Bound // of the view they are in
	from    segment.Bound // where the first window begins
	windows []segment.Window
	parts   []lowerPart
}

// lowerPart is one output: sections of one window.
type lowerPart struct {
	window   *segment.Window
	sections []segment.Section
}

// counts tells whether a row of an input is the one that counts: not one of a
// fresh segment that lies in a window, too.
func (l *lowering) counts(in *segment.Reader, b segment.Bound) bool {
	return in.Footer().Window != nil || b.Compare(l.closed) > 0
}

func (l *lowering) lowered(b segment.Bound) segment.Bound {
	return segment.Bound{Instant: min(b.Instant, l.reset), Seq: b.Seq}
}

// lowerWindow bounds the NDJSON of one window, as far as buckets of sequence
// numbers tell. Bytes.
const lowerWindow = 1 << 30

// plan reads the directories: rows that keep their instant are one window, the
// others are cut by their sequence numbers, for all have the same instant.
func (l *lowering) plan() error {
	const buckets = 4096
	var size [buckets]int64
	first, last := l.meta.NextSeq, uint64(0)
	for _, s := range l.inputs {
		f := s.r.Footer()
		first, last = min(first, f.Seqs[0]), max(last, f.Seqs[1])
	}
	width := (last-first)/buckets + 1
	err := l.cells(func(_ segment.Section, b segment.Bound, length int32) {
		if b.Instant == l.reset {
			size[(b.Seq-first)/width] += int64(length)
		}
	})
	if err != nil {
		return err
	}
	add := func(to segment.Bound) {
		l.windows = append(l.windows, segment.Window{From: l.from, To: to})
		l.from = to
	}
	if before := segment.Upto(l.reset - 1); l.from.Compare(before) < 0 {
		add(before)
	}
	sum := int64(0)
	for i, n := range size {
		if sum += n; sum > lowerWindow {
			add(segment.Bound{Instant: l.reset, Seq: first + width*uint64(i+1) - 1})
			sum = 0
		}
	}
	if end := segment.Upto(l.reset); l.from.Compare(end) < 0 {
		add(end)
	}
	return l.divide()
}

// divide finds the outputs: a type to a file, small ones together.
func (l *lowering) divide() error {
	sizes := make([]map[segment.Section]int64, len(l.windows))
	for i := range sizes {
		sizes[i] = map[segment.Section]int64{}
	}
	err := l.cells(func(sec segment.Section, b segment.Bound, length int32) {
		i := sort.Search(len(l.windows), func(i int) bool { return l.windows[i].To.Compare(b) >= 0 })
		const ratio = 10 // NDJSON to a body, about
		sizes[i][sec] += int64(length) / ratio
	})
	if err != nil {
		return err
	}
	for i, bySection := range sizes {
		for _, sections := range compaction.Divide(bySection, l.o.smallFile) {
			l.parts = append(l.parts, lowerPart{window: &l.windows[i], sections: sections})
		}
	}
	return nil
}

// cells calls fn for each row that counts, with its bound as it will be.
func (l *lowering) cells(fn func(sec segment.Section, b segment.Bound, length int32)) error {
	for _, s := range l.inputs {
		dir, err := s.r.OpenDirectory()
		if err != nil {
			return err
		}
		for _, info := range s.r.Sections() {
			for b := info.From; b < info.To; b++ {
				cells, err := dir.Cells(b)
				if err != nil {
					return errors.Join(err, dir.Close())
				}
				for _, c := range cells {
					if l.counts(s.r, c.Bound()) {
						fn(info.Section, l.lowered(c.Bound()), c.Length)
					}
				}
			}
		}
		if err := dir.Close(); err != nil {
			return err
		}
	}
	return nil
}

// write makes the outputs.
func (l *lowering) write(ctx context.Context) (outputs []*segment.Reader, err error) {
	for i, p := range l.parts {
		m := compaction.Merge{
			FS: l.fs, Dir: SegmentsDir(l.fs, l.dir), Runs: l.fs.PathJoin(l.dir, "runs"), ID: l.meta.NextSegment + segment.ID(i),
			Inputs: readers(l.inputs), Sections: p.sections, Window: p.window,
			Pace: func(context.Context, int64) error { return nil },
			Change: func(in *segment.Reader, row *segment.Row, line []byte) bool {
				if !l.counts(in, row.Bound()) || !p.window.Holds(l.lowered(row.Bound())) {
					return false
				}
				l.change(row, line)
				return true
			},
		}
		res, err := m.Run(ctx)
		if err != nil {
			return nil, err
		}
		if res.Writer == nil {
			return nil, fmt.Errorf("%w: no row was found again for segment %d", ErrCorrupt, m.ID)
		}
		r, err := res.Writer.Seal(l.footer(p.window, i+1))
		if err != nil {
			return nil, err
		}
		outputs = append(outputs, r)
		fmt.Fprintf(l.out, "segment %d of %d written\n", i+1, len(l.parts))
	}
	return outputs, nil
}

// change gives a row of the future the instant of the reset, also in its line,
// where that was ours to write: all instants have the same length.
func (l *lowering) change(row *segment.Row, line []byte) {
	if row.Instant > l.reset && (row.Section.Resource().Kind != segment.Live || row.Clock.LastUpdated != row.Instant) { // what a change lacks the clock inherits, the line does not
		old, now := fmt.Appendf(nil, `"lastUpdated":"%s"`, row.Instant), fmt.Appendf(nil, `"lastUpdated":"%s"`, l.reset)
		if at := bytes.Index(line, old); at >= 0 && len(old) == len(now) && row.Section != deadLetters {
			copy(line[at:], now)
		}
	}
	row.Instant, row.Placed = min(row.Instant, l.reset), min(row.Placed, l.reset)
}

// footer describes one output.
func (l *lowering) footer(w *segment.Window, part int) segment.Footer {
	f := segment.Footer{
		Store: l.meta.Store, Epoch: l.meta.Epoch, Line: l.reset, Merge: l.meta.NextMerge, Part: part, Parts: len(l.parts), Window: w,
		Seqs: [2]uint64{1<<64 - 1, 0}, Commits: [2]uint64{1<<64 - 1, 0},
	}
	for _, s := range l.inputs {
		g := s.r.Footer()
		f.Inputs = append(f.Inputs, s.id())
		f.Seqs = [2]uint64{min(f.Seqs[0], g.Seqs[0]), max(f.Seqs[1], g.Seqs[1])}
		if g.Commits[1] >= f.Commits[1] {
			f.Offsets = g.Offsets
		}
		f.Commits = [2]uint64{min(f.Commits[0], g.Commits[0]), max(f.Commits[1], g.Commits[1])}
	}
	f.Reset = f.Commits[1]
	return f
}
