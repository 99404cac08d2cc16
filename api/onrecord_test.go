package api_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"tidemark/api"
	"tidemark/api/apitest"
	"tidemark/api/audit"
	"tidemark/api/clients"
	"tidemark/api/publish"
	"tidemark/store/fhir"
)

// What stands in the resources of this test and must stand nowhere else.
const (
	secretName = "canaryname"
	secretID   = "canaryid" // of a Patient whom nobody names
	askedID    = "canaryasked"
)

// An archive is an office whose trail, log, metrics and spans are read.
type archive struct {
	*office
	fs      vfs.FS
	full    bool // the trail's disk
	read    int  // lines that were looked at
	log     bytes.Buffer
	metrics *sdkmetric.ManualReader
	spans   *tracetest.SpanRecorder
	page    string // of what is published
}

func newArchive(t *testing.T, auth api.Auth) *archive {
	t.Helper()
	a := &archive{fs: vfs.NewMem(), metrics: sdkmetric.NewManualReader(), spans: tracetest.NewSpanRecorder()}
	full := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if a.full && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return errors.New("no space")
		}
		return nil
	})
	organization, _ := fhir.ParseType("Organization")
	auth.Once = func([]byte, time.Time) (bool, error) { return true, nil }
	a.office = newOffice(t, api.Options{
		Audit: trail(t, errorfs.Wrap(a.fs, full)), Publish: publish.Options{Types: []fhir.Type{organization}},
		Metrics: http.NotFoundHandler(), MaxJobs: 10_000, Auth: auth,
		Logger:         slog.New(slog.NewJSONHandler(&a.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		MeterProvider:  sdkmetric.NewMeterProvider(sdkmetric.WithReader(a.metrics)),
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(a.spans)),
	})
	proof, err := clients.BySecret(strings.Repeat("s", 43))
	if err != nil {
		t.Fatal(err)
	}
	of := a.clients[1]
	of.SecretHash = proof.SecretHash
	a.clients[1] = of
	for _, id := range []string{secretID, askedID} {
		a.db.Put(key(t, "Patient/"+id), 2, apitest.Links{Patients: []string{id}, More: `,"name":[{"family":"` + secretName + `"}],"identifier":[{"value":"` + secretName + `"}]`})
	}
	a.db.Put(key(t, "Group/g"), 2, apitest.Links{Members: []string{"Patient/a", "Patient/" + secretID, "Patient/" + askedID}})
	if err := a.self.Pages().Publish(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	_, body := a.ask(http.MethodGet, "/fhir/$bulk-publish", a.token("whole", ""))
	if found := regexp.MustCompile(`/publish/([0-9a-f]{32})/1.ndjson`).FindStringSubmatch(body); found != nil {
		a.page = found[1]
	} else {
		t.Fatalf("nothing is published: %s", body)
	}
	return a
}

// An errand is a request, and what the trail should say of it.
type errand struct {
	method, path, who string
	token             string
	header            http.Header
	body              string
	does              audit.Action // once it is allowed; "": nothing that is on record
	public            bool
}

// send carries an errand out.
func (a *archive) send(e *errand) (*http.Response, string) {
	a.t.Helper()
	r, err := http.NewRequestWithContext(a.t.Context(), e.method, a.server.URL+e.path, strings.NewReader(e.body))
	if err != nil {
		a.t.Fatal(err)
	}
	r.Header.Set("Prefer", "respond-async")
	r.Header.Set("Accept", "application/fhir+json")
	r.Header.Set("Accept-Encoding", "identity")
	r.Header.Set("Content-Type", "application/fhir+json")
	maps.Copy(r.Header, e.header)
	if e.token != "" {
		r.Header.Set("Authorization", "Bearer "+e.token)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return resp, string(body)
}

// news are the events that were put on record since this was asked last.
func (a *archive) news() (list []*audit.Event) {
	a.t.Helper()
	n := 0
	r, err := audit.Walk(a.fs, "audit", func(l *audit.Line) error {
		if n++; n > a.read && l.Event.Action != audit.Begin {
			list = append(list, l.Event)
		}
		return nil
	})
	if err != nil || len(r.Breaks) > 0 {
		a.t.Fatalf("%v %v", r.Breaks, err)
	}
	a.read = n
	return list
}

var (
	jobInPath  = regexp.MustCompile(`/(?:export|publish)/([0-9a-f]{32})`)
	fileInPath = regexp.MustCompile(`/([0-9]+)\.ndjson`)
	groupIn    = regexp.MustCompile(`/Group/([a-z]+)/\$`)
	readIn     = regexp.MustCompile(`/fhir/((?:Patient|Group|Binary)/[a-z]+)$`)
)

// judge tells what is wrong with what an errand has left in the trail.
func (e *errand) judge(resp *http.Response, body string, said []*audit.Event) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	status, action, outcome, want := resp.StatusCode, e.does, audit.Done, 1
	switch {
	case e.public, e.does == "" && status != http.StatusUnauthorized && status != http.StatusForbidden && (status != http.StatusNotFound || !e.foreign()):
		want = 0
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusNotFound && e.foreign():
		action, outcome = audit.Refused, audit.Denied
	case status >= http.StatusInternalServerError:
		outcome = audit.Failed
	case status >= http.StatusBadRequest:
		outcome = audit.Denied
	case e.method == http.MethodHead:
		want = 0
	case e.does == audit.Download, e.does == audit.Delete:
		want = 2
	}
	if len(said) != want {
		fault("%d lines, want %d", len(said), want)
		return faults
	}
	client := e.who
	if status == http.StatusUnauthorized || e.who == "nobody" {
		client = ""
	}
	for i, l := range said {
		if l.Action != action || l.Outcome != outcome || l.Client != client || l.Remote != "127.0.0.1" || time.Since(l.Time) > time.Minute {
			fault("line %d: %s, outcome %s, of %q, from %q at %v; want %s, %s, %q", i, l.Action, l.Outcome, l.Client, l.Remote, l.Time, action, outcome, client)
		}
		if client != "" && (l.Serial == 0 || l.Scopes == "" || l.TokenID == "" && e.token != "") {
			fault("line %d: of serial %d, scopes %q, token %q", i, l.Serial, l.Scopes, l.TokenID)
		}
		if (outcome == audit.Done) != (l.Reason == "") {
			fault("line %d: reason %q", i, l.Reason)
		}
		if l.Status != status && l.Phase != audit.Begun || l.Status != status && l.Action == audit.Download {
			fault("line %d: status %d, want %d", i, l.Status, status)
		}
		if client != "" {
			e.judgeWhat(l, resp, fault)
		}
	}
	if want == 2 && (said[0].Phase != audit.Begun || said[1].Phase != audit.Ended || said[0].Pair != said[1].Pair || said[0].Pair == "" || said[1].Bytes != int64(len(body))) {
		fault("%s %s, %s %s, %d bytes of %d", said[0].Phase, said[0].Pair, said[1].Phase, said[1].Pair, said[1].Bytes, len(body))
	}
	return faults
}

// foreign: another client's job, which is refused as if it was not there.
func (e *errand) foreign() bool {
	return strings.Contains(e.path, "/export/") && e.who != "whole"
}

// judgeWhat looks whether a line says what it is about, as the request and its answer do.
func (e *errand) judgeWhat(l *audit.Event, resp *http.Response, fault func(string, ...any)) {
	of := func(re *regexp.Regexp, text string) string {
		if found := re.FindStringSubmatch(text); found != nil {
			return found[1]
		}
		return ""
	}
	job := of(jobInPath, e.path) + of(jobInPath, resp.Header.Get("Content-Location"))
	if l.Action == audit.Refused && strings.Contains(e.path, "/publish/") {
		job = l.Job // which was not looked for
	}
	if l.Job != job {
		fault("job %q, want %q", l.Job, job)
	}
	if l.Action == audit.Refused {
		return
	}
	if l.Group != of(groupIn, e.path) || l.Resource != of(readIn, e.path) {
		fault("Group %q, resource %q", l.Group, l.Resource)
	}
	if l.Action == audit.Download && (l.File != of(fileInPath, e.path) || l.Range != resp.Header.Get("Content-Range") || l.File != "" && l.Outcome == audit.Done && (l.Kind == "" || l.Types == nil)) {
		fault("file %q, kind %q, types %v, range %q", l.File, l.Kind, l.Types, l.Range)
	}
	if l.Action == audit.KickOff && (l.Level == "" || l.Outcome == audit.Done && l.W.IsZero()) {
		fault("level %q, transactionTime %v", l.Level, l.W)
	}
}

// TestRoutesOnRecord asks every route, by each of its methods, on behalf of who may and
// who may not, and wants exactly the lines of it in the trail: a route that nobody has
// thought about is not in the table, and fails (decisions.md 6).
func TestRoutesOnRecord(t *testing.T) {
	a := newArchive(t, api.Auth{})
	page := "/fhir/publish/{page}"
	open := func(path string) []errand { return []errand{{path: path, public: true}} }
	does := func(action audit.Action, paths ...string) (list []errand) {
		for _, p := range paths {
			list = append(list, errand{path: p, does: action})
		}
		return list
	}
	table := map[string][]errand{
		"/healthz": open("/healthz"), "/readyz": open("/readyz"), "/metrics": open("/metrics"), "/fhir": open("/fhir"), "/fhir/": open("/fhir/"),
		"/fhir/metadata": open("/fhir/metadata"), "/fhir/.well-known/smart-configuration": open("/fhir/.well-known/smart-configuration"),
		"/fhir/OperationDefinition": open("/fhir/OperationDefinition"), "/fhir/OperationDefinition/{}": open("/fhir/OperationDefinition/export"),
		"/fhir/auth/token": nil, // TestTokensOnRecord

		"/fhir/$export":                       does(audit.KickOff, "/fhir/$export"),
		"/fhir/$export-v4":                    does(audit.KickOff, "/fhir/$export-v4"),
		"/fhir/Patient/$export":               does(audit.KickOff, "/fhir/Patient/$export"),
		"/fhir/Patient/$patient-export":       does(audit.KickOff, "/fhir/Patient/$patient-export"),
		"/fhir/Patient/$export-v4":            does(audit.KickOff, "/fhir/Patient/$export-v4"),
		"/fhir/Group/{}/$export":              does(audit.KickOff, "/fhir/Group/g/$export", "/fhir/Group/none/$export", "/fhir/Group/g/$export?_since=never"),
		"/fhir/Group/{}/$group-export":        does(audit.KickOff, "/fhir/Group/g/$group-export"),
		"/fhir/Group/{}/$davinci-data-export": does(audit.KickOff, "/fhir/Group/g/$davinci-data-export?exportType=hl7.fhir.us.davinci-atr"),
		"/fhir/Group/{}/$export-v4":           does(audit.KickOff, "/fhir/Group/g/$export-v4"),

		"/fhir/Patient/{}": does(audit.Read, "/fhir/Patient/a", "/fhir/Patient/none"),
		"/fhir/Group/{}":   does(audit.Read, "/fhir/Group/g", "/fhir/Group/none"),
		"/fhir/Group":      does(audit.Read, "/fhir/Group", "/fhir/Group?nonsense=1"),
		"/fhir/Binary/{}":  does(audit.Download, "/fhir/Binary/x", "/fhir/Binary/none"),

		"/fhir/export/{}":            does("", "{job}"),
		"/fhir/export/{}/page/{}":    does("", "{job}/page/2"),
		"/fhir/export/{}/{}.ndjson":  does(audit.Download, "{job}/1.ndjson", "{job}/99.ndjson"),
		"/fhir/$bulk-publish":        does("", "/fhir/$bulk-publish"),
		"/fhir/publish/{}":           does("", page),
		"/fhir/publish/{}/stub":      does("", page+"/stub"),
		"/fhir/publish/{}/{}.ndjson": does(audit.Download, page+"/1.ndjson", page+"/99.ndjson"),
	}
	seen := map[string]bool{}
	for _, route := range a.routes {
		name := bare(route.Pattern)
		seen[name] = true
		if _, known := table[name]; !known {
			t.Errorf("the route %s is not in the table: what should be on record of it?", route.Pattern)
		}
		a := newArchive(t, api.Auth{}) // whose trail is short
		for _, row := range table[name] {
			row.path = strings.Replace(row.path, "{page}", a.page, 1)
			for _, row.method = range route.Methods {
				for _, row.who = range []string{"nobody", "new", "confined", "other", "whole"} {
					a.walk(row)
				}
			}
		}
		if len(table[name]) > 0 && table[name][0].does != "" {
			a.saysNothing()
		}
	}
	for name := range table {
		if !seen[name] {
			t.Errorf("there is no route %s", name)
		}
	}
}

// walk asks, by itself and in a range, then with a trail that cannot be written.
func (a *archive) walk(e errand) {
	a.t.Helper()
	if e.who != "nobody" {
		e.token = a.token(e.who, "")
	}
	switch e.method {
	case http.MethodDelete:
		e.does = audit.Delete
	case http.MethodPost:
		e.body = `{"resourceType":"Parameters"}`
	}
	job := func() string {
		if strings.HasPrefix(e.path, "{job}") {
			return strings.Replace(e.path, "{job}", a.start("/fhir/Patient/$export", a.token("whole", "")), 1)
		}
		return e.path
	}
	try := func(e errand) *http.Response {
		e.path = job()
		a.news()
		resp, body := a.send(&e)
		for _, f := range e.judge(resp, body, a.news()) {
			a.t.Errorf("%s %s, %s, %d: %s", e.method, e.path, e.who, resp.StatusCode, f)
		}
		return resp
	}
	allowed := try(e).StatusCode < http.StatusBadRequest
	if e.does == audit.Download {
		e.header = http.Header{"Range": {"bytes=1-3"}}
		if resp := try(e); allowed && e.method != http.MethodHead && !strings.Contains(e.path, "Binary") && resp.StatusCode != http.StatusPartialContent {
			a.t.Errorf("%s %s, %s: a range is %d", e.method, e.path, e.who, resp.StatusCode)
		}
	}
	if !allowed || e.method == http.MethodHead || e.does == "" {
		return
	}
	e.path = job()
	a.full = true
	resp, body := a.send(&e)
	a.full = false
	if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "on record") {
		a.t.Errorf("%s %s, %s, with a trail that cannot be written: %d %s", e.method, e.path, e.who, resp.StatusCode, body)
	}
}

// saysNothing looks for what only resources and the trail may hold.
func (a *archive) saysNothing() {
	a.t.Helper()
	var all strings.Builder
	if _, err := audit.Walk(a.fs, "audit", func(l *audit.Line) error { all.Write(l.Text); return nil }); err != nil {
		a.t.Fatal(err)
	}
	for _, secret := range []string{secretName, secretID} {
		if strings.Contains(all.String(), secret) {
			a.t.Errorf("%s stands in the trail", secret)
		}
	}
	var metrics metricdata.ResourceMetrics
	if err := a.metrics.Collect(a.t.Context(), &metrics); err != nil {
		a.t.Fatal(err)
	}
	var spans strings.Builder
	for _, s := range a.spans.Ended() {
		fmt.Fprintf(&spans, "%s %+v %+v %+v\n", s.Name(), s.Attributes(), s.Events(), s.Status())
	}
	for name, text := range map[string]string{"the log": a.log.String(), "metrics": fmt.Sprintf("%+v", metrics.ScopeMetrics), "spans": spans.String()} {
		if len(text) < 1000 {
			a.t.Errorf("%s: %d bytes prove nothing", name, len(text))
		}
		for _, secret := range []string{secretName, secretID, askedID, "2001-02-03"} {
			if strings.Contains(text, secret) {
				a.t.Errorf("%s stands in %s", secret, name)
			}
		}
	}
}

// TestParametersOnRecord: what was asked for stands in the trail, and nowhere else that
// outlives the request; what the answer held does not.
func TestParametersOnRecord(t *testing.T) {
	a := newArchive(t, api.Auth{})
	a.news()
	token := a.token("whole", "")
	body := `{"resourceType":"Parameters","parameter":[{"name":"patient","valueReference":{"reference":"Patient/` + askedID + `"}},
		{"name":"_since","valueInstant":"2001-02-03T00:00:00Z"},{"name":"_typeFilter","valueString":"Patient?name=` + askedID + `"}]}`
	for _, path := range []string{"/fhir/Patient/$export", "/fhir/Group/g/$export", "/fhir/Group/h/$export"} { // the last has no such member
		resp, _ := a.send(&errand{method: http.MethodPost, path: path, token: token, body: body})
		said := a.news()
		if len(said) != 1 || len(said[0].Parameters) != 3 {
			t.Fatalf("%s: %d, %d lines: %+v", path, resp.StatusCode, len(said), said)
		}
		for i, want := range []audit.Parameter{{Name: "patient", Value: "Patient/" + askedID}, {Name: "_since", Value: "2001-02-03T00:00:00Z"}, {Name: "_typeFilter", Value: "Patient?name=" + askedID}} {
			if said[0].Parameters[i] != want {
				t.Errorf("%s: %v, want %v", path, said[0].Parameters[i], want)
			}
		}
	}
	for _, path := range []string{"/fhir/Group?name=" + askedID, "/fhir/Patient/" + askedID, "/fhir/Patient/$export?patient=" + askedID} {
		a.send(&errand{method: http.MethodGet, path: path, token: token})
	}
	status := a.start("/fhir/Patient/$export", token)
	for n := range 4 {
		a.send(&errand{method: http.MethodGet, path: fmt.Sprintf("%s/%d.ndjson", status, n+1), token: token})
	}
	a.saysNothing()
}

// TestSignedOnRecord: who fetches a file by its URL alone is on record as the client
// that it was signed for.
func TestSignedOnRecord(t *testing.T) {
	a := newArchive(t, api.Auth{SignedURLs: time.Hour})
	_, body := a.ask(http.MethodGet, a.start("/fhir/Patient/$export", a.token("whole", "")), a.token("whole", ""))
	found := regexp.MustCompile(`http://tidemark\.test(/fhir/export/[^"]*)`).FindStringSubmatch(body)
	if found == nil {
		t.Fatal(body)
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		for path, who := range map[string]string{found[1]: "whole", found[1] + "x": "nobody"} {
			for _, header := range []http.Header{nil, {"Range": {"bytes=0-9"}}} {
				a.news()
				e := errand{method: method, path: path, who: who, header: header, does: audit.Download}
				resp, body := a.send(&e)
				for _, f := range e.judge(resp, body, a.news()) {
					t.Errorf("%s of %s, %d: %s", method, who, resp.StatusCode, f)
				}
			}
		}
	}
	if strings.Contains(a.log.String(), "sig=") {
		t.Error("a signature stands in the log")
	}
}

// TestTokensOnRecord: a token leaves only when it is on record who got it; who got none
// is there, too.
func TestTokensOnRecord(t *testing.T) {
	a := newArchive(t, api.Auth{})
	ask := func(user, secret, scope string) (int, []*audit.Event) {
		t.Helper()
		a.news()
		e := errand{
			method: http.MethodPost, path: "/fhir/auth/token", body: "grant_type=client_credentials&scope=" + scope,
			header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
		}
		r, err := http.NewRequestWithContext(t.Context(), e.method, a.server.URL+e.path, strings.NewReader(e.body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = e.header
		r.SetBasicAuth(user, secret)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode, a.news()
	}
	good := strings.Repeat("s", 43)
	for _, c := range []struct {
		name, user, secret, scope string
		status                    int
		want                      audit.Event
	}{
		{"granted", "whole", good, "system/Patient.rs", 200, audit.Event{Outcome: audit.Done, Client: "whole", Serial: 1, Scopes: "system/Patient.rs"}},
		{"no secret", "whole", "wrong", "system/Patient.rs", 401, audit.Event{Outcome: audit.Denied, Client: "whole", Reason: "invalid_client"}},
		{"nobody", "stranger", good, "system/Patient.rs", 401, audit.Event{Outcome: audit.Denied, Client: "stranger", Reason: "invalid_client"}},
		{"no scope", "whole", good, "system/Patient.c", 400, audit.Event{Outcome: audit.Denied, Client: "whole", Serial: 1, Reason: "invalid_scope"}},
	} {
		status, said := ask(c.user, c.secret, c.scope)
		if status != c.status || len(said) != 1 {
			t.Fatalf("%s: %d, %d lines", c.name, status, len(said))
		}
		l := said[0]
		if l.Action != audit.Token || l.Outcome != c.want.Outcome || l.Client != c.want.Client || l.Serial != c.want.Serial || l.Scopes != c.want.Scopes || l.Reason != c.want.Reason || l.Remote != "127.0.0.1" {
			t.Errorf("%s: %+v", c.name, l)
		}
		if (l.TokenID != "") != (status == http.StatusOK) {
			t.Errorf("%s: token %q", c.name, l.TokenID)
		}
	}
	a.full = true
	if status, _ := ask("whole", good, "system/Patient.rs"); status != http.StatusServiceUnavailable {
		t.Errorf("with a trail that cannot be written: %d", status)
	}
}
