package attachment

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
)

const base = "https://ehr.example/fhir"

func TestAppend(t *testing.T) {
	for _, c := range []struct{ name, line, want string }{
		{
			"relative URLs become absolute, numbers stay as they are written",
			`{"resourceType":"DocumentReference","content":[{"attachment":{"size":1.50,"url":"Binary/here","title":"a"}}],"n":1.0}`,
			`{"resourceType":"DocumentReference","content":[{"attachment":{"size":1.50,"url":"https://us.example/Binary/here","title":"a"}}],"n":1.0}`,
		},
		{
			"so do those under a base of ours, escaped or with a version",
			`{"photo":[{"url":"https:\/\/ehr.example/fhir\u002fBinary/here"},{"\u0075rl":"Binary/here/_history/1"}]}`,
			`{"photo":[{"url":"https://us.example/Binary/here"},{"\u0075rl":"https://us.example/Binary/here"}]}`,
		},
		{
			"what leads elsewhere stays",
			`{"photo":[{"url":"https://other.example/Binary/here"},{"url":"Binary/nowhere"},{"url":"files/1"},{"url":"#a"},{"url":7},{"url":""}],"url":"Binary/here"}`,
			`{"photo":[{"url":"https://other.example/Binary/here"},{"url":"Binary/nowhere"},{"url":"files/1"},{"url":"#a"},{"url":7},{"url":""}],"url":"Binary/here"}`,
		},
		{
			"content takes the place of the url and of what is said of it",
			`{"presentedForm":[{"language":"en","url":"Binary/full","_url":{"id":"u"},"hash":"x"},{"contentType":"a/b","url":"Binary/full"}]}`,
			`{"presentedForm":[{"contentType":"text/plain","data":"YQ==","language":"en","hash":"x"},{"data":"YQ==","contentType":"a/b"}]}`,
		},
		{
			"whoever has content keeps it",
			`{"presentedForm":[{"data":"Yg==","url":"Binary/full"}]}`,
			`{"presentedForm":[{"data":"Yg==","url":"https://us.example/Binary/full"}]}`,
		},
		{
			"contained resources, extensions and lists of lists, before and behind the url",
			`{"contained":[{"content":{"extension":[{"valueAttachment":{"url":"Binary/here"}}],"url":"Binary/here","x":{"photo":[[{"url":"Binary/full"}]]}}}]}`,
			`{"contained":[{"content":{"extension":[{"valueAttachment":{"url":"https://us.example/Binary/here"}}],"url":"https://us.example/Binary/here","x":{"photo":[[{"contentType":"text/plain","data":"YQ=="}]]}}}]}`,
		},
		{"an empty one", `{"photo":[{}],"content":{},"form":[]}`, `{"photo":[{}],"content":{},"form":[]}`},
	} {
		r := Rewriter{Bases: []string{base}, Follow: follow}
		for range 2 { // it is used again
			if diff := cmp.Diff("before "+c.want+"\n", string(r.Append([]byte("before "), []byte(c.line+"\n")))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.name, diff)
			}
		}
	}
}

func follow(k fhir.Key) Lead {
	url := "https://us.example/" + k.String()
	switch k.ID {
	case "here":
		return Lead{URL: url}
	case "full":
		return Lead{URL: url, Data: []byte(`"YQ=="`), ContentType: []byte(`"text/plain"`)}
	}
	return Lead{}
}

func TestContent(t *testing.T) {
	for line, want := range map[string]string{
		`{"resourceType":"Binary","id":"b","contentType":"a\/b","data":"YQ=="}`: `"a\/b" "YQ=="`,
		`{"d\u0061ta":"YQ==","securityContext":{"data":"no"}}`:                  ` "YQ=="`,
		`{"contentType":7,"data":null}`:                                         ` `,
	} {
		typ, data := Content([]byte(line))
		if got := fmt.Sprintf("%s %s", typ, data); got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
}

// FuzzAppend: whatever a scanner lets pass, what is not an Attachment of ours stays
// byte for byte, and what comes out is a resource that leads to where it should.
func FuzzAppend(f *testing.F) {
	f.Add([]byte(`{"resourceType":"Media","id":"m","content":{"url":"Binary/here"}}`))
	f.Add([]byte(`{"resourceType":"Media","id":"m","content":[[{"url":"Binary\/full","data":1}],{"u\u0072l":"Binary/full"}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		s := fhir.Scanner{OwnBases: []string{base}}
		res, err := s.Scan(doc)
		if err != nil {
			return
		}
		stay := Rewriter{Bases: []string{base}, Follow: func(fhir.Key) Lead { return Lead{} }}
		if got := stay.Append(nil, res.Body); string(got) != string(res.Body) {
			t.Fatalf("%s became %s", res.Body, got)
		}
		seen := map[string]bool{}
		change := Rewriter{Bases: []string{base}, Follow: func(k fhir.Key) Lead { seen[k.ID] = true; return follow(k) }}
		got := change.Append(nil, res.Body)
		if !json.Valid(got) {
			t.Fatalf("%s became %s, which is no JSON", res.Body, got)
		}
		known := map[string]bool{}
		for _, ref := range res.References {
			known[ref.ID] = known[ref.ID] || ref.Type == fhir.Binary
		}
		for id := range seen {
			if !known[id[:min(len(id), 255)]] {
				t.Fatalf("the scanner does not know that %s leads to %q", res.Body, id)
			}
		}
	})
}

// BenchmarkAppend is about a document of 1.3 KB with two attachments, one of which
// leads here. SetBytes makes it say MB/s of the NDJSON that is read.
func BenchmarkAppend(b *testing.B) {
	line := []byte(`{"resourceType":"DocumentReference","id":"d","meta":{"versionId":"1","lastUpdated":"2026-01-02T03:04:05.678Z"},"identifier":[{"system":"urn:ietf:rfc:3986","value":"urn:uuid:5b1c1b4e-5f0e-4ff2-a2b0-6d6b0fdf4d0e"}],` +
		`"status":"current","type":{"coding":[{"system":"http://loinc.org","code":"34117-2","display":"History and physical note"},{"system":"http://loinc.org","code":"51847-2","display":"Evaluation + Plan note"}]},` +
		`"category":[{"coding":[{"system":"http://hl7.org/fhir/us/core/CodeSystem/us-core-documentreference-category","code":"clinical-note","display":"Clinical Note"}]}],` +
		`"subject":{"reference":"Patient/p"},"date":"2026-01-02T03:04:05Z","author":[{"reference":"Practitioner/dr","display":"Dr. Who"}],"custodian":{"reference":"Organization/o","display":"General Hospital"},` +
		`"content":[{"attachment":{"contentType":"application/pdf","url":"Binary/here","title":"Note"},"format":{"system":"http://ihe.net/fhir/ValueSet/IHE.FormatCode.codesystem","code":"urn:ihe:iti:xds:2017:mimeTypeSufficient"}},` +
		`{"attachment":{"contentType":"text/html","url":"https://other.example/notes/1"}}],"context":{"encounter":[{"reference":"Encounter/e"}],"period":{"start":"2026-01-02T03:04:05Z","end":"2026-01-02T03:19:05Z"}}}` + "\n")
	r := Rewriter{Bases: []string{base}, Follow: follow}
	var dst []byte
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		dst = r.Append(dst[:0], line)
	}
}
