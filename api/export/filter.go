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

// filtered is what a type's filters leave of its extents.
func (g *gathering) filtered(ctx context.Context, s Snapshot, sec store.Section, extents []store.Extent) ([]store.Extent, error) {
	f := g.filters[sec.Type]
	if f == nil {
		return extents, nil
	}
	kept, lost, err := s.Filter(ctx, g.r.Since, g.r.Upto, extents, f.Matcher().Match, func() { g.did(bodyCost) })
	if err != nil {
		return nil, fmt.Errorf("filter %s: %w", sec.Type, err)
	}
	g.did(bodyCost * (g.s.Blocks(sec) - len(extents)))
	g.noteLost(sec, lost)
	return kept, nil
}

func (g *gathering) noteLost(sec store.Section, lost int) {
	if lost == 0 {
		return
	}
	g.notes = append(g.notes, outcome.Issue{
		Severity: outcome.Error, Code: outcome.Incomplete,
		Text: fmt.Sprintf("%s: %d resources are damaged on the server's disk and could not be read, so they are missing here; its operator learns more with: tidemark check", sec.Type, lost),
	})
}
