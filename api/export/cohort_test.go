package export

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/store"
	"tidemark/store/fhir"
)

// TestEnrol: behind which instant rows of members count, and their deletions, by
// their stays since 10.
func TestEnrol(t *testing.T) {
	for name, test := range map[string]struct {
		stays               []store.Stay
		live, deleted, left map[string]fhir.Instant
	}{
		"stays":            {stays: []store.Stay{{Joined: 5, Left: fhir.None}}, live: at(10), deleted: at(10)},
		"joins":            {stays: []store.Stay{{Joined: 20, Left: fhir.None}}, live: at(fhir.None), deleted: at(19)},
		"joins at once":    {stays: []store.Stay{{Joined: 11, Left: fhir.None}}, live: at(fhir.None), deleted: at(10)},
		"leaves":           {stays: []store.Stay{{Joined: 5, Left: 20}}, deleted: at(10), left: at(20)},
		"leaves twice":     {stays: []store.Stay{{Joined: 25, Left: 30}, {Joined: 5, Left: 20}}, deleted: at(10), left: at(30)},
		"comes back":       {stays: []store.Stay{{Joined: 5, Left: 20}, {Joined: 25, Left: fhir.None}}, live: at(fhir.None), deleted: at(10)},
		"two ways":         {stays: []store.Stay{{Joined: 5, Left: fhir.None}, {Joined: 20, Left: fhir.None}}, live: at(10), deleted: at(10)},
		"one way of two":   {stays: []store.Stay{{Joined: 5, Left: 20}, {Joined: 5, Left: fhir.None}}, live: at(10), deleted: at(10)},
		"comes and leaves": {stays: []store.Stay{{Joined: 15, Left: 20}}, deleted: at(14), left: at(20)},
	} {
		c := &cohort{live: map[string]fhir.Instant{}, deleted: map[string]fhir.Instant{}, left: map[string]fhir.Instant{}}
		c.enrol(&walk{patients: map[string][]store.Stay{"p": test.stays}}, 10)
		for what, d := range map[string]string{"live": cmp.Diff(orNone(test.live), c.live), "deleted": cmp.Diff(test.deleted, c.deleted), "left": cmp.Diff(orNone(test.left), c.left)} {
			if d != "" {
				t.Errorf("%s: %s (-want +got):\n%s", name, what, d)
			}
		}
	}
}

func at(i fhir.Instant) map[string]fhir.Instant { return map[string]fhir.Instant{"p": i} }

func orNone(m map[string]fhir.Instant) map[string]fhir.Instant {
	if m == nil {
		return map[string]fhir.Instant{}
	}
	return m
}
