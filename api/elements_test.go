package api_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"tidemark/store"
)

// TestElements: at every level, of everything and of an increment, an export with
// _elements has the resources of the one without, each cut as a reading of the
// decoded ones says, and together with filters just those that match.
func TestElements(t *testing.T) {
	// Of what is in the ward; status and code of Observation are not.
	always := map[string][]string{"Provenance": {"target", "agent"}, "Group": {"actual"}, "Patient": {}, "Observation": {}, "Device": {}, "Practitioner": {}, "Organization": {}}
	m := newMachine(t)
	w := &ward{r: rand.New(rand.NewPCG(1, 37)), live: map[string]map[string]any{}}
	for w.live["Group/0"] == nil {
		m.apply(w.change(t))
	}
	since := ""
	for round := range 6 {
		for range 3 {
			var changes []store.Change
			for range 30 {
				changes = append(changes, w.change(t))
			}
			m.apply(changes...)
		}
		if round == 3 {
			m.restart()
			m.apply()
		}
		filters := []narrowing{narrowings[round]}
		query := "&_elements=Observation.subject,device,Group.member&_typeFilter=" + url.QueryEscape(filters[0].query)
		for _, level := range []string{"/", "/Patient/", "/Group/0/"} {
			whole, cut := m.exportOf(level, "?"+since), m.exportOf(level, "?"+since+query)
			maps.DeleteFunc(whole.rows, func(_, line string) bool { return !passes(t, filters, line) })
			if got, want := slices.Sorted(maps.Keys(cut.rows)), slices.Sorted(maps.Keys(whole.rows)); !slices.Equal(got, want) {
				t.Fatalf("%v, want %v", got, want)
			}
			for ref, line := range whole.rows {
				var want, got map[string]any
				m.must(json.Unmarshal([]byte(line), &want))
				m.must(json.Unmarshal([]byte(cut.rows[ref]), &got))
				kind := want["resourceType"].(string)
				kept := append([]string{"resourceType", "id", "meta"}, always[kind]...)
				switch kind {
				case "Observation":
					kept = append(kept, "subject", "device")
				case "Group":
					kept = append(kept, "member")
				}
				maps.DeleteFunc(want, func(name string, _ any) bool { return !slices.Contains(kept, name) })
				tags := want["meta"].(map[string]any)["tag"].([]any)
				want["meta"].(map[string]any)["tag"] = append(tags, map[string]any{"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"})
				if !reflect.DeepEqual(got, want) {
					t.Fatalf("%s: got %v, want %v", ref, got, want)
				}
			}
			if !slices.Equal(slices.Sorted(slices.Values(whole.gone)), slices.Sorted(slices.Values(cut.gone))) {
				t.Errorf("deletions %v, without _elements %v", cut.gone, whole.gone)
			}
			if round%2 == 1 && level == "/Group/0/" {
				since = "_since=" + whole.at
			}
		}
	}
}

// TestElementsKilled: a job that writes files and is cut short, again and again,
// ends with the bytes of one that is not, and counts once what it could not read.
func TestElementsKilled(t *testing.T) {
	m := newMachine(t)
	m.mergeOff = true // a merge that has read what is damaged then would mend it for later jobs
	m.restart()
	long := strings.Repeat("x", 4000)
	for i := range 12 {
		var changes []store.Change
		for n := range 100 {
			changes = append(changes, obs(t, fmt.Sprintf("%d-%d", i, n), "a", fmt.Sprintf(`,"valueString":"%d","note":[{"text":%q}]`, n, long)))
		}
		m.apply(changes...)
	}
	m.damage(6)
	const query = "?_elements=note&_typeFilter=Observation%3Fvalue-string:missing=false"
	want := m.text(m.begin("/", query))
	lost, lines := 0, strings.Count(want, "SUBSETTED")
	if _, err := fmt.Sscanf(want[strings.LastIndex(want, "Observation: "):], "Observation: %d resources are damaged", &lost); err != nil || lost == 0 || lines+lost != 1200 {
		t.Fatalf("%d resources, %d lost, want 1200: %v", lines, lost, err)
	}
	if n := lines; strings.Contains(want, "valueString") || strings.Count(want, "\n") < n+4 {
		t.Fatalf("%d resources in %d lines", n, strings.Count(want, "\n"))
	}
	r := rand.New(rand.NewPCG(2, 2))
	for range 10 {
		if got := m.text(m.interrupted(r, 30, query)); got != want {
			t.Fatalf("%d bytes, want %d", len(got), len(want))
		}
	}
}
