package read

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/semaphore"

	"tidemark/api/access"
	"tidemark/api/clients"
	"tidemark/api/export"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// A view is what a caller may see of the store at one watermark. What he may not see
// is not there (decisions.md 6).
type view struct {
	export.Snapshot

	of     *access.Caller
	policy *withhold.Rule
	out    *export.OptedOut // nil: nobody can
	bases  []string
	// looking bounds how many look for members of Groups: some have to go through all
	// Patients for that.
	looking *semaphore.Weighted
}

// view is the present as the caller of a request may see it.
func (h *Handlers) view(ctx context.Context) (*view, error) {
	s, err := h.Store.Present()
	if err != nil {
		return nil, err
	}
	of := access.From(ctx)
	all := h.Withhold.And(of.May.Withhold)
	policy, err := all.Rule(search.Env{Bases: h.Bases, Now: s.Watermark()})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	out, err := export.OptOuts(ctx, s, all.Groups, h.Bases)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &view{s, of, policy, out, h.Bases, h.looking}, nil
}

// read is the body of a resource by its id; ErrUnknown if there is none for the caller.
func (v *view) read(ctx context.Context, key fhir.Key) ([]byte, error) {
	if err := v.of.Reads(key.Type); err != nil {
		return nil, err
	}
	row, err := v.row(ctx, key)
	if err != nil {
		return nil, err
	}
	if seen, err := v.sees(ctx, row); err != nil || !seen {
		return nil, errors.Join(err, store.ErrUnknown)
	}
	body, err := v.Resource(key)
	if err == nil && !v.lets(key.Type, v.of.Rights.Constraints(key.Type))(body) {
		err = store.ErrUnknown
	}
	if err != nil {
		return nil, err
	}
	return v.cut(body, key.Type), nil
}

// cut is a body without elements that are withheld.
func (v *view) cut(body []byte, t fhir.Type) []byte {
	if !v.policy.Cuts() {
		return body
	}
	return v.policy.Cut(nil, body, t)
}

// row is that of a resource, of which its compartments count.
func (v *view) row(ctx context.Context, key fhir.Key) (row store.Row, err error) {
	found := store.ErrUnknown
	err = v.Choosing(store.Choice{Keys: map[fhir.Key]fhir.Instant{key: fhir.None}}).
		Rows(ctx, store.Section{Kind: store.Live, Type: key.Type}, fhir.None, v.Watermark(), func(r *store.Row) error {
			row, found = *r, nil
			row.Patients, row.References = slices.Clone(r.Patients), slices.Clone(r.References)
			return nil
		})
	return row, errors.Join(err, found)
}

// sees tells whether a caller sees a row: it is not of people who have opted out, and if he
// is confined to Groups it is one of them, or lies in the compartment of a member.
func (v *view) sees(ctx context.Context, row store.Row) (bool, error) {
	if hidden, err := v.out.Hides(ctx, &row); err != nil || hidden {
		return false, err
	}
	if !v.of.May.Confined() {
		return true, nil
	}
	if row.Key.Type == groupType {
		return v.of.SeesGroup(row.Key.ID), nil
	}
	if len(row.Patients) == 0 || !v.of.May.Level("group") {
		return false, nil
	}
	groups, err := v.groups(ctx)
	if err != nil {
		return false, err
	}
	if err := v.looking.Acquire(ctx, 1); err != nil {
		return false, err
	}
	defer v.looking.Release(1)
	for _, id := range groups {
		if is, err := export.Member(ctx, v, id, row.Patients, v.bases); err != nil || is {
			return is, err
		}
	}
	return false, nil
}

// groups are those that the caller may export.
func (v *view) groups(ctx context.Context) (ids []string, err error) {
	if !v.of.May.Group(clients.All) {
		return v.of.May.Groups, nil
	}
	err = v.Rows(ctx, store.Section{Kind: store.Live, Type: groupType}, fhir.None, v.Watermark(), func(row *store.Row) error {
		ids = append(ids, row.Key.ID)
		return nil
	})
	return ids, err
}

// lets tells which resources of a type are not withheld and match one of some searches;
// nil: all do.
func (v *view) lets(t fhir.Type, queries []string) func(body []byte) bool {
	goes := v.policy.Matcher(t)
	if queries == nil {
		return goes
	}
	var all []*search.Query
	for _, text := range queries {
		q, err := search.Parse(text, search.Env{Bases: v.bases, Now: v.Watermark()})
		if err != nil { // a scope of another version of this program: it lets nothing
			return func([]byte) bool { return false }
		}
		all = append(all, q)
	}
	match := search.New(all...).Matcher().Match
	return func(body []byte) bool { return goes(body) && match(body) }
}

// opens tells whether the caller may read a Binary: he may if he may read something
// that refers to it (decisions.md 5). Its row says in whose compartments it lies.
func (v *view) opens(ctx context.Context, key fhir.Key) (bool, error) {
	if hidden, err := v.hides(ctx, key); err != nil || hidden {
		return false, err
	}
	err := v.Referrers(ctx, key, func(row *store.Row) error {
		if v.of.Reads(row.Key.Type) != nil {
			return nil
		}
		constraints := v.of.Rights.Constraints(row.Key.Type)
		if seen, err := v.sees(ctx, *row); err != nil || !seen {
			return err
		}
		if constraints == nil && v.policy == nil {
			return errOpen
		}
		body, err := v.Resource(row.Key)
		if err != nil || !v.lets(row.Key.Type, constraints)(body) || !v.refers(body, row.Key.Type, key) {
			return err
		}
		return errOpen
	})
	if errors.Is(err, errOpen) {
		return true, nil
	}
	return false, err
}

// hides tells whether a resource is only of people who have opted out.
func (v *view) hides(ctx context.Context, key fhir.Key) (bool, error) {
	if v.out == nil {
		return false, nil
	}
	row, err := v.row(ctx, key)
	if errors.Is(err, store.ErrUnknown) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return v.out.Hides(ctx, &row)
}

// refers tells whether what is left of a resource without the elements that are withheld
// still refers to a Binary.
func (v *view) refers(body []byte, t fhir.Type, to fhir.Key) bool {
	if !v.policy.Cuts() {
		return true
	}
	scanner := fhir.Scanner{OwnBases: v.bases}
	res, err := scanner.Scan(v.cut(body, t))
	return err == nil && slices.Contains(res.References, to)
}

var errOpen = errors.New("something opens it")

// eachGroup calls each for every Group that the caller may see.
func (v *view) eachGroup(ctx context.Context, each func(line []byte)) error {
	ext, err := v.Extents(store.Section{Kind: store.Live, Type: groupType}, fhir.None, v.Watermark())
	if err != nil {
		return err
	}
	lets := v.lets(groupType, v.of.Rights.Filters(groupType))
	lost, err := v.Lines(ctx, fhir.None, v.Watermark(), ext, func(line []byte) error {
		if id := search.ID(line); v.of.SeesGroup(id) && !v.out.Group(id) && lets(line) {
			each(v.cut(line, groupType))
		}
		return nil
	}, func() {})
	if err == nil && lost > 0 {
		err = fmt.Errorf("search Groups: %d cannot be read: %w", lost, store.ErrCorrupt)
	}
	return err
}
