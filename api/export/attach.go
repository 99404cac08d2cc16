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

// attach adds the Provenance of what is sent (decisions.md 3): whatever _since and
// _type say. Who made something goes only if it goes anyhow.
func (g *gathering) attach(ctx context.Context, a Attachment, o Options) error {
	sec := store.Section{Kind: store.Live, Type: provenanceType}
	if g.s.Blocks(sec) == 0 {
		return nil
	}
	extents, err := g.s.Extents(sec, fhir.None, g.r.Upto)
	if err != nil {
		return fmt.Errorf("find the Provenance: %w", err)
	}
	meant := func(line []byte) bool { return g.isAbout(line, o.Bases) }
	if f := g.filters[sec.Type]; f != nil {
		m := f.Matcher() // not that of matcher: a Provenance is not sent for what matches, nor one about it
		meant = func(line []byte) bool { return m.Match(line) && g.isAbout(line, o.Bases) }
	}
	match := meant
	if a == Latest {
		if match, err = g.latest(ctx, sec, extents, o.Bases, meant); err != nil {
			return err
		}
	}
	return g.write(ctx, g.s, sec, extents, position{}, fhir.None, match, o.Limits)
}

// deletable are the types whose deletions are told: what is attached is a
// client's, too, whatever _type says.
func (q *Request) deletable() []fhir.Type {
	if q.Attach == ByDefault || len(q.Types) == 0 || slices.Contains(q.Types, provenanceType) {
		return q.Types
	}
	return append(slices.Clip(q.Types), provenanceType)
}

// isAbout tells whether a Provenance is about anything that is sent. In an export
// of some Patients one that is about others, too, goes by what is a Patient's: it
// does not follow a Practitioner to whom everybody's data refers.
func (g *gathering) isAbout(line []byte, bases []string) bool {
	own, shared, others := false, false, false
	search.Targets(line, bases, func(key fhir.Key) {
		switch sent := g.sent[hashKey(key)]; {
		case sent && fhir.Referred(key.Type):
			shared = true
		case sent:
			own = true
		case g.c != nil && fhir.InPatientCompartment(key.Type):
			others = true
		}
	})
	return own || shared && !others
}

// A newest is the Provenance about a resource that was recorded last.
type newest struct {
	recorded, changed fhir.Instant
	id                string
}

// precedes is an order in which of two one is always last.
func (n newest) precedes(m newest) bool {
	switch {
	case n.recorded != m.recorded:
		return n.recorded < m.recorded
	case n.changed != m.changed:
		return n.changed < m.changed
	}
	return strings.Compare(n.id, m.id) < 0
}

// latest matches, of the Provenance that is meant, the newest about each resource
// that is sent.
func (g *gathering) latest(ctx context.Context, sec store.Section, extents []store.Extent, bases []string, meant func(line []byte) bool) (func(line []byte) bool, error) {
	of := map[uint64]newest{}
	_, err := g.s.Lines(ctx, fhir.None, g.r.Upto, extents, func(line []byte) error {
		if !meant(line) {
			return nil
		}
		n := newest{id: search.ID(line)}
		n.recorded, n.changed = search.Recorded(line)
		search.Targets(line, bases, func(key fhir.Key) {
			h := hashKey(key)
			if have, met := of[h]; g.sent[h] && (!met || have.precedes(n)) {
				of[h] = n
			}
		})
		return nil
	}, func() { g.did(bodyCost) })
	if err != nil {
		return nil, fmt.Errorf("find the latest %s: %w", sec.Type, err)
	}
	ids := make(map[string]bool, len(of))
	for _, n := range of {
		ids[n.id] = true
	}
	return func(line []byte) bool { return ids[search.ID(line)] }, nil
}
