package manifest

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRead(t *testing.T) {
	at := time.Date(2026, 1, 3, 8, 15, 3, 412e6, time.UTC)
	crc := uint32(0x0a1b2c3d)
	for _, test := range []struct {
		name, text string
		want       Manifest
	}{
		{
			"version 3", `{"transactionTime":"2026-01-03T08:15:03.412Z","request":"https://example.org/fhir/$export","requiresAccessToken":true,
			"output":[{"type":"Patient","url":"https://example.org/f/1.ndjson","count":2,"extension":{"tidemark-bytes":12345,"tidemark-crc32":"0a1b2c3d"}},
			          {"type":"Patient","url":"https://example.org/f/2.ndjson?sig=secret","count":3,"extension":{"tidemark-bytes":7}}],
			"deleted":[{"type":"Bundle","url":"https://example.org/f/3.ndjson","count":1}],
			"error":[{"type":"OperationOutcome","url":"https://example.org/f/4.ndjson"}],
			"link":[{"relation":"next","url":"https://example.org/page/2"}],
			"extension":{"tidemark-epoch":1,"tidemark-departed":[{"type":"Bundle","url":"https://example.org/f/5.ndjson","count":4,"extension":{"tidemark-bytes":8,"tidemark-crc32":"0a1b2c3d"}}]}}`,
			Manifest{
				TransactionTime: at, Request: "https://example.org/fhir/$export", RequiresAccessToken: true, Next: "https://example.org/page/2",
				Output: []File{
					{Type: "Patient", URL: "https://example.org/f/1.ndjson", Count: new(int64(2)), Bytes: new(int64(12345)), CRC: &crc},
					{Type: "Patient", URL: "https://example.org/f/2.ndjson?sig=secret", Count: new(int64(3)), Bytes: new(int64(7))},
				},
				Deleted:  []File{{Type: "Bundle", URL: "https://example.org/f/3.ndjson", Count: new(int64(1))}},
				Departed: []File{{Type: "Bundle", URL: "https://example.org/f/5.ndjson", Count: new(int64(4)), Bytes: new(int64(8)), CRC: &crc}},
				Error:    []File{{Type: "OperationOutcome", URL: "https://example.org/f/4.ndjson"}},
			},
		},
		{
			"version 4", `{"transactionTime":"2026-01-03T08:15:03.412Z","requiresAccessToken":false,"outputOrganizedBy":"Patient",
			"output":[{"url":"https://example.org/f/1.ndjson","count":2,"fileSize":12345,
				"extension":[{"url":"https://example.org/x","valueBoolean":true},{"url":"https://example.org/StructureDefinition/tidemark-crc32","valueString":"0A1B2C3D"}]}],
			"outcome":[{"url":"https://example.org/f/4.ndjson","fileSize":9,"countSeverity":[{"code":"error","count":1}]}],
			"extension":[{"url":"https://example.org/StructureDefinition/tidemark-epoch","valueInteger":1},
				{"url":"https://example.org/StructureDefinition/tidemark-departed","extension":[{"url":"url","valueUrl":"https://example.org/f/5.ndjson"},{"url":"count","valueDecimal":4},
					{"url":"fileSize","valueDecimal":8},{"url":"https://example.org/StructureDefinition/tidemark-crc32","valueString":"0a1b2c3d"}]}]}`,
			Manifest{
				TransactionTime: at, OrganizedBy: "Patient",
				Output:   []File{{URL: "https://example.org/f/1.ndjson", Count: new(int64(2)), Bytes: new(int64(12345)), CRC: &crc}},
				Departed: []File{{URL: "https://example.org/f/5.ndjson", Count: new(int64(4)), Bytes: new(int64(8)), CRC: &crc}},
				Error:    []File{{URL: "https://example.org/f/4.ndjson", Bytes: new(int64(9))}},
			},
		},
		{
			"published", `{"manifestType":"http://hl7.org/fhir/uv/bulkdata/StructureDefinition/BulkPublishManifest","transactionTime":"2026-01-03T08:15:03.412Z",
			"link":[{"relation":"next","url":"#pending"}]}`,
			Manifest{TransactionTime: at, Published: true},
		},
		// Its fileSize may be that of the compressed file.
		{
			"another server's", `{"transactionTime":"2026-01-03T09:15:03.412+01:00","output":[{"type":"Patient","url":"u","fileSize":12,"count":2}],
			"deleted":null,"extension":{"other":{"a":[1]}}}`,
			Manifest{TransactionTime: at, Output: []File{{Type: "Patient", URL: "u", Count: new(int64(2))}}},
		},
	} {
		got, err := Read([]byte(test.text))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if diff := cmp.Diff(&test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for text, want := range map[string]string{
		`{"transactionTime":"canary"}`: "its transactionTime is not an instant",
		`[]`:                           "a JSON array stands where none may",
		`{"transactionTime":"2026-01-03T08:15:03Z","output":[{"count":1e99}]}`: "/output/0/count",
		`{"resourceType":"OperationOutcome","id":"canary"}`:                    "no transactionTime",
		`canary`: "not valid JSON at byte 0",
		`{"transactionTime":"2026-01-03T08:15:03Z","output":[{"url":["canary"]}]}`:                         `a JSON array stands where none may, at "/output/0/url"`,
		`{"transactionTime":"2026-01-03T08:15:03Z","output":[{"extension":{"tidemark-crc32":"canary"}}]}`:  "not 8 hexadecimal digits",
		`{"transactionTime":"2026-01-03T08:15:03Z","output":[{"extension":{"tidemark-crc32":"0a1b2c3"}}]}`: "not 8 hexadecimal digits",
		`{"transactionTime":"2026-01-03T08:15:03Z","output":[{"extension":{"tidemark-bytes":"canary"}}]}`:  "tidemark-bytes",
	} {
		_, err := Read([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: error %v, want %q", text, err, want)
		}
	}
}

func TestName(t *testing.T) {
	for url, want := range map[string]string{
		"https://example.org/fhir/export/0f6c/1.ndjson":          "1.ndjson",
		"https://example.org/Binary/7?sig=secret&name=/x.ndjson": "7",
		"https://example.org":                                    ".",
		"":                                                       ".",
		"\x00":                                                   "",
	} {
		if got := (&File{URL: url}).Name(); got != want {
			t.Errorf("%q: got %q, want %q", url, got, want)
		}
	}
}

func TestCheck(t *testing.T) {
	var tally Tally
	tally.Add([]byte("{}\n"))
	tally.Add([]byte("{}\n"))
	tally.Lines = 2
	if tally.CRC != 0x9c38f1af || tally.Bytes != 6 {
		t.Errorf("got %+v", tally) // the number is zlib's: python3 -c 'import zlib; print(hex(zlib.crc32(b"{}\n{}\n")))'
	}
	other := tally.CRC + 1
	for _, test := range []struct {
		file File
		want string // error, "" for none
	}{
		{File{}, ""},
		{File{Count: new(int64(2)), Bytes: new(int64(6)), CRC: &tally.CRC}, ""},
		{File{Count: new(int64(3))}, "2 lines, the manifest says 3"},
		{File{Bytes: new(int64(7))}, "6 bytes, the manifest says 7"},
		{File{CRC: &other}, "CRC-32"},
	} {
		err := test.file.Check(tally)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want %q", err, test.want)
		}
	}
}
