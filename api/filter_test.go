package api_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/store"
	"tidemark/store/storetest"
)

// A narrowing is a search and, written by hand, what it means.
type narrowing struct {
	query string
	keeps func(r map[string]any) bool
}

func reference(r map[string]any, field string) string {
	to, _ := r[field].(map[string]any)
	s, _ := to["reference"].(string)
	return s
}

func lists(r map[string]any, field, ref string) bool {
	list, _ := r[field].([]any)
	for _, to := range list {
		if to.(map[string]any)["reference"] == ref {
			return true
		}
	}
	return false
}

func tagOf(r map[string]any) string {
	return r["meta"].(map[string]any)["tag"].([]any)[0].(map[string]any)["code"].(string)
}

var narrowings = []narrowing{
	{"Observation?device=Device/2,Device/3", func(r map[string]any) bool {
		d := reference(r, "device")
		return d == "Device/2" || d == "Device/3"
	}},
	{"Observation?performer:Practitioner=1&subject:missing=false", func(r map[string]any) bool {
		return lists(r, "performer", "Practitioner/1") && reference(r, "subject") != ""
	}},
	{"Observation?subject:missing=true", func(r map[string]any) bool { return reference(r, "subject") == "" }},
	{"Organization?partof=Organization/1", func(r map[string]any) bool { return reference(r, "partOf") == "Organization/1" }},
	{"Patient?general-practitioner=2", func(r map[string]any) bool { return lists(r, "generalPractitioner", "Practitioner/2") }},
	{"Practitioner?_tag:not=1,2,3,4,5,6,7,8,9", func(r map[string]any) bool { return len(tagOf(r)) > 1 }},
	{"Device?organization=http://elsewhere/Organization/1", func(map[string]any) bool { return false }},
}

// TestFilters: at every level, of everything and of an increment, an export with
// _typeFilter is the one without, less what a reading of the decoded resources
// says does not match; deletions are the same.
func TestFilters(t *testing.T) {
	t.Parallel() // it mostly waits

	for seed := range storetest.Rounds(uint64(4)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newMachine(t)
			w := &ward{r: rand.New(rand.NewPCG(seed, 27)), live: map[string]map[string]any{}}
			for w.live["Group/0"] == nil {
				m.apply(w.change(t))
			}
			since, kept, dropped := "", 0, 0
			for round := range 8 {
				for range w.r.IntN(4) {
					var changes []store.Change
					for range 10 + w.r.IntN(40) {
						changes = append(changes, w.change(t))
					}
					m.apply(changes...)
				}
				if round == 4 {
					m.restart()
					m.apply()
				}
				var filters []narrowing
				query := ""
				for _, i := range w.r.Perm(len(narrowings))[:1+w.r.IntN(3)] {
					filters = append(filters, narrowings[i])
					query += "&_typeFilter=" + url.QueryEscape(narrowings[i].query)
				}
				for _, level := range []string{"/", "/Patient/", "/Group/0/"} {
					all := m.exportOf(level, "?"+since)
					some := m.exportOf(level, "?"+since+query)
					for ref, line := range all.rows {
						want := passes(t, filters, line)
						if got := some.rows[ref] == line; got != want {
							t.Fatalf("round %d: %s of %s: in the export %t, want %t", round, query, ref, got, want)
						}
						if want {
							kept++
						} else {
							dropped++
						}
					}
					if len(all.gone) != len(some.gone) || len(some.rows) > len(all.rows) {
						t.Errorf("round %d: deletions %v, without filters %v", round, some.gone, all.gone)
					}
					if level == "/Group/0/" && w.r.IntN(3) == 0 {
						since = "_since=" + all.at
					}
				}
			}
			if kept == 0 || dropped == 0 {
				t.Errorf("%d resources kept, %d dropped: nothing was tried", kept, dropped)
			}
		})
	}
}

// passes tells whether a line matches one of the filters of its type, if any.
func passes(t *testing.T, filters []narrowing, line string) bool {
	var r map[string]any
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		t.Fatal(err)
	}
	filtered := false
	for _, f := range filters {
		if strings.HasPrefix(f.query, r["resourceType"].(string)+"?") {
			if filtered = true; f.keeps(r) {
				return true
			}
		}
	}
	return !filtered
}

// TestFilterDamage: a job with filters whose block cannot be read is done without
// it, and says so.
func TestFilterDamage(t *testing.T) {
	m := newMachine(t)
	m.apply(obs(t, "sound", "a", ""))
	m.apply(obs(t, "damaged", "a", ""), obs(t, "too", "a", ""))
	m.damage(0)
	_, _, status, text := m.kick("GET", "/", "?_typeFilter=Observation%3Fsubject%3DPatient/a", "")
	if errors := m.errorsOf(text); status != 200 || !strings.Contains(text, `"count":1,`) || !strings.Contains(errors, "Observation: 2 resources are damaged") {
		t.Errorf("%d %s\n%s", status, text, errors)
	}
}

// damage turns a bit of a body: 0 of the one that was written last, 1 of the one
// before.
func (m *machine) damage(before int) {
	m.t.Helper()
	bodies, err := filepath.Glob(filepath.Join(m.dir, "segments", "*.ndjson.gz"))
	m.must(err)
	path := bodies[len(bodies)-1-before]
	body, err := os.ReadFile(path)
	m.must(err)
	body[len(body)/2] ^= 0x10
	m.must(os.WriteFile(path, body, 0o600))
}
