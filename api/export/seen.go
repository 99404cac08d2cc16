package export

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// A kick-off that names a Patient is answered by whether he is known (decisions.md 2). To a
// client that may not read every Patient that would tell who is a patient here. For such a
// one he is known of whom it may have anything, be it himself or what lies in his
// compartment, or hear that it was deleted: of nobody else he would be sent a line.

// checkPatients refuses Patients who are unknown, or are to the client.
func (q *Request) checkPatients(ctx context.Context, s Snapshot, o *Options) error {
	l, err := q.looking(s, o)
	if err != nil {
		return err
	}
	if l != nil {
		return l.all(ctx)
	}
	if q.Level == Group { // whoever is a member
		return nil
	}
	for _, id := range q.Patients {
		known, err := s.Known(fhir.Key{Type: patientType, ID: id})
		if err != nil {
			return err
		}
		if !known {
			return unknownPatient()
		}
	}
	return nil
}

// A looking looks for anything of some Patients that a client may have.
type looking struct {
	s      Snapshot
	sieves sieves // of the types that it may have
	unseen map[string]fhir.Instant
}

// looking is nil if the client may read every Patient.
func (q *Request) looking(s Snapshot, o *Options) (*looking, error) {
	a := q.Access.of()
	policy, err := o.policy(q, s.Watermark())
	if err != nil || a.Rights.Reads(patientType) && a.Rights.Constraints(patientType) == nil && !policy.Whole() {
		return nil, err
	}
	l := &looking{s: s, sieves: sieves{}, unseen: map[string]fhir.Instant{}}
	for _, id := range q.Patients {
		l.unseen[id] = fhir.None
	}
	return l, l.may(q, policy, o)
}

// may finds out of which types the client may have what. An export with Patients holds no
// Group, so none tells of one.
func (l *looking) may(q *Request, policy *withhold.Rule, o *Options) error {
	for _, t := range fhir.AllTypes() {
		if !q.Level.Holds(t) || !q.Access.exports(t) || t == groupType {
			continue
		}
		lets, err := o.filters(q.Access.constraints(t), l.s.Watermark())
		if err != nil {
			return err
		}
		v := l.sieves.of(t)
		v.may, v.withhold = lets[t], policy
	}
	return nil
}

// all refuses them unless something is seen of each. What tells without its body is
// looked at first.
func (l *looking) all(ctx context.Context) error {
	for _, kind := range []store.Kind{store.Live, store.Deleted} {
		for _, reads := range []bool{false, true} {
			for _, sec := range l.s.Sections(kind) {
				v := l.sieves[sec.Type]
				if v == nil || v.constrains() != reads || len(l.unseen) == 0 {
					continue
				}
				if err := l.look(ctx, sec, v); err != nil {
					return fmt.Errorf("find what of some Patients may be told: %w", err)
				}
			}
		}
	}
	if len(l.unseen) > 0 {
		return unknownPatient()
	}
	return nil
}

// look looks through what of a section lies in the Patients' compartments.
func (l *looking) look(ctx context.Context, sec store.Section, v *sieve) error {
	own, w := l.s.Choosing(store.Choice{Patients: maps.Clone(l.unseen)}), l.s.Watermark()
	switch {
	case !v.constrains():
		return own.Rows(ctx, sec, fhir.None, w, func(row *store.Row) error { l.see(row.Patients); return nil })
	case sec.Kind == store.Deleted:
		return l.lookBack(ctx, own, sec, v)
	}
	extents, err := own.Extents(sec, fhir.None, w)
	if err != nil {
		return err
	}
	lets := v.lets()
	_, err = own.Compartments(ctx, fhir.None, w, extents, func(line []byte, patients []string) error {
		if lets(line) {
			l.see(patients)
		}
		return nil
	}, func() {})
	return err
}

// lookBack looks for what was the client's when it was deleted.
func (l *looking) lookBack(ctx context.Context, own Snapshot, sec store.Section, v *sieve) error {
	gone := map[string][]string{}
	err := own.Rows(ctx, sec, fhir.None, l.s.Watermark(), func(row *store.Row) error {
		gone[row.Key.ID] = slices.Clone(row.Patients)
		return nil
	})
	if err != nil || len(gone) == 0 {
		return err
	}
	lets := v.lets()
	return l.s.LastStates(ctx, sec.Type, fhir.None, func(line []byte) error {
		if patients, is := gone[search.ID(line)]; is && lets(line) {
			l.see(patients)
		}
		return nil
	})
}

func (l *looking) see(patients []string) {
	for _, id := range patients {
		delete(l.unseen, id)
	}
}
