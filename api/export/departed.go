package export

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// What has left an export and lives is told to a client that asks for it
// (decisions.md 4): all that it may hold of an earlier export of the same kind and
// that a full one would not bring any more. That is, of an increment,
//
//   - what has moved away from a Patient of the export and now lies in the
//     compartment of none,
//   - what lies in the compartment of one who has left the Group, and of no member,
//   - the Provenance about either, and about what was deleted, that is about
//     nothing else of the export,
//   - what has changed and does not match its filter; it may never have.
//
// What is still in the export is never told here, nor what is told as deleted, nor
// what came only because something referred to it. No line says where anything
// went, or when.

// departs tells whether there may be anything to tell: an export of all that the
// server has loses nothing but by a filter, or by people who opt out.
func (q *Request) departs() bool {
	return q.Departed && q.Since != fhir.None && (q.Level != System || len(q.Filters) > 0 || q.optsOut())
}

var marks = store.Section{Kind: store.Internal, Type: store.Departures}

// A departing finds out what has left. It reads directories, and of what is
// filtered the bodies, and keeps hashes only: there may be millions.
type departing struct {
	g     *gathering
	moved []uint64  // what has left any Patient in the window, sorted
	ours  []uint64  // and one of the export
	stays []bool    // of ours: is in the export, or told as deleted, or here
	types [256]bool // of ours
	gone  []uint64  // what a Provenance may have gone with, sorted
}

// depart appends the files that tell what has left.
func (g *gathering) depart(ctx context.Context, q *Request, l Limits) error {
	d := departing{g: g}
	if g.r.Level != System || g.out != nil {
		if err := d.find(ctx, q); err != nil {
			return fmt.Errorf("find what has left an export: %w", err)
		}
	}
	g.stage = stageDepart
	asked := d.asked(q)
	done := 0
	if c := g.r.Checkpoint; c != nil && c.Stage == stageDepart {
		done = slices.Index(asked, c.Type) + 1
	}
	for _, t := range asked[done:] {
		err := g.draft(Departed, t, position{}, l, func(m *making) error { return d.write(ctx, t, m) })
		if err != nil {
			return fmt.Errorf("write what has left an export of %s: %w", t, err)
		}
		if err := g.reached(t, nil); err != nil {
			return err
		}
	}
	return nil
}

// asked are the types of which it is told, in alphabetical order.
func (d *departing) asked(q *Request) (types []fhir.Type) {
	only := q.Types
	if q.Attach != ByDefault && len(only) > 0 { // Provenance comes whatever _type says
		only = append(slices.Clip(only), provenanceType)
	}
	for _, kind := range []store.Kind{store.Live, store.Deleted} {
		for _, sec := range d.g.r.sections(d.g.s, kind, only) {
			types = append(types, sec.Type)
		}
	}
	slices.SortFunc(types, func(a, b fhir.Type) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(types)
}

// find gathers what write asks of each type.
func (d *departing) find(ctx context.Context, q *Request) error {
	about := (d.g.c != nil || d.g.out != nil) && (q.Attach != ByDefault || d.g.asks(q.Types, provenanceType))
	if about && q.Attach != ByDefault {
		if err := d.g.findOwn(ctx); err != nil {
			return err
		}
	}
	if err := d.read(ctx); err != nil || !about {
		return err
	}
	return d.gather(ctx)
}

// read reads the marks of the window. It ends where the snapshot does, not where
// _until says: whose Patient has left the Group meanwhile is no more looked for in
// the next window.
func (d *departing) read(ctx context.Context) error {
	g := d.g
	err := g.s.Rows(ctx, marks, g.r.Since, g.s.Watermark(), func(row *store.Row) error {
		h := hashKey(row.Key)
		if len(g.leavers()) > 0 {
			d.moved = append(d.moved, h)
		}
		if d.lost(row) {
			d.ours, d.types[row.Key.Type] = append(d.ours, h), true
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.moved, d.ours = sorted(d.moved), sorted(d.ours)
	d.stays = make([]bool, len(d.ours))
	stays := func(row *store.Row) error {
		if i, is := slices.BinarySearch(d.ours, hashKey(row.Key)); is {
			d.stays[i] = true
		}
		return nil
	}
	if err := d.each(ctx, store.Live, Output, g.s.Watermark(), stays); err != nil {
		return err
	}
	return d.each(ctx, store.Deleted, Deleted, g.r.Upto, stays)
}

// each calls fn for the window's rows of a list whose types have lost any.
func (d *departing) each(ctx context.Context, kind store.Kind, list List, upto fhir.Instant, fn func(*store.Row) error) error {
	for _, sec := range d.g.r.everyones(d.g.s, kind, nil) {
		if !d.types[sec.Type] {
			continue
		}
		if err := d.g.of(d.g.s, list, sec.Type).Rows(ctx, sec, d.g.r.Since, upto, fn); err != nil {
			return err
		}
	}
	return nil
}

// lost tells whether a mark is about a Patient of the export, while he was one. Of
// Groups only the one that is asked for is in it, for its own sake.
func (d *departing) lost(mark *store.Row) bool {
	if d.g.c == nil {
		return d.g.wasIn(mark)
	}
	return mark.Key.Type != groupType && slices.ContainsFunc(mark.Patients, func(id string) bool {
		after, ours := d.g.c.deleted[id]
		return ours && mark.Instant > after
	})
}

func sorted(hashes []uint64) []uint64 {
	slices.Sort(hashes)
	return slices.Compact(hashes)
}

// gather finds what Provenance may have gone with: all that has left, or was
// deleted, of whatever type.
func (d *departing) gather(ctx context.Context) error {
	for i, h := range d.ours {
		if !d.stays[i] {
			d.gone = append(d.gone, h)
		}
	}
	add := func(row *store.Row) error {
		d.gone = append(d.gone, hashKey(row.Key))
		return nil
	}
	g := d.g
	for _, sec := range g.r.everyones(g.s, store.Live, nil) {
		if !fhir.OnlyTargeted(sec.Type) || sec.Type == provenanceType {
			continue
		}
		if err := d.leaving(ctx, sec.Type, add); err != nil {
			return err
		}
	}
	for _, sec := range g.r.everyones(g.s, store.Deleted, nil) {
		if !fhir.OnlyTargeted(sec.Type) || sec.Type == provenanceType && g.c != nil {
			continue
		}
		if err := g.of(g.s, Deleted, sec.Type).Rows(ctx, sec, g.r.Since, g.s.Watermark(), add); err != nil {
			return err
		}
		if g.c != nil {
			continue
		}
		// An export of everybody has Provenance about what was deleted long ago, until whose
		// that was have opted out.
		theirs := g.bare.Choosing(store.Choice{Patients: behind(g.leavers(), fhir.None)})
		if err := theirs.Rows(ctx, sec, fhir.None, g.r.Since, add); err != nil {
			return err
		}
	}
	d.gone = sorted(d.gone)
	return d.gatherAbout(ctx)
}

// gatherAbout adds the Provenance that has gone with what it is about, for another may be
// about that: in an export of everybody.
func (d *departing) gatherAbout(ctx context.Context) error {
	for known := -1; d.g.c == nil && known < len(d.gone); {
		known = len(d.gone)
		more := d.gone[:known:known] // leaving searches the others meanwhile
		err := d.leaving(ctx, provenanceType, func(row *store.Row) error {
			more = append(more, hashKey(row.Key))
			return nil
		})
		if err != nil {
			return err
		}
		d.gone = sorted(more)
	}
	return nil
}

// write tells what of a type has left.
func (d *departing) write(ctx context.Context, t fhir.Type, m *making) error {
	tell := func(row *store.Row) error { return d.tell(m, row.Key) }
	if d.g.filters[t].constrains() {
		if err := d.leavingUnchanged(ctx, t, tell); err != nil {
			return err
		}
		return d.unmatched(ctx, t, m)
	}
	if err := d.moving(ctx, t, tell); err != nil {
		return err
	}
	if err := d.leaving(ctx, t, tell); err != nil {
		return err
	}
	return d.unmatched(ctx, t, m)
}

// leavingUnchanged tells of a constrained type what has left with its Patient and was
// the client's when the window began: that is known of what has not changed since. Of
// all else it is not told, for it may never have been the client's (decisions.md 6).
func (d *departing) leavingUnchanged(ctx context.Context, t fhir.Type, tell func(*store.Row) error) error {
	if !d.mayLeave(t) {
		return nil
	}
	may, err := d.g.allowed(ctx, t)
	if err != nil {
		return err
	}
	return d.leaving(ctx, t, func(row *store.Row) error {
		if row.Section.Kind != store.Live || row.Instant > d.g.r.Since || !has(may, row.Key) {
			return nil
		}
		return tell(row)
	})
}

func (d *departing) tell(m *making, key fhir.Key) error {
	m.text = append(append(m.text[:0], store.Deletion(key, d.g.r.Upto)...), '\n')
	return m.add(m.text)
}

// moving tells what has moved away, each once.
func (d *departing) moving(ctx context.Context, t fhir.Type, tell func(*store.Row) error) error {
	if !d.types[t] {
		return nil
	}
	return d.g.s.Rows(ctx, marks, d.g.r.Since, d.g.s.Watermark(), func(mark *store.Row) error {
		i, is := slices.BinarySearch(d.ours, hashKey(mark.Key))
		if mark.Key.Type != t || !is || d.stays[i] {
			return nil
		}
		d.stays[i] = true
		return tell(mark)
	})
}

// mayLeave tells whether any of a type may have left with its Patient, or as Provenance
// with what it is about: that takes nobody who has left.
func (d *departing) mayLeave(t fhir.Type) bool {
	return len(d.g.leavers()) > 0 && t != groupType || t == provenanceType && len(d.gone) > 0
}

// leaving tells what has left with its Patient, and what Provenance has lost all
// that it is about.
func (d *departing) leaving(ctx context.Context, t fhir.Type, tell func(*store.Row) error) error {
	g := d.g
	if !d.mayLeave(t) {
		return nil
	}
	c := store.Choice{Patients: behind(g.leavers(), fhir.None)}
	if t == provenanceType {
		c.Refer = d.refer
	}
	err := g.bare.Choosing(c).Rows(ctx, store.Section{Kind: store.Live, Type: t}, fhir.None, g.s.Watermark(), func(row *store.Row) error {
		if g.holds(row) || d.moves(row) || !isAbout(row, d.refer) && !d.leaves(row) {
			return nil
		}
		return tell(row)
	})
	if err != nil || g.r.Upto >= g.s.Watermark() {
		return err
	}
	// What was deleted behind _until is told in the next window, but not of those who
	// have left in this one.
	s := g.bare.Choosing(store.Choice{Patients: behind(g.leavers(), g.r.Upto)})
	return s.Rows(ctx, store.Section{Kind: store.Deleted, Type: t}, g.r.Upto, g.s.Watermark(), func(row *store.Row) error {
		if d.moves(row) {
			return nil
		}
		return tell(row)
	})
}

// behind lets rows of some Patients count behind an instant.
func behind(patients map[string]fhir.Instant, after fhir.Instant) map[string]fhir.Instant {
	same := make(map[string]fhir.Instant, len(patients))
	for id := range patients {
		same[id] = after
	}
	return same
}

// holds tells whether a row of no type that is referred to is in the export,
// whenever it changed.
func (c *choosing) holds(row *store.Row) bool {
	for _, id := range row.Patients {
		if _, member := c.live[id]; member {
			return true
		}
	}
	return isAbout(row, c.targets.refer)
}

// isAbout tells whether a row is Provenance about any of some resources.
func isAbout(row *store.Row, some func(fhir.Key) (fhir.Instant, bool)) bool {
	return row.Section.Type == provenanceType && slices.ContainsFunc(row.References, func(key fhir.Key) bool {
		_, is := some(key)
		return is
	})
}

// moves tells whether a mark tells of a resource.
func (d *departing) moves(row *store.Row) bool { return has(d.ours, row.Key) }

func has(hashes []uint64, key fhir.Key) bool {
	_, is := slices.BinarySearch(hashes, hashKey(key))
	return is
}

// refer tells of what Provenance refers to whether it goes with that.
func (d *departing) refer(key fhir.Key) (after fhir.Instant, ok bool) {
	return fhir.None, fhir.OnlyTargeted(key.Type) && has(d.gone, key)
}

// leaves tells whether a row may have been in the export by the right of one who
// has left. What came to be after that is nobody's business: it is told only where
// that is not certain.
func (d *departing) leaves(row *store.Row) bool {
	for _, id := range row.Patients {
		if left, is := d.g.leavers()[id]; is && (row.Placed <= left || !d.isNew(row)) {
			return true
		}
	}
	return false
}

// isNew tells whether a row was certainly in nobody's compartment before it was
// placed where it is: it lies in one, has left none in the window, and never lived
// before, which only sources show that say when they sent something.
func (d *departing) isNew(row *store.Row) bool {
	return len(row.Patients) == 1 && !has(d.moved, row.Key) && row.Life.Empty() && row.Clock.Timestamp != fhir.None
}

// unmatched tells what has changed and does not match its filter. The bodies are
// read a second time: what is damaged was told when they were read first.
func (d *departing) unmatched(ctx context.Context, t fhir.Type, m *making) error {
	v := d.g.filters[t]
	if v == nil || v.asked == nil {
		return nil
	}
	g, s, sec := d.g, d.staying(t), store.Section{Kind: store.Live, Type: t}
	extents, err := g.r.extents(s, sec)
	if err != nil {
		return err
	}
	asked, lets := v.asks(), v.lets()
	_, err = s.Lines(ctx, g.r.Since, g.r.Upto, extents, func(line []byte) error {
		if asked(line) || !lets(line) {
			return nil
		}
		return d.tell(m, fhir.Key{Type: t, ID: search.ID(line)})
	}, func() { g.did(bodyCost) })
	g.did(bodyCost * (g.s.Blocks(sec) - len(extents)))
	return err
}

// staying is what is in the export for its own sake, without what came whole for
// another reason than that it has changed.
func (d *departing) staying(t fhir.Type) Snapshot {
	g := d.g
	if g.c == nil || t == groupType {
		return g.of(g.s, Output, t)
	}
	c := store.Choice{Patients: behind(g.c.live, g.r.Since)}
	if t == provenanceType {
		c.Refer = func(key fhir.Key) (fhir.Instant, bool) {
			_, is := g.c.targets.refer(key)
			return g.r.Since, is
		}
	}
	return g.s.Choosing(c)
}
