package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A Refusal says that an export cannot be made of what it was asked for.
type Refusal struct {
	NotFound bool // a Group or a Patient that is asked for
	Issues   []outcome.Issue
}

// Error tells no more than how much there is to say: issues may name resources.
func (r *Refusal) Error() string { return fmt.Sprintf("export refused: %d issues", len(r.Issues)) }

func refused(code outcome.Code, format string, args ...any) *Refusal {
	return &Refusal{
		NotFound: code == outcome.NotFound,
		Issues:   []outcome.Issue{{Severity: outcome.Error, Code: code, Text: fmt.Sprintf(format, args...)}},
	}
}

// A cohort is the Patients that an export is about (decisions.md 3 and 4), each
// with the change instant behind which rows count.
type cohort struct {
	live    map[string]fhir.Instant // members at the watermark
	deleted map[string]fhir.Instant // members at any instant of the window: whose deletions are told
	left    map[string]fhir.Instant // of those who were and are not any more, when they left
	notes   []outcome.Issue
	reads   bool // resources say who may be a member, too
	// called are who was found, if that took resources to read and a later export can
	// know it from this one only: a list, or a second of who else may be a member.
	called [][]string
}

// check refuses at the kick-off what cannot be exported.
func (q *Request) check(ctx context.Context, s Snapshot, o *Options) error {
	if out, err := q.findOptedOut(ctx, s, never, nil); err != nil {
		return err
	} else if out != nil && q.Level == Group && slices.Contains(out.Groups, q.Group) {
		return UnknownGroup() // it says who has opted out
	}
	if err := q.checkGroup(s, o); err != nil {
		return err
	}
	if len(q.Patients) == 0 {
		return nil
	}
	if q.Level == Group {
		who, err := q.cohort(ctx, s, never, nil, store.Roll{}, nil)
		if err != nil || who.reads { // then both are found out when the job is planned
			return err
		}
	}
	return q.checkPatients(ctx, s, o)
}

// checkGroup refuses a Group that cannot be exported. One that its client may not read,
// as it is at the watermark, is not there for him: who is told its members knows it.
// Those nested in it come by the right to it (decisions.md 6).
func (q *Request) checkGroup(s Snapshot, o *Options) error {
	if q.Level != Group {
		return nil
	}
	body, err := s.Resource(fhir.Key{Type: groupType, ID: q.Group})
	if errors.Is(err, store.ErrUnknown) {
		return UnknownGroup()
	}
	if err != nil {
		return err
	}
	seen, err := q.reads(s, o, groupType, body)
	if err != nil {
		return err
	}
	if !seen {
		return UnknownGroup()
	}
	_, err = actualGroup(body, nil)
	return err
}

// reads tells whether its client could read a resource by its id, as a single read would
// tell.
func (q *Request) reads(s Snapshot, o *Options, t fhir.Type, body []byte) (bool, error) {
	a := q.Access.of()
	if !a.Rights.Reads(t) {
		return false, nil
	}
	policy, err := o.policy(q, s.Watermark())
	if err != nil {
		return false, err
	}
	lets, err := o.filters(a.Rights.Constraints(t), s.Watermark())
	if err != nil {
		return false, err
	}
	return matcherOf(lets[t])(body) && policy.Matcher(t)(body), nil
}

var patientType, _ = fhir.ParseType("Patient")

// UnknownGroup is what who asks for a Group hears that is not there, or that he may not know of.
func UnknownGroup() error { return refused(outcome.NotFound, "there is no such Group") }

// An identifying is when members whom only an identifier names, or a search, are
// looked for.
type identifying uint8

const (
	never  identifying = iota
	ifNone             // not by this planner: errHeavy, if there are any
	now
)

// cohort finds out whom a request is about. To look for those whom only an
// identifier names, or a search, resources are read, which a kick-off does not do:
// then whoever is not found may be one of them. bases are of references in searches,
// roll is whom earlier exports found in the Group, out who has opted out.
func (q *Request) cohort(ctx context.Context, s Snapshot, how identifying, bases []string, roll store.Roll, out *optedOut) (*cohort, error) {
	if q.Level != Group {
		return q.named(out), nil
	}
	c := &cohort{live: map[string]fhir.Instant{}, deleted: map[string]fhir.Instant{}, left: map[string]fhir.Instant{}}
	w := walk{recalled: roll.Found != nil, whole: q.Access.of().Whole}
	if err := w.through(ctx, s, q.Group, q.Since); err != nil {
		return nil, err
	}
	c.reads = len(w.named)+len(w.criteria) > 0
	switch {
	case how == ifNone && c.reads:
		return nil, errHeavy
	case how == now:
		if err := w.read(ctx, s, q.Since, bases); err != nil {
			return nil, err
		}
	}
	c.enrol(&w, q.Since)
	absent := c.recall(roll, q.Since, len(w.lost) == 0)
	if how == now && c.reads {
		c.call(absent)
		if q.Since != fhir.None && roll.Found == nil {
			c.notes = append(c.notes, unrecalled(q.Since))
		}
	}
	doubt := how == never && c.reads
	for _, id := range q.Patients { // whether he has opted out, nobody is told
		if _, member := c.live[id]; !member && !doubt {
			return nil, unknownPatient()
		}
	}
	c.leave(&w, out, q.Since, roll.Found == nil)
	return c.only(q.Patients), nil
}

// named is the cohort of the Patients that a request names.
func (q *Request) named(out *optedOut) *cohort {
	w := walk{patients: map[string][]store.Stay{}}
	for _, id := range q.Patients {
		w.patients[id] = []store.Stay{{Joined: fhir.None, Left: fhir.None}}
	}
	c := &cohort{live: map[string]fhir.Instant{}, deleted: map[string]fhir.Instant{}, left: map[string]fhir.Instant{}}
	c.count(&w, q.Since)
	c.leave(&w, out, q.Since, true)
	return c
}

// only is what of a cohort is about some Patients, all if none are given.
func (c *cohort) only(patients []string) *cohort {
	if len(patients) == 0 {
		return c
	}
	others := func(id string, _ fhir.Instant) bool { return !slices.Contains(patients, id) }
	for _, who := range []map[string]fhir.Instant{c.live, c.deleted, c.left} {
		maps.DeleteFunc(who, others)
	}
	return c
}

// unknownPatient tells neither who, nor whether he is nowhere or only not in
// the Group (decisions.md 2).
func unknownPatient() error {
	return refused(outcome.NotFound, "patient: one of the Patients asked for is unknown here or not a member of the Group")
}

// enrol takes in who was met. A member at the watermark who was one at the
// beginning of the window, too, counts from there; a joiner comes whole.
func (c *cohort) enrol(w *walk, since fhir.Instant) {
	c.count(w, since)
	w.note(c)
}

func (c *cohort) count(w *walk, since fhir.Instant) {
	for id, stays := range w.patients {
		for _, t := range stays {
			gone := since
			if t.Joined > since {
				gone = t.Joined - 1 // what ended in the same instant may have been his
			}
			if told, is := c.deleted[id]; !is || gone < told {
				c.deleted[id] = gone
			}
			if t.Left != fhir.None {
				c.left[id] = max(c.left[id], t.Left)
				continue
			}
			after := fhir.None
			if t.Joined <= since {
				after = since
			}
			if have, is := c.live[id]; !is || after > have {
				c.live[id] = after
			}
		}
	}
	maps.DeleteFunc(c.left, func(id string, _ fhir.Instant) bool { _, back := c.live[id]; return back })
}

// recall corrects what was derived by what is known: whom exports found that ended
// where the window begins. Of a chain of exports it is the one before.
//
// A member whom they found has from then on what is his, if they looked at that very
// instant; at a later one, somebody may have joined between. One whom they did not
// find has joined, whatever is the same about him. Whom they found and who is none any
// more has left: what a client holds of his it has from them, so he counts as one who
// left then. If Patients cannot be read, any of these may be one of those: sure says
// that none is.
func (c *cohort) recall(roll store.Roll, since fhir.Instant, sure bool) (absent []string) {
	if roll.Found == nil {
		return nil
	}
	for id := range c.live {
		switch {
		case !roll.Found[id]:
			c.live[id] = fhir.None
		case roll.Exact:
			c.live[id] = since
		}
	}
	if roll.Exact {
		c.forgetStrangers(roll, since)
	}
	for id := range roll.Found {
		c.deleted[id] = since
		if _, member := c.live[id]; member {
			continue
		}
		if absent = append(absent, id); sure {
			c.left[id] = max(c.left[id], since)
		}
	}
	if sure {
		return nil
	}
	return absent
}

// forgetStrangers takes out who has left and was not found when the window began: his
// Group listed him, and had searches that he did not match, which nobody sees any more.
func (c *cohort) forgetStrangers(roll store.Roll, since fhir.Instant) {
	for id := range c.left {
		if _, was := roll.Found[id]; !was && c.deleted[id] <= since {
			delete(c.left, id)
			delete(c.deleted, id)
		}
	}
}

// unrecalled warns that nobody knows who was a member where the window begins.
func unrecalled(since fhir.Instant) outcome.Issue {
	return outcome.Issue{
		Severity: outcome.Warning, Code: outcome.Incomplete,
		Text: fmt.Sprintf("who belonged to this Group at _since, %v, is not known here: it has members by identifiers or searches, and no export of it is known that ended there. "+
			"Who may have joined since then comes whole; of who has ceased to be a member it may not be told, nor what was deleted of his. To be rid of that, take an export without _since and drop what it does not hold", since),
	}
}

// call notes who was found, and who else may be a member: those do not seem to have
// left, and come whole when they are found.
func (c *cohort) call(absent []string) {
	found := slices.Collect(maps.Keys(c.live))
	c.called = [][]string{found}
	if len(absent) > 0 {
		c.called = append(c.called, slices.Concat(found, absent))
	}
}

// within is the part of t that lies in u, false if none does.
func within(t, u store.Stay) (store.Stay, bool) {
	t.Joined = max(t.Joined, u.Joined)
	if t.Left == fhir.None || u.Left != fhir.None && u.Left < t.Left {
		t.Left = u.Left
	}
	return t, t.Left == fhir.None || t.Joined < t.Left
}

func covers(t, u store.Stay) bool {
	return t.Joined <= u.Joined && (t.Left == fhir.None || u.Left != fhir.None && t.Left >= u.Left)
}

// A walk goes through a Group and those nested in it.
type walk struct {
	doubtful bool // whoever may be meant is a member
	recalled bool // it is known who was a member when the window began
	whole    bool // it may be told how much of the server cannot be read
	rosters  Rosters
	known    map[string]store.Roster
	patients map[string][]store.Stay // along all paths
	named    map[string][]store.Stay // likewise, Patients of whom only an identifier is known
	groups   map[string][]store.Stay
	criteria map[string]*criteria // of the Groups that have any
	looked   map[string]bool      // Groups that belong to the export
	others   map[string]bool      // members of other types
	unknown  map[string]bool      // nested Groups
	byName   int                  // members that are elsewhere, or nothing that can be found
	nobody   int                  // members whose identifier no Patient has
	several  int                  // members whose identifier several have
	lost     map[fhir.Type]int    // resources that cannot be read and may say who is a member
}

// through meets all members of a Group. A nested Group is gone through again
// only for a time that it was not gone through for, so cycles end.
func (w *walk) through(ctx context.Context, s Snapshot, id string, since fhir.Instant) (err error) {
	if w.rosters, err = s.Rosters(since); err != nil {
		return err
	}
	w.known, w.patients, w.groups = map[string]store.Roster{}, map[string][]store.Stay{}, map[string][]store.Stay{}
	w.named, w.lost = map[string][]store.Stay{}, map[fhir.Type]int{}
	w.criteria = map[string]*criteria{}
	w.looked, w.others, w.unknown = map[string]bool{}, map[string]bool{}, map[string]bool{}
	type step struct {
		id   string
		time store.Stay
	}
	for next := []step{{id, store.Stay{Joined: fhir.None, Left: fhir.None}}}; len(next) > 0; {
		at := next[len(next)-1]
		next = next[:len(next)-1]
		if err := ctx.Err(); err != nil {
			return err
		}
		if !extend(w.groups, at.id, at.time) {
			continue
		}
		roster, err := w.roster(at.id, at.time.Left == fhir.None)
		if err != nil {
			return err
		}
		if at.id == id && roster.Body == nil {
			return UnknownGroup()
		}
		patients := w.patients
		if c := w.criteria[at.id]; c != nil {
			c.times = append(c.times, at.time)
			patients = w.listedBy(c)
		}
		for ref, stays := range roster.Members {
			for _, t := range stays {
				t, some := within(t, at.time)
				if !some {
					continue
				}
				switch typ, member, _ := strings.Cut(ref, "/"); {
				case strings.HasPrefix(ref, fhir.IdentifierPrefix):
					extend(w.named, ref, t)
				case typ == "Patient":
					extend(patients, member, t)
				case typ == "Group":
					next = append(next, step{member, t})
				case t.Left == fhir.None:
					w.others[ref] = true
				}
			}
		}
	}
	return nil
}

// listedBy is where those go whom a Group with searches lists. If it lists nobody any
// more, whom it listed counts for what he was, unless that is known better.
func (w *walk) listedBy(c *criteria) map[string][]store.Stay {
	switch {
	case c.listed != nil:
		return c.listed
	case w.recalled:
		return map[string][]store.Stay{}
	}
	return w.patients
}

// extend adds a stay unless one covers it.
func extend(m map[string][]store.Stay, id string, t store.Stay) bool {
	if slices.ContainsFunc(m[id], func(have store.Stay) bool { return covers(have, t) }) {
		return false
	}
	m[id] = append(m[id], t)
	return true
}

// roster is that of a Group, which must be a list of members if it still belongs
// to the export. Of one that is deleted or has left, whoever it had counts.
func (w *walk) roster(id string, belongs bool) (store.Roster, error) {
	r, met := w.known[id]
	if !met {
		var err error
		if r, err = w.rosters.Of(id); err != nil {
			return r, err
		}
		w.known[id] = r
	}
	if !belongs || w.looked[id] {
		return r, nil
	}
	if w.looked[id] = true; r.Body == nil {
		w.unknown[id] = true
		return r, nil
	}
	g, err := actualGroup(r.Body, r.Members)
	w.byName += g.unknown
	if err != nil || len(g.searches) == 0 {
		return r, err
	}
	w.criteria[id] = &criteria{group: id, searches: g.searches}
	if !g.lists {
		return r, nil
	}
	w.criteria[id].listed = map[string][]store.Stay{}
	for ref, stays := range r.Members {
		if !strings.HasPrefix(ref, "Patient/") && slices.ContainsFunc(stays, func(t store.Stay) bool { return t.Left == fhir.None }) {
			return r, refused(outcome.NotSupported, "the Group, or one in it, has a member-filter and members that are no Patients, or named by an identifier only: whom it has cannot be told")
		}
	}
	return r, nil
}

// note says what was met and is not in the export.
func (w *walk) note(c *cohort) {
	say := func(n int, what string) {
		if n > 0 {
			c.notes = append(c.notes, outcome.Issue{Severity: outcome.Information, Code: outcome.Incomplete, Text: fmt.Sprintf("%s: %d", what, n)})
		}
	}
	say(w.byName, "members that are elsewhere than here, or named in a way that leads to nobody")
	say(w.nobody, "members that are named by an identifier only, which no Patient here has")
	say(w.several, "members that are named by an identifier only, which several Patients here have: none of them is exported for that")
	for _, t := range slices.Sorted(maps.Keys(w.lost)) {
		note := lostRows(t, w.lost[t])
		if !w.whole {
			note.Text = fmt.Sprintf("%s: resources are damaged on the server's disk and could not be read, and may say who is a member of this Group; the server's operator knows more", t)
		}
		c.notes = append(c.notes, note)
	}
	say(len(w.unknown), "members that are Groups which are unknown here")
	say(len(w.others), "members that are no Patients, whose own data is not exported")
}

// A groupSays is what is read in the body of a Group.
type groupSays struct {
	unknown  int      // members that are none of the known ones
	searches []string // by which it says whom it has
	lists    bool     // somebody, be he a member now or not: only who is listed can be one
}

// actualGroup refuses a Group that lists nobody but defines who belongs to it,
// and one whose meaning is modified in a way that we do not know (decisions.md
// 3).
func actualGroup(body []byte, known map[string][]store.Stay) (says groupSays, err error) {
	var g struct {
		Actual     json.RawMessage   `json:"actual"`
		Membership json.RawMessage   `json:"membership"` // since R5
		Modifiers  json.RawMessage   `json:"modifierExtension"`
		Member     []json.RawMessage `json:"member"`
	}
	if err := json.Unmarshal(body, &g); err != nil {
		return groupSays{}, refused(outcome.NotSupported, "the Group, or one in it, is no Group of FHIR R4: its member is no array")
	}
	if string(g.Actual) == "false" || string(g.Membership) == `"definitional"` || string(g.Membership) == `"conceptual"` {
		return groupSays{}, refused(outcome.NotSupported, "the Group, or one in it, is no list of members (actual is false, or membership says so): only who is listed can be exported")
	}
	searches, ok := memberFilters(g.Modifiers)
	says, modified := groupSays{searches: searches, lists: len(g.Member) > 0}, !ok
	for _, m := range g.Member {
		var member struct {
			Modifiers json.RawMessage `json:"modifierExtension"`
			Inactive  json.RawMessage `json:"inactive"`
			Entity    struct {
				Reference  string `json:"reference"`
				Type       string `json:"type"`
				Identifier struct {
					Value string `json:"value"`
				} `json:"identifier"`
			} `json:"entity"`
		}
		if err := json.Unmarshal(m, &member); err != nil {
			says.unknown++ // what is no member in FHIR is none here
			continue
		}
		modified = modified || len(member.Modifiers) > 0
		named := member.Entity.Identifier.Value != "" && (member.Entity.Type == "" || member.Entity.Type == "Patient") // is counted when he is looked for
		if string(member.Inactive) != "true" && known != nil && !named && !isKnown(member.Entity.Reference, known) {
			says.unknown++
		}
	}
	if modified {
		return groupSays{}, refused(outcome.NotSupported, "the Group, or one in it, has a modifierExtension that is not known here: who belongs to it cannot be told for sure")
	}
	return says, understood(searches)
}

// isKnown tells whether a reference, whatever stands before it, leads to a
// member that was or is one, or to one whose time has not come or is over.
func isKnown(ref string, known map[string][]store.Stay) bool {
	ref, _, _ = strings.Cut(ref, "/_history/")
	parts := strings.Split(ref, "/")
	if len(parts) < 2 {
		return false
	}
	if _, is := known[strings.Join(parts[len(parts)-2:], "/")]; is {
		return true
	}
	return len(parts) == 2 // of ours, but at another time
}
