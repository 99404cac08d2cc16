package export

import (
	"context"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"

	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// A Provenance goes with what it is about (decisions.md 3): if it has changed in
// the window, or if one of its targets has come into the export without a change
// of the Provenance. The column of references tells its targets, but for those of
// types that are noted there for whatever reason: who only made something must not
// draw in what is about others. The guide asks for no more at these levels: what
// targets a resource of the compartment.

// targets are the resources of an export, as sorted hashes: there may be many
// millions.
type targets struct {
	all   []uint64 // up to the watermark: what has changed behind _until was there before
	fresh []uint64 // those that were not in an export before the window
	since fhir.Instant
	among []fhir.Key // all the Provenance that may be about any of them; nil: it is not known
}

// choice is the Provenance that goes for its targets alone.
func (t *targets) choice() store.Choice { return store.Choice{Refer: t.refer, Among: t.among} }

// refer tells behind which instant a Provenance counts that is about a resource.
func (t *targets) refer(key fhir.Key) (after fhir.Instant, ok bool) {
	if !fhir.OnlyTargeted(key.Type) {
		return 0, false
	}
	h := hashKey(key)
	if _, ok := slices.BinarySearch(t.fresh, h); ok {
		return fhir.None, true
	}
	_, ok = slices.BinarySearch(t.all, h)
	return t.since, ok
}

func hashKey(key fhir.Key) uint64 {
	var b [80]byte
	return xxhash.Sum64(append(append(b[:0], byte(key.Type)), key.ID...))
}

// provenance finds which Provenance goes, if any is asked for, and what it refers to.
func (g *gathering) provenance(ctx context.Context, types []fhir.Type) error {
	if len(g.r.sections(g.s, store.Live, []fhir.Type{provenanceType})) == 0 || !g.asks(types, provenanceType) {
		return nil
	}
	if err := g.findTargets(ctx); err != nil {
		return err
	}
	return g.agents(ctx)
}

// findTargets gathers what a Provenance of the export is about.
func (g *gathering) findTargets(ctx context.Context) error {
	t := &g.c.targets
	t.since = g.r.Since
	joiners, stayers := map[string]fhir.Instant{}, map[string]fhir.Instant{}
	for id, after := range g.c.live {
		if after == fhir.None {
			joiners[id] = fhir.None
		} else {
			stayers[id] = after
		}
	}
	compartments := map[uint32]bool{}
	if group := g.c.group; group != "" {
		t.all = append(t.all, hashKey(fhir.Key{Type: groupType, ID: group}))
		compartments[segment.GroupHash(group)] = true
	}
	err := g.gather(ctx, behind(g.c.live, fhir.None), fhir.None, g.s.Watermark(), func(row *store.Row) {
		t.all = append(t.all, hashKey(row.Key))
		compartments[row.Place().Patients] = true
	})
	if err != nil {
		return err
	}
	if t.among, _, err = g.s.ProvenanceOf(ctx, compartments); err != nil {
		return fmt.Errorf("find the Provenance of an export: %w", err)
	}
	if g.r.Since != fhir.None {
		add := func(row *store.Row) {
			if row.Placed > g.r.Since {
				t.fresh = append(t.fresh, hashKey(row.Key))
			}
		}
		if err := g.gather(ctx, stayers, g.r.Since, g.r.Upto, add); err != nil {
			return err
		}
		err := g.gather(ctx, joiners, fhir.None, g.r.Upto, func(row *store.Row) { t.fresh = append(t.fresh, hashKey(row.Key)) })
		if err != nil {
			return err
		}
	}
	slices.Sort(t.all)
	slices.Sort(t.fresh)
	return nil
}

// agents adds what the Provenance in the export refers to: who made something.
func (g *gathering) agents(ctx context.Context) error {
	if len(g.referred) == 0 {
		return nil
	}
	sec := store.Section{Kind: store.Live, Type: provenanceType}
	sent := map[fhir.Key]bool{}
	if err := g.refer(ctx, g.c.targets.choice(), sec, g.r.Since, sent); err != nil {
		return err
	}
	if err := g.close(ctx, sent, fhir.None); err != nil {
		return err
	}
	if news, err := g.changed(); err != nil || !news || g.r.Since == fhir.None {
		return err
	}
	found := map[fhir.Key]bool{}
	all := func(key fhir.Key) (fhir.Instant, bool) { _, ok := g.c.targets.refer(key); return fhir.None, ok }
	ever := g.c.targets.choice()
	ever.Refer = all
	if err := g.refer(ctx, ever, sec, fhir.None, found); err != nil {
		return err
	}
	return g.close(ctx, found, g.r.Since)
}

// gather hands over the rows in some Patients' compartments that a Provenance of
// theirs may be about: no Groups, who else is in them is nobody's business.
func (g *gathering) gather(ctx context.Context, patients map[string]fhir.Instant, since, upto fhir.Instant, fn func(*store.Row)) error {
	if len(patients) == 0 {
		return nil
	}
	rows := g.s.Choosing(store.Choice{Patients: patients})
	for _, sec := range g.r.everyones(g.s, store.Live, nil) {
		if !fhir.InPatientCompartment(sec.Type) || sec.Type == provenanceType || sec.Type == groupType {
			continue
		}
		err := rows.Rows(ctx, sec, since, upto, func(row *store.Row) error { fn(row); return nil })
		if err != nil {
			return fmt.Errorf("find the resources of an export: %w", err)
		}
	}
	return nil
}
