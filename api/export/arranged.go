package export

import (
	"maps"
	"slices"

	"tidemark/store"
	"tidemark/store/fhir"
)

// An arrangedForm is what a checkpoint remembers of blocks.
type arrangedForm struct {
	Number   uint64           `json:"number"`
	Left     map[string]int64 `json:"left,omitempty"`
	Known    []string         `json:"known,omitempty"`
	TooMany  bool             `json:"tooMany,omitempty"`
	Sortings []sortingForm    `json:"sortings"`
	Filters  []leafForm       `json:"filters"`
	Bound    place            `json:"bound"`
}

func (a *arranging) sortings() []*sorting {
	return []*sorting{a.blocks, a.loose, a.edges, a.onward, a.about, a.owned}
}

// putAside writes what is in memory, and adds the leaves on which all of it stands.
func (a *arranging) putAside(named *[]*leaf) (*arrangedForm, error) {
	form := &arrangedForm{Number: a.number, Left: map[string]int64{}, TooMany: a.known == nil, Known: slices.Sorted(maps.Keys(a.known)), Bound: a.place}
	for t, n := range a.left {
		form.Left[t.String()] = n
	}
	for _, s := range a.sortings() {
		f, leaves, err := s.putAside()
		if err != nil {
			return nil, err
		}
		form.Sortings, *named = append(form.Sortings, f), append(*named, leaves...)
	}
	for _, f := range []*filter{a.wanted, a.aimed, a.targets} {
		l, err := f.putAside(a.pad)
		if err != nil {
			return nil, err
		}
		if l == nil {
			form.Filters = append(form.Filters, leafForm{})
			continue
		}
		form.Filters, *named = append(form.Filters, l.form(filterBits/64)), append(*named, l)
	}
	return form, nil
}

// restore takes up what an earlier process has put aside.
func (a *arranging) restore(form *arrangedForm) error {
	a.number, a.place, a.known = form.Number, form.Bound, map[string]bool{}
	for _, id := range form.Known {
		a.known[id] = true
	}
	if form.TooMany {
		a.known = nil
	}
	for name, n := range form.Left {
		t, known := fhir.ParseType(name)
		if !known {
			return damaged(store.ErrCorrupt)
		}
		a.left[t] = n
	}
	if len(form.Sortings) != len(a.sortings()) || len(form.Filters) != 3 {
		return damaged(store.ErrCorrupt)
	}
	for i, s := range a.sortings() {
		if err := s.restore(form.Sortings[i]); err != nil {
			return err
		}
	}
	for i, f := range []*filter{a.wanted, a.aimed, a.targets} {
		if err := f.restore(a.pad, form.Filters[i]); err != nil {
			return err
		}
	}
	return nil
}
