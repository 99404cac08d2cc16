package export

import (
	"context"
	"slices"

	"tidemark/store"
	"tidemark/store/fhir"
)

// OptedOut is who has opted out at the watermark of a snapshot, for who reads single
// resources. nil: nobody can. It is for one goroutine.
type OptedOut struct {
	s      Snapshot
	bases  []string
	walks  []*walk
	groups map[string]bool // by id
	asked  map[string]bool // Patients, and whether they have
}

// OptOuts goes through the Groups of people who have opted out. ErrPolicy if it cannot be
// told whom they have. bases are of references in searches.
func OptOuts(ctx context.Context, s Snapshot, groups, bases []string) (*OptedOut, error) {
	if len(groups) == 0 {
		return nil, nil
	}
	o := &OptedOut{s: s, bases: bases, groups: map[string]bool{}, asked: map[string]bool{}}
	for _, id := range groups {
		w, err := optOutGroup(ctx, s, id, fhir.None)
		if err != nil {
			return nil, err
		}
		for group := range w.groups {
			o.groups[group] = true
		}
		o.walks = append(o.walks, w)
	}
	return o, nil
}

// Group tells whether a Group says who has opted out.
func (o *OptedOut) Group(id string) bool { return o != nil && o.groups[id] }

// Hides tells whether a resource is only of people who have opted out, or tells who has.
// Of Provenance that names no Patient it is not enough that something it is about is gone.
func (o *OptedOut) Hides(ctx context.Context, row *store.Row) (bool, error) {
	switch {
	case o == nil:
		return false, nil
	case row.Key.Type == groupType:
		return o.groups[row.Key.ID], nil // others stay, whomever they list
	case len(row.Patients) == 0 && row.Key.Type == provenanceType:
		return o.hidesTargets(ctx, row.References)
	case len(row.Patients) == 0:
		return false, nil
	}
	for _, id := range row.Patients {
		if out, err := o.out(ctx, id); err != nil || !out {
			return false, err
		}
	}
	return true, nil
}

func (o *OptedOut) hidesTargets(ctx context.Context, refs []fhir.Key) (hides bool, err error) {
	keys := map[fhir.Key]fhir.Instant{}
	var types []fhir.Type
	for _, key := range refs {
		if fhir.OnlyTargeted(key.Type) && key.Type != provenanceType {
			keys[key] = fhir.None
			types = append(types, key.Type)
		}
	}
	slices.Sort(types)
	hides = len(keys) > 0
	for _, t := range slices.Compact(types) {
		var rows []store.Row
		err := o.s.Choosing(store.Choice{Keys: keys}).Rows(ctx, store.Section{Kind: store.Live, Type: t}, fhir.None, o.s.Watermark(), func(row *store.Row) error {
			rows = append(rows, store.Row{Key: row.Key, Patients: slices.Clone(row.Patients)})
			return nil
		})
		if err != nil {
			return false, err
		}
		for i := range rows {
			if hidden, err := o.Hides(ctx, &rows[i]); err != nil || !hidden {
				return false, err
			}
		}
	}
	return hides, nil
}

// out tells whether somebody has opted out. Where resources decide about that, his own do.
func (o *OptedOut) out(ctx context.Context, id string) (out bool, err error) {
	if out, known := o.asked[id]; known {
		return out, nil
	}
	own := o.s.Choosing(store.Choice{Patients: map[string]fhir.Instant{id: fhir.None}})
	for _, w := range o.walks {
		if !w.any([]string{id}) && len(w.named)+len(w.criteria) > 0 {
			if err := w.read(ctx, own, fhir.None, o.bases); err != nil {
				return false, err
			}
			if len(w.lost) > 0 {
				return false, unappliable("of the policy", "cannot be told whom it has, for resources are damaged on the disk; tidemark check tells more")
			}
		}
		out = out || w.any([]string{id})
	}
	o.asked[id] = out
	return out, nil
}
