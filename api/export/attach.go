package export

import (
	"context"
	"fmt"
	"slices"

	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// attach adds the Provenance of what is sent (decisions.md 3): whatever _since and
// _type say. Who made something goes only if it goes anyhow.
func (g *gathering) attach(ctx context.Context, a Attachment, o Options) error {
	if g.passed(stageAttach) {
		return nil
	}
	if err := g.enter(stageAttach); err != nil {
		return err
	}
	g.sent.end()
	sec := store.Section{Kind: store.Live, Type: provenanceType}
	if g.s.Blocks(sec) == 0 || !g.r.Access.exports(sec.Type) {
		return nil
	}
	if err := g.findOwn(ctx); err != nil {
		return err
	}
	extents, err := g.s.Extents(sec, fhir.None, g.r.Upto)
	if err != nil {
		return fmt.Errorf("find the Provenance: %w", err)
	}
	meant := func(line []byte) bool { return g.isAbout(line, o.Bases) }
	if v := g.filters[sec.Type]; v != nil {
		match := v.matcher() // not that of matcher: a Provenance is not sent for what matches, nor one about it
		meant = func(line []byte) bool { return match(line) && g.isAbout(line, o.Bases) }
	}
	match := meant
	if a == Latest {
		if match, err = g.latest(ctx, sec, extents, o.Bases, meant); err != nil {
			return err
		}
	}
	_, at := g.rest([]store.Section{sec})
	return g.write(ctx, g.s, sec, extents, at, fhir.None, match, o.Limits)
}

// deletable are the types whose deletions are told: what is attached is a
// client's, too, whatever _type says.
func (q *Request) deletable() []fhir.Type {
	if q.Attach == ByDefault || len(q.Types) == 0 || slices.Contains(q.Types, provenanceType) {
		return q.Types
	}
	return append(slices.Clip(q.Types), provenanceType)
}

// findOwn gathers what is the Patients' of an export of some, sent or not, if nobody
// has yet.
func (g *gathering) findOwn(ctx context.Context) error {
	if g.c == nil || len(g.c.targets.all) > 0 {
		return nil
	}
	return g.findTargets(ctx)
}

// isAbout tells whether a Provenance is about anything that is sent. In an export
// of some Patients one that is about others, too, goes by what is a Patient's: it
// does not follow a Practitioner to whom everybody's data refers.
func (g *gathering) isAbout(line []byte, bases []string) bool {
	own, shared, others := false, false, false
	search.Targets(line, bases, func(key fhir.Key) {
		switch _, sent := g.sent.find(key); {
		case sent && fhir.Referred(key.Type):
			shared = true
		case sent:
			own = true
		case g.c != nil && fhir.InPatientCompartment(key.Type) && !has(g.c.targets.all, key):
			others = true
		}
	})
	return own || shared && !others
}

// sending is what an export sends, as hashes: there may be many millions.
type sending struct {
	all    []uint64
	kept   int // of them are put aside, on leaves
	leaves []*leaf
	forms  []leafForm
}

func (s *sending) add(key fhir.Key) { s.all = append(s.all, hashKey(key)) }

// end is called when all are there, before any is looked for.
func (s *sending) end() {
	whole := s.kept == len(s.all)
	slices.Sort(s.all)
	s.all = slices.Compact(s.all)
	if s.kept = len(s.all); !whole { // now nobody can tell which are put aside
		s.kept, s.leaves, s.forms = 0, nil, nil
	}
}

// putAside puts on a leaf what has come since the last time.
func (s *sending) putAside(p *pad) error {
	fresh := s.all[s.kept:]
	if len(fresh) == 0 {
		return nil
	}
	l, err := p.writeWords(fresh)
	if err != nil {
		return err
	}
	s.leaves, s.forms, s.kept = append(s.leaves, l), append(s.forms, l.form(int64(len(fresh)))), len(s.all)
	return nil
}

// restore takes up what an earlier process has put aside.
func (s *sending) restore(p *pad, forms []leafForm) error {
	for _, f := range forms {
		l, err := p.find(f)
		if err != nil {
			return err
		}
		if s.all, err = l.readWords(s.all, f.Holds); err != nil {
			return err
		}
		s.leaves = append(s.leaves, l)
	}
	s.forms, s.kept = forms, len(s.all)
	return nil
}

func (s *sending) find(key fhir.Key) (int, bool) { return slices.BinarySearch(s.all, hashKey(key)) }

// A newest is the Provenance about a resource that was recorded last.
type newest struct {
	recorded, changed fhir.Instant
	hash              uint64
}

// precedes is an order in which of two one is always last.
func (n newest) precedes(m newest) bool {
	switch {
	case n.recorded != m.recorded:
		return n.recorded < m.recorded
	case n.changed != m.changed:
		return n.changed < m.changed
	}
	return n.hash < m.hash
}

// latest matches, of the Provenance that is meant, the newest about each resource
// that is sent.
func (g *gathering) latest(ctx context.Context, sec store.Section, extents []store.Extent, bases []string, meant func(line []byte) bool) (func(line []byte) bool, error) {
	var some []newest
	of := make([]int32, len(g.sent.all)) // about each: which of them, counted from 1
	_, err := g.s.Lines(ctx, fhir.None, g.r.Upto, extents, func(line []byte) error {
		if !meant(line) {
			return nil
		}
		n := newest{hash: hashKey(fhir.Key{Type: sec.Type, ID: search.ID(line)})}
		n.recorded, n.changed = search.Recorded(line)
		some = append(some, n)
		search.Targets(line, bases, func(key fhir.Key) {
			if i, sent := g.sent.find(key); sent && (of[i] == 0 || some[of[i]-1].precedes(n)) {
				of[i] = int32(len(some))
			}
		})
		return nil
	}, func() { g.did(bodyCost) })
	if err != nil {
		return nil, fmt.Errorf("find the latest %s: %w", sec.Type, err)
	}
	var chosen sending
	for _, n := range of {
		if n > 0 {
			chosen.all = append(chosen.all, some[n-1].hash)
		}
	}
	chosen.end()
	return func(line []byte) bool {
		_, is := chosen.find(fhir.Key{Type: sec.Type, ID: search.ID(line)})
		return is
	}, nil
}
