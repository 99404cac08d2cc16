package api_test

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"tidemark/store"
	"tidemark/store/fhir"
)

// gets tells which rows came, but for the Group, and what is told as deleted and as
// departed.
func (h held) gets(t *testing.T, what, rows, gone, left string) {
	t.Helper()
	delete(h.rows, "Group/g")
	slices.Sort(h.gone)
	slices.Sort(h.left)
	got := [3]string{strings.Join(slices.Sorted(maps.Keys(h.rows)), " "), strings.Join(h.gone, " "), strings.Join(h.left, " ")}
	if want := [3]string{rows, gone, left}; got != want {
		t.Errorf("%s: rows, deleted, departed\n%q, want\n%q", what, got, want)
	}
}

// A Patient who loses the identifier by which a Group names him has left: what of his
// was deleted is told, and what lives has departed; but not what came to be since.
// Whoever has it from then on comes whole, though nothing of his has changed.
func TestGroupByIdentifierLost(t *testing.T) {
	m := newMachine(t)
	m.apply(identified(t, "a", "", "1"), obs(t, "of-a", "a", ""), obs(t, "dead", "a", ""), group(t, "g", "", named("1"), named("2")),
		identified(t, "b", "", "2"), obs(t, "of-b", "b", ""), identified(t, "b-too", "", "2"))
	first := m.exportOf("/Group/g/", "")
	first.gets(t, "at first", "Observation/dead Observation/of-a Patient/a", "", "")
	sent := m.db.Now()
	m.passes(sent)
	later := obs(t, "later", "a", "")
	later.Timestamp = m.db.Now()
	m.each(identified(t, "a", ""), deletion(t, "Observation/dead"), later, identified(t, "b-too", "", "3"))
	since := "&_since=" + first.at
	m.exportOf("/Group/g/", "?"+departed+since).gets(t, "the next of the chain", "Observation/of-b Patient/b", "Observation/dead", "Observation/of-a Patient/a")
	m.restart()
	m.apply()
	h := m.exportOf("/Group/g/", "?"+departed+since)
	h.gets(t, "after a restart", "Observation/of-b Patient/b", "Observation/dead", "Observation/of-a Patient/a")
	m.exportOf("/Group/g/", "?"+departed+"&_since="+h.at).gets(t, "nothing new", "", "", "")
	m.exportOf("/Group/g/", "?"+departed+"&_since="+notOurs(t, first)).gets(t, "in no chain, nobody knows who he was", "", "", "")
}

// A Patient who does not match a Group's searches any more has left, who matches again
// has joined; so it is when the Group asks for something else, or lists its members.
func TestMemberFilterLeaves(t *testing.T) {
	m := newMachine(t)
	final := func(id, of string) store.Change { return obs(t, id, of, `,"status":"final"`) }
	m.apply(patient(t, "a"), patient(t, "b"), patient(t, "c"), final("a", "a"), final("b", "b"), final("c", "c"), obs(t, "more-of-a", "a", ""), obs(t, "more-of-b", "b", ""),
		group(t, "g", filters("Observation?status=final")))
	since := m.exportOf("/Group/g/", "").at
	next := func(what, rows, gone, left string) {
		t.Helper()
		h := m.exportOf("/Group/g/", "?"+departed+"&_since="+since)
		h.gets(t, what, rows, gone, left)
		since = h.at
	}
	m.each(obs(t, "a", "a", `,"status":"amended"`), deletion(t, "Observation/more-of-a"), deletion(t, "Observation/b"))
	next("what matched has changed, or was deleted", "", "Observation/b Observation/more-of-a", "Observation/a Observation/more-of-b Patient/a Patient/b")
	m.apply(final("b2", "b"))
	next("he matches again", "Observation/b2 Observation/more-of-b Patient/b", "", "")
	m.apply(group(t, "g", filters("Observation?status=final", "Observation?_id=b2")))
	next("another search", "", "", "Observation/c Patient/c")
	m.apply(group(t, "g", "", "Patient/c"))
	next("a list instead", "Observation/c Patient/c", "", "Observation/b2 Observation/more-of-b Patient/b")
}

// Two exports may end at one instant and find others, where _until says so: who was
// told by the later that somebody has left gets him whole when he is back.
func TestGroupByIdentifierUntil(t *testing.T) {
	m := newMachine(t)
	m.apply(identified(t, "a", "", "1"), obs(t, "of-a", "a", ""), group(t, "g", "", named("1")))
	first := m.exportOf("/Group/g/", "")
	first.gets(t, "at first", "Observation/of-a Patient/a", "", "")
	m.passes(m.db.Now())
	m.apply(identified(t, "twin", "", "1"))
	second := m.exportOf("/Group/g/", "?"+departed+"&_until="+notOurs(t, first)+"&_since="+before(t, first))
	if second.at != first.at {
		t.Fatalf("setup: %s and %s", first.at, second.at)
	}
	m.apply(deletion(t, "Patient/twin"), identified(t, "twin", "", "2"))
	m.exportOf("/Group/g/", "?"+departed+"&_since="+second.at).gets(t, "back again", "Observation/of-a Patient/a", "", "")
}

// Of Patients who cannot be read nobody knows whether they have left: that is not
// said, and they come whole when they can be read again.
func TestGroupRollDamage(t *testing.T) {
	for _, members := range []string{"", filters("Patient?active=true")} {
		m := newMachine(t)
		m.apply(obs(t, "of-a", "a", ""), obs(t, "of-b", "b", ""))
		if members == "" {
			m.apply(group(t, "g", "", named("1"), named("2")))
		} else {
			m.apply(group(t, "g", members))
		}
		m.apply(identified(t, "a", `,"active":true`, "1"), identified(t, "b", `,"active":true`, "2"))
		first := m.exportOf("/Group/g/", "")
		first.gets(t, "at first", "Observation/of-a Observation/of-b Patient/a Patient/b", "", "")
		m.damage(0)
		m.apply(obs(t, "new-of-a", "a", ""))
		query := "?" + departed + "&_type=Observation&_since="
		second := m.exportOf("/Group/g/", query+first.at)
		second.gets(t, "while they cannot be read", "", "", "")
		if _, _, status, text := m.kick("GET", "/Group/g/", query+first.at, ""); status != http.StatusOK || !strings.Contains(m.errorsOf(text), "Patient: 2 resources are damaged") {
			t.Errorf("nobody is told: %d %s", status, text)
		}
		m.damage(1) // undoes it
		m.apply(identified(t, "b", `,"active":false`, "3"))
		m.exportOf("/Group/g/", query+second.at).gets(t, "when they can", "Observation/new-of-a Observation/of-a", "", "Observation/of-b")
	}
}

// Of whom a Group named by an identifier, and who is erased, all is told as deleted.
func TestGroupByIdentifierErased(t *testing.T) {
	m := newMachine(t)
	m.apply(identified(t, "a", "", "1"), obs(t, "of-a", "a", ""), identified(t, "b", "", "2"), obs(t, "of-b", "b", ""), group(t, "g", "", named("1"), named("2")))
	first := m.exportOf("/Group/g/", "")
	_, err := m.db.Erase(t.Context(), store.Erasure{Key: fhir.Key{Type: patient(t, "a").Key.Type, ID: "a"}, Compartment: true})
	m.must(err)
	m.passes(m.db.Now())
	m.exportOf("/Group/g/", "?"+departed+"&_since="+first.at).gets(t, "after an erasure", "", "Observation/of-a Patient/a", "")
}
