package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidemark/api/outcome"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/elements"
	"tidemark/store/fhir"
)

// A selection is which rows the files of a job hold whose rows are chosen one by
// one.
type selection [][]store.Extent // of each file

// A choosing is whom an export is about, and what their data refers to.
type choosing struct {
	group   string
	live    map[string]fhir.Instant
	deleted map[string]fhir.Instant
	left    map[string]fhir.Instant   // who has left the Group, and when
	refs    map[fhir.Key]fhir.Instant // what the rows refer to, each with the instant behind which it counts
	targets targets                   // what a Provenance goes with
	all     *choosing                 // the same whatever the window, once somebody asks
}

// timeless is c without its window.
func (c *choosing) timeless() *choosing {
	all := &choosing{group: c.group, live: map[string]fhir.Instant{}, refs: map[fhir.Key]fhir.Instant{}, targets: targets{all: c.targets.all, since: fhir.None, among: c.targets.among}}
	for id := range c.live {
		all.live[id] = fhir.None
	}
	for key := range c.refs {
		all.refs[key] = fhir.None
	}
	return all
}

// of is what of s is held of a type.
func (c *choosing) of(s Snapshot, list List, t fhir.Type) Snapshot {
	keys := map[fhir.Key]fhir.Instant{}
	switch {
	case list == Deleted && fhir.Referred(t) && fhir.InPatientCompartment(t):
		return s.Choosing(store.Choice{Patients: c.deleted, Nobodys: true})
	case list == Deleted && (fhir.Referred(t) || t == provenanceType):
		return s // whenever the type is asked for (decisions.md 4)
	case list == Deleted:
		return s.Choosing(store.Choice{Patients: c.deleted})
	case t == groupType: // only the one that is asked for
		if c.group != "" {
			keys[fhir.Key{Type: groupType, ID: c.group}] = c.refs[fhir.Key{Type: groupType, ID: c.group}]
		}
		return s.Choosing(store.Choice{Keys: keys}) // no other
	case t == provenanceType:
		chosen := c.targets.choice()
		chosen.Patients = c.live
		return s.Choosing(chosen)
	case !fhir.Referred(t):
		return s.Choosing(store.Choice{Patients: c.live})
	}
	for key, after := range c.refs {
		if key.Type == t {
			keys[key] = after
		}
	}
	if !fhir.InPatientCompartment(t) {
		return s.Choosing(store.Choice{Keys: keys})
	}
	// Rows of others do not go because somebody refers to them.
	return s.Choosing(store.Choice{Patients: c.live, Keys: keys, Outside: true})
}

var groupType, _ = fhir.ParseType("Group")

// choose plans a job whose rows are chosen one by one: it reads the directories of
// what may hold them, and the bodies of what is filtered. progress is told how far
// it is, as a share of 1.
//
// It goes on from the rule's checkpoint, and returns what was selected since the
// last one that it made.
func choose(ctx context.Context, s Snapshot, r *rule, o Options, how identifying, keep func(*rule, selection) error, progress func(Progress)) (_ selection, err error) {
	q := r.Pending
	o.Limits = o.Limits.under(q.MaxBytes)
	policy, err := o.policy(q, r.Upto)
	if err != nil {
		return nil, err
	}
	filters, err := o.sieves(q, r.Upto, policy)
	if err != nil {
		return nil, err
	}
	g := gathering{
		s: s, r: r, of: r.Level.of, how: how, filters: filters, withhold: policy, progress: progress,
		saving: saving{every: o.Checkpoint, begun: time.Now(), last: time.Now(), keep: keep}, pad: newPad(s),
	}
	g.pad.given = ctx.Err
	defer func() { err = errors.Join(err, g.pad.end()) }()
	if q.Attach != ByDefault {
		g.sent = &sending{}
	}
	if len(q.Elements) > 0 {
		if g.projection, err = projection(q.Elements); err != nil {
			return nil, err
		}
	}
	if q.By != 0 {
		g.arranging = g.arrange(q.By, o)
	}
	if err := g.restore(); err != nil {
		return nil, err
	}
	if err := g.conceal(ctx, q, o); err != nil {
		return nil, err
	}
	notes, called := q.Notes, [][]string(nil)
	if types := q.constrained(); r.Since != fhir.None && len(types) > 0 {
		notes = append(slices.Clip(notes), heldBack(types))
	}
	if types := q.constrained(); q.Departed && r.Since != fhir.None && len(types) > 0 {
		notes = append(slices.Clip(notes), undeparted(types))
	}
	notes = append(slices.Clip(notes), g.unsure...)
	if q.Departed && r.Since != fhir.None && policy.Whole() {
		notes = append(slices.Clip(notes), withheldUndeparted)
	}
	if q.aboutSome() {
		if err := g.recall(); err != nil {
			return nil, err
		}
		who, err := q.cohort(ctx, s, how, o.Bases, g.roll, g.out)
		if err != nil {
			return nil, err
		}
		if who.reads && len(q.Patients) > 0 { // the kick-off did not look
			if err := q.checkPatients(ctx, s, &o); err != nil {
				return nil, err
			}
		}
		called = who.called
		notes = append(slices.Clip(notes), who.notes...)
		if err := g.choose(ctx, q, who); err != nil {
			return nil, err
		}
	} else {
		g.measure(q.Types)
	}
	if err := g.follow(ctx, q, o); err != nil {
		return nil, err
	}
	if err := g.output(ctx, q, o); err != nil {
		return nil, err
	}
	if r.Since != fhir.None && !g.passed(stageDelete) {
		if err := g.add(ctx, Deleted, store.Deleted, q.deletable(), o.Limits); err != nil {
			return nil, err
		}
	}
	if q.departs() {
		if err := g.depart(ctx, q, o.Limits); err != nil {
			return nil, err
		}
	}
	if err := g.callOpted(); err != nil {
		return nil, err
	}
	if err := r.addErrors(s, append(slices.Clip(notes), g.notes...)); err != nil || called == nil {
		return g.files, err
	}
	return g.files, s.CallRoll(q.Group, r.Upto, called...)
}

// output makes the files of the list of that name.
func (g *gathering) output(ctx context.Context, q *Request, o Options) error {
	if g.arranging != nil {
		if err := g.enter(stagePrepare); err != nil {
			return err
		}
		if err := g.arranging.prepare(ctx); err != nil {
			return err
		}
	}
	if err := g.enter(stageSend); err != nil {
		return err
	}
	if err := g.add(ctx, Output, store.Live, q.Types, o.Limits); err != nil {
		return err
	}
	if q.Attach != ByDefault {
		if err := g.attach(ctx, q.Attach, o); err != nil {
			return err
		}
	}
	if g.arranging != nil {
		if err := g.arranging.finish(ctx, q.Types, o.Limits); err != nil {
			return err
		}
	}
	return g.settle()
}

// choose finds out what goes with the Patients of a cohort.
func (g *gathering) choose(ctx context.Context, q *Request, who *cohort) error {
	c := &choosing{group: q.Group, live: who.live, deleted: who.deleted, left: who.left, refs: map[fhir.Key]fhir.Instant{}}
	if len(q.Patients) > 0 {
		c.group = "" // a Group names all its members
	}
	g.c, g.of = c, c.of
	g.measure(q.Types)
	if err := g.references(ctx); err != nil {
		return err
	}
	if q.Attach == ByDefault {
		if err := g.provenance(ctx, q.Types); err != nil {
			return err
		}
	}
	if c.group != "" {
		c.refs[fhir.Key{Type: groupType, ID: c.group}] = g.r.Since
	}
	return nil
}

// A gathering is a selection in the making.
type gathering struct {
	s       Snapshot  // what the client may know of
	c       *choosing // nil: the export is about all Patients
	r       *rule
	of      func(s Snapshot, list List, t fhir.Type) Snapshot // what of s is held of a type
	how     identifying
	bare    Snapshot                // s without the veil
	out     *optedOut               // nil: nobody can
	veil    *store.Veil             // likewise
	gone    map[string]fhir.Instant // who has opted out in the window, and when
	opted   *uint32                 // checksum of out, once it is kept with the job
	unsure  []outcome.Issue         // what is not known of out
	filters sieves
	// projection is what is left of each resource; nil: all.
	projection *elements.Projection
	arranging  *arranging // nil: a type to a file
	following  *following // nil: nothing has attachments
	withhold   *withhold.Rule
	text, left []byte   // of the line at hand
	sent       *sending // what is; nil: nobody asks
	progress   func(Progress)
	come       Progress   // so far
	counted    int        // of its files, in that
	roll       store.Roll // whom earlier exports of the Group found in it
	rolled     *uint32    // checksum of that, once it is kept with the job

	blocks, done int             // that are looked at
	referred     []store.Section // of the types that go because something refers to them
	files        selection       // since the last checkpoint
	notes        []outcome.Issue
	saving       saving
	stage        stage // that is under way
	pad          *pad

	before    int  // files of another that share the snapshot
	published bool // a page, for whoever may have pages
	lost      int  // rows that could not be read
}

// measure finds out how much there is to do.
func (g *gathering) measure(types []fhir.Type) {
	wanted := false
	for _, sec := range g.r.everyones(g.s, store.Live, nil) {
		if g.c != nil && fhir.Referred(sec.Type) {
			g.referred, wanted = append(g.referred, sec), wanted || g.asks(types, sec.Type)
		}
	}
	if !wanted {
		g.referred = nil
	}
	for _, sec := range g.r.everyones(g.s, store.Live, nil) {
		if fhir.InPatientCompartment(sec.Type) && len(g.referred) > 0 {
			g.blocks += g.s.Blocks(sec)
		}
		if g.asks(types, sec.Type) {
			g.blocks += g.s.Blocks(sec)
		}
		if g.asks(types, sec.Type) && (g.projection != nil || g.filters[sec.Type] != nil || g.arranging != nil) {
			g.blocks += bodyCost * g.s.Blocks(sec)
		}
		if g.r.Pending.departs() && g.asks(types, sec.Type) && g.filters[sec.Type] != nil {
			g.blocks += bodyCost * g.s.Blocks(sec) // read twice
		}
	}
	if g.arranging != nil {
		g.arranging.measure(types)
	}
}

func (g *gathering) asks(types []fhir.Type, t fhir.Type) bool {
	return g.r.Access.exports(t) && (len(types) == 0 || slices.Contains(types, t))
}

func (g *gathering) step(sec store.Section) { g.did(g.s.Blocks(sec)) }

func (g *gathering) did(blocks int) {
	g.done += blocks
	for ; g.counted < len(g.r.Files); g.counted++ {
		if f := &g.r.Files[g.counted]; f.List == Output {
			g.come.Files, g.come.Rows = g.come.Files+1, g.come.Rows+f.Rows
		}
	}
	g.come.Share = float64(g.done) / float64(max(g.blocks, g.done, 1))
	g.progress(g.come)
}

// references finds what the Patients' rows refer to outside of compartments, and
// what that refers to in turn. What a row refers to that is sent goes as a
// whole; what only older rows refer to counts if it has changed (decisions.md 3).
func (g *gathering) references(ctx context.Context) error {
	if len(g.referred) == 0 {
		return nil
	}
	found, err := g.referredBy(ctx, g.r.Since)
	if err != nil {
		return err
	}
	if err := g.close(ctx, found, fhir.None); err != nil || g.r.Since == fhir.None {
		return err
	}
	if news, err := g.changed(); err != nil || !news {
		return err
	}
	if found, err = g.referredBy(ctx, fhir.None); err != nil {
		return err
	}
	return g.close(ctx, found, g.r.Since)
}

// changed tells whether anything of the types that are referred to has changed
// since the window began: what has changed behind _until is not sent, but is still
// in the export.
func (g *gathering) changed() (bool, error) {
	for _, sec := range g.referred {
		ext, err := g.s.Extents(sec, g.r.Since, g.s.Watermark())
		if err != nil || len(ext) > 0 {
			return len(ext) > 0, err
		}
	}
	return false, nil
}

// referredBy lists what the Patients' rows behind an instant refer to, and what
// the Group itself does. Other Groups' references are nobody's business: they
// name their members.
func (g *gathering) referredBy(ctx context.Context, after fhir.Instant) (map[fhir.Key]bool, error) {
	patients := make(map[string]fhir.Instant, len(g.c.live))
	for id, own := range g.c.live {
		patients[id] = min(own, after)
	}
	found := map[fhir.Key]bool{}
	for _, sec := range g.r.everyones(g.s, store.Live, nil) {
		c := store.Choice{Patients: patients}
		switch {
		case !fhir.InPatientCompartment(sec.Type):
			continue
		case sec.Type == groupType:
			c = store.Choice{Keys: map[fhir.Key]fhir.Instant{{Type: groupType, ID: g.c.group}: after}}
		}
		if err := g.refer(ctx, c, sec, after, found); err != nil {
			return nil, err
		}
		g.step(sec)
	}
	return found, nil
}

// refer adds what chosen rows of a section refer to of the types that go for
// that.
func (g *gathering) refer(ctx context.Context, c store.Choice, sec store.Section, after fhir.Instant, found map[fhir.Key]bool) error {
	err := g.s.Choosing(c).References(ctx, sec, after, g.r.Upto, func(k fhir.Key) {
		if fhir.Referred(k.Type) {
			found[k] = true
		}
	})
	if err != nil {
		return fmt.Errorf("find what %s refers to: %w", sec.Type, err)
	}
	return nil
}

// close adds resources that count behind an instant, and all that they refer to.
func (g *gathering) close(ctx context.Context, found map[fhir.Key]bool, after fhir.Instant) error {
	for len(found) > 0 {
		fresh := map[fhir.Key]fhir.Instant{}
		for k := range found {
			if have, known := g.c.refs[k]; !known || after < have {
				g.c.refs[k], fresh[k] = after, after
			}
		}
		if len(fresh) == 0 {
			return nil
		}
		// What one refers to that is itself sent goes as a whole.
		sent, err := g.referredByKeys(ctx, fresh)
		if err != nil {
			return err
		}
		if found = sent; after == fhir.None {
			continue
		}
		if err := g.close(ctx, sent, fhir.None); err != nil {
			return err
		}
		for k := range fresh {
			fresh[k] = fhir.None
		}
		if found, err = g.referredByKeys(ctx, fresh); err != nil {
			return err
		}
	}
	return nil
}

// referredByKeys lists what some resources refer to, each behind its instant.
func (g *gathering) referredByKeys(ctx context.Context, keys map[fhir.Key]fhir.Instant) (map[fhir.Key]bool, error) {
	found := map[fhir.Key]bool{}
	for _, sec := range g.referred {
		// Rows of others are not sent, so nothing goes for what they refer to.
		if err := g.refer(ctx, store.Choice{Keys: keys, Outside: true}, sec, g.r.Since, found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// add appends the files of one list.
func (g *gathering) add(ctx context.Context, list List, kind store.Kind, types []fhir.Type, l Limits) error {
	sections := g.r.sections(g.s, kind, types)
	done, at := 0, position{}
	if list == Output {
		done, at = g.rest(sections)
	}
	for i, sec := range sections {
		if g.c != nil && list == Deleted && sec.Type == groupType {
			continue // the one that is asked for is there, others are nobody's business
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if i < done {
			g.skipped(sec)
			continue
		}
		if i > done {
			at = position{}
		}
		s := g.held(list, sec.Type)
		extents, err := g.r.extents(s, sec)
		if err != nil {
			return err
		}
		if list == Output { // deletions are told whatever they were of (decisions.md 4), if the client may have that
			if err := g.section(ctx, s, sec, extents, at, l); err != nil {
				return err
			}
			if err := g.reached(sec.Type, nil); err != nil {
				return err
			}
			continue
		}
		if g.filters[sec.Type].constrains() {
			if extents, err = g.told(ctx, sec.Type, extents); err != nil {
				return err
			}
		}
		g.split(list, sec, extents, l)
	}
	return nil
}

// section appends the files of one, as it lies on the disk where that can be.
func (g *gathering) section(ctx context.Context, s Snapshot, sec store.Section, extents []store.Extent, at position, l Limits) (err error) {
	match := g.matcher(sec.Type)
	switch {
	case g.sent != nil && sec.Type == provenanceType:
		return nil // goes with what is sent, when that is known
	case g.sent != nil && match == nil:
		if err := s.Rows(ctx, sec, g.r.Since, g.r.Upto, func(row *store.Row) error { g.sent.add(row.Key); return nil }); err != nil {
			return err
		}
	}
	if err := g.write(ctx, s, sec, extents, at, g.r.Since, match, l); err != nil {
		return err
	}
	g.step(sec)
	return nil
}

// write makes files of what matches of extents from a place on; match nil: all.
func (g *gathering) write(ctx context.Context, s Snapshot, sec store.Section, extents []store.Extent, at position, since fhir.Instant, match func(line []byte) bool, l Limits) (err error) {
	if g.arranging != nil {
		return g.arranging.gather(ctx, s, sec, extents, at, since, match)
	}
	leads, err := g.leads(ctx, s, sec, extents, since, match != nil)
	switch {
	case err != nil:
		return err
	case leads && g.how != now:
		return errHeavy
	case leads || g.projection != nil || g.withhold.Cuts():
		return g.make(ctx, s, sec, extents, at, since, match, leads, l)
	}
	if match != nil {
		if extents, err = g.filtered(ctx, s, sec, extents, since, match); err != nil {
			return err
		}
	}
	g.split(Output, sec, extents, l)
	return nil
}

// split appends the files of extents.
func (g *gathering) split(list List, sec store.Section, extents []store.Extent, l Limits) {
	for _, f := range summed(g.s, split(list, sec.Type, extents, l), extents) {
		g.r.Files = append(g.r.Files, f)
		g.files = append(g.files, extents[f.From:f.To])
	}
}

// An extentForm is how an extent of a selection is kept.
type extentForm struct {
	Segment uint64 `json:"s"`
	Block   int    `json:"b"`
	Rows    int    `json:"n"`
	Bytes   int64  `json:"l"`
	Whole   bool   `json:"w,omitempty"`
	Picked  []byte `json:"p,omitempty"`
}

func (c selection) encode() ([]byte, error) {
	form := make([][]extentForm, len(c))
	for i, file := range c {
		for _, x := range file {
			form[i] = append(form[i], extentForm(x))
		}
	}
	return json.Marshal(form)
}

func decodeSelection(b []byte) (selection, error) {
	var form [][]extentForm
	if err := json.Unmarshal(b, &form); err != nil {
		return nil, fmt.Errorf("decode the selection of a job: %w", store.ErrCorrupt)
	}
	c := make(selection, len(form))
	for i, file := range form {
		for _, x := range file {
			c[i] = append(c[i], store.Extent(x))
		}
	}
	return c, nil
}
