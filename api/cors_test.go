package api_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"tidemark/api"
)

const app = "https://app.example.org"

// fromPage sends what a browser sends for a page of an origin.
func fromPage(h http.Handler, method, path, origin string, header ...string) *http.Response {
	r := httptest.NewRequest(method, "http://localhost"+path, nil)
	r.Header.Set("Accept", "application/fhir+json")
	r.Header.Set("Prefer", "respond-async")
	if origin != "" {
		r.Header.Set("Origin", origin)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

// allowed are the headers of CORS in an answer.
func allowed(resp *http.Response) (names []string) {
	for name := range resp.Header {
		if strings.HasPrefix(name, "Access-Control-") {
			names = append(names, name)
		}
	}
	return names
}

func TestCORSIsOff(t *testing.T) {
	h := newServer(t, api.Options{}).Handler()
	for _, method := range []string{http.MethodGet, http.MethodOptions} {
		resp := fromPage(h, method, "/fhir/metadata", app, "Access-Control-Request-Method", "GET")
		if got := allowed(resp); got != nil || slices.Contains(resp.Header.Values("Vary"), "Origin") {
			t.Errorf("%s: %v, Vary %v", method, got, resp.Header.Values("Vary"))
		}
	}
}

// A preflight of a listed origin is answered, whatever it asks for; that of another
// one is an OPTIONS like any other.
func TestCORSPreflight(t *testing.T) {
	h := newServer(t, api.Options{CORS: []string{app}}).Handler()
	ask := []string{"Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "authorization,prefer"}
	resp := fromPage(h, http.MethodOptions, "/fhir/$export", app, ask...)
	if resp.StatusCode != http.StatusNoContent || resp.Header.Get("Access-Control-Allow-Origin") != app || resp.Header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("%s: %v", resp.Status, resp.Header)
	}
	for _, want := range []string{"Authorization", "Prefer", "Accept", "Content-Type", "Range", "If-Range"} {
		if !slices.Contains(strings.Split(resp.Header.Get("Access-Control-Allow-Headers"), ", "), want) {
			t.Errorf("%s is not allowed: %q", want, resp.Header.Get("Access-Control-Allow-Headers"))
		}
	}
	if got := resp.Header.Get("Access-Control-Allow-Methods"); got != "GET, HEAD, POST, DELETE" {
		t.Errorf("methods: %s", got)
	}
	for _, origin := range []string{"https://app.example.org.evil.org", "https://APP.example.org", "http://app.example.org", "https://app.example.org:444", "null", "*", ""} {
		resp := fromPage(h, http.MethodOptions, "/fhir/$export", origin, ask...)
		if got := allowed(resp); got != nil || resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Vary") != "Origin" {
			t.Errorf("%q: %s, %v, Vary %q", origin, resp.Status, got, resp.Header.Get("Vary"))
		}
	}
	if resp := fromPage(h, http.MethodOptions, "/fhir/$export", app); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("OPTIONS that is no preflight: %s", resp.Status)
	}
}

// safelisted may be read by any page (Fetch, "CORS-safelisted response-header
// name"); the others of these say nothing to one.
var safelisted = []string{"Cache-Control", "Content-Language", "Content-Type", "Pragma", "Vary", "X-Content-Type-Options", "Content-Security-Policy", "Referrer-Policy", "Allow"}

// A page of a listed origin can go all the way of an export: it may read every
// header that we send, of errors as well, and caches keep it apart from others.
func TestCORSAllTheWay(t *testing.T) {
	h := newServer(t, api.Options{CORS: []string{"https://other.example.org", app}}).Handler()
	look := func(what string, resp *http.Response, status int) *http.Response {
		t.Helper()
		if resp.StatusCode != status || resp.Header.Get("Access-Control-Allow-Origin") != app || !slices.Contains(resp.Header.Values("Vary"), "Origin") {
			t.Errorf("%s: %s, %v", what, resp.Status, resp.Header)
		}
		exposed := strings.Split(resp.Header.Get("Access-Control-Expose-Headers"), ", ")
		for name := range resp.Header {
			if !strings.HasPrefix(name, "Access-Control-") && !slices.Contains(safelisted, name) && !slices.ContainsFunc(exposed, func(e string) bool { return http.CanonicalHeaderKey(e) == name }) {
				t.Errorf("%s: the header %s cannot be read", what, name)
			}
		}
		return resp
	}
	started := look("kick-off", fromPage(h, http.MethodGet, "/fhir/$export", app), http.StatusAccepted)
	job := "/fhir" + strings.TrimPrefix(started.Header.Get("Content-Location"), public)
	look("manifest", fromPage(h, http.MethodGet, job, app), http.StatusOK)
	look("file", fromPage(h, http.MethodGet, job+"/1.ndjson", app), http.StatusOK)
	part := look("range", fromPage(h, http.MethodGet, job+"/1.ndjson", app, "Range", "bytes=0-1"), http.StatusPartialContent)
	if got := part.Header.Values("Vary"); !slices.Equal(got, []string{"Origin", "Accept-Encoding"}) {
		t.Errorf("a file varies with %v", got)
	}
	look("page", fromPage(h, http.MethodGet, "/fhir", app, "Accept", "text/html"), http.StatusOK)
	look("deletion", fromPage(h, http.MethodDelete, job, app), http.StatusAccepted)
	look("no such job", fromPage(h, http.MethodGet, job, app), http.StatusNotFound)
	look("no such place", fromPage(h, http.MethodGet, "/nothing", app), http.StatusNotFound)
}

// Browsers are told to come by https only where that is how clients see us.
func TestOnlySecure(t *testing.T) {
	for base, want := range map[string]string{
		"https://fhir.example.org/fhir": "max-age=31536000",
		"http://fhir.example.org/fhir":  "",
		"https://localhost:8443/fhir":   "",
	} {
		h := newServer(t, api.Options{PublicURL: base}).Handler()
		for _, path := range []string{"/healthz", "/fhir/metadata", "/nothing"} {
			if got := fromPage(h, http.MethodGet, path, "").Header.Get("Strict-Transport-Security"); got != want {
				t.Errorf("%s of %s: %q, want %q", path, base, got, want)
			}
		}
	}
}
