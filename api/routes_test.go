package api_test

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark/api"
	"tidemark/api/access"
	"tidemark/api/apitest"
	"tidemark/api/clients"
	"tidemark/api/publish"
	"tidemark/api/smart"
	"tidemark/store/fhir"
)

// A roster of clients, by serial.
type clientele map[uint64]clients.Client

func (c clientele) BySerial(n uint64) (clients.Client, bool) { of, is := c[n]; return of, is }

func (c clientele) ByID(id string) (clients.Client, bool) {
	for _, of := range c {
		if of.ID == id {
			return of, true
		}
	}
	return clients.Client{}, false
}

func (c clientele) Prover(id string) (smart.Client, bool) {
	of, is := c.ByID(id)
	keys, err := smart.ParseKeys(of.KeySet)
	return smart.Client{ID: of.ID, Serial: of.Serial, Keys: keys}, is && (err == nil || of.KeySet == nil)
}

func (c clientele) List() []clients.Client { return slices.Collect(maps.Values(c)) }

// An office has clients of all kinds, and their tokens.
type office struct {
	t       *testing.T
	db      *apitest.Store
	clients clientele
	minter  smart.Minter
	server  *httptest.Server
	routes  []api.Mount
	rotate  func([]smart.Secret)
	self    *api.Server
}

func newOffice(t *testing.T, o api.Options) *office {
	of := &office{
		t: t, db: apitest.New(instant(t, "2026-01-02T12:00:00.000Z")),
		minter: smart.Minter{Issuer: public, Secrets: []smart.Secret{smart.NewSecret()}},
	}
	of.clients = clientele{
		1: {ID: "whole", Serial: 1, May: clients.Anything},
		2: {ID: "other", Serial: 2, May: clients.Anything},
		3: {ID: "narrow", Serial: 3, May: clients.Permission{Levels: clients.Anything.Levels, Groups: []string{clients.All}, Scopes: "system/Medication.rs"}},
		4: {ID: "confined", Serial: 4, May: clients.Permission{Levels: []string{"group"}, Groups: []string{"g"}, Scopes: "system/*.rs"}},
		5: {ID: "new", Serial: 5, May: clients.Permission{Scopes: "system/*.rs"}},
		6: {ID: "disabled", Serial: 6, Disabled: true, May: clients.Anything},
	}
	for _, p := range []struct {
		key string
		l   apitest.Links
	}{
		{"Patient/a", apitest.Links{Patients: []string{"a"}}},
		{"Patient/b", apitest.Links{Patients: []string{"b"}}},
		{"Observation/oa", apitest.Links{Patients: []string{"a"}}},
		{"Group/g", apitest.Links{Members: []string{"Patient/a"}}},
		{"Group/h", apitest.Links{Members: []string{"Patient/b"}}},
		{"Binary/x", apitest.Links{More: `,"contentType":"text/plain","data":"eA=="`}},
		{"DocumentReference/d", apitest.Links{Patients: []string{"a"}, Refers: []fhir.Key{key(t, "Binary/x")}}},
		{"Binary/y", apitest.Links{More: `,"contentType":"text/plain","data":"eA=="`}},
		{"DocumentReference/e", apitest.Links{Patients: []string{"b"}, Refers: []fhir.Key{key(t, "Binary/y")}}},
		{"Organization/o", apitest.Links{}},
	} {
		of.db.Put(key(t, p.key), 1, p.l)
	}
	o.Store, o.PublicURL, o.Version = of.db, public, "test"
	o.Auth.Needed, o.Auth.Clients, o.Auth.Secrets = true, of.clients, of.minter.Secrets
	s, err := api.New(o)
	if err != nil {
		t.Fatal(err)
	}
	of.routes, of.rotate, of.self = s.Mounted(), s.UseSecrets, s
	of.server = httptest.NewServer(s.Handler())
	stop := runs(t, s)
	t.Cleanup(func() { of.server.Close(); stop() })
	return of
}

// token is one of a client by its name, with all that it may have or some scopes.
func (o *office) token(name, scopes string) string {
	o.t.Helper()
	c, known := o.clients.ByID(name)
	if !known {
		o.t.Fatalf("%s is no client", name)
	}
	rights := c.May.Rights()
	if scopes != "" {
		rights = smart.Parse(scopes)
	}
	text, _, err := o.minter.Mint(smart.Client{ID: c.ID, Serial: c.Serial}, rights)
	if err != nil {
		o.t.Fatal(err)
	}
	return text
}

// ask sends a request with a token, "" for none.
func (o *office) ask(method, path, token string) (*http.Response, string) {
	o.t.Helper()
	if method == http.MethodPost {
		return o.post(path, `{"resourceType":"Parameters"}`, token)
	}
	r, err := http.NewRequestWithContext(o.t.Context(), method, o.server.URL+path, strings.NewReader(""))
	if err != nil {
		o.t.Fatal(err)
	}
	return o.do(r, token)
}

// post sends parameters with a token.
func (o *office) post(path, parameters, token string) (*http.Response, string) {
	o.t.Helper()
	r, err := http.NewRequestWithContext(o.t.Context(), http.MethodPost, o.server.URL+path, strings.NewReader(parameters))
	if err != nil {
		o.t.Fatal(err)
	}
	r.ContentLength = -1
	r.Header.Set("Content-Type", "application/fhir+json")
	return o.do(r, token)
}

func (o *office) do(r *http.Request, token string) (*http.Response, string) {
	o.t.Helper()
	r.Header.Set("Prefer", "respond-async")
	r.Header.Set("Accept", "application/fhir+json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		o.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		o.t.Fatal(err)
	}
	return resp, string(body)
}

// start is a job of a client, planned.
func (o *office) start(path, token string) (status string) {
	o.t.Helper()
	resp, body := o.ask(http.MethodGet, path, token)
	if resp.StatusCode != http.StatusAccepted {
		o.t.Fatalf("%s: %s %s", path, resp.Status, body)
	}
	return o.wait(resp, token)
}

// wait waits until a job is planned of whose kick-off this is the answer.
func (o *office) wait(kickOff *http.Response, token string) (status string) {
	o.t.Helper()
	status = strings.TrimPrefix(kickOff.Header.Get("Content-Location"), "http://tidemark.test")
	for {
		if resp, body := o.ask(http.MethodGet, status, token); resp.StatusCode == http.StatusOK {
			return status
		} else if resp.StatusCode != http.StatusAccepted {
			o.t.Fatalf("%s: %s %s", status, resp.Status, body)
		}
		time.Sleep(time.Millisecond)
	}
}

// callers are who asks in TestRoutes, and the columns of its table.
var callers = []string{"nobody", "garbage", "expired", "disabled", "new", "other", "narrow", "confined", "whole"}

func (o *office) credentials() map[string]string {
	late := o.minter
	late.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	expired, _, err := late.Mint(smart.Client{ID: "whole", Serial: 1}, clients.Anything.Rights())
	if err != nil {
		o.t.Fatal(err)
	}
	tokens := map[string]string{"nobody": "", "garbage": "x.y.z", "expired": expired}
	for _, c := range o.clients {
		tokens[c.ID] = o.token(c.ID, "")
	}
	return tokens
}

// TestRoutes asks every route that there is, by each of its methods, on behalf of
// everybody: a route that nobody has thought about is not in the table, and fails
// (decisions.md 6).
func TestRoutes(t *testing.T) {
	organization, _ := fhir.ParseType("Organization")
	o := newOffice(t, api.Options{
		Publish: publish.Options{Types: []fhir.Type{organization}}, Metrics: http.NotFoundHandler(), MaxJobs: 10_000,
		Auth: api.Auth{Once: func([]byte, time.Time) (bool, error) { return true, nil }},
	})
	const (
		everybody = "200 200 200 200 200 200 200 200 200"
		system    = "401 401 401 401 403 202 202 403 202"
		patients  = "401 401 401 401 403 202 202 403 202"
		group     = "401 401 401 401 403 202 403 202 202"
		jobs      = "401 401 401 401 404 404 404 404 200"
		reads     = "401 401 401 401 403 200 403 200 200"
		strangers = "401 401 401 401 403 200 403 404 200"
	)
	table := map[string][]struct{ path, want string }{
		"/healthz":                              {{"/healthz", everybody}},
		"/readyz":                               {{"/readyz", everybody}},
		"/metrics":                              {{"/metrics", strings.ReplaceAll(everybody, "200", "404")}},
		"/fhir":                                 {{"/fhir", strings.ReplaceAll(everybody, "200", "404")}}, // no HTML is asked for
		"/fhir/":                                {{"/fhir/", strings.ReplaceAll(everybody, "200", "404")}},
		"/fhir/metadata":                        {{"/fhir/metadata", everybody}},
		"/fhir/.well-known/smart-configuration": {{"/fhir/.well-known/smart-configuration", everybody}},
		"/fhir/auth/token":                      {{"/fhir/auth/token", strings.ReplaceAll(everybody, "200", "400")}}, // it is no form
		"/fhir/OperationDefinition":             {{"/fhir/OperationDefinition", everybody}},
		"/fhir/OperationDefinition/{}":          {{"/fhir/OperationDefinition/export", everybody}},
		"/fhir/$export":                         {{"/fhir/$export", system}},
		"/fhir/$export-v4":                      {{"/fhir/$export-v4", system}},
		"/fhir/Patient/$export":                 {{"/fhir/Patient/$export", patients}},
		"/fhir/Patient/$patient-export":         {{"/fhir/Patient/$patient-export", patients}},
		"/fhir/Patient/$export-v4":              {{"/fhir/Patient/$export-v4", patients}},
		"/fhir/Group/{}/$export": {
			{"/fhir/Group/g/$export", group},
			{"/fhir/Group/h/$export", "401 401 401 401 403 202 403 404 202"},
			{"/fhir/Group/none/$export", "401 401 401 401 403 404 403 404 404"},
		},
		"/fhir/Group/{}/$group-export":        {{"/fhir/Group/g/$group-export", group}},
		"/fhir/Group/{}/$davinci-data-export": {{"/fhir/Group/g/$davinci-data-export", "401 401 401 401 403 400 403 400 400"}},
		"/fhir/Group/{}/$export-v4":           {{"/fhir/Group/g/$export-v4", group}},
		"/fhir/Patient/{}":                    {{"/fhir/Patient/a", reads}, {"/fhir/Patient/b", strangers}},
		"/fhir/Group/{}":                      {{"/fhir/Group/g", reads}, {"/fhir/Group/h", strangers}},
		"/fhir/Group":                         {{"/fhir/Group", reads}},
		"/fhir/Binary/{}":                     {{"/fhir/Binary/x", "401 401 401 401 403 200 404 200 200"}, {"/fhir/Binary/y", "401 401 401 401 403 200 404 404 200"}},
		"/fhir/export/{}":                     {{"{job}", jobs}},
		"/fhir/export/{}/page/{}":             {{"{job}/page/2", strings.ReplaceAll(jobs, "200", "404")}},
		"/fhir/export/{}/{}.ndjson":           {{"{job}/1.ndjson", jobs}},
		"/fhir/$bulk-publish":                 {{"/fhir/$bulk-publish", "401 401 401 401 403 503 403 403 503"}},
		"/fhir/publish/{}":                    {{"/fhir/publish/" + strings.Repeat("0", 32), "401 401 401 401 403 404 403 403 404"}},
		"/fhir/publish/{}/stub":               {{"/fhir/publish/" + strings.Repeat("0", 32) + "/stub", "401 401 401 401 403 404 403 403 404"}},
		"/fhir/publish/{}/{}.ndjson":          {{"/fhir/publish/" + strings.Repeat("0", 32) + "/1.ndjson", "401 401 401 401 403 404 403 403 404"}},
	}
	tokens := o.credentials()
	seen := map[string]bool{}
	for _, route := range o.routes {
		name := bare(route.Pattern)
		seen[name] = true
		if table[name] == nil {
			t.Errorf("the route %s is not in the table: who may have what of it?", route.Pattern)
		}
		for _, row := range table[name] {
			wants := strings.Fields(row.want)
			for _, method := range route.Methods {
				for i, who := range callers {
					path := strings.Replace(row.path, "{job}", "", 1)
					if path != row.path {
						path = o.start("/fhir/Patient/$export", tokens["whole"]) + path
					}
					want := wants[i]
					if method == http.MethodDelete && want == "200" {
						want = "202"
					}
					resp, body := o.ask(method, path, tokens[who])
					if got := resp.Status[:3]; got != want {
						t.Errorf("%s %s, %s: %s, want %s: %s", method, row.path, who, got, want, body)
					}
					if resp.StatusCode == http.StatusUnauthorized && !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Bearer ") {
						t.Errorf("%s %s, %s: WWW-Authenticate is %q", method, row.path, who, resp.Header.Get("WWW-Authenticate"))
					}
				}
			}
		}
	}
	for name := range table {
		if !seen[name] {
			t.Errorf("there is no route %s", name)
		}
	}
}

// bare is a pattern without names and expressions of what may stand in a place.
func bare(pattern string) string {
	var b strings.Builder
	depth := 0
	for _, c := range pattern {
		switch c {
		case '{':
			if depth++; depth == 1 {
				b.WriteString("{}")
			}
		case '}':
			depth--
		default:
			if depth == 0 {
				b.WriteRune(c)
			}
		}
	}
	return b.String()
}

// TestAnswers: who is refused hears why, and what to do, in the same words whether
// something is there or not.
func TestAnswers(t *testing.T) {
	o := newOffice(t, api.Options{})
	job := o.start("/fhir/Patient/$export?_type=Patient", o.token("whole", ""))
	for _, c := range []struct {
		name, path, token, code, challenge string
	}{
		{"no token", "/fhir/$export", "", "login", `Bearer realm="tidemark"`},
		{"an empty one", "/fhir/$export", " ", "login", `Bearer realm="tidemark"`},
		{"none of ours", "/fhir/$export", "x", "unknown", `Bearer realm="tidemark", error="invalid_token", error_description="` + smart.ErrToken.Error() + `"`},
		{"expired", "/fhir/$export", o.credentials()["expired"], "expired", `Bearer realm="tidemark", error="invalid_token", error_description="` + smart.ErrExpired.Error() + `"`},
		{"scope", "/fhir/$export?_type=Patient", o.token("narrow", ""), "forbidden", `Bearer realm="tidemark", error="insufficient_scope"`},
		{"level", "/fhir/$export", o.token("confined", ""), "forbidden", ""},
		{"a status with less", job, o.token("whole", "system/Observation.rs"), "forbidden", `Bearer realm="tidemark", error="insufficient_scope"`},
		{"a file with less", job + "/1.ndjson", o.token("whole", "system/Patient.rs?_security=N"), "forbidden", `Bearer realm="tidemark", error="insufficient_scope"`},
		{"another's", job, o.token("other", ""), "not-found", ""},
	} {
		resp, body := o.ask(http.MethodGet, c.path, c.token)
		if !strings.Contains(body, `"code":"`+c.code+`"`) || resp.Header.Get("WWW-Authenticate") != c.challenge {
			t.Errorf("%s: %s, %q, %s", c.name, resp.Status, resp.Header.Get("WWW-Authenticate"), body)
		}
	}
	for _, c := range []struct{ name, one, two string }{
		{"Groups", "/fhir/Group/h/$export", "/fhir/Group/none/$export"},
		{"a Group", "/fhir/Group/h", "/fhir/Group/none"},
		{"a Patient", "/fhir/Patient/b", "/fhir/Patient/none"},
		{"a Binary", "/fhir/Binary/y", "/fhir/Binary/none"},
		{"jobs", job, "/fhir/export/" + strings.Repeat("0", 32)},
	} {
		resp1, one := o.ask(http.MethodGet, c.one, o.token("confined", ""))
		resp2, two := o.ask(http.MethodGet, c.two, o.token("confined", ""))
		if one != two || resp1.StatusCode != resp2.StatusCode {
			t.Errorf("%s: %s %s, and %s %s", c.name, resp1.Status, one, resp2.Status, two)
		}
	}
	resp, body := o.ask(http.MethodGet, job, o.token("whole", "system/Patient.read"))
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"requiresAccessToken":true`) {
		t.Errorf("%s %s", resp.Status, body)
	}
}

// TestTakenAway: what a token lets is never more than its client may now.
func TestTakenAway(t *testing.T) {
	o := newOffice(t, api.Options{})
	token := o.token("other", "")
	for _, c := range []struct {
		name   string
		change func(c *clients.Client)
		want   int
	}{
		{"nothing", func(*clients.Client) {}, http.StatusOK},
		{"another scope", func(c *clients.Client) { c.May.Scopes = "system/Observation.rs" }, http.StatusForbidden},
		{"a constraint", func(c *clients.Client) { c.May.Scopes = "system/Patient.rs?_security=N" }, http.StatusNotFound},
		{"confined", func(c *clients.Client) { c.May.Levels, c.May.Groups = []string{"group"}, []string{"h"} }, http.StatusNotFound},
		{"disabled", func(c *clients.Client) { c.Disabled = true }, http.StatusUnauthorized},
	} {
		client := clients.Client{ID: "other", Serial: 2, May: clients.Anything}
		c.change(&client)
		o.clients[2] = client
		if resp, body := o.ask(http.MethodGet, "/fhir/Patient/a", token); resp.StatusCode != c.want {
			t.Errorf("%s: %s %s", c.name, resp.Status, body)
		}
	}
	delete(o.clients, 2)
	o.clients[7] = clients.Client{ID: "other", Serial: 7, May: clients.Anything}
	if resp, body := o.ask(http.MethodGet, "/fhir/Patient/a", token); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("of one of the same name: %s %s", resp.Status, body)
	}
}

// TestGroupsSeen: a search finds only the Groups that may be seen.
func TestGroupsSeen(t *testing.T) {
	o := newOffice(t, api.Options{})
	for who, want := range map[string][]string{"whole": {"g", "h"}, "confined": {"g"}} {
		_, body := o.ask(http.MethodGet, "/fhir/Group", o.token(who, ""))
		for _, id := range []string{"g", "h"} {
			if strings.Contains(body, "/fhir/Group/"+id+`"`) != slices.Contains(want, id) {
				t.Errorf("%s: %s", who, body)
			}
		}
	}
}

// TestOpenServer: where no token is asked for, who has one is bound by it.
func TestOpenServer(t *testing.T) {
	var who access.Caller
	if who.Sees() == nil || who.Starts("system") == nil {
		t.Error("who is nobody may something")
	}
	gate := access.Gate{Token: func(_ context.Context, text string) (smart.Token, error) {
		if text != "good" {
			return smart.Token{}, smart.ErrToken
		}
		return smart.Token{Serial: 1, Rights: smart.Parse("system/Patient.rs")}, nil
	}, Client: func(t *smart.Token) (clients.Client, bool) {
		return clients.Client{ID: "c", Serial: t.Serial, May: clients.Anything}, true
	}}
	for header, want := range map[string]string{"": "system/*.rs", "Bearer": "system/*.rs", "Bearer ": "system/*.rs", "Basic eA==": "system/*.rs", "bearer good": "system/Patient.rs", "Bearer bad": ""} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if header != "" {
			r.Header.Set("Authorization", header)
		}
		got := ""
		if c, err := gate.Enter(r); err == nil {
			got = c.Rights.String()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", header, got, want)
		}
	}
}

// TestQuota: who had all of a day is told when the next begins; others are not.
func TestQuota(t *testing.T) {
	o := newOffice(t, api.Options{Quota: &access.Quota{Jobs: 2, Bytes: 1}})
	job := o.start("/fhir/Patient/$export", o.token("whole", ""))
	file := func(method, who, path string) (int, string) {
		resp, _ := o.ask(method, path, o.token(who, ""))
		return resp.StatusCode, resp.Header.Get("Retry-After")
	}
	if got, _ := file(http.MethodGet, "whole", job+"/1.ndjson"); got != http.StatusOK {
		t.Errorf("the first file: %d", got)
	}
	if got, after := file(http.MethodGet, "whole", job+"/2.ndjson"); got != http.StatusTooManyRequests || after == "" {
		t.Errorf("the second file: %d, %q", got, after)
	}
	if got, _ := file(http.MethodGet, "whole", "/fhir/Group/none/$export"); got != http.StatusNotFound {
		t.Errorf("a job that is none: %d", got)
	}
	o.start("/fhir/Patient/$export", o.token("whole", ""))
	if got, after := file(http.MethodGet, "whole", "/fhir/Patient/$export"); got != http.StatusTooManyRequests || after == "" {
		t.Errorf("the third job: %d, %q", got, after)
	}
	other := o.start("/fhir/Patient/$export", o.token("other", ""))
	if got, _ := file(http.MethodGet, "other", other+"/1.ndjson"); got != http.StatusOK {
		t.Errorf("another's file: %d", got)
	}
}

// TestLimitsOfOne: a client that has limits of its own is held to these, where all have
// others and where all have none.
func TestLimitsOfOne(t *testing.T) {
	for name, all := range map[string]*access.Quota{"others": {Jobs: 9, Bytes: 1 << 30}, "none": {}} {
		o := newOffice(t, api.Options{Quota: all})
		c := o.clients[2]
		c.Limits = clients.Limits{JobsPerDay: 1, BytesPerDay: 1}
		o.clients[2] = c
		for who, want := range map[string]int{"other": http.StatusTooManyRequests, "whole": http.StatusOK} {
			job := o.start("/fhir/Patient/$export", o.token(who, ""))
			if resp, body := o.ask(http.MethodGet, job+"/1.ndjson", o.token(who, "")); resp.StatusCode != http.StatusOK {
				t.Errorf("%s, %s: the first file: %s %s", name, who, resp.Status, body)
			}
			if resp, _ := o.ask(http.MethodGet, job+"/2.ndjson", o.token(who, "")); resp.StatusCode != want {
				t.Errorf("%s, %s: the second file: %s", name, who, resp.Status)
			}
			resp, _ := o.ask(http.MethodGet, "/fhir/Patient/$export", o.token(who, ""))
			if limited := resp.StatusCode == http.StatusTooManyRequests; limited != (who == "other") || limited && resp.Header.Get("Retry-After") == "" {
				t.Errorf("%s, %s: the second job: %s", name, who, resp.Status)
			}
		}
	}
}
