package compaction

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"tidemark/store/segment"
)

// runBytes is the NDJSON that is sorted by patient at once, in memory. More is
// written as several sorted runs, which are then merged.
const runBytes = 48 << 20

// sort writes the rows that stay, which lie in the order of time, as runs
// sorted by patient.
func (m *Merge) sort(ctx context.Context) (runs []*segment.Reader, err error) {
	if err := errors.Join(m.removeRuns(), m.FS.MkdirAll(m.Runs, 0o700)); err != nil {
		return nil, err
	}
	s := &sorter{Merge: m, comp: segment.NewCompressor(segment.FastLevel)}
	for _, r := range m.Inputs {
		if err := s.read(ctx, r); err != nil {
			return nil, fmt.Errorf("sort for segment %d: %w", m.ID, err)
		}
	}
	if err := s.write(ctx); err != nil {
		return nil, fmt.Errorf("sort for segment %d: %w", m.ID, err)
	}
	return s.runs, nil
}

type sorter struct {
	*Merge
	comp *segment.Compressor
	rows []unsorted
	size int
	runs []*segment.Reader
}

// unsorted is a row and its line.
type unsorted struct {
	row  segment.Row
	at   segment.Place
	line []byte
}

// read takes the rows of one input in.
func (s *sorter) read(ctx context.Context, r *segment.Reader) error {
	in, err := openInput(r)
	if err != nil {
		return err
	}
	defer in.close()
	for _, sec := range s.Sections {
		info := r.Section(sec)
		for b := info.From; b < info.To; b++ {
			k := &r.Blocks()[b]
			if w := s.Window; s.Change == nil && (k.Last < w.From.Instant || k.First > w.To.Instant) {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := s.block(ctx, in, b); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *sorter) block(ctx context.Context, in *input, b int) error {
	rows, err := in.dir.Rows(nil, b)
	if err != nil {
		return err
	}
	in.loaded, in.text = b, nil
	if s.Change == nil && !slices.ContainsFunc(rows, func(r segment.Row) bool { _, ok := s.Keep(&r); return ok }) {
		return nil
	}
	if err := in.lines(); err != nil {
		return err
	}
	s.size += len(in.text) // a line keeps its block in memory
	for i := range rows {
		line := in.text[:rows[i].Length]
		in.text = in.text[rows[i].Length:]
		if s.keeps(in.r, &rows[i], line) {
			s.rows = append(s.rows, unsorted{rows[i], rows[i].Place(), line})
		}
	}
	if s.size >= runBytes {
		return s.write(ctx)
	}
	return nil
}

func (s *sorter) keeps(r *segment.Reader, row *segment.Row, line []byte) bool {
	if s.Change != nil {
		return s.Change(r, row, line)
	}
	sec, ok := s.Keep(row)
	row.Section = sec
	return ok
}

// write sorts what was gathered and writes it as a run.
func (s *sorter) write(ctx context.Context) error {
	if len(s.rows) == 0 {
		return nil
	}
	slices.SortFunc(s.rows, func(a, b unsorted) int {
		if o := a.row.Section.Compare(b.row.Section); o != 0 {
			return o
		}
		return a.at.CompareByPatient(b.at)
	})
	w, err := segment.Create(s.FS, s.Runs, segment.ID(len(s.runs)+1))
	if err != nil {
		return err
	}
	var rows []segment.Row
	var lines [][]byte
	size := 0
	for i := range s.rows {
		u := &s.rows[i]
		rows, lines, size = append(rows, u.row), append(lines, u.line), size+len(u.line)
		if i+1 < len(s.rows) && s.rows[i+1].row.Section == u.row.Section && size < segment.BlockSize {
			continue
		}
		b := s.comp.Block(lines...)
		if err := errors.Join(w.Append(b, rows), s.Pace(ctx, int64(len(b.Data)))); err != nil {
			return errors.Join(err, w.Abandon())
		}
		rows, lines, size = rows[:0], lines[:0], 0
	}
	r, err := w.Seal(segment.Footer{Window: s.Window})
	if err != nil {
		return err
	}
	s.runs = append(s.runs, r)
	clear(s.rows)
	s.rows, s.size = s.rows[:0], 0
	return nil
}
