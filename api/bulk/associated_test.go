package bulk

import (
	"slices"
	"strings"
	"testing"

	"tidemark/store/fhir"
)

// TestPresets: each has only types, none twice, and so many.
func TestPresets(t *testing.T) {
	patient, _ := fhir.ParseType("Patient")
	want := map[string]int{
		"_ccds": 19, "_us-core-3": 17, "_us-core-4": 17, "_us-core-5": 19, "_us-core-6": 22, "_us-core-7": 23, "_us-core-8": 23, "_us-core-9": 31,
		"_carin-bb": 7, "_cms-claims": 5, "_financial": 19,
	}
	if len(presets) != len(want) {
		t.Errorf("%d presets, want %d", len(presets), len(want))
	}
	for name, types := range presets {
		sorted := slices.Compact(slices.Sorted(slices.Values(types)))
		if len(types) != want[name] || len(sorted) != len(types) || slices.Contains(types, 0) || !slices.Contains(types, patient) {
			t.Errorf("%s has %d types, want %d: %v", name, len(types), want[name], types)
		}
	}
}

// TestOwnPresets: a list of the operator's has a name that clients can send, that
// nothing else has, and types.
func TestOwnPresets(t *testing.T) {
	patient, _ := fhir.ParseType("Patient")
	own := Presets{"a": {patient}, "Claims_2-b": {patient}, "7": {patient}, "us-core-10": {patient}}
	if err := own.Validate(); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{
		"": "no name", "_a": "no name", "-a": "no name", "a,b": "no name", "a b": "no name", "é": "no name", strings.Repeat("a", 64): "no name",
		"ccds": "meaning of its own", "us-core-7": "meaning of its own", "departed": "meaning of its own",
	} {
		if err := (Presets{name: {patient}}).Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", name, err, want)
		}
	}
	if err := (Presets{"a": {}}).Validate(); err == nil {
		t.Error("a list without types is taken: it would stand for all of them")
	}
	// Even what was not validated stands for nothing else.
	if got := (Presets{"ccds": {patient}}).types("_ccds"); len(got) != 19 {
		t.Errorf("_ccds has %d types, want our 19", len(got))
	}
}
