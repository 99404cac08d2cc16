package api_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"tidemark/api"
	"tidemark/api/apitest"
	"tidemark/api/clients"
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

// A slowness is a connection of a client that does something after each piece it got.
type slowness struct {
	*httptest.ResponseRecorder
	do func()
}

func (s slowness) ReadFrom(src io.Reader) (int64, error) {
	defer s.do()
	return io.Copy(s.Body, src)
}

// TestPageEndsForWhoMayNoMore: pages stay when a client may have them no more, as they are
// the same for all; what it is downloading stops at the next piece.
func TestPageEndsForWhoMayNoMore(t *testing.T) {
	o := newOffice(t, api.Options{Publish: publish.Options{Types: typesOf(t, []string{"Organization"})}})
	for _, ref := range []string{"Organization/1", "Organization/2", "Organization/3"} {
		o.db.Put(key(t, ref), 2, apitest.Links{More: `,"name":"` + strings.Repeat("x", 1<<20) + `"`})
	}
	if err := o.self.Pages().Publish(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	root, err := o.self.Pages().Root()
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "/fhir/publish/"+root.Page+"/"+strconv.Itoa(root.Before+1)+".ndjson", nil)
	r.Host = "localhost"
	r.Header.Set("Authorization", "Bearer "+o.token("whole", ""))
	for name, do := range map[string]func(){
		"nothing is taken": func() {},
		"it is disabled":   func() { c := o.clients[1]; c.Disabled = true; o.clients[1] = c },
		"less is permitted": func() {
			c := o.clients[1]
			c.May.Scopes = "system/Medication.rs"
			o.clients[1] = c
		},
	} {
		o.clients[1] = clients.Client{ID: "whole", Serial: 1, May: clients.Anything}
		w := slowness{httptest.NewRecorder(), do}
		o.self.Handler().ServeHTTP(w, r)
		if whole := int64(w.Body.Len()) == root.Files[0].Bytes; w.Code != http.StatusOK || w.Body.Len() == 0 || whole != (name == "nothing is taken") {
			t.Errorf("%s: %d, %d of %d bytes", name, w.Code, w.Body.Len(), root.Files[0].Bytes)
		}
	}
}
