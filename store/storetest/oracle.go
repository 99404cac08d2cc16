// Package storetest has what tests of the store share: the oracle, which is
// section 2 of the design said again in a few naive lines.
package storetest

import (
	"slices"

	"tidemark/store/fhir"
)

// A Version is one state that a resource went through.
type Version struct {
	C, D     fhir.Instant // visible at w iff C <= w < D
	Body     string       // "" is a deletion
	Reported bool         // a deletion that exports name
}

// Forever is the death of what was not superseded.
const Forever = fhir.Instant(1<<63 - 1)

// Oracle keeps every version of every resource.
type Oracle struct{ Rows map[string][]Version }

// Apply adds a state that was accepted as newer: t is what it says of its time
// (None: nothing), line the commit's.
func (o *Oracle) Apply(key, body string, t, line, now fhir.Instant) {
	list := o.Rows[key]
	c := t
	if c == fhir.None && line == fhir.None {
		c = now
	}
	reported := false
	if n := len(list); n > 0 {
		c = max(c, list[n-1].C)
		reported = list[n-1].Body != ""
	}
	if line != fhir.None {
		c = max(c, line+1)
	}
	if n := len(list); n > 0 {
		list[n-1].D = c
	}
	if o.Rows == nil {
		o.Rows = map[string][]Version{}
	}
	o.Rows[key] = append(list, Version{C: c, D: Forever, Body: body, Reported: reported && body == ""})
}

// Erase forgets every living state of a resource; its deletions stay.
func (o *Oracle) Erase(key string) {
	if list := o.Rows[key]; list != nil {
		o.Rows[key] = slices.DeleteFunc(list, func(v Version) bool { return v.Body != "" })
	}
}

// Newest is the last accepted state, nil if there is none.
func (o *Oracle) Newest(key string) *Version {
	list := o.Rows[key]
	if len(list) == 0 {
		return nil
	}
	return &list[len(list)-1]
}

// Export is what the window (since, w] holds, upto at most, as seen at w.
func (o *Oracle) Export(since, upto, w fhir.Instant) (live map[string]string, deleted map[string]bool) {
	live, deleted = map[string]string{}, map[string]bool{}
	for key, list := range o.Rows {
		for _, v := range list {
			switch {
			case v.C > w || v.D <= w || v.C <= since || v.C > upto:
			case v.Body != "":
				live[key] = v.Body
			case v.Reported:
				deleted[key] = true
			}
		}
	}
	return live, deleted
}
