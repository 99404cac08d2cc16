package bulk

import (
	"slices"
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
