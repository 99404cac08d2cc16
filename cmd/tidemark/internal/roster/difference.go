package roster

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"tidemark/store/fhir"
)

// A Difference is how the list of a Group changes: whom it names, as Patient/id
// or system|value, sorted.
type Difference struct {
	Joined  []string // listed and not inactive now, and were not
	Left    []string
	Changed []string // are in both lists, with other periods
}

// String counts.
func (d Difference) String() string {
	return fmt.Sprintf("%d joined, %d left, %d with another period", len(d.Joined), len(d.Left), len(d.Changed))
}

// Print names everybody, one to a line.
func (d Difference) Print(w io.Writer) error {
	for _, part := range []struct {
		sign string
		of   []string
	}{{"+", d.Joined}, {"-", d.Left}, {"~", d.Changed}} {
		for _, who := range part.of {
			if _, err := fmt.Fprintln(w, part.sign, who); err != nil {
				return err
			}
		}
	}
	return nil
}

// Compare tells how the list of one Group's body becomes that of another. nil
// is a Group that is not there. The bodies need not be ours: what is no member
// of FHIR R4 counts for nobody.
func Compare(from, to []byte) Difference {
	old, now := stays(from), stays(to)
	var d Difference
	for _, who := range slices.Sorted(maps.Keys(now)) {
		was, listed := old[who]
		switch {
		case !listed:
			d.Joined = append(d.Joined, who)
		case !slices.Equal(was, now[who]):
			d.Changed = append(d.Changed, who)
		}
	}
	for _, who := range slices.Sorted(maps.Keys(old)) {
		if _, still := now[who]; !still {
			d.Left = append(d.Left, who)
		}
	}
	return d
}

// stays are the periods of whom a body lists and does not call inactive.
func stays(body []byte) map[string][]Period {
	var g struct {
		Member []json.RawMessage `json:"member"`
	}
	of := map[string][]Period{}
	if len(body) == 0 || json.Unmarshal(body, &g) != nil {
		return of
	}
	for _, text := range g.Member {
		var m Member
		if json.Unmarshal(text, &m) != nil || m.Inactive || m.Entity.String() == "" {
			continue
		}
		var p Period
		if m.Period != nil {
			p = *m.Period
		}
		of[m.Entity.String()] = append(of[m.Entity.String()], p)
	}
	for _, list := range of {
		slices.SortFunc(list, func(a, b Period) int { return strings.Compare(a.Start+" "+a.End, b.Start+" "+b.End) })
	}
	return of
}

// LastUpdated is when a body says that it was written; None if it does not.
func LastUpdated(body []byte) fhir.Instant {
	var g struct {
		Meta Meta `json:"meta"`
	}
	if json.Unmarshal(body, &g) != nil {
		return fhir.None
	}
	i, _, err := fhir.ParseInstant(g.Meta.LastUpdated)
	if err != nil {
		return fhir.None
	}
	return i
}
