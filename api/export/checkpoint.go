package export

import (
	"fmt"
	"time"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A checkpoint is how far the planning of a job had come when that was last made
// durable. The next process goes on from there, and what is done may be listed in
// a page of the manifest.
type checkpoint struct {
	Type fhir.Type // whose files were made last; types go in alphabetical order
	// At is where in them the last file ends; nil: all of the type is done.
	At    *position
	Notes []outcome.Issue // so far
}

// A position is a place in a section's extents.
type position struct {
	Extent int `json:"extent"` // that is being read
	Line   int `json:"line"`   // of it: so many are done
	Lost   int `json:"lost"`   // rows so far that could not be read
	// Strays are where attachments led so far, nil for nowhere else.
	Strays *strays `json:"strays,omitempty"`
}

type checkForm struct {
	Type  string          `json:"type"`
	At    *position       `json:"at,omitempty"`
	Notes []outcome.Issue `json:"notes,omitempty"`
}

func (c *checkpoint) form() *checkForm {
	if c == nil {
		return nil
	}
	return &checkForm{c.Type.String(), c.At, c.Notes}
}

func (f *checkForm) checkpoint() (c *checkpoint, known bool) {
	if f == nil {
		return nil, true
	}
	t, known := fhir.ParseType(f.Type)
	return &checkpoint{t, f.At, f.Notes}, known
}

// A piece of a selection is which rows the files from one on hold, up to the next
// piece. It is kept beside the snapshot, for it does not follow from the request
// once the store has gone on.
type piece struct {
	Name string `json:"name"`
	From int    `json:"from,omitempty"` // number of files before it
	Sum  uint32 `json:"sum"`
}

// piece is that in which file n lies, counted from 1.
func (r *rule) piece(n int) *piece {
	for i := len(r.Pieces) - 1; i >= 0; i-- {
		if r.Pieces[i].From < n {
			return &r.Pieces[i]
		}
	}
	return nil
}

// selectionName is what a piece is kept under beside its snapshot.
const selectionName = "selection"

// keepPiece stores what was chosen since the last piece.
func keepPiece(s Snapshot, r *rule, c selection) error {
	from := len(r.rowFiles()) - len(c)
	name := selectionName
	if from > 0 {
		name = fmt.Sprintf("%s%d", selectionName, from)
	}
	data, err := c.encode()
	if err != nil {
		return err
	}
	sum, err := s.Keep(name, data)
	if err != nil {
		return err
	}
	r.Pieces = append(r.Pieces, piece{name, from, sum})
	return nil
}

// rowFiles are all files but that of errors, which is the last.
func (r *rule) rowFiles() []OutputFile {
	if n := len(r.Files); n > 0 && r.Files[n-1].List == Errors {
		return r.Files[:n-1]
	}
	return r.Files
}

// A saving makes checkpoints durable, but no more often than is worth it.
type saving struct {
	every time.Duration
	last  time.Time
	keep  func(r *rule, c selection) error
}

// reached says that all up to a place is done. What goes with Provenance that is
// attached, and of blocks what is sorted, is known to this process only, so such a
// job begins anew.
func (g *gathering) reached(sec store.Section, at *position) error {
	if g.saving.keep == nil || g.sent != nil || g.arranging != nil || len(g.files) == 0 || time.Since(g.saving.last) < g.saving.every {
		return nil
	}
	g.r.Checkpoint = &checkpoint{Type: sec.Type, At: at, Notes: g.notes}
	if err := g.saving.keep(g.r, g.files); err != nil {
		return fmt.Errorf("keep what is done of a job: %w", err)
	}
	g.files, g.saving.last = nil, time.Now()
	return nil
}

// resume tells what of a section was done by an earlier process: all, or up to a
// place.
func (g *gathering) resume(sec store.Section) (done bool, at position) {
	c := g.r.Checkpoint
	switch {
	case c == nil || sec.Type.String() > c.Type.String():
		return false, at
	case sec.Type == c.Type && c.At != nil:
		return false, *c.At
	}
	return true, at
}

// skipped counts a section that was done by an earlier process as work done.
func (g *gathering) skipped(sec store.Section) {
	g.step(sec)
	if g.projection != nil || g.filters[sec.Type] != nil {
		g.did(bodyCost * g.s.Blocks(sec))
	}
}
