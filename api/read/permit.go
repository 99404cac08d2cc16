package read

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
	// looks and passes are turns of who looks whether somebody is a member of Groups: at what
	// they list and what is his, and through all Patients.
	looks, passes *turns
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
	return &view{s, of, policy, out, h.Bases, h.looks, h.passes}, nil
}

// read is the body of a resource by its id; ErrUnknown if there is none for the caller.
func (v *view) read(ctx context.Context, key fhir.Key) ([]byte, error) {
	if err := v.of.Reads(key.Type); err != nil {
		return nil, err
	}
	// Before it is looked whether there is such a resource: else the time that the answer
	// takes, or that it is 503, would tell.
	seen, err := v.seesKey(ctx, key)
	if err != nil {
		return nil, err
	}
	if !seen {
		return nil, store.ErrUnknown
	}
	if hidden, err := v.hides(ctx, key); err != nil || hidden {
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

// seesKey tells whether a caller who is confined to Groups sees what has this key, if there
// is such a thing: it is one of them, or a Patient who is a member.
func (v *view) seesKey(ctx context.Context, key fhir.Key) (bool, error) {
	switch {
	case !v.of.May.Confined():
		return true, nil
	case key.Type == groupType:
		return v.of.SeesGroup(key.ID), nil
	case key.Type == patientType:
		return v.sees(ctx, []string{key.ID})
	}
	return false, nil // nothing else is read by its id
}

// seesRow tells the same of what there is, and whether that is only of people who have opted
// out.
func (v *view) seesRow(ctx context.Context, row *store.Row) (bool, error) {
	if hidden, err := v.out.Hides(ctx, row); err != nil || hidden {
		return false, err
	}
	if row.Key.Type == groupType {
		return v.seesKey(ctx, row.Key)
	}
	return v.sees(ctx, row.Patients)
}

// sees tells whether a caller who is confined to Groups sees what lies in the compartments
// of some Patients: one of them is a member.
func (v *view) sees(ctx context.Context, patients []string) (bool, error) {
	if !v.of.May.Confined() {
		return true, nil
	}
	if len(patients) == 0 || !v.of.May.Level("group") {
		return false, nil
	}
	groups, err := v.groups(ctx)
	if err != nil {
		return false, err
	}
	is, doubtful, err := v.listed(ctx, groups, patients)
	if err != nil || is || len(doubtful) == 0 {
		return is, err
	}
	done, err := v.passes.enter(ctx, v.of.Owner())
	if err != nil {
		return false, err
	}
	defer done()
	for _, id := range doubtful {
		if is, err := export.Member(ctx, v, id, patients, v.bases); err != nil || is {
			return is, err
		}
	}
	return false, nil
}

// listed tells whether one of some Patients is a member of one of some Groups, as far as
// that is known without a pass over all Patients; of which Groups it is not.
func (v *view) listed(ctx context.Context, groups, patients []string) (is bool, doubtful []string, err error) {
	done, err := v.looks.enter(ctx, v.of.Owner())
	if err != nil {
		return false, nil, err
	}
	defer done()
	for _, id := range groups {
		is, sure, err := export.MemberAtOnce(ctx, v, id, patients, v.bases)
		if err != nil || is {
			return is, nil, err
		}
		if !sure {
			doubtful = append(doubtful, id)
		}
	}
	return false, doubtful, nil
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
		if seen, err := v.seesRow(ctx, row); err != nil || !seen {
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
