package api_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"tidemark/api"
	"tidemark/store/fhir"
)

// Whatever a client sends: no panic, no 5xx, an OperationOutcome for every
// refusal, and a manifest that fits the window for everything else.
func FuzzKickOff(f *testing.F) {
	f.Add(false, "_type=Patient&_since=2026-01-01T00:00:00Z", "application/fhir+json", "respond-async", "", "")
	f.Add(false, "_since=2026-01-01T00:00:00+01:00&_until=x&patient=1", "*/*", "respond-async, handling=lenient", "", "")
	f.Add(false, "%zz&_type=%00%ff&=&&a", "application/json;q=0", "", "", "")
	f.Add(false, "_outputFormat=ndjson&allowPartialManifests=true&_elements=\"<é", "a/b, application/*", `respond-async; x=",", handling="lenient"`, "", "")
	f.Add(true, "", "*/*", "respond-async", "application/fhir+json", `{"resourceType":"Parameters","parameter":[{"name":"_since","valueInstant":"2026-01-01T00:00:00Z"},{"name":"_type","valueCoding":{"code":"Patient"}}]}`)
	f.Add(true, "", "*/*", "respond-async,handling=lenient", "application/json", `{"resourceType":"Parameters","parameter":[{"name":"a","valueString":"\ud800"},{"name":"_type","valueReference":{"reference":"Patient/1"}}]}`)
	f.Add(true, "_type=Patient", "*/*", "respond-async", "text/plain", "[[[[")
	f.Fuzz(func(t *testing.T, post bool, query, accept, prefer, contentType, body string) {
		h := newServer(t, api.Options{}).Handler()
		method := http.MethodGet
		if post {
			method = http.MethodPost
		}
		req := httptest.NewRequest(method, "http://localhost/fhir/$export", strings.NewReader(body))
		req.URL.RawQuery = query
		req.Header["Accept"] = []string{accept}
		req.Header["Prefer"] = []string{prefer}
		req.Header["Content-Type"] = []string{contentType}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		switch {
		case w.Code >= 500:
			t.Fatalf("status %d: %s", w.Code, w.Body)
		case w.Code >= 400:
			showOutcome(t, w.Body.Bytes())
		case w.Code == http.StatusAccepted:
			checkManifest(t, h, w.Header().Get("Content-Location"))
		default:
			t.Fatalf("status %d", w.Code)
		}
	})
}

func checkManifest(t *testing.T, h http.Handler, url string) {
	get := func(url string) *httptest.ResponseRecorder {
		path, ok := strings.CutPrefix(url, public)
		if !ok {
			t.Fatalf("URL %q", url)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/fhir"+path, nil))
		if w.Code != http.StatusOK {
			t.Fatalf("GET %s: %d %s", url, w.Code, w.Body)
		}
		return w
	}
	var m manifest
	if err := json.Unmarshal(get(url).Body.Bytes(), &m); err != nil {
		t.Fatal(err)
	}
	at, _, err := fhir.ParseInstant(m.TransactionTime)
	if err != nil || at > instant(t, "2026-01-02T12:00:00Z") {
		t.Errorf("transactionTime %s", m.TransactionTime)
	}
	for i := range m.Request {
		if c := m.Request[i]; c <= ' ' || c >= 0x7f {
			t.Errorf("request %q is not printable", m.Request)
		}
	}
	for _, f := range m.Error {
		for line := range strings.Lines(get(f.URL).Body.String()) {
			showOutcome(t, []byte(line))
		}
	}
	for _, f := range m.Output {
		if n := strings.Count(get(f.URL).Body.String(), "\n"); n != f.Count || n == 0 {
			t.Errorf("%d lines, count %d", n, f.Count)
		}
	}
}

// Headers of a download, too.
func FuzzDownload(f *testing.F) {
	f.Add("bytes=0-9", "", "gzip", "", "")
	f.Add("bytes=-1,5-", `"x"`, "*;q=0.1, identity;q=0", `W/"x"`, "*")
	f.Add("bytes=99999999999999999999-", "", "gzip;q=1;q=0", "", "")
	f.Fuzz(func(t *testing.T, rng, ifRange, encoding, ifNone, ifMatch string) {
		h := newServer(t, api.Options{}).Handler()
		kick := httptest.NewRequest(http.MethodGet, "http://localhost/fhir/$export", nil)
		kick.Header.Set("Accept", "*/*")
		kick.Header.Set("Prefer", "respond-async")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, kick)
		path := "/fhir" + strings.TrimPrefix(w.Header().Get("Content-Location"), public) + "/1.ndjson"
		req := httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil)
		for name, v := range map[string]string{"Range": rng, "If-Range": ifRange, "Accept-Encoding": encoding, "If-None-Match": ifNone, "If-Match": ifMatch} {
			if v != "" {
				req.Header[name] = []string{v}
			}
		}
		w = httptest.NewRecorder()
		h.ServeHTTP(w, req)
		switch w.Code {
		case http.StatusOK, http.StatusPartialContent:
			if n := w.Header().Get("Content-Length"); n != strconv.Itoa(w.Body.Len()) {
				t.Errorf("Content-Length %s, %d bytes", n, w.Body.Len())
			}
		case http.StatusNotModified:
		case http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable:
			showOutcome(t, w.Body.Bytes())
		default:
			t.Errorf("status %d", w.Code)
		}
	})
}
