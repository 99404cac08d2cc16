package api_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark/api"
	"tidemark/api/apitest"
	"tidemark/api/bulk"
	"tidemark/api/smart"
	"tidemark/store"
	"tidemark/store/fhir"
)

// asked sends a request to a server in this process.
func asked(h http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://localhost/fhir"+path, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// called calls an operation without parameters.
func called(h http.Handler, method, path string) *httptest.ResponseRecorder {
	header := []string{"Accept", "application/fhir+json", "Prefer", "respond-async"}
	if method == http.MethodPost {
		return asked(h, method, path, `{"resourceType":"Parameters"}`, append(header, "Content-Type", "application/fhir+json")...)
	}
	return asked(h, method, path, "", header...)
}

// withID is a store that has the Patient and the Group of the page's examples.
func withID(t *testing.T) *apitest.Store {
	db := newStore(t)
	db.Put(key(t, "Patient/ID"), instant(t, "2026-01-01T08:00:00.000Z"), apitest.Links{})
	db.Put(key(t, "Group/ID"), instant(t, "2026-01-01T08:00:00.000Z"), apitest.Links{Members: []string{"Patient/ID"}})
	db.Put(key(t, "Binary/ID"), instant(t, "2026-01-01T08:00:00.000Z"), apitest.Links{More: `,"contentType":"text/plain","data":"eA=="`})
	db.Put(key(t, "DocumentReference/ID"), instant(t, "2026-01-01T08:00:00.000Z"), apitest.Links{Patients: []string{"ID"}, Refers: []fhir.Key{key(t, "Binary/ID")}})
	return db
}

// statement is a CapabilityStatement as clients read it.
type statement struct {
	Rest []struct {
		Operation []offered
		Resource  []struct {
			Type        string
			Extension   []struct{ URL, ValueCanonical string }
			Interaction []struct{ Code string }
			Operation   []offered
		}
	}
}

type offered struct{ Name, Definition, Documentation string }

func statementOf(t *testing.T, h http.Handler) (s statement) {
	t.Helper()
	if err := json.Unmarshal(asked(h, http.MethodGet, "/metadata", "").Body.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestOperationsLeadToTheirDefinitions: the CapabilityStatement lists every
// operation by each of its names; each can be called, and its text and a search
// lead to our definition of it, which is based on the one that is listed.
func TestOperationsLeadToTheirDefinitions(t *testing.T) {
	h := newServer(t, api.Options{Store: withID(t), MaxJobs: 1000}).Handler()
	rest := statementOf(t, h).Rest[0]
	at := map[string][]offered{"": rest.Operation}
	for _, r := range rest.Resource {
		at[r.Type] = r.Operation
	}
	for _, o := range bulk.Operations {
		for _, name := range o.Names {
			i := slices.IndexFunc(at[o.Type], func(l offered) bool { return l.Name == name && l.Definition == o.Guide })
			if i < 0 {
				t.Errorf("%s of %q is not listed", name, o.Type)
				continue
			}
			path := strings.Replace(o.Path(name), "[id]", "ID", 1)
			for _, p := range o.Parameters {
				if p.Must {
					path += "?" + p.Name + "=" + p.Example
				}
			}
			if w := called(h, o.Methods[0], path); w.Code >= 300 {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
			leads(t, h, at[o.Type][i], o.Names[0])
			at[o.Type] = slices.Delete(at[o.Type], i, i+1)
		}
	}
	for typ, more := range at {
		if len(more) > 0 {
			t.Errorf("at %q there are listed also %v", typ, more)
		}
	}
}

// leads follows what is listed to our definition.
func leads(t *testing.T, h http.Handler, l offered, code string) {
	t.Helper()
	ours := regexp.MustCompile(public + `(/OperationDefinition/[a-z0-9-]+)`).FindStringSubmatch(l.Documentation)
	if ours == nil {
		t.Errorf("the text of %s names no definition of ours: %s", l.Name, l.Documentation)
		return
	}
	var d struct{ URL, Base, Code string }
	body := asked(h, http.MethodGet, ours[1], "").Body.Bytes()
	if err := json.Unmarshal(body, &d); err != nil || d.URL != ours[0] || d.Base != l.Definition || d.Code != code {
		t.Errorf("%s: %+v, %v", ours[0], d, err)
	}
	if found := asked(h, http.MethodGet, "/OperationDefinition?base="+url.QueryEscape(l.Definition), "").Body; !strings.Contains(found.String(), ours[0]) {
		t.Errorf("%s is not found by its base: %s", ours[0], found)
	}
}

// TestOperationNotSupported: a type is marked exactly where asking for it is
// refused.
func TestOperationNotSupported(t *testing.T) {
	h := newServer(t, api.Options{Store: withID(t), MaxJobs: 1000}).Handler()
	marked := 0
	for _, r := range statementOf(t, h).Rest[0].Resource {
		for at, id := range map[string]string{"/": "export", "/Patient/": "patient-export", "/Group/ID/": "group-export"} {
			is := slices.ContainsFunc(r.Extension, func(e struct{ URL, ValueCanonical string }) bool {
				return e.URL == "http://hl7.org/fhir/uv/bulkdata/Extension/operation-not-supported" &&
					e.ValueCanonical == "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/"+id
			})
			want := http.StatusAccepted
			if is {
				want = http.StatusBadRequest
				marked++
			}
			if w := called(h, http.MethodGet, at+"$export?_type="+r.Type); w.Code != want {
				t.Errorf("%s$export?_type=%s: %d, marked %v", at, r.Type, w.Code, is)
			}
		}
	}
	if marked == 0 || marked%2 != 0 {
		t.Errorf("%d marks", marked)
	}
}

// TestInteractions: what is listed to be read and searched is, and nothing else.
func TestInteractions(t *testing.T) {
	h := newServer(t, api.Options{Store: withID(t)}).Handler()
	for _, r := range statementOf(t, h).Rest[0].Resource {
		id := "/ID"
		if r.Type == "OperationDefinition" {
			id = "/export"
		}
		for code, path := range map[string]string{"read": "/" + r.Type + id, "search-type": "/" + r.Type} {
			is := slices.ContainsFunc(r.Interaction, func(i struct{ Code string }) bool { return i.Code == code })
			if w := asked(h, http.MethodGet, path, ""); (w.Code == http.StatusOK) != is {
				t.Errorf("%s: %d, listed %v", path, w.Code, is)
			}
		}
	}
}

// TestDocumentsAreKept: who has a document is told that it still stands, HEAD tells
// its length.
func TestDocumentsAreKept(t *testing.T) {
	h := newServer(t, api.Options{}).Handler()
	for _, path := range []string{"/metadata", "/OperationDefinition/export"} {
		got := asked(h, http.MethodGet, path, "")
		tag := got.Header().Get("ETag")
		if w := asked(h, http.MethodGet, path, "", "If-None-Match", tag); w.Code != http.StatusNotModified || w.Body.Len() > 0 {
			t.Errorf("%s again: %d", path, w.Code)
		}
		if w := asked(h, http.MethodGet, path, "", "If-None-Match", `W/"00000000"`); w.Code != http.StatusOK {
			t.Errorf("%s with another tag: %d", path, w.Code)
		}
		if w := asked(h, http.MethodHead, path, ""); w.Code != http.StatusOK || w.Body.Len() > 0 || w.Header().Get("Content-Length") != fmt.Sprint(got.Body.Len()) {
			t.Errorf("HEAD %s: %d, %v, want the length %d", path, w.Code, w.Header(), got.Body.Len())
		}
	}
}

func pageOf(t *testing.T, o api.Options) *httptest.ResponseRecorder {
	t.Helper()
	w := asked(newServer(t, o).Handler(), http.MethodGet, "", "", "Accept", "text/html,*/*;q=0.8")
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w
}

// TestPageTellsAll: whatever a kick-off knows stands on the page: operations,
// parameters and their examples, lists of types.
func TestPageTellsAll(t *testing.T) {
	own := bulk.Presets{"labs": types(t, []string{"Specimen"})}
	page := pageOf(t, api.Options{Presets: own}).Body.String()
	want := func(what string) {
		if !strings.Contains(page, what) {
			t.Errorf("%s is not on the page", what)
		}
	}
	for _, p := range bulk.Parameters {
		want(`<h3 id="parameter-` + p.Name + `"><code>` + p.Name)
	}
	for _, o := range bulk.Operations {
		want(`<h3 id="` + o.ID + `">` + o.Title)
		for _, name := range o.Names {
			want("$" + name)
		}
		for _, p := range o.Parameters {
			want(`<h3 id="parameter-` + p.Name + `">`)
		}
	}
	for _, p := range own.All() {
		want("<td><code>" + p.Value + "</code></td><td>" + strings.Join(p.Types, ", "))
	}
	for _, status := range api.Statuses() {
		want(fmt.Sprintf("<td><code>%d</code></td>", status))
	}
}

// TestPageExamples: what the page says to copy works.
func TestPageExamples(t *testing.T) {
	o := api.Options{Store: withID(t), MaxJobs: 1000}
	h, page := newServer(t, o).Handler(), pageOf(t, o).Body.String()
	tried := 0
	for _, pre := range regexp.MustCompile(`(?s)<pre>(curl.*?)</pre>`).FindAllStringSubmatch(page, -1) {
		for command := range strings.SplitSeq(strings.ReplaceAll(html.UnescapeString(pre[1]), "\\\n", ""), "\n") {
			path := regexp.MustCompile(public + `([^' ]*)`).FindStringSubmatch(command)
			if path == nil || strings.Contains(path[1], "[job]") {
				continue
			}
			method, body, want, header := http.MethodGet, "", http.StatusOK, []string{}
			for _, h := range regexp.MustCompile(`-H '([A-Za-z-]+): ([^']*)'`).FindAllStringSubmatch(command, -1) {
				header = append(header, h[1], h[2])
			}
			if d := regexp.MustCompile(`-d '([^']*)'`).FindStringSubmatch(command); d != nil {
				method, body = http.MethodPost, d[1]
			}
			if strings.Contains(path[1], "$") {
				want = http.StatusAccepted
			}
			tried++
			if w := asked(h, method, path[1], body, header...); w.Code != want {
				t.Errorf("%s\n%d %s", command, w.Code, w.Body)
			}
		}
	}
	if tried < 16 {
		t.Errorf("%d examples were tried, want more: are they read?", tried)
	}
}

// TestPageShowsWhatIsSet: the operator's limits, and whether exports can be started.
func TestPageShowsWhatIsSet(t *testing.T) {
	db := newStore(t)
	o := api.Options{
		Store: db, FileMaxBytes: 5 << 20, FileMaxResources: 12345, MaxJobs: 7, PollsPerMinute: 61, MaxBody: 3000,
		Expires: 36 * time.Hour, RetryAfter: 90 * time.Second, Deletions: 50 * 24 * time.Hour, Version: "1.2.3",
	}
	text := pageText(pageOf(t, o).Body.String())
	for _, want := range []string{
		"uncompressed | 5 MiB | export.file.max_bytes", "12345 | export.file.max_resources", "36 hours | export.expires", "90 seconds | export.retry_after",
		"7 | limits.jobs", "61 | limits.polls_per_minute", "3000 bytes | limits.body", "50 days | retention.deleted", "Tidemark 1.2.3",
		"5 MiB uncompressed (export.file.max_bytes) or 12345 resources", "t₃ = 2026-01-02T12:00:00.000Z", "2025-12-31 | 2026-01-01 | 2026-01-02",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not on the page:\n%s", want, text)
		}
	}
	db.Fail(store.ErrNotReady)
	if text := pageText(pageOf(t, o).Body.String()); !strings.Contains(text, "At present no export can be started here") || strings.Contains(text, "2026-01-02T12") {
		t.Errorf("%s", text)
	}
}

// TestPageTellsTokens: the page's commands send what they need, and its words are true of
// how the server asks for tokens.
func TestPageTellsTokens(t *testing.T) {
	once := func([]byte, time.Time) (bool, error) { return true, nil }
	secrets := []smart.Secret{smart.NewSecret()}
	for _, c := range []struct {
		name string
		auth api.Auth
		bare string // the commands without a token
		says []string
	}{
		{"open", api.Auth{}, "all", []string{"No token is asked for", `"requiresAccessToken": false`}},
		{"open, with tokens", api.Auth{Secrets: secrets, Once: once}, "all", []string{"No token is asked for", `"requiresAccessToken": false`}},
		{"tokens", api.Auth{Needed: true, Secrets: secrets, Once: once}, "none", []string{"/auth/token", "or for its files", `"requiresAccessToken": true`}},
		{"signed URLs", api.Auth{Needed: true, Secrets: secrets, Once: once, SignedURLs: time.Hour}, "files", []string{"work for 1 hour", "?sig=", `"requiresAccessToken": false`}},
	} {
		text := html.UnescapeString(pageOf(t, api.Options{Auth: c.auth}).Body.String())
		if got := bareCommands(text); got != c.bare {
			t.Errorf("%s: %s commands have no token, want %s", c.name, got, c.bare)
		}
		for _, want := range c.says {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q is not on the page", c.name, want)
			}
		}
	}
}

// bareCommands tells which commands on the page send no token, of those that ask for data:
// all, none, or those for files.
func bareCommands(text string) string {
	total, bare, files := 0, 0, 0
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", "")) {
		_, command, is := strings.Cut(line, "curl -s")
		if !is || strings.Contains(command, "/auth/token") {
			continue
		}
		total++
		if strings.Contains(command, "Bearer $TOKEN") {
			continue
		}
		if bare++; strings.Contains(command, ".ndjson") {
			files++
		}
	}
	switch bare {
	case 0:
		return "none"
	case total:
		return "all"
	case files:
		return "files"
	}
	return "some"
}

// TestStatementTellsTokens: old clients look for the token endpoint in /metadata.
func TestStatementTellsTokens(t *testing.T) {
	once := func([]byte, time.Time) (bool, error) { return true, nil }
	given := api.Auth{Secrets: []smart.Secret{smart.NewSecret()}, Once: once}
	needed := given
	needed.Needed = true
	for want, auth := range map[string]api.Auth{"": {}, "No token is asked for; who sends one is bound by it.": given, "An access token is needed.": needed} {
		s, err := api.New(api.Options{Store: newStore(t), PublicURL: public, Auth: auth})
		if err != nil {
			t.Fatal(err)
		}
		text := called(s.Handler(), http.MethodGet, "/metadata").Body.String()
		const extension = `"url":"http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris","extension":[{"url":"token","valueUri":"` + public + `/auth/token"}]`
		if tells := strings.Contains(text, extension); tells != (want != "") || !strings.Contains(text, want) {
			t.Errorf("%q: oauth-uris %t\n%s", want, tells, text)
		}
	}
}

// TestPageIsClosed: nothing on the page comes from elsewhere or runs, and its
// policy allows only its own style.
func TestPageIsClosed(t *testing.T) {
	w := pageOf(t, api.Options{PublicURL: `http://tidemark.test/a<b>"`})
	page, csp := w.Body.String(), w.Header().Get("Content-Security-Policy")
	sum := sha256.Sum256([]byte(style.FindStringSubmatch(page)[1]))
	if want := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !strings.HasPrefix(csp, want) {
		t.Errorf("policy %s, want %s", csp, want)
	}
	if found := regexp.MustCompile(`(?i)<script|<img|<iframe|<link|<form|<object| on[a-z]+=| style=| src=|@import|url\(|<b>`).FindString(page); found != "" {
		t.Errorf("the page has %q", found)
	}
	for _, link := range regexp.MustCompile(`href="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if !strings.HasPrefix(link[1], "#") && !strings.HasPrefix(link[1], "http://tidemark.test/") {
			t.Errorf("a link leads to %s", link[1])
		}
		if anchor, is := strings.CutPrefix(link[1], "#"); is && !strings.Contains(page, ` id="`+anchor+`"`) {
			t.Errorf("a link leads nowhere: %s", link[1])
		}
	}
	if w.Header().Get("Referrer-Policy") != "no-referrer" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%v", w.Header())
	}
}

// What is exported by reference, and what not at all below the system, is told as
// the store has it.
func TestPageTellsTypes(t *testing.T) {
	text := pageText(pageOf(t, api.Options{}).Body.String())
	_, list, _ := strings.Cut(text, "At Patient and Group level these types are not exported: ")
	list, _, _ = strings.Cut(list, ".")
	for _, typ := range fhir.AllTypes() {
		is := slices.Contains(strings.Split(list, ", "), typ.String())
		if held := fhir.InPatientCompartment(typ) || fhir.Referred(typ); held == is {
			t.Errorf("%v is told wrongly", typ)
		}
	}
}
