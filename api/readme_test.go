package api_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"tidemark/api"
	"tidemark/api/apitest"
)

// TestReadme: what the README tells its readers to ask for is accepted.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	db := apitest.New(instant(t, "2026-02-01T00:00:00Z"))
	db.Put(key(t, "Group/roster"), instant(t, "2026-01-01T00:00:00Z"), apitest.Links{})
	s, err := api.New(api.Options{Store: db, PublicURL: public})
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	for line := range strings.Lines(string(text)) {
		request := regexp.MustCompile(`^    ((Patient/|Group/[a-z]+/)?\$export\?\S*)\n$`).FindStringSubmatch(line)
		if request == nil {
			continue
		}
		asked++
		r := httptest.NewRequest(http.MethodGet, "/fhir/"+request[1], nil)
		r.Host = "tidemark.test"
		r.Header.Set("Accept", "application/fhir+json")
		r.Header.Set("Prefer", "respond-async")
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Code != http.StatusAccepted {
			t.Errorf("%s: %d %s", request[1], w.Code, w.Body)
		}
	}
	if asked != 3 {
		t.Errorf("%d requests were tried, want 3", asked)
	}
}
