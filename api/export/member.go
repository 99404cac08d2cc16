package export

import (
	"context"
	"errors"
	"slices"

	"tidemark/store"
	"tidemark/store/fhir"
)

// Member tells whether one of some Patients is a member of a Group at the watermark of a
// snapshot, or of a Group in it, as an export would have it. Whoever is not costs no
// more than a look at his own resources; one whom an identifier names costs a pass over
// all Patients, for another may have it, too.
func Member(ctx context.Context, s Snapshot, group string, patients, bases []string) (bool, error) {
	is, sure, err := MemberAtOnce(ctx, s, group, patients, bases)
	if err != nil || sure {
		return is, err
	}
	w, err := membersOf(ctx, s, group)
	if err != nil || w == nil {
		return false, err
	}
	err = w.identify(ctx, s, fhir.None)
	return err == nil && w.any(patients), err
}

// MemberAtOnce is Member without that pass: sure is false if nothing less can tell.
func MemberAtOnce(ctx context.Context, s Snapshot, group string, patients, bases []string) (is, sure bool, err error) {
	w, err := membersOf(ctx, s, group)
	if err != nil || w == nil || w.any(patients) {
		return w != nil && err == nil, true, err
	}
	theirs := store.Choice{Patients: map[string]fhir.Instant{}}
	for _, id := range patients {
		theirs.Patients[id] = fhir.None
	}
	own := s.Choosing(theirs)
	if err := w.choose(ctx, own, fhir.None, bases); err != nil || w.any(patients) {
		return err == nil, true, err
	}
	err = w.identify(ctx, own, fhir.None)
	return false, err != nil || !w.any(patients), err
}

// membersOf is a Group of which those members are known whom it lists by reference;
// nil if there is no such Group, or it cannot be told whom it has.
func membersOf(ctx context.Context, s Snapshot, group string) (*walk, error) {
	w := &walk{}
	err := w.through(ctx, s, group, fhir.None)
	if _, refused := errors.AsType[*Refusal](err); refused {
		return nil, nil
	}
	return w, err
}

// any tells whether one of some Patients was met who is a member still.
func (w *walk) any(patients []string) bool {
	return slices.ContainsFunc(patients, func(id string) bool {
		return slices.ContainsFunc(w.patients[id], func(t store.Stay) bool { return t.Left == fhir.None })
	})
}
