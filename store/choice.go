package store

import (
	"context"
	"errors"
	"slices"
	"sort"

	"tidemark/store/fhir"
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

	least  fhir.Instant // of all their instants
	hashes []uint32     // of Patients, sorted
}

// Choosing is s for the rows of a choice only. It is closed with s.
func (s *Snapshot) Choosing(c Choice) *Snapshot {
	c.least = always
	for id, after := range c.Patients {
		c.least = min(c.least, after)
		c.hashes = append(c.hashes, segment.PatientsHash([]string{id}))
	}
	for _, after := range c.Keys {
		c.least = min(c.least, after)
	}
	slices.Sort(c.hashes)
	chosen := *s
	chosen.choice = &c
	return &chosen
}

// A look is what a plan must do about the rows of a block.
type look uint8

const (
	none  look = iota // no row of it can be meant
	all               // every row is meant
	apart             // each row is to be asked
)

// since is the change instant behind which rows count at the earliest.
func (c *Choice) since(since fhir.Instant) fhir.Instant {
	if c == nil || c.Keys == nil && c.Patients == nil {
		return since
	}
	return min(since, c.least)
}

// look decides about block b of a section that ends before block to.
func (c *Choice) look(s *seg, b, to int) look {
	if c == nil {
		return all
	}
	k := &s.r.Blocks()[b]
	switch {
	case c.Keys != nil:
		return apart
	case k.Loose == k.Rows:
		return none
	case c.Patients != nil && c.passes(s, b, to):
		return none
	case c.Patients == nil && k.Loose == 0:
		return all
	}
	return apart
}

// passes tells whether the order of a settled segment leaves none of the
// Patients in a block: rows of one Patient lie where the hash of its id says.
func (c *Choice) passes(s *seg, b, to int) bool {
	blocks := s.r.Blocks()
	if s.window() == nil || blocks[b].Shared > 0 {
		return false
	}
	first := blocks[b].Lead.Patients
	i := sort.Search(len(c.hashes), func(i int) bool { return c.hashes[i] >= first })
	return i == len(c.hashes) || b+1 < to && c.hashes[i] > blocks[b+1].Lead.Patients
}

// behind tells for each row of a block behind which instant it counts; for those
// that are not meant, always. A row in several compartments goes by whichever
// lets it (decisions: a row goes out by the right of any patient in the set).
func (c *Choice) behind(d *segment.Directory, b int, sec segment.Section, since fhir.Instant) ([]segment.Cell, []fhir.Instant, error) {
	if c == nil {
		cells, err := d.Cells(b)
		return cells, nil, err
	}
	links, err := d.Links(b)
	if err != nil {
		return nil, nil, err
	}
	after := slices.Repeat([]fhir.Instant{since}, len(links.Patients.Names))
	if c.Patients != nil || c.Keys != nil {
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
		for _, p := range links.Patients.Of(i) {
			behind[i] = min(behind[i], after[p])
		}
	}
	return links.Cells, behind, c.byKey(d, b, sec, behind)
}

// byKey lets the resources count that are chosen by their keys.
func (c *Choice) byKey(d *segment.Directory, b int, sec segment.Section, behind []fhir.Instant) error {
	if len(c.Keys) == 0 {
		return nil
	}
	rows, err := d.Rows(nil, b)
	if err != nil {
		return err
	}
	for i := range rows {
		if after, ok := c.Keys[fhir.Key{Type: sec.Type, ID: rows[i].Key.ID}]; ok {
			behind[i] = min(behind[i], after)
		}
	}
	return nil
}

// References calls fn for what the rows that Extents would list for the same
// window refer to of what lies in nobody's compartment. A key may come more than
// once.
func (s *Snapshot) References(ctx context.Context, sec segment.Section, since, upto fhir.Instant, fn func(fhir.Key)) error {
	v := s.span(since, upto)
	for _, g := range s.segs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if info := g.r.Section(sec); info.From < info.To && g.last > s.choice.since(since) && g.first <= v.upto {
			if err := s.references(g, info, v.of(g), fn); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Snapshot) references(g *seg, info segment.SectionInfo, v span, fn func(fhir.Key)) error {
	d, err := g.r.OpenDirectory()
	if err != nil {
		return err
	}
	for b := info.From; b < info.To && err == nil; b++ {
		k := &g.r.Blocks()[b]
		if k.Last > s.choice.since(v.since) && k.First <= v.upto && k.Last >= v.after.Instant && s.choice.look(g, b, info.To) != none {
			err = s.referencesOf(g, d, info.Section, b, v, fn)
		}
	}
	return errors.Join(err, d.Close())
}

func (s *Snapshot) referencesOf(g *seg, d *segment.Directory, sec segment.Section, b int, v span, fn func(fhir.Key)) error {
	links, err := d.Links(b)
	if err != nil || len(links.References.Names) == 0 {
		return err
	}
	s.db.mu.Lock()
	dead := g.dead[b].until(v.w)
	s.db.mu.Unlock()
	_, counts, err := s.counted(d, sec, b, dead, v)
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
}
