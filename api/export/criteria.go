package export

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// A Group may say by searches who belongs to it (Bulk Data, "Bulk Cohort Group"):
// whoever has, in his compartment, something that matches, of each search; a
// search of Patient is about himself. If it lists members as well, only these may
// belong to it.
//
// They are evaluated when an export is planned, at its watermark. Who belonged to
// the Group earlier only an export that ended then knows (cohort.recall). Without one
// it is certain of him for whom it was decided by resources that have not changed in
// the window; everybody else counts as one who has joined: his data come whole
// (decisions.md 3: rather repeated than missed).

const (
	memberFilter = "http://hl7.org/fhir/uv/bulkdata/StructureDefinition/member-filter"
	fhirQuery    = "application/x-fhir-query"
)

// A criteria is the searches of a Group.
type criteria struct {
	group    string
	searches []string
	times    []store.Stay            // while the Group belongs to the export
	listed   map[string][]store.Stay // Patients that it lists; nil: it lists nobody
}

// memberFilters are the searches of a Group's modifier extensions, false if they
// say anything else.
func memberFilters(modifiers json.RawMessage) (searches []string, ok bool) {
	if len(modifiers) == 0 {
		return nil, true
	}
	var all []struct {
		URL             string `json:"url"`
		ValueExpression struct {
			Language   string `json:"language"`
			Expression string `json:"expression"`
		} `json:"valueExpression"`
	}
	if json.Unmarshal(modifiers, &all) != nil {
		return nil, false
	}
	for _, m := range all {
		if m.URL != memberFilter || m.ValueExpression.Language != fhirQuery {
			return nil, false
		}
		searches = append(searches, m.ValueExpression.Expression)
	}
	return searches, true
}

// understood refuses searches that cannot tell who belongs to a Group.
func understood(searches []string) error {
	for _, text := range searches {
		q, err := search.Parse(text, search.Env{})
		if err != nil {
			return refused(outcome.NotSupported, "a member-filter of the Group, or of one in it, is not supported: %v", err)
		}
		if q.Type != patientType && !fhir.InPatientCompartment(q.Type) {
			return refused(outcome.NotSupported, "a member-filter of the Group, or of one in it, is about %s, which lies in no Patient's compartment", q.Type)
		}
	}
	return nil
}

// choose finds the members of the Groups that say by searches whom they have. All
// resources of each search's type are read once.
func (w *walk) choose(ctx context.Context, s Snapshot, since fhir.Instant, bases []string) error {
	for _, c := range w.criteria {
		who, err := c.members(ctx, s, since, bases, w.lose)
		if err != nil {
			return fmt.Errorf("find the members of a Group by its searches: %w", err)
		}
		for id, was := range who {
			t := store.Stay{Joined: since + 1, Left: fhir.None}
			if was || since == fhir.None {
				t.Joined = fhir.None
			}
			w.admit(c, id, t)
		}
	}
	return nil
}

// admit takes a member in for the times in which the Group belongs to the export,
// and lists him if it lists anybody.
func (w *walk) admit(c *criteria, id string, t store.Stay) {
	stays := []store.Stay{t}
	if c.listed != nil {
		stays = nil
		for _, u := range c.listed[id] {
			if u, some := within(t, u); some {
				stays = append(stays, u)
			}
		}
	}
	for _, t := range stays {
		for _, u := range c.times {
			if t, some := within(t, u); some {
				extend(w.patients, id, t)
			}
		}
	}
}

// members are those who have a match of each search, each with whether he is
// certain to have had at the beginning of the window.
func (c *criteria) members(ctx context.Context, s Snapshot, since fhir.Instant, bases []string, lose func(fhir.Type, int)) (map[string]bool, error) {
	changed, err := changedIn(ctx, s, fhir.Key{Type: groupType, ID: c.group}, since)
	if err != nil {
		return nil, err
	}
	var all map[string]bool
	for _, text := range c.searches {
		found, err := match(ctx, s, text, since, bases, lose)
		if err != nil {
			return nil, err
		}
		for id, was := range found {
			before, is := all[id]
			if found[id] = was && !changed && (all == nil || before); all != nil && !is {
				delete(found, id)
			}
		}
		all = found
	}
	return all, nil
}

// changedIn tells whether a resource has changed behind an instant.
func changedIn(ctx context.Context, s Snapshot, key fhir.Key, since fhir.Instant) (changed bool, err error) {
	err = s.Choosing(store.Choice{Keys: map[fhir.Key]fhir.Instant{key: since}}).
		Rows(ctx, store.Section{Kind: store.Live, Type: key.Type}, since, s.Watermark(), func(*store.Row) error { changed = true; return nil })
	return changed, err
}

// match finds the Patients of what matches a search at the watermark, each with
// whether some of it did so at the beginning of the window.
func match(ctx context.Context, s Snapshot, text string, since fhir.Instant, bases []string, lose func(fhir.Type, int)) (map[string]bool, error) {
	upto := s.Watermark()
	began := min(since, upto)
	now, err := search.Parse(text, search.Env{Bases: bases, Now: upto})
	if err != nil {
		return nil, err
	}
	then, err := search.Parse(text, search.Env{Bases: bases, Now: began})
	if err != nil {
		return nil, err
	}
	is, was := search.New(now).Matcher(), search.New(then).Matcher()
	found := map[string]bool{}
	scanner := fhir.Scanner{OwnBases: bases}
	look := func(since, upto fhir.Instant, old bool) error {
		ext, err := s.Extents(store.Section{Kind: store.Live, Type: now.Type}, since, upto)
		if err != nil {
			return err
		}
		lost, err := s.Lines(ctx, since, upto, ext, func(line []byte) error {
			if !is.Match(line) {
				return nil
			}
			r, err := scanner.Scan(line)
			if err != nil {
				return fmt.Errorf("%w: a stored resource is no JSON", store.ErrCorrupt)
			}
			before := old && was.Match(line)
			for _, id := range r.Patients {
				id = strings.Clone(id)
				found[id] = found[id] || before
			}
			return nil
		}, func() {})
		lose(now.Type, lost)
		return err
	}
	if began != fhir.None {
		if err := look(fhir.None, began, true); err != nil {
			return nil, err
		}
	}
	return found, look(began, upto, false)
}
