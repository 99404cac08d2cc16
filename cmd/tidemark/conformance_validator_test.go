//go:build conformance

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/config"
	"tidemark/cmd/tidemark/internal/manifest"
)

// Whatever the server sends is FHIR R4, as HAPI's validator has its rules: what
// it makes itself has no error, and what came from the source has none that the
// source did not make.
func TestConformanceValidator(t *testing.T) {
	for _, tool := range []string{"java", "javac", "mvn"} {
		needs(t, tool)
	}
	fetch := exec.CommandContext(t.Context(), validatorScript, "fetch")
	if out, err := fetch.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c := newClinic(t)
	later := c.begin()
	a := &answers{clinic: c, odd: c.oddities()}
	before := a.export("a whole export", 1, "$export")
	_, gone, _ := c.change(later)
	a.dead()

	a.export("a whole export", 5, "$export")
	a.export("cut to the least", 3, "$export?_elements=id&allowPartialManifests=true")
	a.export("cut to some elements", 2, "$export?_elements=code,status,subject,patient,name,managingOrganization,Observation.value,Task.input,text,orderDetail,estimatedAge")
	a.export("filtered", 5, "Patient/$export?_type=Observation,Patient&_typeFilter=Observation?category=laboratory,Patient?gender=female")
	a.export("filtered and cut", 5, "Group/panel/$export?_type=Observation,Encounter&_typeFilter=Observation%3Fcategory%3Dlaboratory&_elements=value")
	a.export("an increment", 2, "$export?_since="+before.Format("2006-01-02T15:04:05.000Z"))
	a.export("with much left out", 1, "Group/lost/$export?_type=Patient,Device&organizeOutputBy=Patient&_typeFilter=Device?nothing=1"+
		"&_elements=nothing&includeAssociatedData=nothing&unknown=%F0%9F%A6%AD")
	a.posted()
	a.refusals()
	a.reads()
	a.documents()
	a.erased(gone)
	a.secured()

	a.suffice(len(gone))
	a.judge()
}

const validatorScript = "../../deploy/dev/validator/validator"

// Answers are what the server has sent, some of everything.
type answers struct {
	*clinic
	odd       map[string]bool // resources that are always looked at, by Type/id
	specimens []specimen
	seen      map[string]bool // their bodies
}

// A specimen is one resource that the server has sent.
type specimen struct {
	from   string
	body   []byte
	source []byte // what the source sent; nil where the server made it all
	known  string // of the one error that we make and stand by
}

// oddities are the resources that were written by hand.
func (c *clinic) oddities() map[string]bool {
	c.t.Helper()
	odd := map[string]bool{}
	err := eachLine("testdata/resources.ndjson", func(_ string, line []byte) error {
		key, err := keyOf(line)
		odd[key] = true
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return odd
}

// dead sends what cannot be decoded, what is wrong already, and a Group of whom
// hardly anybody is here.
func (a *answers) dead() {
	a.t.Helper()
	lost := `{"resourceType":"Group","id":"lost","type":"person","actual":true,"member":[{"entity":{"reference":"Patient/walrus"}},` +
		`{"entity":{"reference":"Practitioner/x"}},{"entity":{"reference":"Group/unknown"}},{"entity":{"reference":"https://elsewhere.example/Patient/1"}},` +
		`{"entity":{"identifier":{"system":"urn:x","value":"y"}}}]}`
	const wrong = `{"resourceType":"Patient","id":"wrong","gender":"sideways","maritalstatus":{"text":"wrong"}}`
	a.now["Group/lost"], a.now["Patient/wrong"], a.odd["Patient/wrong"] = []byte(lost), []byte(wrong), true
	a.covers(a.send(slices.Values([]*kgo.Record{
		record(a.topic, "Patient/dead", []byte(`{"resourceType":`)),
		record(a.topic, "Patient/wrong", []byte(wrong)),
		record(a.topic, "Group/lost", []byte(lost)),
	})))
}

// knowOAuth says what is known of the CapabilityStatement that was added last: SMART's
// definition of oauth-uris wants where users log in, too. Nobody does here, and clients
// look for the token endpoint in it (decisions.md 2).
func (a *answers) knowOAuth() {
	a.specimens[len(a.specimens)-1].known = "'Extension.extension:authorize': a matching slice is required"
}

func (a *answers) add(from string, body, source []byte) {
	if a.seen == nil {
		a.seen = map[string]bool{}
	}
	if body = bytes.TrimSuffix(body, []byte("\n")); !a.seen[string(body)] {
		a.seen[string(body)] = true
		a.specimens = append(a.specimens, specimen{from: from, body: body, source: source})
	}
}

// export takes the first n resources of each file of an export, the odd ones, and
// all that the server makes. It returns the transactionTime.
func (a *answers) export(what string, n int, path string) time.Time {
	a.t.Helper()
	return a.follow(what, n, http.MethodGet, path, "")
}

// follow is export with any kick-off. A manifest may have pages.
func (a *answers) follow(what string, n int, method, path, body string) time.Time {
	a.t.Helper()
	status, header, answer := a.do(method, path, body)
	if status != http.StatusAccepted {
		a.t.Fatalf("%s: %d %s", path, status, answer)
	}
	job := header.Get("Content-Location")
	m := &manifest.Manifest{Next: job}
	for m.Next != "" {
		page := m.Next
		a.until("the page is complete", func() bool {
			status, _, answer = a.do(http.MethodGet, page, "")
			return status != http.StatusAccepted
		})
		var err error
		if m, err = manifest.Read(answer); err != nil || status != http.StatusOK {
			a.t.Fatalf("%s: %d %s: %v", path, status, answer, err)
		}
		for _, f := range slices.Concat(m.Output, m.Deleted, m.Error) {
			a.file(what, n, f.URL)
		}
	}
	a.do(http.MethodDelete, job, "")
	return m.TransactionTime
}

type link struct{ Relation, URL string }

// next is the address of the next page, empty if there is none.
func next(links []link) string {
	for _, l := range links {
		if l.Relation == "next" {
			return l.URL
		}
	}
	return ""
}

func (a *answers) file(what string, n int, address string) {
	a.t.Helper()
	_, _, file := a.do(http.MethodGet, address, "")
	for line := range bytes.Lines(file) {
		key, err := keyOf(line)
		if err != nil {
			a.t.Fatalf("%s: %v", address, err)
		}
		ours := strings.HasSuffix(key, "/") // it has no id
		if n--; n >= 0 || ours || a.odd[key] {
			a.add(what+": "+key, line, a.now[key])
		}
	}
}

// do sends a request as a lenient bulk client and returns the answer.
func (a *answers) do(method, path, body string) (status int, header http.Header, answer []byte) {
	a.t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = a.client.Base + "/" + path
	}
	request, err := http.NewRequestWithContext(a.t.Context(), method, path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	request.Header = http.Header{
		"Accept": {"application/fhir+json"}, "Prefer": {"respond-async, handling=lenient"}, "Content-Type": {"application/fhir+json"},
	}
	return a.ask(request)
}

func (a *answers) ask(request *http.Request) (status int, header http.Header, answer []byte) {
	a.t.Helper()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		a.t.Fatal(err)
	}
	defer response.Body.Close()
	if answer, err = io.ReadAll(response.Body); err != nil {
		a.t.Fatal(err)
	}
	return response.StatusCode, response.Header, answer
}

// posted takes Parameters that the server takes.
func (a *answers) posted() {
	a.t.Helper()
	body := `{"resourceType":"Parameters","parameter":[{"name":"_since","valueInstant":"2020-01-01T00:00:00Z"},` +
		`{"name":"_outputFormat","valueString":"application/fhir+ndjson"},{"name":"_type","valueCode":"Observation"},` +
		`{"name":"patient","valueReference":{"reference":"Patient/` + a.members[len(a.members)-1] + `"}},` +
		`{"name":"_typeFilter","valueString":"Observation?status=final"},{"name":"_elements","valueString":"Observation.value"}]}`
	a.add("a kick-off", []byte(body), nil)
	a.follow("posted", 1, http.MethodPost, "Group/panel/$export", body)
	body = `{"resourceType":"Parameters","parameter":[{"name":"_since","valueInstant":"2020-01-01T00:00:00Z"},{"name":"unknown","valueString":"x"}]}`
	a.add("a kick-off of version 4", []byte(body), nil)
	a.follow("version 4", 1, http.MethodPost, "$export-v4", body)
}

// refusals takes what the server says to requests that it refuses: those that
// the scripts of package api have, and others.
func (a *answers) refusals() {
	a.t.Helper()
	for _, script := range []string{"parameters", "filter", "elements"} {
		text, err := os.ReadFile("../../api/testdata/scripts/" + script)
		if err != nil {
			a.t.Fatal(err)
		}
		for query := range queries(string(text)) {
			a.refused(http.MethodGet, "$export?"+query, "", nil)
		}
	}
	parameters := func(parameter string) string {
		return `{"resourceType":"Parameters","parameter":[` + parameter + `]}`
	}
	for _, r := range []struct {
		method, path, body string
		header             http.Header
	}{
		{"GET", "$export", "", http.Header{"Prefer": nil}},
		{"GET", "$export", "", http.Header{"Accept": nil}},
		{"GET", "$export", "", http.Header{"Accept": {"text/csv"}}},
		{"GET", "export/00000000000000000000000000000000", "", nil},
		{"GET", "export/00000000000000000000000000000000/1.ndjson", "", nil},
		{"DELETE", "export/00000000000000000000000000000000", "", nil},
		{"GET", "Patient/nobody", "", nil},
		{"GET", "Group/nobody", "", nil},
		{"GET", "Group?nothing=1", "", nil},
		{"GET", "Group?_count=x", "", nil},
		{"GET", "Group/nobody/$export", "", nil},
		{"GET", "Patient", "", nil},
		{"PUT", "$export", "", nil},
		{"POST", "metadata", "", nil},
		{"GET", "$export-v4", "", nil},
		{"POST", "$export-v4", parameters(`{"name":"_typeFilter","valueString":"Patient"}`), nil},
		{"GET", "Group/panel/$davinci-data-export", "", nil},
		{"POST", "$export", "{", nil},
		{"POST", "$export", `{"resourceType":"Patient"}`, nil},
		{"POST", "$export", parameters(`{"name":"_since","valueInstant":"yesterday"}`), nil},
		{"POST", "$export", parameters(`{"name":"_type","valueCode":"Nothing"}`), nil},
		{"POST", "Patient/$export", parameters(`{"name":"patient","valueReference":{"reference":"Patient/nobody"}}`), nil},
		{"POST", "$export", parameters(`{"name":"_type","valueCode":"Patient"}`), http.Header{"Content-Type": {"text/plain"}}},
		{"POST", "$export", parameters(``), http.Header{"Content-Encoding": {"gzip"}}},
		{"POST", "$export", strings.Repeat(" ", 2<<20), nil},
		{"GET", "$export", "", http.Header{"Host": {"elsewhere.example"}}},
	} {
		if !a.refused(r.method, r.path, r.body, r.header) {
			a.t.Errorf("%s %s %.60s is not refused", r.method, r.path, r.body)
		}
	}
}

// queries are the lines of a script's get commands.
func queries(script string) func(func(string) bool) {
	return func(yield func(string) bool) {
		asks := false
		for line := range strings.Lines(script) {
			line = strings.TrimSpace(line)
			if asks && line != "----" && line != "" && line != "(none)" && !yield(line) {
				return
			}
			asks = line == "get" || asks && line != "----"
		}
	}
}

// refused sends a strict kick-off, with other headers if there are any, and
// takes the answer if it is a refusal.
func (a *answers) refused(method, path, body string, header http.Header) bool {
	a.t.Helper()
	request, err := http.NewRequestWithContext(a.t.Context(), method, a.client.Base+"/"+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	request.Header = http.Header{"Accept": {"application/fhir+json"}, "Prefer": {"respond-async"}, "Content-Type": {"application/fhir+json"}}
	maps.Copy(request.Header, header)
	if host := header.Get("Host"); host != "" {
		request.Host = host
	}
	status, got, answer := a.ask(request)
	if status < 400 {
		if job := got.Get("Content-Location"); job != "" {
			a.do(http.MethodDelete, job, "")
		}
		return false
	}
	if kind := got.Get("Content-Type"); kind != "application/fhir+json" {
		a.t.Errorf("%s %s: a refusal of type %q", method, path, kind)
	}
	a.add(fmt.Sprintf("%d for %s %s", status, method, path), answer, nil)
	return true
}

// reads takes a Group and a Patient read singly, and Groups searched for in
// pages.
func (a *answers) reads() {
	a.t.Helper()
	for _, key := range []string{"Group/panel", "Patient/" + a.members[len(a.members)-1]} {
		a.add("read "+key, a.ok(key), a.now[key])
	}
	a.add("a search that finds nothing", a.ok("Group?identifier=urn:x|nothing"), nil)
	a.add("a search of which only the number is asked", a.ok("Group?_count=0"), nil)
	pages := 0
	for page := "Group?type=person&_count=2"; page != ""; pages++ {
		var bundle struct{ Link []link }
		body := a.ok(page)
		if err := json.Unmarshal(body, &bundle); err != nil {
			a.t.Fatal(err)
		}
		a.add("search "+page, body, nil)
		page = next(bundle.Link)
	}
	if pages < 2 {
		a.t.Errorf("a search of %d page", pages)
	}
}

// ok is what the server answers to a request that is right.
func (a *answers) ok(path string) []byte {
	a.t.Helper()
	status, _, body := a.do(http.MethodGet, path, "")
	if status != http.StatusOK {
		a.t.Fatalf("%s: %d %s", path, status, body)
	}
	return body
}

// documents takes what the server says of itself: CapabilityStatement, and the
// OperationDefinitions if it has any.
func (a *answers) documents() {
	a.t.Helper()
	a.add("/metadata", a.ok("metadata"), nil)
	a.knowOAuth()
	status, _, body := a.do(http.MethodGet, "OperationDefinition", "")
	if status != http.StatusOK {
		return
	}
	a.add("OperationDefinitions", body, nil)
	var bundle struct {
		Entry []struct{ Resource json.RawMessage }
	}
	if err := json.Unmarshal(body, &bundle); err != nil {
		a.t.Fatal(err)
	}
	for _, e := range bundle.Entry {
		key, err := keyOf(e.Resource)
		if err != nil {
			a.t.Fatal(err)
		}
		a.add("read "+key, a.ok(key), nil)
	}
}

// erased takes what the server says of a job that an erasure has ended.
func (a *answers) erased(gone map[string][]byte) {
	a.t.Helper()
	_, header, _ := a.do(http.MethodGet, "$export", "")
	job := header.Get("Content-Location")
	if got, code := ends(a.t, "erase", "Patient/"+a.members[len(a.members)-1], "--yes", "--store", a.store()); code != 0 {
		a.t.Fatalf("erase: exit %d: %s", code, got)
	}
	status, _, body := a.do(http.MethodGet, job, "")
	if status != http.StatusGone {
		a.t.Fatalf("the job that was ended answers %d %s", status, body)
	}
	a.add("a job that was ended", body, nil)
}

// secured takes what a server that asks for tokens says of itself, and to whoever may not
// have what it asks for.
func (a *answers) secured() {
	a.t.Helper()
	s := newSecured(a.t, "--set", "limits.jobs_per_client_day=1")
	s.sick()
	s.begin()
	add := func(what string, want int, token, address string) {
		status, body := s.get(token, address)
		if status != want {
			a.t.Errorf("%s: %d, want %d: %s", what, status, want, body)
		}
		a.add(what, []byte(body), nil)
	}
	add("/metadata of a server with tokens", http.StatusOK, "", "metadata")
	a.knowOAuth()
	c := s.member("payer", "ES384", "--level", "group,patient", "--group", "of-a", "--scope", "system/Patient.rs", "--scope", "system/Group.rs")
	token := c.token("system/Patient.rs system/Group.rs")
	add("no token", http.StatusUnauthorized, "", "$export")
	add("no token of ours", http.StatusUnauthorized, "x.y.z", "$export")
	add("another level", http.StatusForbidden, token, "$export")
	add("another type", http.StatusForbidden, token, "Patient/$export?_type=Observation")
	add("another Group", http.StatusNotFound, token, "Group/of-b/$export")
	job, files := s.export(token, "Patient/$export", nil)
	for _, f := range files.Output { // for the trail
		if status, body := s.get(token, f.URL); status != http.StatusOK {
			a.t.Errorf("a file: %d: %s", status, body)
		}
	}
	s.operate("list")
	add("a second job of a day", http.StatusTooManyRequests, token, "Patient/$export")
	add("a job of more types than the token has", http.StatusForbidden, c.token("system/Group.rs"), job.URL)
	s.operate("change", "payer", "--level", "group")
	add("a job whose client may not have it any more", http.StatusGone, token, job.URL)
	s.operate("disable", "payer")
	add("a token of a disabled client", http.StatusUnauthorized, token, "$export")
	a.onRecord(filepath.Join(s.store(), config.AuditName))
}

// suffice fails the test unless the answers have enough of everything.
func (a *answers) suffice(gone int) {
	a.t.Helper()
	has := map[string]int{}
	for _, one := range a.specimens {
		key, err := keyOf(one.body)
		if err != nil {
			a.t.Fatalf("%s: %v: %s", one.from, err, one.body)
		}
		kind, _, _ := strings.Cut(key, "/")
		has[kind]++
	}
	for kind := range counts(a.now) {
		if has[kind] == 0 {
			a.t.Errorf("the answers have no %s", kind)
		}
	}
	if has["OperationOutcome"] < 60 || has["Bundle"] < gone || has["CapabilityStatement"] != 2 || has["AuditEvent"] < 20 {
		a.t.Errorf("the answers have not enough of everything: %v", has)
	}
	a.t.Logf("%d resources of %d types, %d OperationOutcomes, %d Bundles", len(a.specimens), len(has), has["OperationOutcome"], has["Bundle"])
}

// A finding is what the validator says of a resource.
type finding struct{ Severity, Location, Message string }

// judge fails the test if the server made an error.
func (a *answers) judge() {
	a.t.Helper()
	var bodies, sources [][]byte
	for _, one := range a.specimens {
		bodies = append(bodies, one.body)
	}
	// Of these two it must find something, or it finds nothing in ours either.
	bodies = append(bodies, []byte(`{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"nothing"}]}`),
		[]byte(`{"resourceType":"Patient","birthdate":"1970-01-01"}`))
	faults := validate(a.t, bodies)
	for _, found := range faults[len(a.specimens):] {
		if len(found) == 0 {
			a.t.Error("the validator finds no error where one is")
		}
	}
	var suspects []int
	for i, one := range a.specimens {
		if len(faults[i]) > 0 && one.source != nil {
			suspects, sources = append(suspects, i), append(sources, one.source)
		}
	}
	for i, found := range validate(a.t, sources) {
		k := suspects[i]
		faults[k] = slices.DeleteFunc(faults[k], func(f finding) bool { return slices.Contains(found, f) })
	}
	for i, one := range a.specimens {
		for _, f := range faults[i] {
			if one.known != "" && strings.Contains(f.Message, one.known) {
				continue
			}
			a.t.Errorf("%s: %s at %s: %s\n%.300s", one.from, f.Severity, f.Location, f.Message, one.body)
		}
	}
	if len(suspects) == 0 {
		a.t.Error("the resource that was wrong already has not come back")
	}
}

// validate returns the errors of each resource.
func validate(t *testing.T, resources [][]byte) [][]finding {
	t.Helper()
	if len(resources) == 0 {
		return nil
	}
	cmd := exec.CommandContext(t.Context(), validatorScript, "run")
	cmd.Stdin = bytes.NewReader(append(bytes.Join(resources, []byte("\n")), '\n'))
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the validator: %v\n%s", err, said.String())
	}
	var all [][]finding
	for line := range bytes.Lines(out) {
		var found []finding
		if err := json.Unmarshal(line, &found); err != nil {
			t.Fatalf("the validator's answer: %v\n%s", err, line)
		}
		all = append(all, slices.DeleteFunc(found, func(f finding) bool { return f.Severity != "error" && f.Severity != "fatal" }))
	}
	if len(all) != len(resources) {
		t.Fatalf("the validator answered %d of %d resources\n%s", len(all), len(resources), said.String())
	}
	return all
}
