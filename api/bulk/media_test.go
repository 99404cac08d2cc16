package bulk

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestWeightOfMediaTypes(t *testing.T) {
	const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	tests := []struct {
		accept     []string
		json, html float64
	}{
		{nil, 1, 1},
		{[]string{""}, 1, 1},
		{[]string{"*/*"}, 1, 1},
		{[]string{browser}, 0.8, 1},
		{[]string{"application/json"}, 1, 0},
		{[]string{"application/fhir+json;q=0.3, application/json;q=0.7"}, 0.7, 0},
		{[]string{"application/*;q=0.4", "text/*;q=0.6"}, 0.4, 0.6},
		{[]string{"*/*, application/fhir+json;q=0"}, 0, 1}, // the more specific counts, whatever stands first
		{[]string{"application/fhir+json;q=0, application/*"}, 0, 0},
		{[]string{"application/fhir+json; fhirVersion=4.0"}, 1, 0},
		{[]string{`application/fhir+json; FHIRVERSION="4.0.1"`}, 1, 0},
		{[]string{"application/fhir+json; fhirVersion=5.0"}, 0, 0},
		{[]string{"application/fhir+json; fhirVersion=5.0, application/fhir+json;q=0.2"}, 0.2, 0},
		{[]string{"application/fhir+json; fhirVersion=3.0, */*;q=0.1"}, 0.1, 0.1},
		{[]string{"application/fhir+xml, application/fhir+ndjson"}, 0, 0},
	}
	for _, tt := range tests {
		h := http.Header{}
		if tt.accept != nil {
			h["Accept"] = tt.accept
		}
		if json, html := weight(h, jsonTypes...), weight(h, "text/html"); json != tt.json || html != tt.html {
			t.Errorf("Accept %q: json %v, html %v; want %v, %v", tt.accept, json, html, tt.json, tt.html)
		}
	}
}

func TestPrefersHTML(t *testing.T) {
	for accept, want := range map[string]bool{
		"text/html,application/xml;q=0.9,*/*;q=0.8": true, "*/*": true, "": true,
		"application/fhir+json": false, "text/html;q=0.5, application/json": false, "application/fhir+xml": false, "text/html;q=0, */*": false,
	} {
		if got := PrefersHTML(http.Header{"Accept": {accept}}); got != want {
			t.Errorf("Accept %q: %v", accept, got)
		}
	}
}

func TestReadable(t *testing.T) {
	tests := []struct {
		query, accept string
		want          string // of what is said, "" for yes
	}{
		{"", "", ""},
		{"", "application/fhir+json; fhirVersion=4.0", ""},
		{"", "application/fhir+xml;q=1, application/json;q=0.1", ""},
		{"", "application/fhir+xml", `send "Accept: application/fhir+json"`},
		{"", "application/fhir+json; fhirVersion=5.0", `asks for FHIR "5.0", and this server answers in FHIR R4 only`},
		{"", "application/fhir+json;q=0", "names nothing that this server answers with"},
		{"_format=json", "application/fhir+xml", ""},
		{"a=b&_format=application%2Ffhir%2Bjson", "", ""},
		{"_format=application/fhir+json", "", ""}, // the + is a space by now
		{"_format=application/json", "", ""},
		{"_format=application/fhir%2Bjson%3BfhirVersion=4.0", "", ""},
		{"_format=application/fhir%2Bjson%3BfhirVersion=5.0", "application/fhir+json", "_format=json"},
		{"_format=xml", "application/fhir+json", `_format: "xml" is not what this server writes`},
		{"_format=", "", `_format: "" is not`},
	}
	for _, tt := range tests {
		r := httptest.NewRequest(http.MethodGet, "/metadata?"+tt.query, nil)
		if tt.accept != "" {
			r.Header.Set("Accept", tt.accept)
		}
		err := Readable(r)
		e, is := errors.AsType[*Error](err)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("?%s, Accept %s: %v", tt.query, tt.accept, e.Issues)
		case tt.want != "" && (!is || e.Kind != NotAcceptable || !strings.Contains(e.Issues[0].Text, tt.want)):
			t.Errorf("?%s, Accept %s: %v, want %q", tt.query, tt.accept, err, tt.want)
		}
	}
}

// TestPrefersResource: who reads a Binary gets FHIR where FHIR is asked for, and
// else the content, whatever else it may have asked for.
func TestPrefersResource(t *testing.T) {
	const pdf, patient, xacml = "application/pdf", "application/fhir+json", "application/xacml+json"
	tests := []struct {
		query, accept, media string
		want                 string // "resource", "content", or of what is said
	}{
		{"", "", pdf, "content"},
		{"", "*/*", pdf, "content"},
		{"", "application/pdf", pdf, "content"},
		{"", "image/png", pdf, "content"},
		{"", "application/*", "image/png", "content"},
		{"", "text/html, application/xml;q=0.9, */*;q=0.8", pdf, "content"},
		{"", "application/json, text/plain, */*", pdf, "content"}, // what libraries of browsers send unasked
		{"", "application/fhir+json", pdf, "resource"},
		{"", "application/fhir+json, */*", pdf, "resource"},
		{"", "application/fhir+json;fhirVersion=4.0", patient, "resource"}, // even if the content is FHIR
		{"", "application/fhir+json;q=0.5, application/pdf", pdf, "content"},
		{"", "application/fhir+json;q=0", pdf, "content"},
		{"", "application/json", pdf, "resource"},
		{"", "application/json", xacml, "content"},
		{"", "application/json", "application/json", "content"},
		{"", "application/xml", pdf, "content"},
		{"", "application/fhir+xml", pdf, `send "Accept: application/fhir+json"`},
		{"", "application/fhir+xml, */*;q=0.1", pdf, "content"},
		{"", "application/fhir+json; fhirVersion=5.0", pdf, "answers in FHIR R4 only"},
		{"_format=json", "application/pdf", pdf, "resource"},
		{"_format=application/json", "", "application/json", "resource"},
		{"_format=application/pdf", "", pdf, "_format=json"},
	}
	for _, tt := range tests {
		r := httptest.NewRequest(http.MethodGet, "/Binary/b?"+tt.query, nil)
		if tt.accept != "" {
			r.Header.Set("Accept", tt.accept)
		}
		resource, err := PrefersResource(r, tt.media)
		got := map[bool]string{true: "resource", false: "content"}[resource]
		if e, is := errors.AsType[*Error](err); is {
			got = e.Issues[0].Text
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("?%s, Accept %s, of %s: %s (%v), want %s", tt.query, tt.accept, tt.media, got, err, tt.want)
		}
	}
}
