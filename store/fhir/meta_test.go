package fhir

import (
	"testing"
)

func TestInject(t *testing.T) {
	const version, updated = "7", "2026-01-02T03:04:05.123Z"
	for _, c := range []struct{ name, doc, want string }{
		{
			"no meta", `{"resourceType":"Patient","id":"p","active":true}`,
			`{"resourceType":"Patient","id":"p","meta":{"versionId":"7","lastUpdated":"2026-01-02T03:04:05.123Z"},"active":true}`,
		}, {
			"no meta, the id first", ` { "id" : "p" , "resourceType" : "Patient" } `,
			`{"id":"p","meta":{"versionId":"7","lastUpdated":"2026-01-02T03:04:05.123Z"},"resourceType":"Patient"}`,
		}, {
			"no meta, the id last", `{"resourceType":"Patient", "a" : [ 1 ] , "id": "p" }`,
			`{"resourceType":"Patient","a":[1],"id":"p","meta":{"versionId":"7","lastUpdated":"2026-01-02T03:04:05.123Z"}}`,
		}, {
			"an empty meta", `{"resourceType":"Patient","id":"p","meta" : { } }`,
			`{"resourceType":"Patient","id":"p","meta":{"versionId":"7","lastUpdated":"2026-01-02T03:04:05.123Z"}}`,
		}, {
			"a meta with other things", ` {"resourceType":"Patient","id":"p", "meta": { "profile":["x"] } }`,
			`{"resourceType":"Patient","id":"p","meta":{"versionId":"7","lastUpdated":"2026-01-02T03:04:05.123Z","profile":["x"]}}`,
		}, {
			"a meta before the id", `{"meta":{"source":"#x"},"resourceType":"Patient","id":"p"}`,
			`{"meta":{"versionId":"7","lastUpdated":"2026-01-02T03:04:05.123Z","source":"#x"},"resourceType":"Patient","id":"p"}`,
		}, {
			"only the version is missing", `{"resourceType":"Patient","id":"p","meta":{"lastUpdated":"2020-01-01T00:00:00Z"}}`,
			`{"resourceType":"Patient","id":"p","meta":{"versionId":"7","lastUpdated":"2020-01-01T00:00:00Z"}}`,
		}, {
			"only the instant is missing", `{"resourceType":"Patient","id":"p","meta":{"versionId":"1","tag":[]}}`,
			`{"resourceType":"Patient","id":"p","meta":{"lastUpdated":"2026-01-02T03:04:05.123Z","versionId":"1","tag":[]}}`,
		}, {
			"nothing is missing", `{"resourceType":"Patient","id":"p","meta":{"versionId":"1","lastUpdated":"2020-01-01T00:00:00Z"}}`,
			`{"resourceType":"Patient","id":"p","meta":{"versionId":"1","lastUpdated":"2020-01-01T00:00:00Z"}}`,
		}, {
			"what is no instant stays", `{"resourceType":"Patient","id":"p","meta":{"versionId":"x","lastUpdated":"yesterday"}}`,
			`{"resourceType":"Patient","id":"p","meta":{"versionId":"x","lastUpdated":"yesterday"}}`,
		}, {
			"meta of a contained resource is not ours", `{"resourceType":"Patient","contained":[{"id":"c","meta":{"versionId":"1"}}],"id":"p"}`,
			`{"resourceType":"Patient","contained":[{"id":"c","meta":{"versionId":"1"}}],"id":"p","meta":{"versionId":"7","lastUpdated":"2026-01-02T03:04:05.123Z"}}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s Scanner
			res, err := s.Scan([]byte(c.doc))
			if err != nil {
				t.Fatal(err)
			}
			got := res.Meta.Inject([]byte("before "), res.Body, version, instantOf(updated))
			if string(got) != "before "+c.want {
				t.Errorf("got  %s\nwant before %s", got, c.want)
			}
			if n := len(got) - len("before ") - len(res.Body); n != res.Meta.Len(version) {
				t.Errorf("Len = %d, but %d bytes were added", res.Meta.Len(version), n)
			}
		})
	}
}

func TestMetaZero(t *testing.T) {
	var m Meta
	if v, u := m.Missing(); v || u || m.Len("7") != 0 || string(m.Inject(nil, []byte("x"), "7", 0)) != "x" {
		t.Error("the zero Meta lacks something")
	}
}
