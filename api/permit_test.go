package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/api"
	"tidemark/api/apitest"
	"tidemark/api/clients"
	"tidemark/api/read"
	"tidemark/api/withhold"
)

// TestPermit: what a kick-off asks for beyond its token is refused and named; what it
// leaves open is what the token covers.
func TestPermit(t *testing.T) {
	o := newOffice(t, api.Options{})
	token := o.token("whole", "system/Patient.rs system/Group.r")
	for _, c := range []struct{ query, want, says string }{
		{"", "202", ""},
		{"_type=Patient", "202", ""},
		{"_type=Patient,Observation", "403", "system/Observation.rs"},
		{"_type=Observation", "403", "system/Observation.rs"},
		{"organizeOutputBy=Patient", "202", ""},
		{"organizeOutputBy=Practitioner", "403", "system/Practitioner.rs"},
		{"includeAssociatedData=LatestProvenanceResources", "403", "system/Provenance.rs"},
		{"_typeFilter=Observation%3Fstatus%3Dfinal&_type=Observation", "403", "system/Observation.rs"},
	} {
		resp, body := o.ask(http.MethodGet, "/fhir/Patient/$export?"+c.query, token)
		if resp.Status[:3] != c.want || !strings.Contains(body, c.says) {
			t.Errorf("%s: %s %s", c.query, resp.Status, body)
		}
	}
	if resp, body := o.ask(http.MethodGet, "/fhir/Patient/$export", o.token("whole", "system/Organization.r")); resp.StatusCode != http.StatusForbidden {
		t.Errorf("nothing is left: %s %s", resp.Status, body)
	}
	status := o.start("/fhir/Patient/$export", token)
	if _, body := o.ask(http.MethodGet, status, token); strings.Contains(body, "Observation") || !strings.Contains(body, `"type":"Patient"`) {
		t.Errorf("%s", body)
	}
}

// TestNarrowedGroups: a scope that narrows Group says which of them may be exported, as it
// says which may be read: others are not there. A job has that frozen, as all else.
func TestNarrowedGroups(t *testing.T) {
	o := newOffice(t, api.Options{Withhold: withhold.Policy{Filters: []string{"Group?_id=hidden"}}})
	o.db.Put(key(t, "Group/hidden"), 1, apitest.Links{Members: []string{"Patient/a"}})
	const types = "system/Patient.rs system/Observation.rs "
	narrowed := o.token("whole", types+"system/Group.r?_id=g")
	_, unknown := o.ask(http.MethodGet, "/fhir/Group/none/$export", narrowed)
	for _, c := range []struct {
		group, scope string
		want         int
	}{
		{"g", "system/Group.r?_id=g", http.StatusAccepted},
		{"h", "system/Group.r?_id=g", http.StatusNotFound},
		{"h", "system/Group.r?_id=g,h", http.StatusAccepted},
		{"h", "system/Group.r?_id=g system/Group.r?_id=h", http.StatusAccepted},
		{"h", "system/Group.r?_id=g&_id=h", http.StatusNotFound},
		{"h", "system/Group.s system/Group.r?_id=g", http.StatusNotFound},
		{"h", "system/Group.r system/Group.s?_id=g", http.StatusAccepted},
		{"h", "system/*.rs?_id=a", http.StatusNotFound},
		{"hidden", "system/Group.r", http.StatusNotFound},
	} {
		resp, body := o.ask(http.MethodGet, "/fhir/Group/"+c.group+"/$export", o.token("whole", types+c.scope))
		if resp.StatusCode != c.want || c.want == http.StatusNotFound && body != unknown {
			t.Errorf("an export of %s with %s: %s %s", c.group, c.scope, resp.Status, body)
		}
		resp, body = o.ask(http.MethodGet, "/fhir/Group/"+c.group, o.token("whole", types+c.scope))
		if (resp.StatusCode == http.StatusOK) != (c.want == http.StatusAccepted) {
			t.Errorf("%s with %s: %s %s", c.group, c.scope, resp.Status, body)
		}
	}
	resp, body := o.post("/fhir/Group/h/$export", `{"resourceType":"Parameters","parameter":[{"name":"patient","valueReference":{"reference":"Patient/b"}}]}`, narrowed)
	if resp.StatusCode != http.StatusNotFound || body != unknown {
		t.Errorf("with a Patient: %s %s", resp.Status, body)
	}
	full, job := o.start("/fhir/Group/g/$export?_type=Patient", o.token("whole", types+"system/Group.r")), o.start("/fhir/Group/g/$export?_type=Patient", narrowed)
	for _, c := range []struct {
		job, path, scopes string
		want              int
	}{
		{full, "", types + "system/Group.r", http.StatusOK},
		{full, "", types + "system/Group.r?_id=g", http.StatusForbidden},
		{full, "", types, http.StatusForbidden},
		{full, "/1.ndjson", types, http.StatusOK}, // a file needs its type
		{job, "", types + "system/Group.r", http.StatusOK},
		{job, "", types + "system/Group.r?_id=g", http.StatusOK},
		{job, "", types + "system/Group.r?_id=h", http.StatusForbidden},
		{job, "/1.ndjson", types + "system/Group.r?_id=g", http.StatusOK},
		{job, "/1.ndjson", types + "system/Group.r?_id=h", http.StatusForbidden},
		{job, "/1.ndjson", types, http.StatusForbidden},
	} {
		if resp, body := o.ask(http.MethodGet, c.job+c.path, o.token("whole", c.scopes)); resp.StatusCode != c.want {
			t.Errorf("%s with %s: %s %s", c.path, c.scopes, resp.Status, body)
		}
	}
	if resp, _ := o.ask(http.MethodDelete, job, o.token("whole", "system/Medication.rs")); resp.StatusCode != http.StatusAccepted {
		t.Errorf("to delete needs the client alone: %s", resp.Status)
	}
}

// TestCountsOfTheWhole: how much there is of everything, and how much of it cannot be had,
// is told to who may have the whole; others hear only that something may be missing.
func TestCountsOfTheWhole(t *testing.T) {
	o := newOffice(t, api.Options{})
	for range 3 {
		o.db.Dead(2)
	}
	for _, c := range []struct {
		who  string
		told bool
	}{{"whole", true}, {"confined", false}} {
		token := o.token(c.who, "")
		job := o.start("/fhir/Group/g/$export?_type=Patient", token)
		_, manifest := o.ask(http.MethodGet, job, token)
		_, errors := o.ask(http.MethodGet, job+"/2.ndjson", token)
		resp, _ := o.ask(http.MethodPost, "/fhir/Group/g/$export-v4", token)
		_, manifest4 := o.ask(http.MethodGet, o.wait(resp, token), token)
		for name, told := range map[string]bool{
			"tidemark-cut":      strings.Contains(manifest, "tidemark-cut") && strings.Contains(manifest, `"next":`),
			"tidemark-cut, v4":  strings.Contains(manifest4, "tidemark-cut"),
			"number of records": strings.Contains(errors, "3 records"),
		} {
			if told != c.told {
				t.Errorf("%s: %s is told: %v", c.who, name, told)
			}
		}
		if !strings.Contains(errors, "could not be decoded") || !strings.Contains(manifest, "tidemark-epoch") || !strings.Contains(manifest4, "tidemark-epoch") {
			t.Errorf("%s: %s %s %s", c.who, manifest, errors, manifest4)
		}
	}
}

// TestPatientsWhoAreKnown: a kick-off that names a Patient tells nobody whether he is known
// here who may have nothing of him: it is answered as for one who is nowhere.
func TestPatientsWhoAreKnown(t *testing.T) {
	o := newOffice(t, api.Options{Withhold: withhold.Policy{Security: []string{"R"}}})
	const restricted = `,"meta":{"security":[{"code":"R"}]}`
	for _, p := range []struct {
		key  string
		l    apitest.Links
		dead bool
	}{
		{"Patient/off", apitest.Links{Patients: []string{"off"}, More: `,"active":false`}, false},
		{"Observation/final", apitest.Links{Patients: []string{"off"}, More: `,"status":"final"`}, false},
		{"Patient/hidden", apitest.Links{Patients: []string{"hidden"}, More: restricted}, false},
		{"Observation/hidden", apitest.Links{Patients: []string{"hidden"}, More: restricted}, false},
		{"Observation/gone", apitest.Links{Patients: []string{"gone"}, More: `,"status":"final"`}, true},
		{"Group/i", apitest.Links{Members: []string{"Patient/off", "Patient/hidden"}}, false},
	} {
		if o.db.Put(key(t, p.key), 1, p.l); p.dead {
			o.db.Delete(key(t, p.key), 2, p.l)
		}
	}
	name := func(id string) string {
		return `{"resourceType":"Parameters","parameter":[{"name":"patient","valueReference":{"reference":"Patient/a"}},{"name":"patient","valueReference":{"reference":"Patient/` + id + `"}}]}`
	}
	all := o.token("whole", "")
	_, unknown := o.post("/fhir/Patient/$export", name("nowhere"), all)
	for _, c := range []struct {
		id, scopes string
		known      bool
	}{
		{"b", "system/*.rs", true},
		{"hidden", "system/*.rs", false}, // policy withholds all that is his
		{"nowhere", "system/*.rs", false},
		{"off", "system/Patient.rs system/Group.r", true},
		{"off", "system/Patient.rs?active=true,false system/Observation.s system/Group.r system/Observation.r?_id=oa", true},
		{"off", "system/Patient.rs?active=true system/Observation.rs?_id=oa system/Group.r", false},
		{"off", "system/Patient.rs?active=true system/Observation.rs?_id=oa,final system/Group.r", true},
		{"off", "system/Observation.rs system/Group.r", true},
		{"off", "system/Observation.rs?_id=oa system/Condition.rs system/Group.r", false},
		{"b", "system/Observation.rs", false}, // he has none
		{"gone", "system/Observation.rs", true},
		{"gone", "system/Observation.rs?status=final,unknown system/Patient.rs", true},
		{"gone", "system/Observation.rs?status=amended system/Patient.rs", false},
		{"nowhere", "system/Observation.rs", false},
	} {
		token := o.token("whole", c.scopes+" system/Patient.rs?_id=a")
		resp, body := o.post("/fhir/Patient/$export", name(c.id), token)
		if (resp.StatusCode == http.StatusAccepted) != c.known || !c.known && (resp.StatusCode != http.StatusNotFound || body != unknown) {
			t.Errorf("%s with %s: %s %s", c.id, c.scopes, resp.Status, body)
		}
		if !strings.Contains(c.scopes, "Group") {
			continue
		}
		resp, body = o.post("/fhir/Group/i/$export", strings.Replace(name(c.id), "Patient/a", "Patient/"+c.id, 1), token)
		if (resp.StatusCode == http.StatusAccepted) != c.known || !c.known && (resp.StatusCode != http.StatusNotFound || body != unknown) {
			t.Errorf("the member %s with %s: %s %s", c.id, c.scopes, resp.Status, body)
		}
	}
}

// TestNothingTells: whoever is confined to a Group is answered for what he may not know of as
// for what is not there, in every byte, whatever he asks beside it.
func TestNothingTells(t *testing.T) {
	o := newOffice(t, api.Options{})
	o.clients[8] = clients.Client{ID: "narrow too", Serial: 8, May: clients.Permission{Levels: []string{"group"}, Groups: []string{"g", "none"}, Scopes: "system/Patient.rs system/Group.rs?_id=g"}}
	job := o.start("/fhir/Patient/$export?_type=Patient", o.token("whole", ""))
	const nowhere = "/fhir/export/00000000000000000000000000000000"
	patient := func(id string) string {
		return `{"resourceType":"Parameters","parameter":[{"name":"patient","valueReference":{"reference":"Patient/` + id + `"}}]}`
	}
	type request struct{ method, path, body string }
	get := func(path string) request { return request{http.MethodGet, path, ""} }
	both := func(path string) [2]request {
		return [2]request{get(strings.ReplaceAll(path, "?", "h")), get(strings.ReplaceAll(path, "?", "none"))}
	}
	pairs := [][2]request{
		both("/fhir/Group/?"), both("/fhir/Group/?/$export"), both("/fhir/Group/?/$group-export"), both("/fhir/Group/?/$davinci-data-export"),
		{get("/fhir/Group/h/$export?_type=None"), get("/fhir/Group/none/$export?_type=None")},
		{get("/fhir/Group/h/$export?_since=2020-01-01T00:00:00Z"), get("/fhir/Group/none/$export?_since=2020-01-01T00:00:00Z")},
		{get("/fhir/Group?_id=h"), get("/fhir/Group?_id=none")},
		{get("/fhir/Patient/b"), get("/fhir/Patient/none")},
		{get("/fhir/Binary/y"), get("/fhir/Binary/none")},
		{get(job), get(nowhere)},
		{get(job + "/page/2"), get(nowhere + "/page/2")},
		{get(job + "/1.ndjson"), get(nowhere + "/1.ndjson")},
		{{http.MethodDelete, job, ""}, {http.MethodDelete, nowhere, ""}},
		{{http.MethodPost, "/fhir/Group/h/$export-v4", patient("a")}, {http.MethodPost, "/fhir/Group/none/$export-v4", patient("a")}},
		{{http.MethodPost, "/fhir/Group/h/$export", patient("b")}, {http.MethodPost, "/fhir/Group/none/$export", patient("b")}},
		{{http.MethodPost, "/fhir/Group/g/$export", patient("b")}, {http.MethodPost, "/fhir/Group/g/$export", patient("none")}},
	}
	for _, who := range []string{"confined", "narrow too"} {
		token := o.token(who, "")
		answer := func(r request) (string, http.Header) {
			resp, body := (*http.Response)(nil), ""
			if r.method == http.MethodPost {
				resp, body = o.post(r.path, r.body, token)
			} else {
				resp, body = o.ask(r.method, r.path, token)
			}
			resp.Header.Del("Date")
			resp.Header.Del("Content-Length") // of a search, whose own URL it repeats
			return resp.Status + " " + strings.ReplaceAll(body, "=none", "=h"), resp.Header
		}
		for _, p := range pairs {
			one, head := answer(p[0])
			two, other := answer(p[1])
			if d := cmp.Diff(head, other); d != "" || one != two || strings.HasPrefix(one, "5") {
				t.Errorf("%s, %s %s: %s, and what is not there: %s %s", who, p[0].method, p[0].path, one, two, d)
			}
		}
	}
}

// TestTurnIsHonest: who waited for his turn in vain is told when it may come.
func TestTurnIsHonest(t *testing.T) {
	status, after := (&api.Server{}).Fault(fmt.Errorf("read: %w", &read.TurnError{After: 7 * time.Second}))
	if status != http.StatusServiceUnavailable || after != 7*time.Second {
		t.Errorf("%d, %v", status, after)
	}
}
