package api_test

import (
	"net/http"
	"strings"
	"testing"

	"tidemark/api"
)

// TestPermit: what a kick-off asks for beyond its token is refused and named; what it
// leaves open is what the token covers.
func TestPermit(t *testing.T) {
	o := newOffice(t, api.Options{})
	token := o.token("whole", "system/Patient.rs system/Group.r")
	for _, c := range []struct{ query, want, says string }{
		{"", "202", ""},
		{"_type=Patient", "202", ""},
		{"_type=Patient,Observation", "403", "system/Observation.rs"},
		{"_type=Observation", "403", "system/Observation.rs"},
		{"organizeOutputBy=Patient", "202", ""},
		{"organizeOutputBy=Practitioner", "403", "system/Practitioner.rs"},
		{"includeAssociatedData=LatestProvenanceResources", "403", "system/Provenance.rs"},
		{"_typeFilter=Observation%3Fstatus%3Dfinal&_type=Observation", "403", "system/Observation.rs"},
	} {
		resp, body := o.ask(http.MethodGet, "/fhir/Patient/$export?"+c.query, token)
		if resp.Status[:3] != c.want || !strings.Contains(body, c.says) {
			t.Errorf("%s: %s %s", c.query, resp.Status, body)
		}
	}
	if resp, body := o.ask(http.MethodGet, "/fhir/Patient/$export", o.token("whole", "system/Organization.r")); resp.StatusCode != http.StatusForbidden {
		t.Errorf("nothing is left: %s %s", resp.Status, body)
	}
	status := o.start("/fhir/Patient/$export", token)
	if _, body := o.ask(http.MethodGet, status, token); strings.Contains(body, "Observation") || !strings.Contains(body, `"type":"Patient"`) {
		t.Errorf("%s", body)
	}
}
