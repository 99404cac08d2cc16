package export

import (
	"context"
	"fmt"
	"slices"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
)

// lostEdges says that blocks are not whole, whether what could not be read was to be
// sent or not.
func lostEdges(t, by fhir.Type, n int) outcome.Issue {
	return outcome.Issue{
		Severity: outcome.Error, Code: outcome.Incomplete,
		Text: fmt.Sprintf("organizeOutputBy=%s: %s: %d resources are damaged on the server's disk, so it is not known what they refer to: that may be missing in blocks to which it belongs; its operator learns more with: tidemark check", by, t, n),
	}
}

// sections are all that edges may come from: what a client may not have draws nothing
// in, for that would tell of it. Provenance is the first: of others it
// is then known whether one is about them.
func (a *arranging) sections() []store.Section {
	all := a.g.r.sections(a.g.s, store.Live, nil)
	slices.SortStableFunc(all, func(b, c store.Section) int {
		switch {
		case b.Type == c.Type:
			return 0
		case b.Type == provenanceType:
			return -1
		case c.Type == provenanceType:
			return 1
		}
		return 0
	})
	return all
}

// whole is what an export holds of a type, whatever its window.
func (a *arranging) whole(t fhir.Type) Snapshot {
	g := a.g
	if g.c == nil {
		return g.r.Level.of(g.s, Output, t)
	}
	if g.c.all == nil {
		g.c.all = g.c.timeless()
	}
	return g.c.all.of(g.s, Output, t)
}

// follow finds the edges that directories tell, to what is wanted: of what has no
// block of its own first, for it may be what leads there.
func (a *arranging) follow(ctx context.Context) error {
	if !a.byPatient() || a.loose.count == 0 {
		return nil
	}
	onward := func(key fhir.Key, _ []string, refs []fhir.Key) error { return a.linkOnward(key, refs) }
	if err := a.followAll(ctx, true, onward); err != nil {
		return err
	}
	if err := a.wantOnward(ctx); err != nil {
		return err
	}
	about := func(key fhir.Key, _ []string, refs []fhir.Key) error { return a.linkTargets(key, refs) }
	if err := a.followIn(ctx, store.Section{Kind: store.Live, Type: provenanceType}, true, about); err != nil {
		return err
	}
	return a.followAll(ctx, false, a.linkOwned)
}

func (a *arranging) followAll(ctx context.Context, loose bool, link func(key fhir.Key, owners []string, refs []fhir.Key) error) error {
	for _, sec := range a.sections() {
		if err := a.followIn(ctx, sec, loose, link); err != nil {
			return err
		}
		if !loose {
			a.g.did(a.g.s.Blocks(sec))
		}
	}
	return nil
}

// followIn hands over the resources of a section that have no block of their own,
// or those that have.
func (a *arranging) followIn(ctx context.Context, sec store.Section, loose bool, link func(key fhir.Key, owners []string, refs []fhir.Key) error) error {
	s := a.whole(sec.Type)
	switch {
	case sec.Type == groupType, sec.Type == provenanceType && a.attached:
		return nil
	case !loose:
	case a.g.r.Level == System:
		s = s.Choosing(store.Choice{Patients: map[string]fhir.Instant{}, Nobodys: true})
	case !fhir.Referred(sec.Type) && sec.Type != provenanceType:
		return nil // all of it lies in compartments
	}
	lets, err := a.lets(ctx, sec.Type)
	if err != nil {
		return err
	}
	err = s.Rows(ctx, sec, fhir.None, a.g.r.Upto, func(row *store.Row) error {
		if !lets(row.Key) {
			return nil
		}
		if owners := a.members(row.Patients); loose == (len(owners) == 0) {
			return link(row.Key, owners, row.References)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("follow the references of %s: %w", sec.Type, err)
	}
	return nil
}

// lets tells of which resources of a type the client may know what they refer to.
func (a *arranging) lets(ctx context.Context, t fhir.Type) (func(fhir.Key) bool, error) {
	if !a.g.filters[t].constrains() {
		return func(fhir.Key) bool { return true }, nil
	}
	may, known := a.allowed[t]
	if !known {
		var err error
		if may, err = a.g.allowed(ctx, t); err != nil {
			return nil, err
		}
		a.allowed[t] = may
	}
	return func(key fhir.Key) bool { return has(may, key) }, nil
}

// link notes all edges of a resource.
func (a *arranging) link(key fhir.Key, owners []string, refs []fhir.Key) error {
	if len(owners) > 0 {
		return a.linkOwned(key, owners, refs)
	}
	if err := a.linkOnward(key, refs); err != nil {
		return err
	}
	return a.linkTargets(key, refs)
}

// draws tells whether a resource brings with it what it refers to.
func (a *arranging) draws(key, ref fhir.Key) bool {
	if (key.Type == provenanceType || key.Type == groupType) && fhir.OnlyTargeted(ref.Type) {
		return false // what it lists
	}
	return ref != key && ref.Type != a.by
}

// linkOwned notes the edges of a resource with blocks of its own.
func (a *arranging) linkOwned(key fhir.Key, owners []string, refs []fhir.Key) error {
	a.self = appendKey(a.self[:0], key)
	if a.targets.has(a.self) {
		for _, block := range owners {
			if err := a.owned.add(nil, a.self, zero, []byte(block)); err != nil {
				return err
			}
		}
	}
	for _, ref := range refs {
		if a.to = appendKey(a.to[:0], ref); !a.draws(key, ref) || !a.wanted.has(a.to) {
			continue
		}
		a.aimed.add(a.to)
		for _, block := range owners {
			if err := a.edges.add(nil, a.to, zero, []byte(block)); err != nil {
				return err
			}
		}
	}
	return nil
}

// linkOnward notes where a resource without a block leads to.
func (a *arranging) linkOnward(key fhir.Key, refs []fhir.Key) error {
	a.self = appendKey(a.self[:0], key)
	for _, ref := range refs {
		if !a.draws(key, ref) {
			continue
		}
		a.to = appendKey(a.to[:0], ref)
		a.aimed.add(a.to)
		if err := a.onward.add(nil, a.self, zero, a.to); err != nil {
			return err
		}
	}
	return nil
}

// linkTargets notes what a Provenance without a block is about.
func (a *arranging) linkTargets(key fhir.Key, refs []fhir.Key) error {
	a.self = appendKey(a.self[:0], key)
	if key.Type != provenanceType || !a.wanted.has(a.self) {
		return nil
	}
	for _, ref := range refs {
		if ref.Type == a.by || !fhir.OnlyTargeted(ref.Type) {
			continue
		}
		a.to = appendKey(a.to[:0], ref)
		a.targets.add(a.to)
		if err := a.about.add(nil, a.to, zero, a.self); err != nil {
			return err
		}
	}
	return nil
}

// wantOnward also wants what refers to something wanted, for it may be what leads
// there.
func (a *arranging) wantOnward(ctx context.Context) error {
	for news := true; news; {
		if err := ctx.Err(); err != nil {
			return err
		}
		news = false
		c, err := a.onward.sorted()
		if err != nil {
			return err
		}
		for c.next() {
			from, to := cutKey(c.key())
			if a.wanted.has(to) && !a.wanted.has(from) {
				a.wanted.add(from)
				news = true
			}
		}
		if err := c.close(); err != nil {
			return err
		}
	}
	return nil
}
