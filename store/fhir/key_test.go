package fhir

import (
	"slices"
	"strings"
	"testing"
)

// The numbers of types are on disk: this test must never need a change, but
// for types appended to it.
func TestTypeNumbers(t *testing.T) {
	for name, want := range map[string]Type{
		"Account": 1, "Binary": 9, "Bundle": 12, "Group": 58, "Observation": 96, "Patient": 103,
		"Provenance": 111, "VisionPrescription": 146,
	} {
		if got, ok := ParseType(name); !ok || got != want || got.String() != name {
			t.Errorf("ParseType(%q) = %d (%s), %v, want %d", name, got, got, ok, want)
		}
	}
	for _, name := range []string{"", "patient", "Patient ", "Resource", "DomainResource", "Foo"} {
		if got, ok := ParseType(name); ok {
			t.Errorf("ParseType(%q) = %v", name, got)
		}
	}
	if got := Type(0).String() + Type(9999).String(); got != "Type(0)Type(9999)" {
		t.Errorf("unknown types are written %s", got)
	}
}

func TestAllTypes(t *testing.T) {
	all := AllTypes()
	if len(all) != 146 {
		t.Errorf("%d types, want the 146 concrete ones of R4", len(all))
	}
	if !slices.IsSortedFunc(all, func(a, b Type) int { return strings.Compare(a.String(), b.String()) }) {
		t.Error("the types are not in alphabetical order")
	}
	if all[0] = 99; AllTypes()[0] != 1 {
		t.Error("a caller can change the table")
	}
}

func TestKey(t *testing.T) {
	for _, s := range []string{"Patient/p-1", "Observation/" + strings.Repeat("a", 64), "Binary/.", "List/A.9-z"} {
		k, err := ParseKey(s)
		if err != nil || k.String() != s {
			t.Errorf("ParseKey(%q) = %v, %v", s, k, err)
		}
	}
	for _, s := range []string{
		"", "/", "Patient", "Patient/", "/p-1", "patient/p-1", "Foo/p-1", "Patient/p_1", "Patient/p 1", "Patient/p/1",
		"Patient/p-1/_history/2", "Patient/é", " Patient/p-1", "Patient/" + strings.Repeat("a", 65),
	} {
		k, err := ParseKey(s)
		if err == nil {
			t.Errorf("ParseKey(%q) = %v, want an error", s, k)
		} else if s != "" && s != "/" && strings.Contains(err.Error(), s) {
			t.Errorf("the error of ParseKey repeats the key: %v", err)
		}
	}
}
