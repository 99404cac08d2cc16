package export

import (
	"slices"
	"time"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A Manifest is what a job delivers, or a page of that.
type Manifest struct {
	Face            Face
	Separate        bool // as the client wishes it told
	Request         string
	TransactionTime fhir.Instant
	Epoch           uint64 // of the store; a new one ends a chain of exports
	Cut             store.Cut
	Expires         time.Time
	From            int             // how many files the pages before have
	Files           []OutputFile    // the first is file From+1 of the job
	Severities      []outcome.Tally // of the issues in the list of errors
	Page            int             // of this one, counted from 1
	More            bool            // there is another page, or will be
	Working         *WorkingError   // the job is not done; nil: it is
	By              fhir.Type       // of the blocks; 0: a type to a file
}

// Manifest tells what the job delivers, in the first page of its manifest.
func (j *Jobs) Manifest(id string) (Manifest, error) { return j.Page(id, 1) }

// Page is a page of the manifest, counted from 1. A *WorkingError says that it is
// not known yet, a *FailedError that there will be nothing.
//
// Pages come into being by being asked for: while a job whose client allowed it is
// planned, one holds what is done by then, and the last the rest.
func (j *Jobs) Page(id string, page int) (Manifest, error) {
	s, r, release, err := j.open(id)
	if err != nil {
		return Manifest{}, err
	}
	defer release()
	if r.ends(page) {
		if r, err = j.cut(id, page); err != nil {
			return Manifest{}, err
		}
	}
	from := r.begin(page)
	switch {
	case r.Failure != nil:
		return Manifest{}, &FailedError{r.Failure, r.Separate}
	case from < 0:
		return Manifest{}, ErrNotFound
	case r.Pending != nil && page > len(r.Pages):
		return Manifest{}, j.working(id, r)
	}
	m := Manifest{
		Face: r.Face, Separate: r.Separate, Request: r.Request, TransactionTime: r.Upto, Epoch: s.Epoch(), Cut: r.Cut, Expires: s.Expires(), By: r.By,
		From: from, Files: r.Files[from:], Severities: outcome.Count(r.Errors), Page: page, More: page <= len(r.Pages),
	}
	if m.More {
		m.Files = r.Files[from:r.Pages[page-1]]
	}
	if r.Pending != nil {
		m.Working, m.Expires = j.working(id, r), j.expires(id)
	}
	return m, nil
}

// cut ends a page of the manifest behind what is done now, unless there is nothing to
// end any more: somebody else may have been before, the job failed or ended.
func (j *Jobs) cut(id string, page int) (rule, error) {
	return j.amend(id, func(r *rule) {
		if r.ends(page) {
			r.Pages = append(slices.Clip(r.Pages), r.ready())
		}
	}, time.Time{})
}

// begin is how many files the pages before one have, -1 if not all of them are there.
func (r *rule) begin(page int) int {
	switch {
	case page > len(r.Pages)+1:
		return -1
	case page == 1:
		return 0
	}
	return r.Pages[page-2]
}

// ends tells whether a page that nobody has seen can end with what is done of a job
// that is being planned.
func (r *rule) ends(page int) bool {
	return r.Pending != nil && r.Pending.Partial && page == len(r.Pages)+1 && r.ready() > r.begin(page)
}

// ready is how many files pages can have while a job is planned: deletions stand in
// the last (decisions.md 5), and a file leads only to files that can be had (Bulk Data,
// "continuesInFile"), so one whose last block goes on waits for where that ends.
func (r *rule) ready() int {
	n := slices.IndexFunc(r.Files, func(f OutputFile) bool { return f.List != Output })
	if n < 0 {
		n = len(r.Files)
	}
	for n > 0 && r.Files[n-1].Continues {
		n--
	}
	return n
}
