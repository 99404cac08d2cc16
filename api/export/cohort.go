package export

import (
	"encoding/json"
	"errors"
	"fmt"
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
	notes   []outcome.Issue
}

// check refuses at the kick-off what cannot be exported.
func (q *Request) check(s Snapshot) error {
	if q.Level != Group {
		for _, id := range q.Patients {
			lives, err := s.Lives(fhir.Key{Type: patientType, ID: id})
			if err != nil {
				return err
			}
			if !lives {
				return unknownPatient()
			}
		}
		return nil
	}
	if len(q.Patients) > 0 {
		_, err := q.cohort(s)
		return err
	}
	body, err := s.Resource(fhir.Key{Type: groupType, ID: q.Group})
	if errors.Is(err, store.ErrUnknown) {
		return unknownGroup()
	}
	if err != nil {
		return err
	}
	_, err = actualGroup(body)
	return err
}

var patientType, _ = fhir.ParseType("Patient")

func unknownGroup() error { return refused(outcome.NotFound, "there is no such Group") }

// cohort finds out whom a request is about.
func (q *Request) cohort(s Snapshot) (*cohort, error) {
	c := &cohort{live: map[string]fhir.Instant{}, deleted: map[string]fhir.Instant{}}
	if q.Level == Group {
		var w walk
		if err := w.through(s, q.Group, q.Since); err != nil {
			return nil, err
		}
		c.enrol(&w, q.Since)
	}
	if len(q.Patients) == 0 {
		return c, nil
	}
	named := &cohort{live: map[string]fhir.Instant{}, deleted: map[string]fhir.Instant{}, notes: c.notes}
	for _, id := range q.Patients {
		after, member := c.live[id]
		switch {
		case q.Level != Group:
			named.live[id], named.deleted[id] = q.Since, q.Since
		case !member:
			return nil, unknownPatient()
		default:
			named.live[id], named.deleted[id] = after, c.deleted[id]
		}
	}
	return named, nil
}

// unknownPatient tells neither who, nor whether he is nowhere or only not in
// the Group (decisions.md 2).
func unknownPatient() error {
	return refused(outcome.NotFound, "patient: one of the Patients asked for is unknown here or not a member of the Group")
}

// enrol takes in who was met. A member at the watermark who was one at the
// beginning of the window, too, counts from there; a joiner comes whole.
func (c *cohort) enrol(w *walk, since fhir.Instant) {
	for id, stays := range w.patients {
		for _, t := range stays {
			if told, is := c.deleted[id]; !is || max(since, t.joined) < told {
				c.deleted[id] = max(since, t.joined)
			}
			if t.left != fhir.None {
				continue
			}
			after := fhir.None
			if t.joined <= since {
				after = since
			}
			if have, is := c.live[id]; !is || after > have {
				c.live[id] = after
			}
		}
	}
	w.note(c)
}

// A stay is a time of membership, along a path of nested Groups.
type stay struct {
	joined fhir.Instant
	left   fhir.Instant // None: it lasts
}

// within is the part of t that lies in u.
func (t stay) within(u stay) stay {
	t.joined = max(t.joined, u.joined)
	if t.left == fhir.None || u.left != fhir.None && u.left < t.left {
		t.left = u.left
	}
	return t
}

func (t stay) covers(u stay) bool {
	return t.joined <= u.joined && (t.left == fhir.None || u.left != fhir.None && t.left >= u.left)
}

// A walk goes through a Group and those nested in it.
type walk struct {
	patients map[string][]stay
	groups   map[string][]stay
	rosters  map[string]store.Roster
	others   int // members of other types
	byName   int // members that are named by an identifier only
	unknown  int // nested Groups
}

// through meets all members of a Group. A nested Group is gone through again
// only for a time that it was not gone through for, so cycles end.
func (w *walk) through(s Snapshot, id string, since fhir.Instant) error {
	w.patients, w.groups, w.rosters = map[string][]stay{}, map[string][]stay{}, map[string]store.Roster{}
	type step struct {
		id   string
		time stay
	}
	for next := []step{{id, stay{fhir.None, fhir.None}}}; len(next) > 0; {
		at := next[len(next)-1]
		next = next[:len(next)-1]
		if !extend(w.groups, at.id, at.time) {
			continue
		}
		roster, err := w.roster(s, at.id, since)
		if errors.Is(err, store.ErrUnknown) {
			if at.id == id {
				return unknownGroup()
			}
			w.unknown++
			continue
		}
		if err != nil {
			return err
		}
		for ref, m := range roster.Members {
			t := stay{m.Joined, m.Left}.within(at.time)
			if t.left != fhir.None && (t.left <= since || t.left <= t.joined) {
				continue
			}
			switch typ, member, _ := strings.Cut(ref, "/"); typ {
			case "Patient":
				extend(w.patients, member, t)
			case "Group":
				next = append(next, step{member, t})
			default:
				w.others++
			}
		}
	}
	return nil
}

// extend adds a stay unless one covers it.
func extend(m map[string][]stay, id string, t stay) bool {
	if slices.ContainsFunc(m[id], func(have stay) bool { return have.covers(t) }) {
		return false
	}
	m[id] = append(m[id], t)
	return true
}

func (w *walk) roster(s Snapshot, id string, since fhir.Instant) (store.Roster, error) {
	if r, ok := w.rosters[id]; ok {
		return r, nil
	}
	r, err := s.Roster(id, since)
	if err != nil {
		return r, err
	}
	n, err := actualGroup(r.Body)
	if err != nil {
		return r, err
	}
	w.byName += n
	r.Body = nil
	w.rosters[id] = r
	return r, nil
}

// note says what was met and is not in the export.
func (w *walk) note(c *cohort) {
	say := func(n int, what string) {
		if n > 0 {
			c.notes = append(c.notes, outcome.Issue{Severity: outcome.Information, Code: outcome.Incomplete, Text: fmt.Sprintf("%s: %d", what, n)})
		}
	}
	say(w.byName, "members that are named by an identifier only, and were not looked up")
	say(w.unknown, "members that are Groups which are unknown here")
	say(w.others, "members that are no Patients, whose own data is not exported")
}

// actualGroup refuses a Group that lists nobody but defines who belongs to it,
// and one whose meaning is modified in a way that we do not know (decisions.md
// 3). It counts the members that are named by an identifier only.
func actualGroup(body []byte) (byName int, err error) {
	var g struct {
		Actual     *bool             `json:"actual"`
		Membership string            `json:"membership"` // since R5
		Modifiers  []json.RawMessage `json:"modifierExtension"`
		Member     []struct {
			Modifiers []json.RawMessage `json:"modifierExtension"`
			Inactive  bool              `json:"inactive"`
			Entity    struct {
				Reference  string          `json:"reference"`
				Identifier json.RawMessage `json:"identifier"`
			} `json:"entity"`
		} `json:"member"`
	}
	if err := json.Unmarshal(body, &g); err != nil {
		return 0, fmt.Errorf("read a Group: %w", store.ErrCorrupt)
	}
	if g.Actual != nil && !*g.Actual || g.Membership == "definitional" || g.Membership == "conceptual" {
		return 0, refused(outcome.NotSupported, "the Group, or one in it, is no list of members (actual is false, or membership says so): only who is listed can be exported")
	}
	modified := len(g.Modifiers)
	for _, m := range g.Member {
		modified += len(m.Modifiers)
		if m.Entity.Reference == "" && len(m.Entity.Identifier) > 0 && !m.Inactive {
			byName++
		}
	}
	if modified > 0 {
		return 0, refused(outcome.NotSupported, "the Group, or one in it, has a modifierExtension that is not known here: who belongs to it cannot be told for sure")
	}
	return byName, nil
}
