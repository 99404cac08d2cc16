package api_test

import (
	"fmt"
	"slices"
	"testing"

	"tidemark/api/export"
)

// TestMember: who is a member for a single read is who an export of the Group has,
// whatever makes him one.
func TestMember(t *testing.T) {
	m := newMachine(t)
	ref := func(to string) string { return fmt.Sprintf(`{"entity":{"reference":%q}}`, to) }
	m.apply(patient(t, "a"), patient(t, "b"), patient(t, "c"),
		identified(t, "one", "", "1"), identified(t, "twin", "", "2"), identified(t, "twin2", "", "2"),
		scanned(t, `{"resourceType":"Condition","id":"x","subject":{"reference":"Patient/%s"},"code":{"coding":[{"system":"s","code":"dm"}]}}`, "c"),
		group(t, "listed", "", ref("Patient/a"), ref("Patient/gone")),
		group(t, "nested", "", ref("Group/listed")),
		group(t, "byname", "", named("1"), named("2")),
		group(t, "searched", filters("Condition?code=s|dm")),
		group(t, "defined", `,"actual":false`),
		group(t, "former", "", ref("Patient/b")))
	m.apply(group(t, "former", "", ref("Patient/a")))
	s, err := export.Of(m.db).Present()
	m.must(err)
	defer s.Close()
	all := []string{"a", "b", "c", "one", "twin", "twin2"}
	for id, want := range map[string][]string{
		"listed": {"a"}, "nested": {"a"}, "byname": {"one"}, "searched": {"c"}, "defined": nil, "former": {"a"}, "none": nil,
	} {
		var got []string
		for _, patient := range all {
			is, err := export.Member(t.Context(), s, id, []string{patient}, nil)
			m.must(err)
			if is {
				got = append(got, patient)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", id, got, want)
		}
	}
}
