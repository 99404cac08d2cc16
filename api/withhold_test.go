package api_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark/api"
	"tidemark/api/clients"
	"tidemark/api/publish"
	"tidemark/api/withhold"
	"tidemark/store/fhir"
)

const restricted = `"meta":{"security":[{"code":"R"}]}`

// withholding is a server that withholds from everybody.
func withholding(t *testing.T, p withhold.Policy) *machine {
	m := newMachine(t)
	m.close()
	m.inline, m.withhold = 100, p
	m.open()
	return m
}

// TestWithhold: what a policy withholds is in no list and in no read, and nothing tells
// of it but that there is a policy.
func TestWithhold(t *testing.T) {
	m := withholding(t, withhold.Policy{
		Security: []string{"R"}, Filters: []string{"Condition?code=secret"}, Elements: []string{"Patient.gender", "Group.name", "Media.note"},
	})
	m.apply(
		scanned(t, `{"resourceType":"Patient","id":"a","text":{"div":"canary"},"gender":"female","birthDate":"2000"}`),
		scanned(t, `{"resourceType":"Patient","id":"canary",%s}`, restricted),
		scanned(t, `{"resourceType":"Condition","id":"canary","subject":{"reference":"Patient/a"},"code":{"coding":[{"code":"secret"}]}}`),
		scanned(t, `{"resourceType":"Condition","id":"c","subject":{"reference":"Patient/a"},"code":{"coding":[{"code":"open"}]}}`),
		scanned(t, `{"resourceType":"Binary","id":"labelled","contentType":"text/plain","data":"Y2FuYXJ5",%s}`, restricted),
		document(t, "d", "a", "Binary/labelled"),
		binary(t, "behind", "Y2FuYXJ5"),
		scanned(t, `{"resourceType":"DocumentReference","id":"canary","subject":{"reference":"Patient/a"},"content":[{"attachment":{"url":"Binary/behind"}}],%s}`, restricted),
		group(t, "g", `,"name":"canary"`, "Patient/a"),
		scanned(t, `{"resourceType":"Group","id":"canary","name":"canary",%s}`, restricted),
	)
	for _, level := range []string{"/", "/Patient/", "/Group/g/"} {
		for _, query := range []string{"", "?_elements=id,gender,name,content", "?organizeOutputBy=Patient", "?_typeFilter=Patient%3Fgender%3Dfemale"} {
			status := m.begin(level, query)
			text, blocks := "", strings.Contains(query, "organize")
			for _, f := range m.manifestOf(status).Output {
				_, body := m.get("/fhir" + strings.TrimPrefix(f.URL, public))
				text += string(body)
			}
			_, manifest := m.get(status)
			errors := m.errorsOf(string(manifest))
			for _, hidden := range []string{"canary", "female", "Y2FuYXJ5"} {
				if strings.Contains(text+errors, hidden) {
					t.Errorf("%s%s holds %s:\n%s\n%s", level, query, hidden, text, errors)
				}
			}
			if found := strings.Contains(text, `"birthDate":"2000"`) || strings.Contains(query, "_elements"); found == strings.Contains(query, "gender%3D") {
				t.Errorf("%s%s: a search finds Patient a by what is withheld, or a is not there:\n%s", level, query, text)
			}
			if strings.Count(errors, "policy of this server's operator withholds data") != 1 || strings.Contains(errors, "Condition") {
				t.Errorf("%s%s: %s", level, query, errors)
			}
			if !blocks && !strings.Contains(text, `"id":"c"`) {
				t.Errorf("%s%s lacks what is not withheld:\n%s", level, query, text)
			}
		}
	}
	for path, want := range map[string]int{
		"Patient/a": 200, "Patient/canary": 404, "Group/g": 200, "Group/canary": 404, "Group?name=canary": 200, "Group": 200, "Binary/labelled": 404, "Binary/behind": 404,
	} {
		resp, body := m.get("/fhir/" + path)
		if text := strings.ReplaceAll(string(body), "name=canary", ""); resp.StatusCode != want || strings.Contains(text, "canary") || strings.Contains(text, "female") {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}
	if _, body := m.get("/fhir/Group?name=canary"); !strings.Contains(string(body), `"total":0`) {
		t.Errorf("a search finds by what is withheld: %s", body)
	}
}

// TestWithholdDeletions: a deletion of what was withheld at last is not told, not even
// to whom nothing is asked for.
func TestWithholdDeletions(t *testing.T) {
	m := withholding(t, withhold.Policy{Security: []string{"R"}})
	m.apply(obs(t, "open", "a", ""), obs(t, "hidden", "a", ","+restricted), obs(t, "became", "a", ""))
	since := m.exportOf("/", "").at
	m.apply(obs(t, "became", "a", ","+restricted))
	m.apply(deletion(t, "Observation/open"), deletion(t, "Observation/hidden"), deletion(t, "Observation/became"))
	if got := m.exportOf("/", "?_since="+since); !slices.Equal(got.gone, []string{"Observation/open"}) || len(got.rows) > 0 {
		t.Errorf("deleted %v, sent %v", got.gone, got.rows)
	}
}

// TestWithholdMore: a start under a policy that withholds more ends the jobs that hold
// more, nobody's too, for good; under one that withholds no more it touches none.
func TestWithholdMore(t *testing.T) {
	some, more := withhold.Policy{Security: []string{"R"}}, withhold.Policy{Security: []string{"R"}, Elements: []string{"Patient.name"}}
	m := withholding(t, some)
	m.apply(patient(t, "a"))
	status := m.begin("/", "")
	m.manifestOf(status)
	for _, c := range []struct {
		policy withhold.Policy
		want   int
	}{{some, 200}, {withhold.Policy{}, 200}, {some, 200}, {more, 410}, {withhold.Policy{}, 410}} {
		m.close()
		m.withhold = c.policy
		m.open()
		m.apply()
		if resp, body := m.get(status); resp.StatusCode != c.want {
			t.Errorf("with %v withheld: %s %s", c.policy, resp.Status, body)
		}
	}
}

// TestWithholdFromOne: what is withheld from a client alone, it alone lacks; pages that
// are the same for everybody it does not get.
func TestWithholdFromOne(t *testing.T) {
	typ, _ := fhir.ParseType("Organization")
	o := newOffice(t, api.Options{Publish: publish.Options{Types: []fhir.Type{typ}, Every: time.Hour, SnapshotEvery: time.Hour, Grace: time.Hour}})
	may := clients.Anything
	may.Withhold.Filters = []string{"Patient?_id=a"}
	o.clients[7] = clients.Client{ID: "policed", Serial: 7, May: may}
	policed, whole := o.token("policed", ""), o.token("whole", "")
	for _, c := range []struct {
		path, token string
		want        int
	}{
		{"/fhir/Patient/a", whole, 200},
		{"/fhir/Patient/a", policed, 404},
		{"/fhir/Patient/b", policed, 200},
		{"/fhir/$bulk-publish", policed, 403},
		{"/fhir/$bulk-publish", whole, 503},
	} {
		if resp, body := o.ask(http.MethodGet, c.path, c.token); resp.StatusCode != c.want && (c.want != 503 || resp.StatusCode == 403) {
			t.Errorf("%s: %s %s", c.path, resp.Status, body)
		}
	}
	for token, want := range map[string]bool{whole: false, policed: true} {
		_, body := o.ask(http.MethodGet, o.start("/fhir/$export?_type=Patient", token), token)
		if strings.Contains(body, `"error":[{`) != want {
			t.Errorf("%s", body)
		}
	}
}

// TestWithholdFromOneAsFromAll: from pages is withheld what is from everybody, so a client
// gets them from whom no more is.
func TestWithholdFromOneAsFromAll(t *testing.T) {
	typ, _ := fhir.ParseType("Organization")
	o := newOffice(t, api.Options{Publish: publish.Options{Types: []fhir.Type{typ}}, Withhold: withhold.Policy{Security: []string{"R", "V"}}})
	for label, want := range map[string]int{"V": http.StatusServiceUnavailable, "N": http.StatusForbidden} { // 503: the first is being made
		may := clients.Anything
		may.Withhold.Security = []string{label}
		o.clients[7] = clients.Client{ID: "policed", Serial: 7, May: may}
		if resp, body := o.ask(http.MethodGet, "/fhir/$bulk-publish", o.token("policed", "")); resp.StatusCode != want && (want == http.StatusForbidden || resp.StatusCode != http.StatusOK) {
			t.Errorf("%s is withheld: %s %s", label, resp.Status, body)
		}
	}
}

// TestWithholdPublish: what a policy withholds is on no page, nor in a manifest. More of
// it ends the pages that hold more, and a new root comes. A policy with faults is none.
func TestWithholdPublish(t *testing.T) {
	typ, _ := fhir.ParseType("Organization")
	m := newMachine(t)
	m.apply(
		scanned(t, `{"resourceType":"Organization","id":"a","name":"open","alias":["canary"]}`),
		scanned(t, `{"resourceType":"Organization","id":"canary",%s}`, restricted),
		scanned(t, `{"resourceType":"Organization","id":"b","name":"canary","partOf":{"reference":"%s/Organization/x"}}`, public),
	)
	m.publish = publish.Options{Types: []fhir.Type{typ}, Every: 50 * time.Millisecond, SnapshotEvery: 50 * time.Millisecond}
	var files []string
	for _, c := range []struct {
		policy withhold.Policy
		canary bool
	}{
		{withhold.Policy{}, true},
		{withhold.Policy{Security: []string{"R"}, Filters: []string{"Organization?partof=Organization/x"}, Elements: []string{"Organization.alias"}}, false},
	} {
		m.close()
		m.withhold = c.policy
		m.open()
		m.apply()
		for _, url := range files {
			if resp, body := m.get(url); resp.StatusCode != http.StatusGone || !strings.Contains(string(body), "withdrawn") {
				t.Errorf("a file of a page that holds more: %s %s", resp.Status, body)
			}
		}
		var root publishedManifest
		text := ""
		for deadline := time.Now().Add(10 * time.Second); !strings.Contains(text, "open") && time.Now().Before(deadline); time.Sleep(time.Millisecond) { // a root comes soon
			resp, manifest := m.get("/fhir/$bulk-publish")
			if resp.StatusCode == http.StatusServiceUnavailable {
				continue
			}
			root, text = publishedManifest{}, ""
			m.must(json.Unmarshal(manifest, &root))
			for _, f := range slices.Concat(root.Output, root.Outcome) {
				_, body := m.get("/fhir" + strings.TrimPrefix(f.URL, public))
				text += string(body)
			}
		}
		for _, f := range slices.Concat(root.Output, root.Outcome) {
			files = append(files, "/fhir"+strings.TrimPrefix(f.URL, public))
		}
		if strings.Contains(text, "canary") != c.canary || !strings.Contains(text, "open") {
			t.Errorf("with %v withheld: %v %s", c.policy, root, text)
		}
		if strings.Contains(text, "policy of this server's operator withholds data") == c.canary {
			t.Errorf("with %v withheld: %s", c.policy, text)
		}
	}
	o := api.Options{Withhold: withhold.Policy{Elements: []string{"Claim.status"}}, PublicURL: public}
	if _, err := api.New(o); err == nil || !strings.HasPrefix(err.Error(), "withhold") {
		t.Errorf("%v", err)
	}
}
