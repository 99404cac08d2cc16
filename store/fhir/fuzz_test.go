package fhir

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// FuzzScan holds the scanner against jsontext (what is JSON, what is it without
// white space) and against the naive reading (what does it say). Documents that
// are JSON and still refused must be refused for a reason of policy.
func FuzzScan(f *testing.F) {
	corpus, err := os.ReadFile("testdata/documents.ndjson")
	if err != nil {
		f.Fatal(err)
	}
	for doc := range bytes.Lines(corpus) {
		f.Add(doc)
	}
	for i, typ := range AllTypes() {
		f.Add(generator{rand.New(rand.NewPCG(uint64(i), 7))}.document(typ.String()))
	}
	s := Scanner{OwnBases: []string{ownBase}}
	f.Fuzz(func(t *testing.T, doc []byte) {
		src := bytes.Clone(doc)
		res, err := s.Scan(src)
		if !bytes.Equal(src, doc) {
			t.Fatal("Scan changed what it read")
		}
		valid := validJSON(doc)
		if err != nil {
			checkRefusal(t, err, valid, len(doc))
			return
		}
		if !valid {
			t.Fatal("accepted, and not JSON")
		}
		checkBody(t, doc, res)
		want := naive(t, doc, ownBase)
		if diff := cmp.Diff(want, res, cmpopts.IgnoreFields(Resource{}, "Body", "Meta")); diff != "" {
			t.Fatalf("-naive +scanned:\n%s", diff)
		}
		checkInjection(t, &s, res)
	})
}

// validJSON asks jsontext, which refuses lone surrogates as we do.
func validJSON(doc []byte) bool {
	return jsontext.Value(doc).IsValid(jsontext.AllowDuplicateNames(true))
}

func checkRefusal(t *testing.T, err error, valid bool, size int) {
	t.Helper()
	var syntax *SyntaxError
	if !errors.As(err, &syntax) {
		t.Fatalf("%T: %v", err, err)
	}
	if syntax.Offset < 0 || syntax.Offset > size {
		t.Fatalf("%v, of %d bytes", err, size)
	}
	if valid && slices.Contains(grammarReasons, syntax.Reason) {
		t.Fatalf("refused, and JSON: %v", err)
	}
	if !allowedReasons[syntax.Reason] {
		t.Fatalf("a reason that nobody knows: %v", err)
	}
}

var allowedReasons = allReasons()

func checkBody(t *testing.T, doc []byte, res Resource) {
	t.Helper()
	compact := jsontext.Value(bytes.Clone(doc))
	if err := compact.Compact(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(res.Body, compact) {
		t.Fatalf("body %q, want %q", res.Body, compact)
	}
}

// checkInjection takes the injected elements out again and wants the original.
func checkInjection(t *testing.T, s *Scanner, res Resource) {
	t.Helper()
	const version, updated = "18446744073709551615", Instant(1767323045123)
	noVersion, noUpdated := res.Meta.Missing()
	injected := res.Meta.Inject(nil, res.Body, version, updated)
	if len(injected)-len(res.Body) != res.Meta.Len(version) || !validJSON(injected) {
		t.Fatalf("injected: %q", injected)
	}
	again, err := s.Scan(injected)
	if err != nil {
		t.Fatalf("injected: %v", err)
	}
	want := res
	want.Body, want.Meta = injected, Meta{}
	if noVersion {
		want.Version = version
	}
	if noUpdated {
		want.LastUpdated = updated
	}
	if diff := cmp.Diff(want, again, cmp.AllowUnexported(Meta{})); diff != "" {
		t.Fatalf("injected (-want +got):\n%s", diff)
	}
	before, after := decodeTree(t, res.Body), decodeTree(t, injected)
	meta := after["meta"].(map[string]any)
	if noVersion {
		delete(meta, "versionId")
	}
	if noUpdated {
		delete(meta, "lastUpdated")
	}
	if before["meta"] == nil {
		if len(meta) > 0 {
			t.Fatalf("injected into nothing: %v", meta)
		}
		delete(after, "meta")
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Fatalf("without what was injected (-before +after):\n%s", diff)
	}
}
