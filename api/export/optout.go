package export

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
)

// People who have opted out are members of Groups that a policy names (withhold.groups).
// To opt out is to leave, to opt in again is to join (decisions.md 6): somebody takes part
// while he is in none of these Groups. Who is one is told as for an export of the Group,
// but where that is in doubt he has opted out.
//
// Whatever of an export is read, is read through a veil that does not show what is theirs
// alone; so nothing goes for the sake of it, either. Only whom a Group has, and what an
// attachment may be bound to, is told by all that there is.

// ErrPolicy says that it cannot be told who has opted out: then nothing is given out.
var ErrPolicy = errors.New("who has opted out cannot be told, so nothing is given out that this decides about")

// Unappliable is what a client hears of that.
const Unappliable = "policy of this server's operator withholds data, and cannot be applied as things are, so nothing is given out: tell its operator, whose log says what is wrong"

// unappliable names what the operator has to look at.
func unappliable(group, why string) error {
	return fmt.Errorf("withhold.groups, or that of the client: Group/%s %s: put the Group right, or take it out of the policy: %w", group, why, ErrPolicy)
}

// An optedOut is who was a member of such Groups, in a window and up to a watermark.
type optedOut struct {
	// Stays are when, by Patient, in order, none touching the next.
	Stays map[string][]store.Stay `json:"stays"`
	// Groups are the ids of these Groups, and of those in them.
	Groups []string `json:"groups"`
	// Called are who was found, by Group, if that took resources to read.
	Called map[string][]string `json:"called,omitempty"`
	// Unsure: who had opted out when the window began is not known of some Group.
	Unsure bool `json:"unsure,omitempty"`
}

// findOptedOut finds who has opted out of what a request would bring; nil if nobody can.
func (q *Request) findOptedOut(ctx context.Context, s Snapshot, how identifying, bases []string) (*optedOut, error) {
	if !q.optsOut() {
		return nil, nil
	}
	o := &optedOut{Stays: map[string][]store.Stay{}, Called: map[string][]string{}}
	for _, id := range q.Access.Withhold.Groups {
		if err := o.add(ctx, s, id, q.Since, how, bases); err != nil {
			return nil, err
		}
	}
	for id, stays := range o.Stays {
		o.Stays[id] = merged(stays)
	}
	slices.Sort(o.Groups)
	o.Groups = slices.Compact(o.Groups)
	return o, nil
}

// add takes in whom a Group has and had.
func (o *optedOut) add(ctx context.Context, s Snapshot, id string, since fhir.Instant, how identifying, bases []string) error {
	w, err := optOutGroup(ctx, s, id, since)
	if err != nil {
		return err
	}
	for group, stays := range w.groups {
		if slices.ContainsFunc(stays, lasts) {
			o.Groups = append(o.Groups, group)
		}
	}
	reads := len(w.named)+len(w.criteria) > 0
	switch {
	case reads && how == ifNone:
		return errHeavy
	case reads && how == now:
		listed := maps.Clone(w.patients)
		if err := w.read(ctx, s, since, bases); err != nil {
			return err
		}
		if err := o.recall(s, w, id, since, listed); err != nil {
			return err
		}
	}
	for patient, stays := range w.patients {
		o.Stays[patient] = append(o.Stays[patient], stays...)
	}
	return nil
}

// optOutGroup goes through such a Group. Unlike one that is exported it must tell of
// everybody.
func optOutGroup(ctx context.Context, s Snapshot, id string, since fhir.Instant) (*walk, error) {
	w := &walk{doubtful: true}
	err := w.through(ctx, s, id, since)
	if refusal, is := errors.AsType[*Refusal](err); is {
		if refusal.NotFound {
			return nil, unappliable(id, "is not here")
		}
		return nil, unappliable(id, "does not tell whom it has; an export of it is refused, which says why")
	}
	if err == nil && len(w.unknown) > 0 {
		err = unappliable(id, "has Groups in it that are not here")
	}
	return w, err
}

// read finds the members that take resources to read.
func (w *walk) read(ctx context.Context, s Snapshot, since fhir.Instant, bases []string) error {
	if err := w.identify(ctx, s, since); err != nil {
		return err
	}
	return w.choose(ctx, s, since, bases)
}

// recall corrects what was derived by what is known: who was found in the Group by exports
// that ended where the window begins. Who was not took part then. Who was and is not any
// more has come back, at whatever time. Without one, who is in the Group is taken to have
// been: nothing that was deleted since is told of him. Of who is listed it is known anyhow.
func (o *optedOut) recall(s Snapshot, w *walk, id string, since fhir.Instant, listed map[string][]store.Stay) error {
	if len(w.lost) > 0 {
		return unappliable(id, "cannot be told whom it has, for resources are damaged on the disk; tidemark check tells more")
	}
	o.Called[id] = []string{} // nobody, too, is who was found
	for patient, stays := range w.patients {
		if slices.ContainsFunc(stays, lasts) {
			o.Called[id] = append(o.Called[id], patient)
		}
	}
	if since == fhir.None {
		return nil
	}
	roll, err := s.Roll(id, since)
	if err != nil {
		return err
	}
	o.Unsure = o.Unsure || roll.Found == nil
	always := store.Stay{Joined: fhir.None, Left: fhir.None}
	for _, patient := range o.Called[id] {
		_, was := roll.Found[patient]
		if listed[patient] != nil {
			continue
		}
		if was || roll.Found == nil {
			w.patients[patient] = []store.Stay{always}
			continue
		}
		for i := range w.patients[patient] {
			t := &w.patients[patient][i]
			t.Joined = max(t.Joined, since+1)
		}
	}
	for patient := range roll.Found {
		if listed[patient] != nil || slices.ContainsFunc(w.patients[patient], lasts) {
			continue
		}
		w.patients[patient] = []store.Stay{{Joined: fhir.None, Left: s.Watermark()}}
		switch _, err := s.Resource(fhir.Key{Type: patientType, ID: patient}); {
		case errors.Is(err, store.ErrUnknown): // what told that he had opted out is gone, not his will
			w.patients[patient] = []store.Stay{always}
			o.Called[id] = append(o.Called[id], patient)
		case err != nil:
			return err
		}
	}
	return nil
}

func lasts(t store.Stay) bool { return t.Left == fhir.None }

// end is when a stay ends, Never if it does not.
func end(t store.Stay) fhir.Instant {
	if t.Left == fhir.None {
		return store.Never
	}
	return t.Left
}

// merged is some stays without overlaps, in order.
func merged(stays []store.Stay) (list []store.Stay) {
	slices.SortFunc(stays, func(a, b store.Stay) int { return cmp.Compare(a.Joined, b.Joined) })
	for _, t := range stays {
		if n := len(list); n > 0 && t.Joined <= end(list[n-1]) {
			if end(t) > end(list[n-1]) {
				list[n-1].Left = t.Left
			}
			continue
		}
		list = append(list, t)
	}
	return list
}

// without is what of a stay lies in none of others, which are in order.
func without(t store.Stay, others []store.Stay) (list []store.Stay) {
	for _, u := range others {
		if before, some := within(t, store.Stay{Joined: fhir.None, Left: u.Joined}); some && u.Joined > fhir.None {
			list = append(list, before)
		}
		if u.Left == fhir.None || t.Left != fhir.None && t.Left <= u.Left {
			return list
		}
		t.Joined = max(t.Joined, u.Left)
	}
	return append(list, t)
}

// takes are the times in which a Patient takes part, of some.
func (o *optedOut) takes(id string, of ...store.Stay) (list []store.Stay) {
	if o == nil {
		return of
	}
	for _, t := range of {
		list = append(list, without(t, o.Stays[id])...)
	}
	return list
}

// absence is how somebody is absent from a window; false if he is not. left is when he
// opted out, if he is out and was not all the time.
func (o *optedOut) absence(id string, since fhir.Instant) (a store.Absence, left fhir.Instant, is bool) {
	a, left = store.Absence{Out: true, Told: store.Never}, fhir.None
	for _, t := range o.takes(id, store.Stay{Joined: fhir.None, Left: fhir.None}) {
		switch {
		case t.Left != fhir.None && t.Left <= since:
			continue
		case t.Joined <= since && lasts(t):
			return a, left, false
		case t.Joined <= since:
			a.Told = fhir.None
		default:
			a.Told = min(a.Told, t.Joined-1) // what ended in the same instant may have been told
		}
		a.Out, left = !lasts(t), t.Left
	}
	return a, left, true
}

// veil hides what is theirs from an export of a window.
func (o *optedOut) veil(since fhir.Instant) (v *store.Veil, left map[string]fhir.Instant) {
	v, left = &store.Veil{Patients: map[string]store.Absence{}, Keys: map[fhir.Key]bool{}}, map[string]fhir.Instant{}
	for id := range o.Stays {
		a, gone, is := o.absence(id, since)
		if !is {
			continue
		}
		if v.Patients[id] = a; a.Out && a.Told != store.Never {
			left[id] = gone
		}
	}
	for _, id := range o.Groups {
		v.Keys[fhir.Key{Type: groupType, ID: id}] = true
	}
	return v, left
}

// leave takes out of a cohort who has opted out, as if he had left, and lets who has come
// back join. listed: the stays of its members are all that is known of it, else it was
// corrected by what earlier exports have found.
func (c *cohort) leave(w *walk, out *optedOut, since fhir.Instant, listed bool) {
	if out == nil {
		return
	}
	if listed {
		c.live, c.deleted, c.left = map[string]fhir.Instant{}, map[string]fhir.Instant{}, map[string]fhir.Instant{}
		for id, stays := range w.patients {
			long := func(t store.Stay) bool { return !lasts(t) && t.Left <= since }
			w.patients[id] = slices.DeleteFunc(out.takes(id, stays...), long)
		}
		c.count(w, since)
	}
	for id := range out.Stays {
		a, left, is := out.absence(id, since)
		_, member := c.live[id]
		switch {
		case !is:
			continue
		case a.Told == store.Never:
			delete(c.deleted, id)
			delete(c.left, id)
		case a.Out && member:
			c.left[id] = left
		}
		switch {
		case a.Out:
			delete(c.live, id)
		case member:
			c.live[id] = fhir.None
		}
		if told, is := c.deleted[id]; is {
			c.deleted[id] = max(told, a.Told)
		}
	}
}

// optedName is what a job that was cut short finds who had opted out under.
const optedName = "opted-out"

// conceal finds who has opted out, and from then on reads through the veil. A job that
// goes on has what it began with.
func (g *gathering) conceal(ctx context.Context, q *Request, o Options) (err error) {
	g.bare = g.s
	if c := g.r.Checkpoint; c != nil && c.Opted != nil {
		err = g.restoreOpted(*c.Opted)
	} else {
		g.out, err = q.findOptedOut(ctx, g.s, g.how, o.Bases)
	}
	if err != nil || g.out == nil {
		return err
	}
	g.veil, g.gone = g.out.veil(g.r.Since)
	if q.Group != "" && g.veil.Keys[fhir.Key{Type: groupType, ID: q.Group}] {
		return UnknownGroup()
	}
	if !q.aboutSome() && g.s.Blocks(store.Section{Kind: store.Live, Type: provenanceType}) > 0 {
		if err = g.concealed(ctx); err != nil {
			return fmt.Errorf("find what is withheld: %w", err)
		}
	}
	g.s = g.s.Veiled(g.veil)
	if g.out.Unsure {
		g.unsure = append(g.unsure, withheldUnsure(g.r.Since))
	}
	return nil
}

func (g *gathering) restoreOpted(sum uint32) error {
	data, err := g.s.Kept(optedName, sum)
	if err != nil {
		return err
	}
	g.out, g.opted = &optedOut{}, &sum
	if err := json.Unmarshal(data, g.out); err != nil {
		return fmt.Errorf("decode who had opted out: %w", store.ErrCorrupt)
	}
	return nil
}

// keepOpted keeps that with the job, once, if anybody can opt out.
func (g *gathering) keepOpted() error {
	if g.out == nil || g.opted != nil {
		return nil
	}
	data, err := json.Marshal(g.out)
	if err != nil {
		return err
	}
	sum, err := g.s.Keep(optedName, data)
	g.opted = &sum
	return err
}

// callOpted keeps who was found, for the exports that go on from this one.
func (g *gathering) callOpted() error {
	if g.out == nil {
		return nil
	}
	for id, found := range g.out.Called {
		if err := g.s.CallRoll(id, g.r.Upto, found); err != nil {
			return err
		}
	}
	return nil
}

// A concealed is what is hidden or has come back, as sorted hashes.
type concealed struct{ hidden, back []uint64 }

func (c *concealed) about(key fhir.Key) (store.Absence, bool) {
	if has(c.hidden, key) {
		return store.Absence{Out: true}, true
	}
	return store.Absence{}, has(c.back, key)
}

// and is c with more.
func (c *concealed) and(more concealed) *concealed {
	return &concealed{sorted(append(more.hidden, c.hidden...)), sorted(append(more.back, c.back...))}
}

// concealed finds what is hidden or has come back, of all that a Provenance may be about:
// what lives, and what is known of what was deleted.
func (g *gathering) concealed(ctx context.Context) error {
	var found concealed
	take := func(row *store.Row) error {
		switch g.veil.Behind(row, fhir.None+1) {
		case store.Never:
			found.hidden = append(found.hidden, hashKey(row.Key))
		case fhir.None:
			found.back = append(found.back, hashKey(row.Key))
		}
		return nil
	}
	of := g.s.Choosing(store.Choice{Patients: everAbsent(g.veil)})
	for _, kind := range []store.Kind{store.Live, store.Deleted} {
		for _, sec := range g.s.Sections(kind) {
			if sec.Type == groupType {
				continue
			}
			if err := of.Rows(ctx, sec, fhir.None, g.s.Watermark(), take); err != nil {
				return err
			}
		}
	}
	for key := range g.veil.Keys {
		found.hidden = append(found.hidden, hashKey(key))
	}
	all := new(concealed)
	for len(found.hidden)+len(found.back) > 0 { // a Provenance may be about another; mostly none is
		all, found = all.and(found), concealed{}
		g.veil.About = all.about
		err := g.s.Rows(ctx, store.Section{Kind: store.Live, Type: provenanceType}, fhir.None, g.s.Watermark(), func(row *store.Row) error {
			if _, is := all.about(row.Key); is {
				return nil
			}
			return take(row)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// everAbsent are the Patients of a veil, from the beginning.
func everAbsent(v *store.Veil) map[string]fhir.Instant {
	all := make(map[string]fhir.Instant, len(v.Patients))
	for id := range v.Patients {
		all[id] = fhir.None
	}
	return all
}

// withheldUnsure warns that it is not known who was withheld when the window began.
func withheldUnsure(since fhir.Instant) outcome.Issue {
	return outcome.Issue{
		Severity: outcome.Warning, Code: outcome.Incomplete,
		Text: fmt.Sprintf("policy withholds data, and what of it was withheld at _since, %v, is not known here: no export is known that ended there. What has been given back since may be missing, and of what was deleted or has left it may not be told. "+
			"To be rid of that, take an export without _since and drop what it does not hold", since),
	}
}

// optsOut tells whether somebody may have opted out.
func (q *Request) optsOut() bool { return q.Access != nil && len(q.Access.Withhold.Groups) > 0 }

// isMember tells whether the export is about a Patient.
func (g *gathering) isMember(id string) bool {
	if g.c != nil {
		_, is := g.c.live[id]
		return is
	}
	return g.veil == nil || !g.veil.Patients[id].Out
}

// leavers are who has left the export, and when.
func (g *gathering) leavers() map[string]fhir.Instant {
	if g.c != nil {
		return g.c.left
	}
	return g.gone
}

// holds tells whether a row of no type that is referred to is in the export, whenever it
// changed.
func (g *gathering) holds(row *store.Row) bool {
	if g.c != nil {
		return g.c.holds(row)
	}
	return !g.veil.Hides(row)
}

// wasIn tells whether what lay in the compartments of a mark's Patients may have been in
// an export of everybody, while one of them took part.
func (g *gathering) wasIn(mark *store.Row) bool {
	return g.veil == nil || !g.veil.Keys[mark.Key] && slices.ContainsFunc(mark.Patients, func(id string) bool {
		a, absent := g.veil.Patients[id]
		return !absent || mark.Instant > a.Told
	})
}
