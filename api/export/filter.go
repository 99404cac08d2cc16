package export

import (
	"context"
	"fmt"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// Which resources belong to an export is decided before its filters: each narrows
// the files of its own type and nothing else. A Practitioner whom only a filtered
// Encounter refers to goes; a Patient that is filtered out keeps his Observations
// (Bulk Data, "_typeFilter").

// bodyCost is about how many times as long a block's body takes to read as its
// part of the directory, for the sake of progress.
const bodyCost = 10

// filters are those of each type, of which one must match.
func (o *Options) filters(texts []string, now fhir.Instant) (map[fhir.Type]*search.Filter, error) {
	queries := map[fhir.Type][]*search.Query{}
	for _, text := range texts {
		q, err := search.Parse(text, search.Env{Bases: o.Bases, Now: now})
		if err != nil { // the kick-off has read it: another version of this program
			return nil, refused(outcome.NotSupported, "_typeFilter: %v", err)
		}
		queries[q.Type] = append(queries[q.Type], q)
	}
	filters := map[fhir.Type]*search.Filter{}
	for t, of := range queries {
		filters[t] = search.New(of...)
	}
	return filters, nil
}

// matcher tells which lines of a type are sent, and notes what is if Provenance
// goes with it; nil: all.
func (g *gathering) matcher(t fhir.Type) func(line []byte) bool {
	v := g.filters[t]
	if v == nil {
		return nil
	}
	match := v.matcher()
	return func(line []byte) bool {
		ok := match(line)
		if ok && g.sent != nil {
			g.sent.add(fhir.Key{Type: t, ID: search.ID(line)})
		}
		return ok
	}
}

// filtered is what of extents matches.
func (g *gathering) filtered(ctx context.Context, s Snapshot, sec store.Section, extents []store.Extent, since fhir.Instant, match func(line []byte) bool) ([]store.Extent, error) {
	kept, lost, err := s.Filter(ctx, since, g.r.Upto, extents, match, func() { g.did(bodyCost) })
	if err != nil {
		return nil, fmt.Errorf("filter %s: %w", sec.Type, err)
	}
	g.did(bodyCost * (g.s.Blocks(sec) - len(extents)))
	g.noteLost(sec, lost)
	return kept, nil
}

func (g *gathering) noteLost(sec store.Section, lost int) {
	if g.lost += lost; lost > 0 {
		g.notes = append(g.notes, lostRows(sec.Type, lost))
	}
}

// lostRows says that an export is not whole.
func lostRows(t fhir.Type, n int) outcome.Issue {
	return outcome.Issue{
		Severity: outcome.Error, Code: outcome.Incomplete,
		Text: fmt.Sprintf("%s: %d resources are damaged on the server's disk and could not be read, so they are missing here; its operator learns more with: tidemark check", t, n),
	}
}
