package export

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A stage is a part of planning a job. Each begins when all of the one before is
// done.
type stage string

// The stages in their order. Only a job in blocks has all of them.
const (
	stagePrepare stage = "prepare" // edges that bodies tell, type by type
	stageSend    stage = ""        // what is sent, type by type
	stageAttach  stage = "attach"  // the Provenance of that
	stageFollow  stage = "follow"  // edges that directories tell
	stageSpread  stage = "spread"  // into blocks
	stageFocus   stage = "focus"   // what blocks are of
	stageBind    stage = "bind"    // files, block by block
	stageDelete  stage = "delete"
	stageDepart  stage = "depart" // what has left, type by type
)

var stages = []stage{stagePrepare, stageSend, stageAttach, stageFollow, stageSpread, stageFocus, stageBind, stageDelete, stageDepart}

// A checkpoint is how far the planning of a job had come when that was last made
// durable. The next process goes on from there, and what is done may be listed in
// a page of the manifest.
type checkpoint struct {
	Stage stage     // that is under way
	Type  fhir.Type // of it the last that was read, or whose files were made; 0: none
	// At is how much of that is done; nil: all.
	At    *position
	Notes []outcome.Issue // so far
	// Aside names what else the next process needs; nil: nothing.
	Aside *asideForm
	// Roll is the checksum of whom earlier exports found in the Group; nil: none did.
	Roll *uint32
	// Opted is likewise of who had opted out; nil: nobody could.
	Opted *uint32
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
	Stage stage           `json:"stage,omitempty"`
	Type  string          `json:"type,omitempty"`
	At    *position       `json:"at,omitempty"`
	Notes []outcome.Issue `json:"notes,omitempty"`
	Aside *asideForm      `json:"aside,omitempty"`
	Roll  *uint32         `json:"roll,omitempty"`
	Opted *uint32         `json:"opted,omitempty"`
}

func (c *checkpoint) form() *checkForm {
	if c == nil {
		return nil
	}
	return &checkForm{c.Stage, typeForm(c.Type), c.At, c.Notes, c.Aside, c.Roll, c.Opted}
}

func (f *checkForm) checkpoint() (*checkpoint, error) {
	if f == nil {
		return nil, nil
	}
	t, known := fhir.ParseType(f.Type)
	if !known && f.Type != "" {
		return nil, fmt.Errorf("the rule has come to the resource type %q", f.Type)
	}
	if !slices.Contains(stages, f.Stage) {
		return nil, fmt.Errorf("the rule has come to the stage %q: was the store used by a newer program?", f.Stage)
	}
	return &checkpoint{f.Stage, t, f.At, f.Notes, f.Aside, f.Roll, f.Opted}, nil
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
	begun time.Time
	last  time.Time
	keep  func(r *rule, c selection) error
}

// due tells whether it is worth it. What is put aside takes room, and runs that are
// merged in the end: so many jobs as take hours do it a hundred times.
func (s *saving) due(aside bool) bool {
	every := s.every
	if aside && every > 0 {
		every = max(every, time.Since(s.begun)/16)
	}
	return s.keep != nil && time.Since(s.last) >= every
}

// enter begins a stage, or goes on with it.
func (g *gathering) enter(st stage) error {
	g.stage = st
	if c := g.r.Checkpoint; c != nil && (c.Stage == st || c.after(st)) {
		return nil
	}
	return g.reached(0, nil)
}

// reached says that of the stage all up to a place is done.
func (g *gathering) reached(t fhir.Type, at *position) error {
	if !g.saving.due(g.sent != nil || g.arranging != nil) {
		return nil
	}
	return g.save(t, at)
}

// save makes a checkpoint. What it names is durable before it is, and what only
// the one before has named is removed after that.
func (g *gathering) save(t fhir.Type, at *position) error {
	if err := errors.Join(g.keepRoll(), g.keepOpted()); err != nil {
		return fmt.Errorf("keep what a job goes by: %w", err)
	}
	c := &checkpoint{Stage: g.stage, Type: t, At: at, Notes: g.notes, Roll: g.rolled, Opted: g.opted}
	named, err := g.putAside(c)
	if err != nil {
		return fmt.Errorf("put aside what a job has found: %w", err)
	}
	g.r.Checkpoint = c
	if err := g.saving.keep(g.r, g.files); err != nil {
		return fmt.Errorf("keep what is done of a job: %w", err)
	}
	g.files, g.saving.last = nil, time.Now()
	return g.pad.settle(named)
}

// settle says that the output is whole: nothing that was put aside is needed any
// more.
func (g *gathering) settle() error {
	g.stage = stageDelete
	if len(g.pad.named) == 0 {
		return nil
	}
	return g.save(0, nil)
}

// passed tells whether an earlier process has come to an end with a stage.
func (g *gathering) passed(st stage) bool {
	return g.r.Checkpoint != nil && g.r.Checkpoint.after(st)
}

func (c *checkpoint) after(st stage) bool {
	return slices.Index(stages, c.Stage) > slices.Index(stages, st)
}

// rest tells how many of some sections an earlier process was done with in the
// stage that is under way, and where in the next it was.
func (g *gathering) rest(all []store.Section) (done int, at position) {
	c := g.r.Checkpoint
	switch {
	case g.passed(g.stage):
		return len(all), at
	case c == nil || c.Stage != g.stage:
		return 0, at
	}
	done = slices.IndexFunc(all, func(sec store.Section) bool { return sec.Type == c.Type })
	if done < 0 || c.At == nil {
		return done + 1, at
	}
	return done, *c.At
}

// An aside is what a checkpoint needs beside the rule.
type aside struct {
	Last   int           `json:"last"`           // leaf
	Sent   []leafForm    `json:"sent,omitempty"` // hashes
	Blocks *arrangedForm `json:"blocks,omitempty"`
}

// putAside makes durable what is known to this process only: of Provenance that is
// attached, what is sent; of blocks, what is sorted.
func (g *gathering) putAside(c *checkpoint) (named []*leaf, err error) {
	if c.after(stageBind) || g.sent == nil && g.arranging == nil {
		return nil, nil
	}
	var form aside
	if g.sent != nil {
		if err := g.sent.putAside(g.pad); err != nil {
			return nil, err
		}
		form.Sent, named = g.sent.forms, append(named, g.sent.leaves...)
	}
	if g.arranging != nil {
		if form.Blocks, err = g.arranging.putAside(&named); err != nil {
			return nil, err
		}
	}
	form.Last = g.pad.last + 1 // the leaf on which this stands
	var l *leaf
	if l, c.Aside, err = g.pad.writeForm(form); err != nil {
		return nil, err
	}
	named = append(named, l)
	return named, g.pad.keep(named)
}

// restore finds what an earlier process has put aside, and removes what it has left
// beside that.
func (g *gathering) restore() error {
	c := g.r.Checkpoint
	if c == nil {
		return nil // all of it is cleared away
	}
	g.notes = c.Notes
	if c.Aside != nil {
		if err := g.takeUp(*c.Aside); err != nil {
			return fmt.Errorf("take up what a job has put aside: %w", err)
		}
	}
	return g.pad.sweep()
}

func (g *gathering) takeUp(f asideForm) error {
	var form aside
	if err := g.pad.readForm(f, &form); err != nil {
		return err
	}
	g.pad.last = form.Last
	if g.sent != nil {
		if err := g.sent.restore(g.pad, form.Sent); err != nil {
			return err
		}
	}
	if g.arranging != nil && form.Blocks != nil {
		return g.arranging.restore(form.Blocks)
	}
	return nil
}

// skipped counts a section that was done by an earlier process as work done.
func (g *gathering) skipped(sec store.Section) {
	g.step(sec)
	if g.projection != nil || g.filters[sec.Type] != nil || g.arranging != nil {
		g.did(bodyCost * g.s.Blocks(sec))
	}
}
