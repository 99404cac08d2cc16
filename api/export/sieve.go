package export

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"tidemark/api/outcome"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// A sieve is what a resource of a type must match to be sent: one of the searches that
// its client asked for, and one of those by which it may have any of the type
// (decisions.md 6: constraints are OR-ed, and AND-ed with _typeFilter); and no policy may
// withhold it.
type sieve struct {
	typ      fhir.Type
	asked    *search.Filter // nil: all
	may      *search.Filter // nil: all
	withhold *withhold.Rule
}

// matcher tells whether a line goes. Each goroutine needs its own.
func (v *sieve) matcher() func(line []byte) bool {
	asked, lets := v.asks(), v.lets()
	return func(line []byte) bool { return lets(line) && asked(line) }
}

// asks tells whether the client asked for a line. It is asked of what is sent of it: by
// what it finds a search would tell what is in elements that are withheld.
func (v *sieve) asks() func(line []byte) bool {
	asked := matcherOf(v.asked)
	if v.asked == nil || !v.withhold.Cuts() {
		return asked
	}
	var text []byte
	return func(line []byte) bool {
		text = v.withhold.Cut(text[:0], line, v.typ)
		return asked(text)
	}
}

// lets tells whether the client may have a line, whether it asked for it or not.
func (v *sieve) lets() func(line []byte) bool {
	if v == nil {
		return matcherOf(nil)
	}
	may, goes := matcherOf(v.may), v.withhold.Matcher(v.typ)
	return func(line []byte) bool { return may(line) && goes(line) }
}

func (v *sieve) constrains() bool { return v != nil && (v.may != nil || v.withhold.Whole()) }

func matcherOf(f *search.Filter) func(line []byte) bool {
	if f == nil {
		return func([]byte) bool { return true }
	}
	return f.Matcher().Match
}

// sieves are those of all types that have one.
type sieves map[fhir.Type]*sieve

func (o *Options) sieves(q *Request, now fhir.Instant, policy *withhold.Rule) (sieves, error) {
	all := sieves{}
	if policy != nil { // of every type: one resource may stand in another
		for _, t := range fhir.AllTypes() {
			all[t] = &sieve{typ: t, withhold: policy}
		}
	}
	asked, err := o.filters(q.Filters, now)
	if err != nil {
		return nil, err
	}
	for t, f := range asked {
		all.of(t).asked = f
	}
	for _, t := range q.constrained() {
		may, err := o.filters(q.Access.constraints(t), now)
		if err != nil {
			return nil, err
		}
		all.of(t).may = may[t]
	}
	return all, nil
}

// of is the sieve of a type, made if there is none.
func (s sieves) of(t fhir.Type) *sieve {
	if s[t] == nil {
		s[t] = &sieve{typ: t}
	}
	return s[t]
}

// allowed are the resources of a constrained type that the client may have, as hashes.
// All of the type are read, whosever they are: who may know of a row is asked beside that.
func (g *gathering) allowed(ctx context.Context, t fhir.Type) (hashes []uint64, err error) {
	extents, err := g.bare.Extents(store.Section{Kind: store.Live, Type: t}, fhir.None, g.s.Watermark())
	if err != nil {
		return nil, err
	}
	lets := g.filters[t].lets()
	_, err = g.bare.Lines(ctx, fhir.None, g.s.Watermark(), extents, func(line []byte) error {
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
		g.noteUntold(t)
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

// noteUntold warns that deletions are not listed. Of which types, a policy keeps to
// itself.
func (g *gathering) noteUntold(t fhir.Type) {
	note := untold(t, g.r.Since, g.r.Upto)
	switch {
	case g.published:
		note = untoldPublished(g.r.Since, g.r.Upto)
	case g.filters[t].may == nil:
		note = withheldUntold(g.r.Since, g.r.Upto)
	}
	if !slices.Contains(g.notes, note) {
		g.notes = append(g.notes, note)
	}
}

// withheld is all that a client learns of a policy (decisions.md 6): neither whether it
// has hit anything, nor what.
var withheld = outcome.Issue{
	Severity: outcome.Information, Code: outcome.Suppressed,
	Text: "policy of this server's operator withholds data: this export may lack resources and elements, and does not tell which",
}

// withheldUntold warns that deletions are not listed.
func withheldUntold(since, upto fhir.Instant) outcome.Issue {
	return outcome.Issue{
		Severity: outcome.Warning, Code: outcome.Incomplete,
		Text: fmt.Sprintf("policy withholds data, and of something that was deleted between _since, %v, and %v it is no longer known here whether that was withheld: it is not listed in deleted. "+
			"To be rid of it, take an export without _since and drop what it does not hold", since, upto),
	}
}

// withheldUndeparted warns that it is not told all that has left.
var withheldUndeparted = outcome.Issue{
	Severity: outcome.Warning, Code: outcome.Incomplete,
	Text: "_departed: policy withholds data, so of what has changed since _since and has left the export it is not told. " +
		"To be rid of it, take an export without _since and drop what it does not hold",
}

// heldBack says by what deletions of types are told of which only some may be had
// (decisions.md 4): it is said whether any was held back or not, for that would tell of what
// may not be had.
func heldBack(types []fhir.Type) outcome.Issue {
	return outcome.Issue{
		Severity: outcome.Information, Code: outcome.Suppressed,
		Text: fmt.Sprintf("the scopes narrow these types to what matches a search, so deleted lists of them only what matched when it was deleted, and withholds all else that was: %s. "+
			"To be rid of what had matched before, take an export without _since and drop what it does not hold", some(types)),
	}
}

// some names types, as many as one reads.
func some(types []fhir.Type) string {
	const shown = 10
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = t.String()
	}
	if slices.Sort(names); len(names) > shown {
		names = append(names[:shown:shown], fmt.Sprintf("and %d more", len(types)-shown))
	}
	return strings.Join(names, ", ")
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
