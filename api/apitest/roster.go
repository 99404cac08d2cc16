package apitest

import (
	"errors"
	"slices"

	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
)

// Rosters implements export.Snapshot.
func (p *Snapshot) Rosters(since fhir.Instant) (export.Rosters, error) { return rosters{p, since}, nil }

// A called is one list of those whom an export found in a Group.
type called struct {
	group    string
	upto, at fhir.Instant
	found    []string
}

// Roll implements export.Snapshot.
func (p *Snapshot) Roll(group string, upto fhir.Instant) (r store.Roll, err error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	times, of := map[string]int{}, 0
	for _, c := range p.store.rolls {
		if c.group != group || c.upto != upto {
			continue
		}
		r.Exact, of = r.Exact || c.at == upto, of+1
		for _, id := range c.found {
			times[id]++
		}
	}
	if of == 0 {
		return r, nil
	}
	r.Found = map[string]bool{}
	for id, n := range times {
		r.Found[id] = n == of
	}
	return r, nil
}

// CallRoll implements export.Snapshot.
func (p *Snapshot) CallRoll(group string, upto fhir.Instant, found ...[]string) error {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	for _, ids := range found {
		p.store.rolls = append(p.store.rolls, called{group, upto, p.watermark, ids})
	}
	return nil
}

type rosters struct {
	p     *Snapshot
	since fhir.Instant
}

// Of implements export.Rosters: who a version of the Group lists is a member
// from it to the next.
func (r rosters) Of(id string) (store.Roster, error) {
	key := groupKey(id)
	body, err := r.p.Resource(key)
	if errors.Is(err, store.ErrUnknown) {
		body, err = nil, nil
	}
	out := store.Roster{Body: body, Members: map[string][]store.Stay{}}
	for _, v := range r.p.rows {
		if v.key != key || v.c > r.p.watermark || v.sec.Kind == store.Internal {
			continue
		}
		for ref, stays := range out.Members {
			if last := &stays[len(stays)-1]; last.Left == fhir.None && !slices.Contains(v.Members, ref) {
				last.Left = v.c
			}
		}
		for _, ref := range v.Members {
			if stays := out.Members[ref]; len(stays) == 0 || stays[len(stays)-1].Left != fhir.None {
				out.Members[ref] = append(stays, store.Stay{Joined: v.c, Left: fhir.None})
			}
		}
	}
	for ref, stays := range out.Members {
		out.Members[ref] = slices.DeleteFunc(stays, func(t store.Stay) bool {
			return t.Left != fhir.None && (t.Left <= r.since || r.since == fhir.None)
		})
	}
	return out, err
}

func groupKey(id string) fhir.Key {
	t, _ := fhir.ParseType("Group")
	return fhir.Key{Type: t, ID: id}
}
