package api_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"tidemark/api"
	"tidemark/api/clients"
	"tidemark/api/withhold"
	"tidemark/store"
)

// leftOut are the Groups of people who have opted out.
func leftOut(ids ...string) withhold.Policy { return withhold.Policy{Groups: ids} }

// theirs is what canary and b have, who are both members of g. Everything that is of canary
// alone has that in its id, and nothing else has.
func theirs(t *testing.T) []store.Change {
	return []store.Change{
		patient(t, "canary"), patient(t, "b"),
		scanned(t, `{"resourceType":"Encounter","id":"canary","subject":{"reference":"Patient/canary"}}`),
		scanned(t, `{"resourceType":"Observation","id":"canary","subject":{"reference":"Patient/canary"},"encounter":{"reference":"Encounter/canary"},"performer":[{"reference":"Practitioner/canary"}]}`),
		scanned(t, `{"resourceType":"Observation","id":"shared","subject":{"reference":"Patient/canary"},"performer":[{"reference":"Patient/b"}]}`),
		scanned(t, `{"resourceType":"Practitioner","id":"dr"}`),
		scanned(t, `{"resourceType":"Observation","id":"o","subject":{"reference":"Patient/b"},"performer":[{"reference":"Practitioner/dr"}]}`),
		provenance(t, "canary", "2026-01-01T00:00:00Z", "Observation/canary"),
		provenance(t, "canary-of-canary", "2026-01-01T00:00:00Z", "Provenance/canary"),
		provenance(t, "p", "2026-01-01T00:00:00Z", "Observation/o"),
		binary(t, "canary", "Y2FuYXJ5"), document(t, "canary", "canary", "Binary/canary"),
		binary(t, "canary-bound", "eA=="), document(t, "canary-bound", "canary", "Binary/canary-bound"), library(t, "l", "Binary/canary-bound"),
		binary(t, "of-b", "b2Y="), document(t, "d", "b", "Binary/of-b"),
		group(t, "g", "", "Patient/b", `{"entity":{"reference":"Patient/canary"}}`),
		group(t, "canary", "", "Patient/canary", "Group/canary-too"), group(t, "canary-too", "", "Patient/x"),
		provenance(t, "about-canary", "2026-01-01T00:00:00Z", "Group/canary"),
	}
}

// ids are those of the resources of a text, which may name others.
func ids(text string) (list []string) {
	for line := range strings.Lines(text) {
		_, rest, _ := strings.Cut(line, `"id":"`)
		id, _, _ := strings.Cut(rest, `"`)
		list = append(list, id)
	}
	return list
}

// TestOptOut: what is only of people who have opted out, and what says that they have, is in
// no list and in no read at any level, and nothing tells of it but that there is a policy.
func TestOptOut(t *testing.T) {
	m := withholding(t, leftOut("canary"))
	m.apply(theirs(t)...)
	const named = `{"name":"patient","valueReference":{"reference":"Patient/canary"}},{"name":"patient","valueReference":{"reference":"Patient/b"}}`
	for _, level := range []string{"/", "/Patient/", "/Group/g/"} {
		for _, query := range []string{
			"", "?organizeOutputBy=Patient", "?organizeOutputBy=Encounter", "?includeAssociatedData=LatestProvenanceResources", "?includeAssociatedData=RelevantProvenanceResources",
			"?_typeFilter=Observation%3Fstatus:missing%3Dtrue", "POST",
		} {
			if level == "/" && query == "POST" {
				continue
			}
			var status string
			if query == "POST" {
				status = m.beginPost(level, named)
			} else {
				status = m.begin(level, query)
			}
			text := ""
			for _, f := range m.manifestOf(status).Output {
				_, body := m.get("/fhir" + strings.TrimPrefix(f.URL, public))
				text += string(body)
			}
			_, manifest := m.get(status)
			errors := m.errorsOf(string(manifest))
			if i := slices.IndexFunc(ids(text), func(id string) bool { return strings.Contains(id, "canary") }); i >= 0 || strings.Contains(text, "Y2FuYXJ5") {
				t.Errorf("%s%s holds what is hidden:\n%s", level, query, text)
			}
			if strings.Contains(text, `"valueReference":{"reference":"Patient/canary"}`) {
				t.Errorf("%s%s has a block of who has opted out:\n%s", level, query, text)
			}
			if strings.Contains(query, "Encounter") {
				continue
			}
			for _, there := range []string{"b", "o", "p", "d", "shared"} {
				if !strings.Contains(text, `"id":"`+there+`"`) {
					t.Errorf("%s%s lacks %s:\n%s", level, query, there, text)
				}
			}
			if strings.Count(errors, "policy of this server's operator withholds data") != 1 || strings.Contains(errors, "canary") {
				t.Errorf("%s%s: %s", level, query, errors)
			}
		}
	}
	for path, want := range map[string]int{
		"Patient/canary": 404, "Patient/b": 200, "Group/g": 200, "Group/canary": 404, "Group/canary-too": 404, "Group?_id=canary": 200, "Group": 200, "Binary/canary": 404, "Binary/of-b": 200,
	} {
		resp, body := m.get("/fhir/" + path)
		if text := strings.ReplaceAll(string(body), "_id=canary", ""); resp.StatusCode != want || strings.Contains(text, `"id":"canary`) {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}
	for _, id := range []string{"canary", "canary-too"} {
		if status, text, _, _ := m.kick("GET", "/Group/"+id+"/", "", ""); status != 404 {
			t.Errorf("an export of Group %s: %d %s", id, status, text)
		}
	}
	if h := m.take(m.beginPost("/Patient/", `{"name":"patient","valueReference":{"reference":"Patient/canary"}}`)); len(h.rows) > 0 {
		t.Errorf("who has opted out is exported: %v", h.rows)
	}
}

// TestOptOutAndIn: who opts out leaves, who opts in again joins, with all that is his; of
// what was deleted while he was out it is never told.
func TestOptOutAndIn(t *testing.T) {
	for _, level := range []string{"/", "/Patient/", "/Group/g/"} {
		m := withholding(t, leftOut("out"))
		m.apply(group(t, "out", ""), patient(t, "a"), patient(t, "b"), obs(t, "1", "a", ""), obs(t, "2", "a", ""), obs(t, "3", "b", ""), provenance(t, "p", "2026-01-01T00:00:00Z", "Observation/1"), group(t, "g", "", "Patient/a", "Patient/b"))
		chain := []struct {
			what             string
			changes          []store.Change
			rows, gone, left []string
		}{
			{"nobody is out", nil, []string{"Group/g", "Observation/1", "Observation/2", "Observation/3", "Patient/a", "Patient/b", "Provenance/p"}, nil, nil},
			{"a opts out, and one is deleted before", []store.Change{deletion(t, "Observation/2"), group(t, "out", "", "Patient/a")}, nil, []string{"Observation/2"}, []string{"Observation/1", "Patient/a", "Provenance/p"}},
			{"a is out", []store.Change{obs(t, "4", "a", ""), obs(t, "5", "a", ""), deletion(t, "Observation/1")}, nil, nil, nil},
			{"a is out and in again", []store.Change{deletion(t, "Observation/4"), group(t, "out", "", "Patient/x"), deletion(t, "Observation/5")}, []string{"Patient/a", "Provenance/p"}, []string{"Observation/5"}, nil},
			{"nothing is left to tell", []store.Change{obs(t, "3", "b", `,"status":"final"`)}, []string{"Observation/3"}, nil, nil},
		}
		if strings.Contains(level, "Group") { // what it is about is gone
			chain[3].rows = []string{"Patient/a"}
		}
		since := ""
		for i, c := range chain {
			for _, ch := range c.changes {
				m.apply(ch)
			}
			query := "?includeAssociatedData=_departed"
			if i > 0 {
				query += "&_since=" + since
			}
			if i == 3 {
				m.restart()
				m.apply()
			}
			h := m.exportOf(level, query)
			since = h.at
			for _, list := range []struct {
				name      string
				want, got []string
			}{{"output", c.rows, keysOf(h.rows)}, {"deleted", c.gone, h.gone}, {"departed", c.left, h.left}} {
				slices.Sort(list.got)
				if !slices.Equal(list.got, list.want) {
					t.Errorf("%s, %s: %s %v, want %v", level, c.what, list.name, list.got, list.want)
				}
			}
		}
	}
}

func keysOf(rows map[string]string) (list []string) {
	for ref := range rows {
		list = append(list, ref)
	}
	return list
}

// TestOptOutByResources: an identifier, whosoever it is, and a search tell who has opted
// out as they do for exports; a chain of exports knows who had. Without it nothing is told
// of him.
func TestOptOutByResources(t *testing.T) {
	m := withholding(t, leftOut("by-name", "by-search"))
	stays := func(value string) store.Change { return obs(t, "consent", "c", `,"status":"`+value+`"`) }
	m.apply(
		group(t, "by-name", "", named("1")), group(t, "by-search", `,"modifierExtension":[{"url":"http://hl7.org/fhir/uv/bulkdata/StructureDefinition/member-filter","valueExpression":{"language":"application/x-fhir-query","expression":"Observation?status=cancelled"}}]`),
		identified(t, "a", "", "1"), identified(t, "b", "", "2"), patient(t, "c"), obs(t, "of-a", "a", ""), obs(t, "of-b", "b", ""), stays("final"),
	)
	first := m.exportOf("/Patient/", "")
	if got := keysOf(first.rows); len(got) != 4 || first.rows["Patient/a"] != "" {
		t.Errorf("at first: %v", got)
	}
	for path, want := range map[string]int{"Patient/a": 404, "Patient/b": 200, "Patient/c": 200} {
		if resp, _ := m.get("/fhir/" + path); resp.StatusCode != want {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	m.apply(identified(t, "a", "", "3"), identified(t, "b", "", "1"), stays("cancelled"))
	second := m.exportOf("/Patient/", "?includeAssociatedData=_departed&_since="+first.at)
	slices.Sort(second.left)
	if got := keysOf(second.rows); len(got) != 2 || second.rows["Observation/of-a"] == "" || !slices.Equal(second.left, []string{"Observation/consent", "Observation/of-b", "Patient/b", "Patient/c"}) {
		t.Errorf("a is back, b and c are out: %v, departed %v", got, second.left)
	}
	m.apply(identified(t, "a", "", "1"))
	for path, want := range map[string]int{"Patient/a": 404, "Patient/b": 404, "Patient/c": 404} { // two are called so: either may be meant
		if resp, _ := m.get("/fhir/" + path); resp.StatusCode != want {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	if h := m.exportOf("/Patient/", ""); len(h.rows) > 0 {
		t.Errorf("two are called so, and both are out: %v", keysOf(h.rows))
	}
	m.apply(deletion(t, "Observation/of-a"))
	m.apply(identified(t, "a", "", "3"), deletion(t, "Patient/b"), obs(t, "of-b", "b", `,"status":"final"`))
	third := m.exportOf("/Patient/", "?_since="+second.at)
	if got := keysOf(third.rows); len(got) != 1 || third.rows["Patient/a"] == "" || !slices.Equal(third.gone, []string{"Observation/of-a"}) {
		t.Errorf("what is left of b is his still: %v, deleted %v", got, third.gone)
	}
	if h := m.exportOf("/Patient/", ""); len(h.rows) != 1 {
		t.Errorf("what is left of b is his still: %v", keysOf(h.rows))
	}
	m.apply(identified(t, "a", "", "1"))
	status := m.begin("/Patient/", "?includeAssociatedData=_departed&_since="+before(t, second)) // where no export ended
	m.manifestOf(status)
	_, manifest := m.get(status)
	errors := m.errorsOf(string(manifest))
	if h := m.take(status); len(h.rows)+len(h.gone)+len(h.left) > 0 || !strings.Contains(errors, "is not known here: no export is known that ended there") {
		t.Errorf("from where nobody knows: %v, deleted %v, departed %v", keysOf(h.rows), h.gone, h.left)
	}
}

// TestOptOutUnknown: as long as it cannot be told who has opted out nothing is given out,
// and only the log says why.
func TestOptOutUnknown(t *testing.T) {
	m := withholding(t, leftOut("out"))
	for _, c := range []struct {
		what    string
		changes []store.Change
		fails   bool
		log     string
	}{
		{"it is not here", []store.Change{patient(t, "a")}, true, "is not here"},
		{"it is here", []store.Change{group(t, "out", "")}, false, ""},
		{"it lists nobody", []store.Change{group(t, "out", `,"actual":false`)}, true, "does not tell whom it has"},
		{"its meaning is modified", []store.Change{group(t, "out", `,"modifierExtension":[{"url":"urn:x"}]`)}, true, "does not tell whom it has"},
		{"one in it is not here", []store.Change{group(t, "out", "", "Group/in")}, true, "has Groups in it that are not here"},
		{"one in it is here", []store.Change{group(t, "in", "", "Patient/a")}, false, ""},
		{"it is deleted", []store.Change{deletion(t, "Group/out")}, true, "is not here"},
	} {
		m.apply(c.changes...)
		before := len(m.log.String())
		code, text, status, _ := m.kick("GET", "/", "", "")
		codes, texts := []int{code}, text
		if status > 0 {
			codes[0] = status
		}
		for _, path := range []string{"Patient/a", "Group", "Group/g", "Binary/x"} {
			resp, body := m.get("/fhir/" + path)
			codes, texts = append(codes, resp.StatusCode), texts+string(body)
		}
		want := map[bool][]int{true: {500, 500, 500, 500, 500}, false: {200, 200, 200, 404, 404}}[c.fails]
		if c.what == "one in it is here" {
			want = []int{200, 404, 200, 404, 404}
		}
		if !slices.Equal(codes, want) {
			t.Errorf("%s: %v, want %v: %s", c.what, codes, want, texts)
		}
		log := m.log.String()[before:]
		if c.fails && (!strings.Contains(log, c.log) || !strings.Contains(log, "withhold.groups") || strings.Contains(texts, "Group/out") || !strings.Contains(texts, "cannot be applied")) {
			t.Errorf("%s: log %s\nanswers %s", c.what, log, texts)
		}
	}
}

// TestOptOutMore: a start under a policy with more Groups ends the jobs that hold more.
func TestOptOutMore(t *testing.T) {
	m := withholding(t, leftOut("out"))
	m.apply(group(t, "out", ""), group(t, "more", ""), patient(t, "a"))
	status := m.begin("/", "")
	m.manifestOf(status)
	for _, c := range []struct {
		policy withhold.Policy
		want   int
	}{{leftOut("out"), 200}, {leftOut("out", "more"), 410}} {
		m.close()
		m.withhold = c.policy
		m.open()
		m.apply()
		if resp, body := m.get(status); resp.StatusCode != c.want {
			t.Errorf("with %v withheld: %s %s", c.policy, resp.Status, body)
		}
	}
}

// TestOptOutFromOne: who has opted out of what one client gets, others get.
func TestOptOutFromOne(t *testing.T) {
	o := newOffice(t, api.Options{})
	may := clients.Anything
	may.Withhold.Groups = []string{"g"}
	o.clients[7] = clients.Client{ID: "policed", Serial: 7, May: may}
	policed, whole := o.token("policed", ""), o.token("whole", "")
	for _, c := range []struct {
		path, token string
		want        int
	}{
		{"/fhir/Patient/a", whole, 200}, {"/fhir/Patient/a", policed, 404}, {"/fhir/Patient/b", policed, 200}, {"/fhir/Group/g", whole, 200}, {"/fhir/Group/g", policed, 404},
	} {
		if resp, body := o.ask(http.MethodGet, c.path, c.token); resp.StatusCode != c.want {
			t.Errorf("%s: %s %s", c.path, resp.Status, body)
		}
	}
}
