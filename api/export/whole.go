package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A Whole is an export of whole types that no client has kicked off and that is
// in no table of jobs: who makes it keeps it with a snapshot, as JSON, and says
// how long both live.
type Whole struct{ rule rule }

// PlanWhole plans an export of all of some types that changed after since; None:
// of all there is of them. It reads no body.
func PlanWhole(s Snapshot, types []fhir.Type, since fhir.Instant, l Limits) (Whole, error) {
	if len(types) == 0 {
		return Whole{}, errors.New("plan an export of whole types: no type is given") // it would be all
	}
	q := Request{Level: System, Types: types, Since: since, Upto: fhir.None}
	r := q.rule(s)
	for _, sec := range r.sections(s, store.Live, types) {
		attached, err := r.attached(s, sec)
		if err != nil {
			return Whole{}, err
		}
		if attached {
			q.Notes = append(q.Notes, asTheyCame(sec.Type))
		}
	}
	return Whole{r}, r.fill(s, q, l)
}

// asTheyCame says of what goes out as it lies on the disk where its attachments lead.
func asTheyCame(t fhir.Type) outcome.Issue {
	return outcome.Issue{
		Severity: outcome.Information, Code: outcome.Incomplete,
		Text: fmt.Sprintf("%s: attachments of what is published lead to where they led when it came; an export makes the URLs of Binaries that are here absolute", t),
	}
}

// Empty tells whether nothing is and nothing was deleted in the window.
func (w Whole) Empty() bool {
	for _, f := range w.rule.Files {
		if f.List != Errors {
			return false
		}
	}
	return true
}

// Upto is the transactionTime: the window's end, inclusive.
func (w Whole) Upto() fhir.Instant { return w.rule.Upto }

// Files lists what there is.
func (w Whole) Files() []OutputFile { return w.rule.Files }

// Severities counts the issues in the list of errors.
func (w Whole) Severities() []outcome.Tally { return outcome.Count(w.rule.Errors) }

// Extents lists where the rows of all files lie.
func (w Whole) Extents(s Snapshot) ([]store.Extent, error) {
	var all []store.Extent
	seen := map[store.Section]bool{}
	for _, f := range w.rule.Files {
		sec := f.section()
		if f.List == Errors || seen[sec] {
			continue
		}
		seen[sec] = true
		ext, err := w.rule.extents(s, sec)
		if err != nil {
			return nil, err
		}
		all = append(all, ext...)
	}
	return all, nil
}

// Open opens file n, counted from 1, and closes s with it. as is the number under
// which the store may keep what it must prepare for the file: files that share a
// snapshot must not share it.
func (w Whole) Open(ctx context.Context, s Snapshot, n, as int) (_ *Download, err error) {
	if n < 1 || n > len(w.rule.Files) {
		return nil, ErrNotFound
	}
	f := w.rule.Files[n-1]
	d := &Download{Type: f.Type, List: f.List, release: func() { _ = s.Close() }} // was opened for reading only
	if f.List == Errors {
		d.file = text(w.rule.Errors)
		return d, nil
	}
	if f.Made {
		d.file, err = made(s, fileName(as), f)
		return d, err
	}
	ext, err := w.rule.derive(s, f)
	if err != nil {
		return nil, err
	}
	d.file, err = s.File(ctx, fileName(as), f.section(), w.rule.Since, w.rule.Upto, ext)
	return d, err
}

// Bytes is how long all files are, uncompressed.
func (w Whole) Bytes() (n int64) {
	for _, f := range w.rule.Files {
		n += f.Bytes
	}
	return n
}

// Copy makes copies of all files, which need nothing of the snapshot. They have
// the same bytes and the same numbers, those from before on.
func (w Whole) Copy(ctx context.Context, s Snapshot, before int) (Whole, error) {
	w.rule.Files = slices.Clone(w.rule.Files)
	for i := range w.rule.Files {
		f := &w.rule.Files[i]
		if err := ctx.Err(); err != nil {
			return w, err
		}
		if f.List == Errors || f.Made {
			continue
		}
		ext, err := w.rule.derive(s, *f)
		if err != nil {
			return w, err
		}
		if err := s.Copy(ctx, fileName(before+i+1), f.section(), w.rule.Since, w.rule.Upto, ext); err != nil {
			return w, err
		}
		f.Made = true
	}
	return w, nil
}

// MarshalJSON is the form in which it is kept: that of a job.
func (w Whole) MarshalJSON() ([]byte, error) { return w.rule.encode() }

// UnmarshalJSON is the inverse of MarshalJSON.
func (w *Whole) UnmarshalJSON(b []byte) (err error) {
	w.rule, err = decodeRule(b)
	return err
}

var (
	_ json.Marshaler   = Whole{}
	_ json.Unmarshaler = (*Whole)(nil)
)

// isJob tells the snapshots of jobs from those that others have made durable
// under names of their own.
func isJob(id string) bool {
	return len(id) == jobID && strings.Trim(id, "0123456789abcdef") == ""
}
