package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// A Choice is which rows an export is about: those in the compartments of some
// Patients, and some resources by their keys; the zero value is those in the
// compartment of any Patient. The same choice of the same snapshot always picks
// the same rows.
type Choice struct {
	// Patients are those in whose compartments rows count, each with the change
	// instant behind which they do: a window's `_since`, None for who has joined
	// since then.
	Patients map[string]fhir.Instant
	// Keys are resources that count whatever compartments they lie in, likewise.
	Keys map[fhir.Key]fhir.Instant
	// Outside: Keys count only where they lie in nobody's compartment.
	Outside bool
	// Nobodys: rows in nobody's compartment count as well.
	Nobodys bool
	// Refer tells of what rows refer to whether they count for that, and behind
	// which change instant.
	Refer func(fhir.Key) (after fhir.Instant, ok bool)
	// Among are all that Refer can let count, or more, such as ProvenanceOf lists: only
	// where they lie is Refer asked. nil: anything may be.
	Among []fhir.Key
}

// Renewing is s where of the rows that count those do from the beginning that
// refer to a Binary that is renewed: with it they have changed. It is closed
// with s.
func (s *Snapshot) Renewing(renewed func(fhir.Key) bool) *Snapshot {
	c := choosing{every: true}
	if s.choice != nil {
		c = s.choice.again()
	}
	c.renewed = renewed
	again := *s
	again.choice = &c
	return &again
}

// again is the same, to be changed.
func (c *choosing) again() choosing {
	return choosing{Choice: c.Choice, every: c.every, renewed: c.renewed, veil: c.veil, first: c.first, hashes: c.hashes}
}

// Attached tells whether a row in the blocks of extents may refer to a Binary, or an
// attachment lead elsewhere. It reads nothing.
func (s *Snapshot) Attached(ext []Extent) bool {
	segs := finder{segs: s.segs}
	return slices.ContainsFunc(ext, func(e Extent) bool {
		g := segs.find(segment.ID(e.Segment))
		return g != nil && g.r.Blocks()[e.Block].Attached > 0
	})
}

// AnyAttached is Attached for all blocks of a section, whose tables it does not go
// through: each kick-off asks.
func (s *Snapshot) AnyAttached(sec segment.Section) bool {
	return slices.ContainsFunc(s.segs, func(g *seg) bool { return g.r.Section(sec).Attached })
}

// choosing is a Choice at work.
type choosing struct {
	Choice
	every   bool // all rows, whatever Choice says
	renewed func(fhir.Key) bool
	veil    *veiling     // nil: nothing is hidden
	first   fhir.Instant // of all their instants
	hashes  []uint32     // of Patients, sorted

	located sync.Once
	blocks  map[location]bool // where rows of Keys may lie; nil: anywhere
}

// A location is a block.
type location struct {
	segment segment.ID
	block   int
}

// Choosing is s for the rows of a choice only. It is closed with s.
func (s *Snapshot) Choosing(of Choice) *Snapshot {
	c := &choosing{Choice: of, first: always}
	if s.choice != nil {
		c.veil = s.choice.veil
	}
	for id, after := range c.Patients {
		c.first = min(c.first, after)
		c.hashes = append(c.hashes, segment.PatientsHash([]string{id}))
	}
	for _, after := range c.Keys {
		c.first = min(c.first, after)
	}
	if c.Refer != nil {
		c.first = fhir.None
	}
	slices.Sort(c.hashes)
	chosen := *s
	chosen.choice = c
	return &chosen
}

// A look is what a plan must do about the rows of a block.
type look uint8

const (
	none  look = iota // no row of it can be meant
	all               // every row is meant
	apart             // each row is to be asked
)

// ofAll tells whether the choice is what lies in the compartment of any Patient.
func (c *choosing) ofAll() bool {
	return c.every || c.Patients == nil && c.Keys == nil && c.Refer == nil
}

// since is the change instant behind which rows count at the earliest.
func (c *choosing) since(since fhir.Instant) fhir.Instant {
	if c != nil && (c.renewed != nil || c.veil.bringsBack()) {
		return fhir.None
	}
	return c.least(since)
}

// sinceIn is the same for the rows of block b of a section that ends before block to.
func (c *choosing) sinceIn(s *seg, b, to int, since fhir.Instant) fhir.Instant {
	if c != nil && (c.renewed != nil && s.r.Blocks()[b].Attached > 0 || c.veil.bringsBack() && c.veil.concerns(s, b, to)) {
		return fhir.None
	}
	return c.least(since)
}

// least is since without what is renewed.
func (c *choosing) least(since fhir.Instant) fhir.Instant {
	if c == nil || c.ofAll() {
		return since
	}
	return min(since, c.first)
}

// look decides about block b of a section that ends before block to.
func (c *choosing) look(s *seg, b, to int) look {
	if c == nil {
		return all
	}
	how := c.chosen(s, b, to)
	if how == all && c.veil.concerns(s, b, to) {
		return apart
	}
	return how
}

// chosen is look whatever is hidden.
func (c *choosing) chosen(s *seg, b, to int) look {
	k := &s.r.Blocks()[b]
	if c.every {
		if c.renewed != nil && k.Attached > 0 {
			return apart
		}
		return all
	}
	switch {
	case c.Refer != nil && c.Among == nil, c.named() && (c.blocks == nil || c.blocks[location{s.id(), b}]):
		return apart
	case c.named() && c.Patients == nil:
		return none
	case c.Nobodys && k.Loose > 0:
		return apart
	case k.Loose == k.Rows:
		return none
	case c.Patients != nil && passes(c.hashes, s, b, to):
		return none
	case c.Patients == nil && k.Loose == 0 && (c.renewed == nil || k.Attached == 0):
		return all
	}
	return apart
}

// named tells whether the choice says where to look by resources' keys.
func (c *choosing) named() bool { return c.Keys != nil || c.Among != nil }

// maxLocated is how many resources are looked for one by one: of more, every
// block is likely to hold some.
const maxLocated = 20_000

// locate finds the blocks in which lies what a choice names, if the index knows: it
// has a resource's newest row, which may be forgotten. Of what is too new for s the
// row before, if there is one, lies where rows have died since.
func (s *Snapshot) locate() (err error) {
	c := s.choice
	if c == nil || !c.named() || len(c.Keys)+len(c.Among) > maxLocated {
		return nil
	}
	c.located.Do(func() {
		err = s.db.whileOpen(func() error {
			blocks, origin := map[location]bool{}, s.db.origins()
			changed := map[fhir.Type]bool{}
			for key := range c.names() {
				st, err := readState(s.db.kv, key, origin)
				if err != nil {
					return err
				}
				if st == nil {
					continue
				}
				if st.Instant > s.pin.Watermark {
					changed[key.Type] = true
					continue
				}
				sec, place := st.Section(key.Type), st.Place()
				for _, g := range s.segs {
					if g.first > place.Instant || place.Instant > g.last {
						continue
					}
					if b := g.r.Find(sec, place); b >= 0 {
						blocks[location{g.id(), b}] = true
					}
				}
			}
			known, err := s.died(blocks, changed)
			if known && !s.db.mayHaveForgotten(s.pin.Watermark) { // asked last: merges go on
				c.blocks = blocks
			}
			return err
		})
	})
	return err
}

// died adds the blocks in which rows of some types may have died behind the watermark.
// It tells whether all commits are known that the index has.
func (s *Snapshot) died(blocks map[location]bool, types map[fhir.Type]bool) (known bool, err error) {
	if len(types) == 0 {
		return true, nil
	}
	committed, err := s.db.committed()
	if err != nil {
		return false, err
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	closed := s.db.view.closed.Instant
	for _, g := range s.segs {
		for _, info := range g.r.Sections() {
			for b := info.From; b < info.To && types[info.Type]; b++ {
				// Of rows that merges have moved deaths are noted elsewhere.
				moved := g.dropped || g.window() == nil && g.r.Blocks()[b].First <= closed
				if d := g.dead[b]; moved || d != nil && d.last > s.pin.Watermark {
					blocks[location{g.id(), b}] = true
				}
			}
		}
	}
	return s.db.meta.Commit >= committed, nil
}

// committed is the number of the last commit in the index. It is shown a moment later.
func (db *DB) committed() (uint64, error) {
	v, closer, err := db.kv.Get(index.MetaKey())
	if err != nil {
		return 0, fmt.Errorf("read the store's state: %w", err)
	}
	m, err := index.DecodeMeta(v)
	return m.Commit, errors.Join(err, closer.Close())
}

// mayHaveForgotten tells whether the index may know nothing any more of resources that
// a snapshot shows, as their deletions were forgotten since.
func (db *DB) mayHaveForgotten(watermark fhir.Instant) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return watermark < db.meta.Forgotten
}

// names are the resources that the choice names.
func (c *choosing) names() iter.Seq[fhir.Key] {
	return func(yield func(fhir.Key) bool) {
		for key := range c.Keys {
			if !yield(key) {
				return
			}
		}
		for _, key := range c.Among {
			if !yield(key) {
				return
			}
		}
	}
}

// behind tells for each row of a block behind which instant it counts; for those
// that are not meant, always. A row in several compartments goes by whichever
// lets it (decisions: a row goes out by the right of any patient in the set).
func (c *choosing) behind(d *segment.Directory, b int, sec segment.Section, since fhir.Instant) ([]segment.Cell, []fhir.Instant, error) {
	if c == nil {
		cells, err := d.Cells(b)
		return cells, nil, err
	}
	links, err := d.Links(b)
	if err != nil {
		return nil, nil, err
	}
	after := slices.Repeat([]fhir.Instant{since}, len(links.Patients.Names))
	if !c.ofAll() {
		for i, id := range links.Patients.Names {
			after[i] = always
			if a, ok := c.Patients[id]; ok {
				after[i] = a
			}
		}
	}
	behind := make([]fhir.Instant, len(links.Cells))
	for i := range behind {
		behind[i] = always
		if c.every {
			behind[i] = since
			continue
		}
		if c.Nobodys && len(links.Patients.Of(i)) == 0 {
			behind[i] = since
		}
		for _, p := range links.Patients.Of(i) {
			behind[i] = min(behind[i], after[p])
		}
	}
	c.byReference(links, behind)
	if err := c.byKey(d, b, sec, links, behind); err != nil {
		return nil, nil, err
	}
	c.renew(links, behind)
	if err := c.veil.lay(d, b, sec, links, behind); err != nil {
		return nil, nil, err
	}
	return links.Cells, behind, nil
}

// renew lets those of the rows that count do so from the beginning which refer to
// what is renewed.
func (c *choosing) renew(links segment.Links, behind []fhir.Instant) {
	if c.renewed == nil {
		return
	}
	renewed := make([]bool, len(links.References.Names))
	for i, key := range links.References.Names {
		renewed[i] = key.Type == fhir.Binary && c.renewed(key)
	}
	for i := range behind {
		if behind[i] == always {
			continue
		}
		for _, r := range links.References.Of(i) {
			if renewed[r] {
				behind[i] = fhir.None
			}
		}
	}
}

// byReference lets the rows count that refer to something chosen.
func (c *choosing) byReference(links segment.Links, behind []fhir.Instant) {
	if c.Refer == nil {
		return
	}
	after := make([]fhir.Instant, len(links.References.Names))
	for i, key := range links.References.Names {
		after[i] = always
		if a, ok := c.Refer(key); ok {
			after[i] = a
		}
	}
	for i := range behind {
		for _, r := range links.References.Of(i) {
			behind[i] = min(behind[i], after[r])
		}
	}
}

// byKey lets the resources count that are chosen by their keys.
func (c *choosing) byKey(d *segment.Directory, b int, sec segment.Section, links segment.Links, behind []fhir.Instant) error {
	if len(c.Keys) == 0 {
		return nil
	}
	rows, err := d.Rows(nil, b)
	if err != nil {
		return err
	}
	for i := range rows {
		if c.Outside && len(links.Patients.Of(i)) > 0 {
			continue
		}
		if after, ok := c.Keys[fhir.Key{Type: sec.Type, ID: rows[i].Key.ID}]; ok {
			behind[i] = min(behind[i], after)
		}
	}
	return nil
}

// References calls fn for what the rows that Extents would list for the same
// window refer to of what lies in nobody's compartment, and for the targets of
// Provenance. A key may come more than once.
func (s *Snapshot) References(ctx context.Context, sec segment.Section, since, upto fhir.Instant, fn func(fhir.Key)) error {
	return s.looked(ctx, sec, since, upto, func(d *segment.Directory, b int, counted func() ([]bool, error)) error {
		links, err := d.Links(b)
		if err != nil || len(links.References.Names) == 0 {
			return err
		}
		counts, err := counted()
		if err != nil {
			return err
		}
		seen := make([]bool, len(links.References.Names))
		for i, ok := range counts {
			if !ok {
				continue
			}
			for _, r := range links.References.Of(i) {
				if !seen[r] {
					seen[r] = true
					fn(links.References.Names[r])
				}
			}
		}
		return nil
	})
}

// Rows calls fn for the rows that Extents would list for the same window. fn may
// not keep them.
func (s *Snapshot) Rows(ctx context.Context, sec segment.Section, since, upto fhir.Instant, fn func(*segment.Row) error) error {
	var rows []segment.Row
	return s.looked(ctx, sec, since, upto, func(d *segment.Directory, b int, counted func() ([]bool, error)) error {
		counts, err := counted()
		if err != nil || !slices.Contains(counts, true) {
			return err
		}
		if rows, err = d.Rows(rows[:0], b); err != nil {
			return err
		}
		for i, ok := range counts {
			if !ok {
				continue
			}
			if err := fn(&rows[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// looked calls fn for the blocks in which rows may count, with what finds out
// which do.
func (s *Snapshot) looked(ctx context.Context, sec segment.Section, since, upto fhir.Instant, fn func(d *segment.Directory, b int, counted func() ([]bool, error)) error) error {
	if err := s.locate(); err != nil {
		return err
	}
	v := s.span(since, upto)
	for _, g := range s.segs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if info := g.r.Section(sec); info.From < info.To && g.last > s.choice.since(since) && g.first <= v.upto {
			if err := s.lookedIn(g, info, v.of(g), fn); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Snapshot) lookedIn(g *seg, info segment.SectionInfo, v span, fn func(d *segment.Directory, b int, counted func() ([]bool, error)) error) error {
	var r dirReading // most segments hold nothing of what few are asked for
	defer r.close()
	for b := info.From; b < info.To; b++ {
		k := &g.r.Blocks()[b]
		if k.Last <= s.choice.sinceIn(g, b, info.To, v.since) || k.First > v.upto || v.passed(g.r.Blocks(), b, info.To) || s.choice.look(g, b, info.To) == none {
			continue
		}
		d, err := r.of(s, g)
		if err != nil {
			return err
		}
		err = fn(d, b, func() ([]bool, error) {
			s.db.mu.Lock()
			dead := g.dead[b].until(v.w)
			s.db.mu.Unlock()
			_, counts, err := s.counted(d, info.Section, b, dead, v)
			return counts, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
