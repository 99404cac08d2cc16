package api_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"tidemark/store"
)

func filters(queries ...string) string {
	var all []string
	for _, q := range queries {
		all = append(all, fmt.Sprintf(`{"url":"http://hl7.org/fhir/uv/bulkdata/StructureDefinition/member-filter","valueExpression":{"language":"application/x-fhir-query","expression":%q}}`, q))
	}
	return `,"modifierExtension":[` + strings.Join(all, ",") + `]`
}

// TestMemberFilter: a Group that says by searches whom it has is evaluated at the
// transaction time; who may have joined in the window comes whole, and who was
// certainly there before does not come again.
func TestMemberFilter(t *testing.T) {
	m := newMachine(t)
	condition := func(id, patient, code string) store.Change {
		return scanned(t, `{"resourceType":"Condition","id":%q,"subject":{"reference":"Patient/%s"},"code":{"coding":[{"system":"s","code":%q}]}}`, id, patient, code)
	}
	born := func(id, date string) store.Change {
		return scanned(t, `{"resourceType":"Patient","id":%q,"birthDate":%q}`, id, date)
	}
	m.apply(born("a", "1950-01-01"), born("b", "1950-01-01"), born("young", "2010-01-01"), born("c", "1950-01-01"))
	m.apply(condition("a", "a", "dm"), condition("young", "young", "dm"), condition("c", "c", "flu"), obs(t, "a", "a", ""), obs(t, "b", "b", ""))
	m.apply(
		group(t, "dm", filters("Condition?code=s|dm")),
		group(t, "old", filters("Condition?code=s|dm", "Patient?birthdate=lt2000")),
		group(t, "some", filters("Condition?code=s|dm"), "Patient/young", "Patient/b"),
		group(t, "nested", "", "Group/old", "Patient/b"),
	)
	patients := func(h held) (ids []string) {
		for ref := range h.rows {
			if id, is := strings.CutPrefix(ref, "Patient/"); is {
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		return ids
	}
	expect := func(when, group, query string, want ...string) held {
		t.Helper()
		h := m.exportOf("/Group/"+group+"/", query)
		var got []string
		for ref := range h.rows {
			if !strings.HasPrefix(ref, "Group/") {
				got = append(got, ref)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s, Group %s: %v, want %v", when, group, got, want)
		}
		return h
	}
	first := expect("at first", "dm", "", "Patient/a", "Patient/young", "Condition/a", "Condition/young", "Observation/a")
	expect("at first", "old", "", "Patient/a", "Condition/a", "Observation/a")
	expect("at first", "some", "", "Patient/young", "Condition/young")
	expect("at first", "nested", "", "Patient/a", "Condition/a", "Observation/a", "Patient/b", "Observation/b")
	since := "?_since=" + first.at
	expect("nothing changed", "dm", since)
	expect("nothing changed", "nested", since)

	// b gets the disease, and c; young's is another one after all; a has a new row.
	m.apply(condition("b", "b", "dm"), condition("c2", "c", "dm"), condition("young", "young", "flu"), obs(t, "a2", "a", ""))
	m.apply(born("c", "2011-01-01"))
	expect("after changes", "dm", since, "Patient/b", "Condition/b", "Observation/b", "Patient/c", "Condition/c", "Condition/c2", "Observation/a2")
	expect("after changes", "old", since, "Patient/b", "Condition/b", "Observation/b", "Observation/a2")
	expect("after changes", "some", since, "Patient/b", "Condition/b", "Observation/b")
	if got := patients(expect("after changes, everything", "dm", "", "Patient/a", "Condition/a", "Observation/a", "Observation/a2",
		"Patient/b", "Condition/b", "Observation/b", "Patient/c", "Condition/c", "Condition/c2")); len(got) != 3 {
		t.Errorf("%v", got)
	}
	expect("after changes, in no chain", "dm", "?_since="+notOurs(t, first), "Patient/b", "Condition/b", "Observation/b", "Patient/c", "Condition/c", "Condition/c2", "Observation/a2")
	// What decides about a is the same as before, but the Group asks for something else.
	second := m.exportOf("/Group/dm/", "")
	m.apply(group(t, "dm", filters("Condition?code=s|dm", "Patient?birthdate=lt1990")))
	expect("another search", "dm", "?_since="+notOurs(t, second), "Patient/a", "Condition/a", "Observation/a", "Observation/a2", "Patient/b", "Condition/b", "Observation/b")
	expect("another search, in a chain", "dm", "?_since="+second.at)
	if rows := m.exportOf("/Group/old/", since).rows; rows["Group/old"] != "" || rows["Group/dm"] != "" {
		t.Error("a Group that did not change, or another one, came")
	}

	// A member of some, asked for by his id, is looked for when the job is planned.
	if status, _, ended, text := m.kick("POST", "/Group/old/", "", `{"resourceType":"Parameters","parameter":[{"name":"patient","valueReference":{"reference":"Patient/young"}}]}`); status != 202 || ended != 404 && ended != 422 {
		t.Errorf("one who is no member: %d, then %d %s", status, ended, text)
	}
	for id, more := range map[string]string{
		"unknown":  filters("Condition?colour=blue"),
		"nobody's": filters("Organization?active=true"),
		"broken":   filters("Condition"),
		"language": strings.Replace(filters("Condition?code=s|dm"), "x-fhir-query", "cql", 1),
		"other":    strings.Replace(filters("Condition?code=s|dm"), "member-filter", "other", 1),
	} {
		id = strings.ReplaceAll(id, "'", "")
		m.apply(group(t, id, more))
		if status, text, _, _ := m.kick("GET", "/Group/"+id+"/", "", ""); status != 422 || !strings.Contains(text, "not-supported") {
			t.Errorf("%s: %d %s", id, status, text)
		}
	}
	m.apply(group(t, "mixed", filters("Condition?code=s|dm"), "Group/old"))
	if status, _, ended, text := m.kick("GET", "/Group/mixed/", "", ""); status != 202 || ended != 422 {
		t.Errorf("searches and Groups: %d, then %d %s", status, ended, text)
	}
}

// TestMemberFilterBesideNobody: where a Group has searches and lists members, only
// those may belong to it, though none of them is a member any more, or can be found.
func TestMemberFilterBesideNobody(t *testing.T) {
	m := newMachine(t)
	final := `,"status":"final"`
	m.apply(patient(t, "a"), patient(t, "b"), obs(t, "a", "a", final), obs(t, "b", "b", final))
	for what, member := range map[string]string{
		"inactive":  `{"entity":{"reference":"Patient/a"},"inactive":true}`,
		"over":      `{"entity":{"reference":"Patient/a"},"period":{"end":"2020-01-01"}}`,
		"to-come":   `{"entity":{"reference":"Patient/a"},"period":{"start":"2999-01-01"}}`,
		"elsewhere": `{"entity":{"reference":"http://elsewhere/Patient/a"}}`,
		"unnamed":   `{"entity":{"display":"somebody"}}`,
	} {
		m.apply(scanned(t, `{"resourceType":"Group","id":%q,"actual":true,"member":[%s]%s}`, what, member, filters("Observation?status=final")))
		if h := m.exportOf("/Group/"+what+"/", ""); len(h.rows) != 1 {
			t.Errorf("a list of one who is %s: %v", what, slices.Sorted(maps.Keys(h.rows)))
		}
	}
}

// TestMemberFilterAfterList: a Group that had a list and has searches instead has
// whoever matches them, also in an increment over that change; whom it listed has left,
// and what ended of his is told.
func TestMemberFilterAfterList(t *testing.T) {
	m := newMachine(t)
	final := `,"status":"final"`
	m.apply(patient(t, "a"), patient(t, "b"), patient(t, "c"), obs(t, "of-a", "a", ""), obs(t, "dead", "a", ""), obs(t, "b", "b", final), obs(t, "c", "c", final),
		group(t, "g", "", "Patient/a", "Patient/b"), group(t, "n", "", "Group/g"))
	since := "?" + departed + "&_since=" + m.exportOf("/Group/g/", "").at
	m.each(group(t, "g", filters("Observation?status=final")), deletion(t, "Observation/dead"))
	m.exportOf("/Group/g/", since).gets(t, "searches for a list", "Observation/b Observation/c Patient/b Patient/c", "Observation/dead", "Observation/of-a Patient/a")
	nested := m.exportOf("/Group/n/", since)
	delete(nested.rows, "Group/n")
	nested.gets(t, "nested", "Observation/b Observation/c Patient/b Patient/c", "Observation/dead", "Observation/of-a Patient/a")
	m.apply(group(t, "n", filters("Observation?status=final")))
	nested = m.exportOf("/Group/n/", since)
	delete(nested.rows, "Group/n")
	nested.gets(t, "searches for a Group", "Observation/b Observation/c Patient/b Patient/c", "Observation/dead", "Observation/of-a Patient/a")
	m.apply(group(t, "n", filters("Observation?status=final"), "Patient/b"))
	nested = m.exportOf("/Group/n/", since)
	delete(nested.rows, "Group/n")
	nested.gets(t, "searches and a list for a Group", "Observation/b Patient/b", "Observation/dead", "Observation/of-a Patient/a")

	// Of one whom searches and a list left out nothing is told when the list goes.
	m.apply(group(t, "g", filters("Observation?status=final"), "Patient/a", "Patient/b"))
	since = "?" + departed + "&_since=" + m.exportOf("/Group/g/", "").at
	m.each(obs(t, "of-a", "a", `,"status":"amended"`), deletion(t, "Patient/a"), group(t, "g", filters("Observation?status=final")))
	m.exportOf("/Group/g/", since).gets(t, "searches alone", "Observation/c Patient/c", "", "")
}

// TestMemberFilterUnrecalled: a client is warned if nobody knows who was a member at
// its _since.
func TestMemberFilterUnrecalled(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), identified(t, "i", "", "1"), obs(t, "a", "a", `,"status":"final"`), group(t, "f", filters("Observation?status=final")), group(t, "i", "", named("1")), group(t, "l", "", "Patient/a"))
	for id, unsure := range map[string]bool{"f": true, "i": true, "l": false} {
		first := m.exportOf("/Group/"+id+"/", "")
		m.passes(m.db.Now())
		for since, want := range map[string]bool{"": false, "?_since=" + first.at: false, "?_since=" + notOurs(t, first): unsure} {
			_, _, status, text := m.kick("GET", "/Group/"+id+"/", since, "")
			if notes := m.errorsOf(text); status != 200 || strings.Contains(notes, "is not known here") != want {
				t.Errorf("Group %s%s: %d %s", id, since, status, notes)
			}
		}
	}
}

// TestMemberFilterLeavesNested: where a Group with searches has left another, or is
// deleted, of those whom it listed and its searches left out nothing is told.
func TestMemberFilterLeavesNested(t *testing.T) {
	m := newMachine(t)
	final := `,"status":"final"`
	m.apply(patient(t, "a"), patient(t, "b"), patient(t, "c"), obs(t, "a", "a", final), obs(t, "b", "b", ""), obs(t, "dead-of-a", "a", ""), obs(t, "dead-of-b", "b", ""),
		group(t, "n", filters("Observation?status=final"), "Patient/a", "Patient/b"), group(t, "g", "", "Group/n", "Patient/c"))
	first := m.exportOf("/Group/g/", "")
	first.gets(t, "at first", "Observation/a Observation/dead-of-a Patient/a Patient/c", "", "")
	m.each(deletion(t, "Observation/dead-of-a"), deletion(t, "Observation/dead-of-b"))
	for _, change := range []store.Change{deletion(t, "Group/n"), group(t, "g", "", "Patient/c")} {
		m.apply(change)
		m.exportOf("/Group/g/", "?"+departed+"&_since="+first.at).gets(t, "without it", "", "Observation/dead-of-a", "Observation/a Patient/a")
	}
}
