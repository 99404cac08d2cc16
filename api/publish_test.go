package api_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"tidemark/api"
	"tidemark/api/apitest"
	"tidemark/api/publish"
)

// /metadata lists $bulk-publish where there is something to publish, at system
// level only.
func TestPublishInMetadata(t *testing.T) {
	for _, types := range [][]string{nil, {"Organization"}} {
		s := newServer(t, api.Options{Publish: publish.Options{Types: typesOf(t, types)}})
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/fhir/metadata", nil)
		r.Host = "localhost"
		s.Handler().ServeHTTP(w, r)
		var doc struct {
			Rest []struct {
				Operation []struct{ Name, Definition string }
			}
		}
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
			t.Fatal(err)
		}
		listed := 0
		for _, o := range doc.Rest[0].Operation {
			if o.Name == "bulk-publish" && o.Definition == "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/bulk-publish" {
				listed++
			}
		}
		if n := strings.Count(w.Body.String(), `"bulk-publish"`); listed != len(types) || n != len(types) {
			t.Errorf("types %v: listed %d times, %d of them for the system", types, n, listed)
		}
	}
}

// No server starts that would show patients' data to everybody.
func TestPublicServerRefusesPatients(t *testing.T) {
	o := api.Options{Store: apitest.New(0), PublicURL: public}
	o.Publish = publish.Options{Types: typesOf(t, []string{"Patient"}), Public: true}
	if _, err := api.New(o); err == nil || !strings.Contains(err.Error(), "Patient") {
		t.Errorf("got %v", err)
	}
}
