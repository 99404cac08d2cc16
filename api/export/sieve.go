package export

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// A sieve is what a resource of a type must match to be sent: one of the searches that
// its client asked for, and one of those by which it may have any of the type
// (decisions.md 6: constraints are OR-ed, and AND-ed with _typeFilter).
type sieve struct {
	asked *search.Filter // nil: all
	may   *search.Filter // nil: all
}

// matcher tells whether a line goes. Each goroutine needs its own.
func (v *sieve) matcher() func(line []byte) bool {
	asked, may := matcherOf(v.asked), matcherOf(v.may)
	return func(line []byte) bool { return may(line) && asked(line) }
}

// lets tells whether the client may have a line, whether it asked for it or not.
func (v *sieve) lets() func(line []byte) bool {
	if v == nil {
		return matcherOf(nil)
	}
	return matcherOf(v.may)
}

func (v *sieve) constrains() bool { return v != nil && v.may != nil }

func matcherOf(f *search.Filter) func(line []byte) bool {
	if f == nil {
		return func([]byte) bool { return true }
	}
	return f.Matcher().Match
}

// sieves are those of all types that have one.
type sieves map[fhir.Type]*sieve

func (o *Options) sieves(q *Request, now fhir.Instant) (sieves, error) {
	all := sieves{}
	asked, err := o.filters(q.Filters, now)
	if err != nil {
		return nil, err
	}
	for t, f := range asked {
		all[t] = &sieve{asked: f}
	}
	for _, t := range q.constrained() {
		may, err := o.filters(q.Access.constraints(t), now)
		if err != nil {
			return nil, err
		}
		if all[t] == nil {
			all[t] = &sieve{}
		}
		all[t].may = may[t]
	}
	return all, nil
}

// allowed are the resources of a constrained type that the client may have, as hashes.
// All of the type are read.
func (g *gathering) allowed(ctx context.Context, t fhir.Type) (hashes []uint64, err error) {
	extents, err := g.s.Extents(store.Section{Kind: store.Live, Type: t}, fhir.None, g.s.Watermark())
	if err != nil {
		return nil, err
	}
	lets := g.filters[t].lets()
	_, err = g.s.Lines(ctx, fhir.None, g.s.Watermark(), extents, func(line []byte) error {
		if lets(line) {
			hashes = append(hashes, hashKey(fhir.Key{Type: t, ID: search.ID(line)}))
		}
		return nil
	}, func() {})
	if err != nil {
		return nil, fmt.Errorf("find what of %s may be told: %w", t, err)
	}
	return sorted(hashes), nil
}

// told are, of a constrained type, the deletions that its client may know of: those of
// what it could have had at last. Of whatever has no last state any more nothing is
// said but that.
func (g *gathering) told(ctx context.Context, t fhir.Type, extents []store.Extent) ([]store.Extent, error) {
	var known, may []uint64
	lets := g.filters[t].lets()
	err := g.s.LastStates(ctx, t, g.r.Since, func(line []byte) error {
		h := hashKey(fhir.Key{Type: t, ID: search.ID(line)})
		if known = append(known, h); lets(line) {
			may = append(may, h)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find what %s was deleted: %w", t, err)
	}
	known, may = sorted(known), sorted(may)
	unknown := false
	kept, lost, err := g.s.Filter(ctx, g.r.Since, g.r.Upto, extents, func(line []byte) bool {
		key := deleted(line)
		unknown = unknown || !has(known, key)
		return has(may, key)
	}, func() {})
	if err != nil {
		return nil, fmt.Errorf("choose what %s was deleted: %w", t, err)
	}
	if unknown || lost > 0 {
		g.notes = append(g.notes, untold(t, g.r.Since, g.r.Upto))
	}
	return kept, nil
}

// deleted is what a line of store.Deletion is about.
func deleted(line []byte) fhir.Key {
	_, rest, _ := strings.Cut(string(line), `"url":"`)
	ref, _, _ := strings.Cut(rest, `"`)
	key, _ := fhir.ParseKey(ref) // the zero key is nobody's
	return key
}

// untold warns that deletions are not listed.
func untold(t fhir.Type, since, upto fhir.Instant) outcome.Issue {
	return outcome.Issue{
		Severity: outcome.Warning, Code: outcome.Incomplete,
		Text: fmt.Sprintf("%s: the scopes narrow this type to what matches a search, and of something that was deleted between _since, %v, and %v it is no longer known here whether it did: that is not listed in deleted. "+
			"To be rid of it, take an export without _since and drop what it does not hold", t, since, upto),
	}
}

// undeparted warns that of some types it is not told all that has left.
func undeparted(types []fhir.Type) outcome.Issue {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = t.String()
	}
	slices.Sort(names)
	return outcome.Issue{
		Severity: outcome.Warning, Code: outcome.Incomplete,
		Text: fmt.Sprintf("_departed: the scopes narrow these types to what matches a search, so of what has changed since _since and has left the export, or no longer matches, it is not told: %s. "+
			"To be rid of it, take an export without _since and drop what it does not hold", strings.Join(names, ", ")),
	}
}
