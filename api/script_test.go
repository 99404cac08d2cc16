package api_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"tidemark/api"
	"tidemark/api/apitest"
	"tidemark/api/bulk"
	"tidemark/api/publish"
	"tidemark/store"
	"tidemark/store/fhir"
)

// TestScripts holds conversations with the server against their golden text.
//
//	new              begins again: options as key=value, preset=(name,Type,Type)
//	rows             one change a line: put Type/id instant, delete Type/id instant, dead instant;
//	                 before the instant those in whose compartments it lies: of=a,b; what it refers to: to=Type/id;
//	                 of a Group its members=Patient/a,Group/b and more of its JSON, more="actual":false
//	clock, watermark set the store's
//	revoke           something that all jobs hold was erased
//	forget           deletions up to an instant are no longer known
//	epoch            the store was restored: another one begins
//	publish          a page is made, or what is outlived taken away:
//	                 publish, publish root, publish sweep
//	store            ok | not-ready | closed | broken
//	restart          a new server over the same pins
//	get, post        a kick-off for each line, a query or a Parameters resource;
//	                 "lenient" as an argument asks for handling=lenient
//	export           a kick-off for a query, then its manifest and all its files
//	                 at=Patient/ before a kick-off: of another level than the system's, or by another operation
//	planned          waits until the last job is
//	http             a request: its line, headers, an empty line, a body
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		e := &script{}
		t.Cleanup(e.close)
		e.begin(t, api.Options{})
		datadriven.RunTest(t, path, e.run)
	})
}

const public = "http://tidemark.test/fhir"

type script struct {
	db     *apitest.Store
	o      api.Options
	server *httptest.Server
	stop   func()
	jobs   []string // ids in order of their kick-offs
	pages  []string // ids in the order in which they were seen
	tag    string   // the last ETag of a manifest that was published
	make   *publish.Pages
}

func (e *script) close() {
	if e.server != nil {
		e.server.Close()
		e.stop()
	}
}

func (e *script) begin(t *testing.T, o api.Options) {
	e.db = apitest.New(instant(t, "2026-01-02T12:00:00.000Z"))
	e.jobs, e.pages = nil, nil
	e.o = o
	e.o.PublicURL = public
	e.o.Version = "test"
	e.serve(t)
}

func (e *script) serve(t *testing.T) {
	e.close()
	e.o.Store = e.db
	s, err := api.New(e.o)
	if err != nil {
		t.Fatal(err)
	}
	e.server = httptest.NewServer(s.Handler())
	e.stop, e.make = runs(t, s), s.Pages()
}

// runs plans a server's jobs until stop is called.
func runs(t *testing.T, s *api.Server) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Jobs().Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func types(t *testing.T, names []string) (list []fhir.Type) {
	for _, name := range names {
		typ, ok := fhir.ParseType(name)
		if !ok {
			t.Fatalf("%s is no type", name)
		}
		list = append(list, typ)
	}
	return list
}

func (e *script) run(t *testing.T, d *datadriven.TestData) string {
	switch d.Cmd {
	case "new":
		var o api.Options
		for _, a := range d.CmdArgs {
			if a.Key == "preset" {
				o.Presets = bulk.Presets{a.Vals[0]: types(t, a.Vals[1:])}
				continue
			}
			if e.publishing(t, &o, a) {
				continue
			}
			n, err := strconv.Atoi(a.Vals[0])
			if err != nil {
				t.Fatal(err)
			}
			switch a.Key {
			case "jobs":
				o.MaxJobs = n
			case "polls":
				o.PollsPerMinute = n
			case "file-resources":
				o.FileMaxResources = int64(n)
			case "file-bytes":
				o.FileMaxBytes = int64(n)
			default:
				t.Fatalf("unknown option %s", a.Key)
			}
		}
		e.begin(t, o)
	case "rows":
		e.rows(t, d.Input)
	case "clock":
		e.db.SetClock(instant(t, d.CmdArgs[0].Key))
	case "watermark":
		e.db.SetWatermark(instant(t, d.CmdArgs[0].Key))
	case "revoke":
		e.db.Erase()
	case "epoch":
		e.db.SetEpoch(2)
	case "publish":
		return e.publish(t, d)
	case "forget":
		e.db.Forget(instant(t, d.CmdArgs[0].Key))
	case "store":
		e.db.Fail(map[string]error{
			"ok": nil, "not-ready": store.ErrNotReady, "closed": store.ErrClosed, "broken": fmt.Errorf("read of secret: %w", store.ErrCorrupt),
		}[d.CmdArgs[0].Key])
	case "restart":
		e.db = e.db.Restart()
		e.serve(t)
	case "get", "post":
		var out strings.Builder
		for line := range strings.Lines(d.Input) {
			fmt.Fprintln(&out, e.kickOff(t, d.Cmd, level(d), strings.TrimSuffix(line, "\n"), d.HasArg("lenient")))
		}
		return out.String()
	case "export":
		return e.export(t, level(d), strings.TrimSpace(d.Input))
	case "planned":
		e.get(t, public+"/export/"+e.jobs[len(e.jobs)-1])
	case "http":
		return e.http(t, d.Input)
	default:
		t.Fatalf("unknown command %s", d.Cmd)
	}
	return ""
}

// level is what stands before the operation in a kick-off's path.
func level(d *datadriven.TestData) string {
	for _, a := range d.CmdArgs {
		if a.Key == "at" {
			return a.Vals[0]
		}
	}
	return ""
}

func (e *script) rows(t *testing.T, input string) {
	for line := range strings.Lines(input) {
		f := strings.Fields(line)
		at := instant(t, f[len(f)-1])
		var l apitest.Links
		for _, field := range f[min(2, len(f)):] {
			name, value, _ := strings.Cut(field, "=")
			switch name {
			case "of":
				l.Patients = strings.Split(value, ",")
			case "members":
				l.Members = strings.Split(value, ",")
			case "more":
				l.More = "," + value
			case "to":
				for ref := range strings.SplitSeq(value, ",") {
					l.Refers = append(l.Refers, key(t, ref))
				}
			}
		}
		switch f[0] {
		case "put":
			e.db.Put(key(t, f[1]), at, l)
		case "delete":
			e.db.Delete(key(t, f[1]), at, l)
		case "dead":
			e.db.Dead(at)
		default:
			t.Fatalf("unknown row %s", line)
		}
	}
}

func instant(t testing.TB, s string) fhir.Instant {
	t.Helper()
	i, _, err := fhir.ParseInstant(s)
	if err != nil {
		t.Fatal(s, err)
	}
	return i
}

func key(t testing.TB, s string) fhir.Key {
	t.Helper()
	k, err := fhir.ParseKey(s)
	if err != nil {
		t.Fatal(s, err)
	}
	return k
}

// http sends the request as it stands and shows what matters of the answer.
func (e *script) http(t *testing.T, input string) string {
	for i, id := range e.jobs {
		input = strings.ReplaceAll(input, fmt.Sprintf("{job%d}", i+1), id)
	}
	input = e.unmaskPages(input)
	req := e.request(t, input)
	tr := &http.Transport{DisableCompression: true, DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if n := resp.ContentLength; req.Method != http.MethodHead && n >= 0 && n != int64(len(body)) {
		t.Errorf("Content-Length %d, body %d", n, len(body))
	}
	if resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Error("no nosniff")
	}
	if loc := resp.Header.Get("Content-Location"); resp.StatusCode == http.StatusAccepted && loc != "" {
		e.jobs = append(e.jobs, loc[strings.LastIndex(loc, "/")+1:])
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%s\n", resp.Status)
	for _, h := range shown(resp) {
		fmt.Fprintln(&out, h)
	}
	out.WriteString(show(t, resp, body))
	text := out.String()
	for i, id := range e.jobs {
		text = strings.ReplaceAll(text, id, fmt.Sprintf("{job%d}", i+1))
	}
	return e.maskPages(text)
}

// manifest is read as a client reads it.
type manifest struct {
	TransactionTime        string
	Request                string
	OutputOrganizedBy      string
	Output, Deleted, Error []listed
	Extension              json.RawMessage
}

// departed are the files of what has left an export, none in the form of version 4.
func (m manifest) departed() []listed {
	var own struct {
		Departed []listed `json:"tidemark-departed"`
	}
	_ = json.Unmarshal(m.Extension, &own)
	return own.Departed
}

// listed is a file in a manifest.
type listed struct {
	Type, URL       string
	Count           int
	ContinuesInFile string
	Extension       struct {
		Bytes int    `json:"tidemark-bytes"`
		CRC32 string `json:"tidemark-crc32"`
	}
}

// prove holds what was downloaded against what the manifest says of it.
func (f listed) prove(t *testing.T, body []byte) {
	t.Helper()
	if n := bytes.Count(body, []byte("\n")); n != f.Count || len(body) != f.Extension.Bytes {
		t.Errorf("%s has %d lines in %d bytes, the manifest says %d in %d", f.URL, n, len(body), f.Count, f.Extension.Bytes)
	}
	if is := fmt.Sprintf("%08x", crc32.ChecksumIEEE(body)); f.Extension.CRC32 != "" && f.Extension.CRC32 != is {
		t.Errorf("%s has the checksum %s, the manifest says %s", f.URL, is, f.Extension.CRC32)
	}
}

// kickOff tells in a line what became of a kick-off.
func (e *script) kickOff(t *testing.T, method, at, what string, lenient bool) string {
	if !strings.Contains(at, "$") {
		at += "$export"
	}
	target, body := "/fhir/"+at, io.Reader(nil)
	if method == "post" {
		body = strings.NewReader(what)
	} else if what != "(none)" {
		target += "?" + what
	}
	req, err := http.NewRequest(strings.ToUpper(method), e.server.URL+target, body)
	if err != nil {
		t.Fatal(err)
	}
	if method == "post" {
		req.Header.Set("Content-Type", "application/fhir+json")
	}
	resp, text := e.ask(t, req, lenient)
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Sprintf("%s\n  %d %s", what, resp.StatusCode, strings.ReplaceAll(strings.TrimSpace(showOutcome(t, text)), "\n", "\n      "))
	}
	m := e.manifest(t, resp)
	line := fmt.Sprintf("%s\n  202 up to %s", what, m.TransactionTime)
	for _, f := range m.Output {
		line += fmt.Sprintf(" %s:%d", f.Type, f.Count)
	}
	for _, f := range m.Deleted {
		line += fmt.Sprintf(" deleted:%d", f.Count)
	}
	for _, f := range m.Error {
		for l := range strings.Lines(e.get(t, f.URL)) {
			line += "\n      " + strings.TrimSpace(showOutcome(t, []byte(l)))
		}
	}
	return line
}

func (e *script) ask(t *testing.T, req *http.Request, lenient bool) (*http.Response, []byte) {
	req.Header.Set("Accept", "application/fhir+json")
	req.Header.Add("Prefer", "respond-async")
	if lenient {
		req.Header.Add("Prefer", "handling=lenient")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, text
}

// get fetches a URL that the server gave.
func (e *script) get(t *testing.T, url string) string {
	for {
		status, body := e.getOnce(t, url)
		switch status {
		case http.StatusOK:
			return body
		case http.StatusAccepted: // still being planned
			time.Sleep(20 * time.Millisecond)
		default:
			t.Fatalf("GET %s: %d %s", url, status, body)
		}
	}
}

func (e *script) getOnce(t *testing.T, url string) (int, string) {
	rest, ok := strings.CutPrefix(url, public)
	if !ok {
		t.Errorf("the URL %s does not begin with public_url", url)
	}
	resp, err := http.Get(e.server.URL + "/fhir" + rest)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (e *script) manifest(t *testing.T, kickOff *http.Response) (m manifest) {
	if err := json.Unmarshal([]byte(e.get(t, kickOff.Header.Get("Content-Location"))), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// export shows what a client has after an export.
func (e *script) export(t *testing.T, at, query string) string {
	req, err := http.NewRequest(http.MethodGet, e.server.URL+"/fhir/"+at+"$export"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, text := e.ask(t, req, false)
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Sprintf("%d %s", resp.StatusCode, text)
	}
	loc := resp.Header.Get("Content-Location")
	e.jobs = append(e.jobs, loc[strings.LastIndex(loc, "/")+1:])
	m := e.manifest(t, resp)
	var out strings.Builder
	fmt.Fprintf(&out, "request %s\ntransactionTime %s\n", m.Request, m.TransactionTime)
	if m.OutputOrganizedBy != "" {
		fmt.Fprintf(&out, "outputOrganizedBy %s\n", m.OutputOrganizedBy)
	}
	for _, list := range []struct {
		name  string
		files []listed
	}{{"output", m.Output}, {"deleted", m.Deleted}, {"departed", m.departed()}, {"error", m.Error}} {
		for _, f := range list.files {
			body := e.get(t, f.URL)
			f.prove(t, []byte(body))
			typ, on := f.Type, ""
			if typ == "" {
				typ = "(none)"
			}
			if f.ContinuesInFile != "" {
				on = "\ncontinues in " + f.ContinuesInFile
			}
			fmt.Fprintf(&out, "%s %s %d %s\n%s", list.name, typ, f.Count, strings.ReplaceAll(f.URL+on, e.jobs[len(e.jobs)-1], "{job}"), body)
		}
	}
	return out.String()
}

func (e *script) request(t *testing.T, input string) *http.Request {
	head, body, _ := strings.Cut(input, "\n\n")
	first, rest, _ := strings.Cut(head, "\n")
	// Repeated text makes large bodies: @1000 x.
	if n, what, ok := strings.Cut(strings.TrimPrefix(body, "@"), " "); ok && strings.HasPrefix(body, "@") {
		times, err := strconv.Atoi(n)
		if err != nil {
			t.Fatal(err)
		}
		body = strings.Repeat(what, times)
	}
	raw := first + " HTTP/1.1\n" + rest + "\n"
	if !strings.Contains("\n"+rest, "\nHost:") {
		raw += "Host: " + strings.TrimPrefix(e.server.URL, "http://") + "\n"
	}
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.ReplaceAll(raw, "\n", "\r\n") + "\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	req.RequestURI = ""
	req.URL.Scheme, req.URL.Host = "http", strings.TrimPrefix(e.server.URL, "http://")
	if body != "" {
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header["User-Agent"] = nil
	}
	return req
}

var (
	expires = regexp.MustCompile(`^Expires: .* GMT$`)
	weak    = regexp.MustCompile(`^ETag: W/"[0-9a-f]{8}"$`)
)

// shown are the headers that are part of the interface. The length of a gzip
// depends on the compressor.
func shown(resp *http.Response) []string {
	var lines []string
	for _, name := range []string{
		"Accept-Ranges", "Allow", "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Length", "Content-Location", "Content-Range",
		"Content-Security-Policy", "Content-Type", "ETag", "Expires", "Last-Modified", "Preference-Applied", "Retry-After", "Tidemark-CRC32", "Vary", "X-Export-Status", "X-Progress",
	} {
		for _, v := range resp.Header.Values(name) {
			gzip := resp.Header.Get("Content-Encoding") == "gzip"
			ndjson := resp.Header.Get("Content-Type") == "application/fhir+ndjson"
			if name == "Content-Length" && (gzip || !ndjson) {
				continue
			}
			lines = append(lines, name+": "+v)
		}
	}
	for i, l := range lines {
		lines[i] = weak.ReplaceAllString(expires.ReplaceAllString(l, "Expires: {in export.expires}"), "ETag: {weak}")
	}
	slices.Sort(lines)
	return lines
}

func show(t *testing.T, resp *http.Response, body []byte) string {
	switch media := resp.Header.Get("Content-Type"); {
	case len(body) == 0:
		return ""
	case resp.Header.Get("Content-Encoding") == "gzip":
		zr, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		zr.Multistream(false)
		plain, err := io.ReadAll(zr)
		if err != nil {
			t.Fatal(err)
		}
		return "(gunzipped)\n" + string(plain)
	case media == "application/fhir+json" && resp.StatusCode >= 400:
		return showOutcome(t, body)
	case media == "application/json" || media == "application/fhir+json":
		var b bytes.Buffer
		if err := json.Indent(&b, body, "", "  "); err != nil {
			t.Fatal(err)
		}
		return b.String()
	case strings.HasPrefix(media, "text/html"):
		return pageText(string(body))
	}
	return string(body)
}

var (
	style = regexp.MustCompile(`(?s)<style>(.*?)</style>`)
	cell  = regexp.MustCompile(`</(td|th|text)>`)
	tag   = regexp.MustCompile(`<[^>]*>`)
	empty = regexp.MustCompile(`( \| )?\n+`)
)

// pageText is what of a page people read.
func pageText(page string) string {
	text := cell.ReplaceAllString(style.ReplaceAllString(page, ""), " |")
	text = html.UnescapeString(tag.ReplaceAllString(text, ""))
	return strings.TrimSpace(empty.ReplaceAllString(strings.ReplaceAll(text, "|", "| "), "\n")) + "\n"
}

type operationOutcome struct {
	ResourceType string
	Issue        []struct{ Severity, Code, Diagnostics string }
}

// showOutcome writes an OperationOutcome as a line for each issue.
func showOutcome(t testing.TB, body []byte) string {
	var o operationOutcome
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&o); err != nil {
		t.Errorf("no OperationOutcome: %v\n%s", err, body)
	}
	if o.ResourceType != "OperationOutcome" || len(o.Issue) == 0 {
		t.Errorf("no OperationOutcome: %s", body)
	}
	var out strings.Builder
	for _, i := range o.Issue {
		fmt.Fprintf(&out, "%s %s: %s\n", i.Severity, i.Code, i.Diagnostics)
	}
	return out.String()
}
