package export_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/api/export"
	"tidemark/api/smart"
	"tidemark/api/withhold"
	"tidemark/store/fhir"
	"tidemark/store/storetest"
)

// A known is what a registry knows of a resource.
type known struct {
	patients []string   // in whose compartments it lies
	refs     []fhir.Key // of Provenance what it is about, and who made it
	step     int        // at which it became what it is
	lives    bool
}

// A moment is all that there is after a step. It is never changed.
type moment struct {
	of      map[string]known
	members map[string][]string // of Groups, as they list them
	canary  map[string]string
}

// A registry is a ward of which somebody keeps the whole history: who was where, who was
// in which Group, and who had opted out. It says a second time, from that alone, what an
// export may hold and what it must.
type registry struct {
	*ward
	history []moment // after each step
	at      map[fhir.Instant]int
	worth   map[string]int // of what was compared
}

func (g *registry) now() moment { return g.history[len(g.history)-1] }

// happens lets one thing happen.
func (g *registry) happens() {
	g.t.Helper()
	switch g.r.IntN(16) {
	case 0, 1, 2:
		g.group("out", g.some(0.3, "Group/more"))
	case 3:
		g.group("more", g.some(0.2, ""))
	case 4, 5:
		g.group("0", g.some(0.6, ""))
	case 6:
		g.put("Patient/" + g.id(5))
	case 7:
		g.put("Practitioner/" + g.id(2))
	case 8, 9, 10:
		var targets []string
		for range 1 + g.r.IntN(3) {
			targets = append(targets, g.target())
		}
		g.put("Provenance/"+g.id(8), `"target":`+references(`{"reference":%q}`, targets...), `"agent":[{"who":{"reference":"Practitioner/`+g.id(2)+`"}}]`)
	default:
		ref := "Observation/" + g.id(10)
		switch g.r.IntN(6) {
		case 0: // nobody's
			g.put(ref)
		case 1:
			g.put(ref, `"subject":{"reference":"Patient/`+g.id(5)+`"}`, `"performer":[{"reference":"Patient/`+g.id(5)+`"},{"reference":"Practitioner/0"}]`)
		default:
			g.put(ref, `"subject":{"reference":"Patient/`+g.id(5)+`"}`)
		}
	}
}

func (g *registry) id(n int) string { return fmt.Sprint(g.r.IntN(n)) }

func (g *registry) some(share float64, besides string) (refs []string) {
	for i := range 5 {
		if g.r.Float64() < share {
			refs = append(refs, fmt.Sprint("Patient/", i))
		}
	}
	if besides != "" && g.r.IntN(2) == 0 {
		refs = append(refs, besides)
	}
	return refs
}

func (g *registry) group(id string, members []string) {
	more := []string{}
	if len(members) > 0 {
		more = append(more, `"member":`+references(`{"entity":{"reference":%q}}`, members...))
	}
	g.put("Group/"+id, more...)
	g.now().members[id] = members
}

// put sends a version of a resource, or its deletion.
func (g *registry) put(ref string, more ...string) {
	g.t.Helper()
	g.text++
	was := g.now()
	is := moment{maps.Clone(was.of), maps.Clone(was.members), maps.Clone(was.canary)}
	k := is.of[ref]
	if k.lives && !strings.HasPrefix(ref, "Group/") && g.r.IntN(5) == 0 {
		g.commit(wardDeletion(g.t, ref))
		k.lives = false
	} else {
		is.canary[ref] = fmt.Sprintf("canary-%d-", g.text)
		ch := scanned(g.t, ref, strings.Join(append([]string{`,"meta":{"tag":[{"code":"` + is.canary[ref] + `"}]}`}, more...), ","))
		g.commit(ch)
		k = known{patients: ch.Patients, refs: ch.References, lives: true}
	}
	k.step = len(g.history)
	is.of[ref] = k
	g.history = append(g.history, is)
	g.advance(10 * time.Millisecond)
}

// out tells whether somebody had opted out.
func (m *moment) out(id string) bool {
	all := m.members["out"]
	if slices.Contains(all, "Group/more") {
		all = append(slices.Clip(all), m.members["more"]...)
	}
	return slices.Contains(all, "Patient/"+id)
}

// hides tells whether a resource, as another moment knows it, was hidden by who had opted out.
func (m *moment) hides(ref string, as *moment, on ...string) bool {
	k := as.of[ref]
	switch {
	case slices.Contains(on, ref): // two that are about each other
		return false
	case ref == "Group/out", ref == "Group/more" && slices.Contains(m.members["out"], "Group/more"):
		return true
	case strings.HasPrefix(ref, "Group/"):
		return false
	case len(k.patients) > 0 && !slices.ContainsFunc(k.patients, func(id string) bool { return !m.out(id) }):
		return true
	case !strings.HasPrefix(ref, "Provenance/"), len(k.patients) > 0: // about one who takes part
		return false
	}
	hidden := false
	for _, to := range k.refs {
		if !fhir.OnlyTargeted(to.Type) {
			continue
		}
		of := as.of[to.String()]
		switch gone := !of.lives && len(of.patients) == 0; {
		case gone, !m.hides(to.String(), as, append(on, ref)...):
			return false
		}
		hidden = true
	}
	return hidden
}

// A registryAsk is an export that the registry judges.
type registryAsk struct {
	export.Request
	from, to int // moments
}

func (a *registryAsk) since(g *registry) []moment {
	if a.from < 0 {
		return g.history[a.to : a.to+1]
	}
	return g.history[a.from : a.to+1]
}

// member tells whether the export is about somebody, at a moment, whether he takes part or not.
func (a *registryAsk) member(m *moment, id string) bool {
	in := len(a.Patients) == 0 || slices.Contains(a.Patients, id)
	return in && (a.Level != export.Group || slices.Contains(m.members["0"], "Patient/"+id))
}

func (a *registryAsk) takes(m *moment, id string) bool { return a.member(m, id) && !m.out(id) }

func (a *registryAsk) some() bool { return a.Level == export.Group || len(a.Patients) > 0 }

// holds tells whether an Observation or a Patient is in the export at a moment, whenever it
// changed.
func (a *registryAsk) holds(ref string, m *moment) bool {
	k := m.of[ref]
	switch {
	case !k.lives || m.hides(ref, m):
		return false
	case len(k.patients) == 0:
		return a.Level == export.System
	}
	return slices.ContainsFunc(k.patients, func(id string) bool { return a.takes(m, id) })
}

// goes tells whether a Provenance or a Practitioner goes for the sake of something in an
// export of some.
func (a *registryAsk) goes(ref string, m *moment) bool {
	kind, _, _ := strings.Cut(ref, "/")
	about := func(k known) bool {
		return slices.ContainsFunc(k.patients, func(id string) bool { return a.takes(m, id) }) || slices.ContainsFunc(k.refs, func(to fhir.Key) bool {
			return a.Group != "" && to.String() == "Group/"+a.Group || fhir.OnlyTargeted(to.Type) && a.holds(to.String(), m)
		})
	}
	if kind == "Provenance" {
		return about(m.of[ref])
	}
	for from, k := range m.of {
		refers := slices.ContainsFunc(k.refs, func(to fhir.Key) bool { return to.String() == ref })
		if refers && k.lives && (a.holds(from, m) || strings.HasPrefix(from, "Provenance/") && about(k)) {
			return true
		}
	}
	return kind == "Group"
}

// judge compares what an export delivered with what the registry says.
func (g *registry) judge(a registryAsk, lists map[string]map[string]bool, text string) {
	g.t.Helper()
	end := g.history[a.to]
	window := a.since(g)
	fresh := func(ref string) bool { return end.of[ref].step > a.from }
	joined := func(id string) bool { // takes part, and did not all the time
		return a.takes(&end, id) && (a.from < 0 || slices.ContainsFunc(window, func(m moment) bool { return !a.takes(&m, id) }))
	}
	back := func(id string) bool { // takes part again; what is another's, too, may come twice for that
		return !end.out(id) && slices.ContainsFunc(window, func(m moment) bool { return m.out(id) })
	}
	must := func(list, ref string, want bool) {
		g.t.Helper()
		if g.worth[fmt.Sprint(list, want)]++; lists[list][ref] != want {
			g.t.Errorf("%s has %s: %v", list, ref, !want)
		}
	}
	for ref, k := range end.of {
		kind, id, _ := strings.Cut(ref, "/")
		if lists["output"][ref] && (!k.lives || end.hides(ref, &end)) {
			g.t.Errorf("output has %s, which is hidden: %+v", ref, k)
		}
		was := slices.ContainsFunc(window, func(m moment) bool { return m.hides(ref, &end) })
		switch {
		case kind == "Observation" || kind == "Patient":
			if a.holds(ref, &end) {
				sent := fresh(ref) || slices.ContainsFunc(k.patients, joined)
				if sent || !slices.ContainsFunc(k.patients, back) {
					must("output", ref, sent)
				}
				if was {
					g.worth["back"]++
				}
			} else {
				must("output", ref, false)
			}
		case kind == "Provenance" && !a.some() && k.lives && !end.hides(ref, &end):
			if fresh(ref) || was {
				must("output", ref, true)
			}
		case lists["output"][ref] && a.some() && !a.goes(ref, &end):
			g.t.Errorf("output has %s, for which nothing speaks", ref)
		case kind == "Group" && a.Level == export.Group && (id != "0" || len(a.Patients) > 0):
			must("output", ref, false)
		}
		g.judgeDeletion(a, ref, must)
		g.judgeDeparture(a, ref, lists)
	}
	for ref, is := range end.canary {
		if strings.Contains(text, is) && end.hides(ref, &end) {
			g.t.Errorf("the canary of %s is somewhere", ref)
		}
	}
}

func (g *registry) judgeDeletion(a registryAsk, ref string, must func(list, ref string, want bool)) {
	g.t.Helper()
	kind, _, _ := strings.Cut(ref, "/")
	k := g.history[a.to].of[ref]
	if k.lives || a.from < 0 || k.step <= a.from || kind == "Practitioner" {
		return
	}
	takes := func(m moment) bool {
		return slices.ContainsFunc(k.patients, func(id string) bool {
			if kind == "Provenance" { // told whenever the type is asked for
				return !m.out(id)
			}
			return a.takes(&m, id)
		})
	}
	anybodys := len(k.patients) == 0 && (kind == "Provenance" || !a.some())
	must("deleted", ref, anybodys || slices.ContainsFunc(g.history[a.from:k.step+1], takes))
}

// settled tells whether a Provenance, and whatever it is about, is about the same as when
// the window began, and that was somebody's: else nobody can tell what hides it now.
func (a *registryAsk) settled(g *registry, ref string) bool {
	return !slices.ContainsFunc(g.history[a.to].of[ref].refs, func(to fhir.Key) bool {
		was := g.history[a.from].of[to.String()]
		if kindOf(to.String()) == "Provenance" {
			return g.history[a.to].of[to.String()].step > a.from || len(was.refs) > 0 && to.String() != ref && !a.settled(g, to.String())
		}
		return fhir.OnlyTargeted(to.Type) && len(was.patients) == 0
	})
}

func (g *registry) judgeDeparture(a registryAsk, ref string, lists map[string]map[string]bool) {
	g.t.Helper()
	kind := kindOf(ref)
	end := g.history[a.to]
	if !a.Departed || a.from < 0 || kind != "Observation" && kind != "Patient" && kind != "Provenance" {
		return
	}
	told := lists["departed"][ref]
	if kind == "Provenance" {
		if a.some() || !end.of[ref].lives || end.of[ref].step > a.from {
			return
		}
		if left := end.hides(ref, &end) && !g.history[a.from].hides(ref, &end) && a.settled(g, ref); left && !told {
			g.t.Errorf("departed lacks %s", ref)
		} else if left {
			g.worth["departed Provenance"]++
		}
		if told && !end.hides(ref, &end) {
			g.t.Errorf("departed has %s, which is there", ref)
		}
		return
	}
	// What was nobody's when the window began, and is of who has opted out, cannot be told
	// from what came to be after that.
	nobodys := len(g.history[a.from].of[ref].patients) == 0
	before := a.holds(ref, &g.history[a.from]) && !nobodys
	switch {
	case told && a.holds(ref, &end):
		g.t.Errorf("departed has %s, which is there", ref)
	case !told && before && end.of[ref].lives && !a.holds(ref, &end):
		g.t.Errorf("departed lacks %s", ref)
	case told:
		g.worth["departed"]++
		ever := func(m moment) bool {
			return slices.ContainsFunc(m.of[ref].patients, func(id string) bool { return !m.out(id) }) || len(m.of[ref].patients) == 0
		}
		later := func(m moment) bool {
			return slices.ContainsFunc(end.of[ref].patients, func(id string) bool { return !m.out(id) })
		}
		if !slices.ContainsFunc(a.since(g), ever) && !slices.ContainsFunc(a.since(g), later) {
			g.t.Errorf("departed has %s, whose people were out all the time", ref)
		}
	}
}

// ask starts an export, lets more happen, and judges it.
func (g *registry) ask() {
	g.t.Helper()
	a := registryAsk{Request: export.Request{URL: "http://tidemark.test/fhir/$export", Since: fhir.None, Upto: fhir.None, Departed: g.r.IntN(2) == 0}, from: -1, to: len(g.history) - 1}
	a.Access = &export.Access{Rights: smart.Parse("system/*.rs"), Withhold: withhold.Policy{Groups: []string{"out"}}}
	switch g.r.IntN(5) {
	case 0, 1:
		a.Level = export.Patient
	case 2, 3:
		a.Level, a.Group = export.Group, "0"
	}
	if a.Level != export.System && g.r.IntN(3) == 0 {
		for i := range 5 {
			id := fmt.Sprint(i)
			if a.member(&g.history[a.to], id) && g.r.IntN(2) == 0 && (a.Level == export.Group || g.now().of["Patient/"+id].step > 0) {
				a.Patients = append(a.Patients, id)
			}
		}
	}
	if len(g.times) > 0 && g.r.IntN(4) > 0 {
		a.Since = g.times[g.r.IntN(len(g.times))]
		a.from = g.at[a.Since]
	}
	id := start(g.t, g.jobs, a.Request)
	for range g.r.IntN(3) {
		g.happens()
	}
	if g.r.IntN(4) == 0 {
		g.restart()
	}
	stop := runs(g.t, g.jobs)
	synctest.Wait()
	stop()
	if g.r.IntN(4) == 0 {
		g.restart()
	}
	lines, at := g.held(id)
	lists, text := map[string]map[string]bool{"output": {}, "deleted": {}, "departed": {}}, ""
	for _, line := range lines {
		list, body, _ := strings.Cut(line, " ")
		if text += body; list == "error" {
			continue
		}
		ref := refOf(g.t, list, body)
		if lists[list][ref] {
			g.t.Errorf("%s has %s twice", list, ref)
		}
		lists[list][ref] = true
	}
	g.judge(a, lists, text)
	g.must(g.jobs.Delete(g.t.Context(), id))
	if g.t.Failed() {
		g.t.Fatalf("%+v, moments %d to %d: %+v", a.Request, a.from, a.to, g.history[a.to])
	}
	g.times, g.at[at] = append(g.times, at), a.to
}

// refOf is what a line of a list is about.
func refOf(t *testing.T, list, body string) string {
	t.Helper()
	var res struct {
		ResourceType, ID string
		Entry            []struct{ Request struct{ URL string } }
	}
	if err := json.Unmarshal([]byte(body), &res); err != nil {
		t.Fatal(err)
	}
	if list != "output" {
		return res.Entry[0].Request.URL
	}
	return res.ResourceType + "/" + res.ID
}

// TestOptOut: whoever opts out and in again, and whatever else happens, an export holds
// what its level holds of the people who take part, all of those who have come back, and
// nothing that is only of those who do not; deletions and departures likewise, also after
// a restart between kick-off and planning.
func TestOptOut(t *testing.T) {
	worth, seeds := map[string]int{}, storetest.Rounds(8)
	for seed := range uint64(seeds) {
		synctest.Test(t, func(t *testing.T) {
			w := &ward{t: t, r: rand.New(rand.NewPCG(seed, 6)), fs: vfs.NewMem(), unled: &unled{}}
			g := &registry{ward: w, history: []moment{{map[string]known{}, map[string][]string{}, map[string]string{}}}, at: map[fhir.Instant]int{}, worth: worth}
			w.open()
			defer func() { w.db.Close() }()
			w.advance(time.Second)
			for i := range 5 {
				g.put(fmt.Sprint("Patient/", i))
			}
			for _, id := range []string{"out", "more", "0"} {
				g.group(id, nil)
			}
			for range 40 {
				for range g.r.IntN(12) {
					g.happens()
				}
				if g.r.IntN(8) == 0 {
					g.advance(2 * time.Minute)
					g.merge()
				}
				g.advance(2 * time.Second)
				g.ask()
			}
		})
	}
	for what, least := range map[string]int{"outputtrue": 500, "outputfalse": 300, "back": 20, "deletedtrue": 50, "deletedfalse": 10, "departed": 30, "departed Provenance": 3} {
		if worth[what] < least*seeds/8 {
			t.Errorf("this proves little of %s: %v", what, worth)
		}
	}
}

// TestOptOutLongAgo: somebody who is asked for by name has left the export when he opts
// out, not in any later window.
func TestOptOutLongAgo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &ward{t: t, r: rand.New(rand.NewPCG(1, 6)), fs: vfs.NewMem(), unled: &unled{}}
		w.open()
		defer func() { w.db.Close() }()
		w.commit(scanned(t, "Patient/1", ""), scanned(t, "Group/out", ""))
		w.advance(2 * time.Second)
		before := w.db.Status().Watermark
		w.commit(scanned(t, "Group/out", `,"member":[{"entity":{"reference":"Patient/1"}}]`))
		w.advance(2 * time.Second)
		for since, told := range map[fhir.Instant]bool{before: true, w.db.Status().Watermark: false} {
			id := start(t, w.jobs, export.Request{
				Level: export.Patient, Patients: []string{"1"}, URL: "x", Since: since, Upto: fhir.None, Departed: true,
				Access: &export.Access{Rights: smart.Parse("system/*.rs"), Withhold: withhold.Policy{Groups: []string{"out"}}},
			})
			stop := runs(t, w.jobs)
			synctest.Wait()
			stop()
			lines, _ := w.held(id)
			if text := strings.Join(lines, "\n"); strings.Contains(text, `"Patient/1"`) != told {
				t.Errorf("since %v, told of: %v\n%s", since, !told, text)
			}
		}
	})
}

// TestOptOutOfTwoThings: deletions are told of who took part and was a member at once, not
// of who was first the one and then the other.
func TestOptOutOfTwoThings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &ward{t: t, r: rand.New(rand.NewPCG(1, 6)), fs: vfs.NewMem(), unled: &unled{}}
		w.open()
		defer func() { w.db.Close() }()
		member := `,"member":[{"entity":{"reference":"Patient/1"}}]`
		group := func(id, more string) {
			w.commit(scanned(t, "Group/"+id, more))
			w.advance(time.Second)
		}
		w.commit(scanned(t, "Patient/1", ""), scanned(t, "Observation/1", `,"subject":{"reference":"Patient/1"}`))
		group("0", member)
		group("out", "")
		group("out", member)
		w.advance(time.Second)
		since := w.db.Status().Watermark
		group("0", "")
		group("out", "")
		group("out", member)
		w.commit(wardDeletion(t, "Observation/1"))
		w.advance(time.Second)
		group("0", member)
		group("out", "")
		w.advance(time.Second)
		id := start(t, w.jobs, export.Request{
			Level: export.Group, Group: "0", URL: "x", Since: since, Upto: fhir.None,
			Access: &export.Access{Rights: smart.Parse("system/*.rs"), Withhold: withhold.Policy{Groups: []string{"out"}}},
		})
		stop := runs(t, w.jobs)
		synctest.Wait()
		stop()
		lines, _ := w.held(id)
		if text := strings.Join(lines, "\n"); strings.Contains(text, "Observation/1") || !strings.Contains(text, `"id":"1"`) {
			t.Error(text)
		}
	})
}
