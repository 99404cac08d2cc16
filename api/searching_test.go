package api_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"tidemark/store/fhir"
)

// A searching is a ward whose Groups name their members by identifiers or choose
// them by searches, too.
type searching struct {
	*ward
	listed bool // Group/0 has a list and no search
}

// roster changes how a resource has to do with such Groups.
func (w *searching) roster(kind string, body map[string]any) {
	w.shared(kind, body)
	switch kind {
	case "Patient":
		if w.r.IntN(4) > 0 {
			body["identifier"] = []any{mrn(w.r.IntN(6))}
		}
		body["active"] = w.r.IntN(2) == 0
	case "Observation":
		body["status"] = []string{"final", "amended", "preliminary"}[w.r.IntN(3)]
	case "Group":
		first := body["id"] == "0"
		how := w.r.IntN(4)
		if first && w.listed && how == 1 {
			how = 0 // a list that gets a search beside it is a known limit (CHANGELOG)
		}
		switch how {
		case 0:
			delete(body, "member")
			body["modifierExtension"] = w.searches()
		case 1:
			body["member"], body["modifierExtension"] = w.list(false), w.searches()
		default:
			body["member"] = append(w.list(true), map[string]any{"entity": map[string]any{"identifier": mrn(w.r.IntN(6))}})
		}
		if first {
			w.listed = how > 1
		}
	}
}

func mrn(n int) map[string]any { return map[string]any{"system": "urn:mrn", "value": fmt.Sprint(n)} }

// list is one of Patients, or of Groups, too: a search chooses among Patients only.
func (w *searching) list(groups bool) (members []any) {
	for range 1 + w.r.IntN(4) {
		ref := w.pick("Patient", 8)
		if w.r.IntN(4) == 0 && groups {
			ref = w.pick("Group", 3)
		}
		m := map[string]any{"entity": map[string]any{"reference": ref}}
		if w.r.IntN(4) == 0 {
			m["inactive"] = true
		}
		members = append(members, m)
	}
	return members
}

// searches are what members match: all searches of a Group.
func (w *searching) searches() (extensions []any) {
	all := []string{"Observation?status=final", "Patient?active=true", "Observation?status=final Patient?active=true", "Observation?status=final,amended Observation?performer:Practitioner=1"}
	for text := range strings.FieldsSeq(all[w.r.IntN(len(all))]) {
		extensions = append(extensions, map[string]any{
			"url":             "http://hl7.org/fhir/uv/bulkdata/StructureDefinition/member-filter",
			"valueExpression": map[string]any{"language": "application/x-fhir-query", "expression": text},
		})
	}
	return extensions
}

// TestGroupSearchingChain: members come and go by what identifies them and by what they
// match, and the Groups change from one to the other. Who takes increments, some of
// them with _until, and drops what is deleted or departed holds what a full export
// holds.
func TestGroupSearchingChain(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel() // most of it is waiting for the watermark
			m := newMachine(t)
			w := &searching{ward: &ward{r: rand.New(rand.NewPCG(seed, 4711)), live: map[string]map[string]any{}}}
			w.more = w.roster
			for w.live["Group/0"] == nil || w.live["Patient/0"] == nil || w.live["Patient/1"] == nil {
				m.apply(w.change(t))
			}
			var chains []*chain
			for _, query := range []string{"", "&_type=Patient,Observation", "&_typeFilter=Observation?status=final"} {
				chains = append(chains, &chain{name: query, has: map[string]string{}, stays: staysBy, ask: func(more string) held {
					return m.exportOf("/Group/0/", "?"+departed+query+more)
				}})
			}
			for round := range 14 {
				until := w.pass(t, m)
				if round == 7 {
					m.restart()
					m.apply()
				}
				m.passes(m.db.Now())
				for _, c := range chains {
					switch {
					case w.r.IntN(2) == 0 && until > c.upto(t):
						c.drop(c.ask(c.more() + "&_until=" + until.String()))
					case w.r.IntN(3) > 0:
						c.takeFrom(t, w.ward)
					}
					if t.Failed() {
						t.Fatalf("round %d", round)
					}
				}
			}
		})
	}
}

// pass lets things happen and returns an instant between, None if there was none.
func (w *searching) pass(t *testing.T, m *machine) (between fhir.Instant) {
	between = fhir.None
	for range w.r.IntN(5) {
		if w.r.IntN(3) == 0 {
			between = m.db.Now()
			m.passes(between)
		}
		for range 1 + w.r.IntN(3) {
			m.apply(w.change(t))
		}
	}
	return between
}

// more is what an increment of the chain asks for beside its query.
func (c *chain) more() string {
	if c.since == "" {
		return ""
	}
	return "&_since=" + c.since
}

// upto is where the chain stands; before its first export no _until is asked for.
func (c *chain) upto(t *testing.T) fhir.Instant {
	t.Helper()
	if c.since == "" {
		return 1 << 62
	}
	at, _, err := fhir.ParseInstant(c.since)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// drop takes an increment without asking what a full export holds.
func (c *chain) drop(news held) {
	for _, ref := range append(news.gone, news.left...) {
		delete(c.has, ref)
	}
	maps.Copy(c.has, news.rows)
	c.since = news.at
}

// takeFrom is take for a chain that says _since itself.
func (c *chain) takeFrom(t *testing.T, w *ward) {
	t.Helper()
	ask := c.ask
	defer func() { c.ask = ask }()
	c.ask = func(since string) held {
		if since == "" {
			return ask("")
		}
		return ask("&_since=" + since)
	}
	c.take(t, w)
}
