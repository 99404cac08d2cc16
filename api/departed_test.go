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
	"time"

	"tidemark/store"
)

const departed = "includeAssociatedData=_departed"

// A chain is a client that takes increments of one kind of export, and drops what
// they say is deleted or departed.
type chain struct {
	name  string
	ask   func(since string) held // "" for all
	since string
	has   map[string]string
	// stays tells what may stay with the client though a full export does not hold
	// it: what came only by reference.
	stays func(t *testing.T, ref, line string, w *ward) bool
}

// take takes the next increment. What it names as gone or departed must be neither
// in it nor in a full export.
func (c *chain) take(t *testing.T, w *ward) {
	t.Helper()
	news, full := c.ask(c.since), c.ask("")
	if len(full.left) > 0 {
		t.Errorf("%s: a full export names what has departed: %v", c.name, full.left)
	}
	for i, ref := range news.left {
		if full.rows[ref] != "" {
			t.Errorf("%s: %s has departed and is in a full export", c.name, ref)
		}
		if slices.Contains(news.gone, ref) || slices.Contains(news.left[:i], ref) {
			t.Errorf("%s: %s is named twice, as departed and in %v", c.name, ref, news.gone)
		}
	}
	for _, ref := range slices.Concat(news.gone, news.left) {
		delete(c.has, ref)
	}
	maps.Copy(c.has, news.rows)
	c.since = news.at
	for ref, line := range full.rows {
		if c.has[ref] != line {
			t.Errorf("%s: the client holds\n%s of %s, a full export\n%s", c.name, c.has[ref], ref, line)
		}
	}
	for ref, line := range c.has {
		if full.rows[ref] == "" && !c.stays(t, ref, line, w) {
			t.Errorf("%s: the client holds %s, which has left a full export:\n%s\nnow %v", c.name, ref, line, w.live[ref])
		}
	}
}

// staysBy tells what the client of a Group, or of some Patients, may keep:
// Practitioners and the like, Devices of nobody, and Provenance that was since
// said to be about something else.
func staysBy(t *testing.T, ref, line string, w *ward) bool {
	var r map[string]any
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		t.Fatal(err)
	}
	switch kind, _, _ := strings.Cut(ref, "/"); kind {
	case "Practitioner", "Organization":
		return true
	case "Device":
		return reference(r, "patient") == ""
	case "Provenance":
		return w.live[ref] != nil && !reflect.DeepEqual(w.live[ref]["target"], r["target"])
	}
	return false
}

func staysNothing(*testing.T, string, string, *ward) bool { return false }

// TestDeparted: members come and go, their data moves, is deleted and comes back.
// Who takes increments and drops what is deleted or departed holds what a full
// export holds, and beside it at most what came by reference, at every level and
// with filters.
func TestDeparted(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel() // most of it is waiting for the watermark
			m := newMachine(t)
			w := &ward{r: rand.New(rand.NewPCG(seed, 47)), live: map[string]map[string]any{}}
			w.more = w.shared
			for w.live["Group/0"] == nil || w.live["Patient/0"] == nil || w.live["Patient/1"] == nil {
				m.apply(w.change(t))
			}
			chains := w.chains(m)
			for round := range 14 {
				for range w.r.IntN(5) {
					var changes []store.Change
					for range 1 + w.r.IntN(12) {
						changes = append(changes, w.change(t))
					}
					m.apply(changes...)
				}
				if round == 7 {
					m.restart()
					m.apply()
				}
				m.passes(m.db.Now()) // what was late, too: an increment and a full export know the same
				for _, c := range chains {
					if w.r.IntN(3) > 0 {
						c.take(t, w)
					}
					if t.Failed() {
						t.Fatalf("round %d", round)
					}
				}
			}
		})
	}
}

// shared lets some of what changes belong to a second Patient, or be about a second
// target.
func (w *ward) shared(kind string, body map[string]any) {
	if w.r.IntN(3) > 0 {
		return
	}
	switch kind {
	case "Observation":
		body["performer"] = append(body["performer"].([]any), map[string]any{"reference": w.pick("Patient", 8)})
	case "Provenance":
		body["target"] = append(body["target"].([]any), map[string]any{"reference": w.pick("Observation", 30)})
	}
}

// chains are clients of every kind.
func (w *ward) chains(m *machine) []*chain {
	var list []*chain
	get := func(path, query string, stays func(*testing.T, string, string, *ward) bool) {
		list = append(list, &chain{name: path + query, has: map[string]string{}, stays: stays, ask: func(since string) held {
			if since != "" {
				since = "&_since=" + since
			}
			return m.exportOf(path, "?"+departed+query+since)
		}})
	}
	filter := func(i int) string { return "&_typeFilter=" + url.QueryEscape(narrowings[i].query) }
	get("/Group/0/", "", staysBy)
	get("/Group/0/", "&_type=Provenance,Device", staysBy)
	get("/Group/0/", filter(0)+filter(4), staysBy)
	get("/Patient/", "", staysNothing)
	get("/Patient/", filter(1)+filter(3), staysNothing)
	get("/", filter(2)+filter(5), staysNothing)
	list = append(list, &chain{name: "patient", has: map[string]string{}, stays: staysBy, ask: func(since string) held {
		parameters := `{"name":"includeAssociatedData","valueCode":"_departed"}`
		for _, id := range []string{"0", "1"} {
			parameters += fmt.Sprintf(`,{"name":"patient","valueReference":{"reference":"Patient/%s"}}`, id)
		}
		if since != "" {
			parameters += fmt.Sprintf(`,{"name":"_since","valueInstant":%q}`, since)
		}
		return m.take(m.beginPost("/Patient/", parameters))
	}})
	return list
}

// A ledger says what exports must name as departed.
type ledger struct {
	m     *machine
	since string
}

func (l *ledger) names(path, query string, want ...string) held {
	l.m.t.Helper()
	return l.check(path+query, l.m.exportOf(path, "?"+departed+"&_since="+l.since+query), want)
}

// namesOf asks for some Patients.
func (l *ledger) namesOf(path, ids string, want ...string) {
	l.m.t.Helper()
	parameters := fmt.Sprintf(`{"name":"includeAssociatedData","valueCode":"_departed"},{"name":"_since","valueInstant":%q}`, l.since)
	for id := range strings.SplitSeq(ids, ",") {
		parameters += fmt.Sprintf(`,{"name":"patient","valueReference":{"reference":"Patient/%s"}}`, id)
	}
	l.check(path+ids, l.m.take(l.m.beginPost(path, parameters)), want)
}

func (l *ledger) check(what string, h held, want []string) held {
	l.m.t.Helper()
	slices.Sort(h.left)
	slices.Sort(want)
	if !slices.Equal(h.left, want) {
		l.m.t.Errorf("%s names as departed\n%v, want\n%v", what, h.left, want)
	}
	return h
}

// each applies changes one after the other.
func (m *machine) each(changes ...store.Change) {
	m.t.Helper()
	for _, ch := range changes {
		m.apply(ch)
	}
}

func device(t testing.TB, id, of string) store.Change {
	if of == "" {
		return scanned(t, `{"resourceType":"Device","id":%q}`, id)
	}
	return scanned(t, `{"resourceType":"Device","id":%q,"patient":{"reference":"Patient/%s"}}`, id, of)
}

// TestDepartedMoves: what moves away from the Patients of an export is told, once,
// by type and id only; not what is theirs still or again, or another's of them, nor
// what is told as deleted.
func TestDepartedMoves(t *testing.T) {
	m := newMachine(t)
	const also = `,"performer":[{"reference":"Patient/%s"}]`
	nobodys := func(id string) store.Change { return scanned(t, `{"resourceType":"Observation","id":%q}`, id) }
	m.apply(patient(t, "a"), patient(t, "b"), patient(t, "x"), group(t, "g", "", "Patient/a", "Patient/b"),
		obs(t, "to-x", "a", ""), obs(t, "to-b", "a", ""), obs(t, "to-nobody", "a", ""), obs(t, "and-back", "a", ""), obs(t, "to-x-and-dead", "a", ""), obs(t, "dead", "a", ""),
		obs(t, "shared", "a", fmt.Sprintf(also, "x")), obs(t, "shared-in-group", "a", fmt.Sprintf(also, "b")), obs(t, "of-x", "x", ""), obs(t, "moved-before", "a", ""), obs(t, "reborn-elsewhere", "a", ""),
		device(t, "unused", "a"), device(t, "used", "a"), obs(t, "user", "b", `,"device":{"reference":"Device/used"}`),
		provenance(t, "about-to-x", "2025-01-01T00:00:00Z", "Observation/to-x"), provenance(t, "about-both", "2025-01-01T00:00:00Z", "Observation/to-x", "Observation/user"),
		provenance(t, "about-dead", "2025-01-01T00:00:00Z", "Observation/dead"), provenance(t, "about-to-b", "2025-01-01T00:00:00Z", "Observation/to-b"))
	m.apply(obs(t, "moved-before", "x", ""))
	l := &ledger{m: m, since: m.exportOf("/Group/g/", "").at}
	m.each(obs(t, "to-x", "x", ""), obs(t, "to-b", "b", ""), nobodys("to-nobody"), obs(t, "and-back", "x", ""), obs(t, "to-x-and-dead", "x", ""), deletion(t, "Observation/dead"),
		obs(t, "shared", "x", ""), obs(t, "shared-in-group", "b", ""), deletion(t, "Observation/reborn-elsewhere"), device(t, "unused", ""), device(t, "used", ""),
		obs(t, "and-back", "a", ""), deletion(t, "Observation/to-x-and-dead"), nobodys("of-x"), obs(t, "reborn-elsewhere", "x", ""), obs(t, "to-x", "nobody-known", ""))
	m.restart()
	m.apply()

	gone := l.names("/Group/g/", "", "Observation/to-x", "Observation/to-nobody", "Observation/to-x-and-dead", "Observation/shared", "Observation/reborn-elsewhere", "Device/unused",
		"Provenance/about-to-x", "Provenance/about-dead")
	if !slices.Equal(gone.gone, []string{"Observation/dead"}) {
		t.Errorf("deletions %v", gone.gone)
	}
	l.names("/Group/g/", "&_type=Device,Patient", "Device/unused")
	l.names("/Group/g/", "&_type=Provenance", "Provenance/about-to-x", "Provenance/about-dead")
	l.names("/Group/g/", "&_type=Device&includeAssociatedData=LatestProvenanceResources", "Device/unused", "Provenance/about-to-x", "Provenance/about-dead")
	l.names("/Patient/", "", "Observation/to-nobody", "Observation/of-x")
	l.names("/", "")
	l.namesOf("/Patient/", "a", "Observation/to-x", "Observation/to-b", "Observation/to-nobody", "Observation/to-x-and-dead", "Observation/shared", "Observation/shared-in-group",
		"Observation/reborn-elsewhere", "Device/unused", "Device/used", "Provenance/about-to-x", "Provenance/about-dead", "Provenance/about-to-b", "Provenance/about-both")
	l.namesOf("/Group/g/", "b")
	if h := m.exportOf("/Group/g/", "?_since="+l.since); len(h.left) > 0 {
		t.Errorf("who has not asked is told %v", h.left)
	}
	if h := m.exportOf("/Group/g/", "?"+departed); len(h.left) > 0 {
		t.Errorf("without _since: %v", h.left)
	}
}

// TestDepartedMembers: of whoever leaves a Group, on whatever way, all is told that
// was in the export for his sake; not what is another member's, too, nor what
// certainly came to be when he had left.
func TestDepartedMembers(t *testing.T) {
	m := newMachine(t)
	end := m.db.Now() + 4000 // long enough for an export
	ends := fmt.Sprintf(`{"entity":{"reference":"Patient/d"},"period":{"end":%q}}`, end.String())
	const also = `,"performer":[{"reference":"Patient/%s"},{"reference":"Practitioner/p"}]`
	m.apply(patient(t, "a"), patient(t, "b"), patient(t, "c"), patient(t, "d"), patient(t, "e"), patient(t, "x"), scanned(t, `{"resourceType":"Practitioner","id":"p"}`),
		obs(t, "old", "a", fmt.Sprintf(also, "x")), obs(t, "shared", "a", fmt.Sprintf(also, "b")), obs(t, "of-both-who-leave", "a", fmt.Sprintf(also, "c")), obs(t, "changes", "a", ""),
		obs(t, "moves", "a", ""), obs(t, "dead", "a", ""), obs(t, "reborn", "a", ""), obs(t, "of-c", "c", ""), obs(t, "of-d", "d", ""), obs(t, "of-e", "e", ""), obs(t, "narrows", "a", fmt.Sprintf(also, "x")), obs(t, "widens", "a", ""), obs(t, "comes", "x", ""),
		patient(t, "j"), obs(t, "left-before-joining", "j", ""),
		provenance(t, "about-old", "2025-01-01T00:00:00Z", "Observation/old"), provenance(t, "about-shared", "2025-01-01T00:00:00Z", "Observation/old", "Observation/shared"), provenance(t, "about-a", "2025-01-01T00:00:00Z", "Patient/a"))
	m.apply(group(t, "n", "", "Patient/c"), group(t, "g", "", "Patient/a", "Patient/b", "Group/n", ends, "Patient/e"))
	l := &ledger{m: m, since: m.exportOf("/Group/g/", "").at}
	m.each(group(t, "g", "", "Patient/b", "Group/n", ends), group(t, "n", ""), group(t, "g", "", "Patient/b", "Group/n", ends, "Patient/e"),
		obs(t, "changes", "a", `,"status":"final"`), obs(t, "moves", "x", ""), deletion(t, "Observation/dead"), deletion(t, "Observation/reborn"), obs(t, "reborn", "a", ""),
		obs(t, "narrows", "a", ""), obs(t, "widens", "a", fmt.Sprintf(also, "c")), obs(t, "new", "a", ""), obs(t, "of-e", "e", `,"status":"final"`),
		obs(t, "left-before-joining", "x", ""), group(t, "g", "", "Patient/b", "Group/n", ends, "Patient/e", "Patient/j"))
	m.passes(end)

	h := l.names("/Group/g/", "", "Patient/a", "Patient/c", "Patient/d", "Observation/old", "Observation/of-both-who-leave", "Observation/changes", "Observation/moves", "Observation/reborn",
		"Observation/of-c", "Observation/of-d", "Observation/narrows", "Observation/widens", "Provenance/about-old", "Provenance/about-a")
	if !slices.Equal(h.gone, []string{"Observation/dead"}) {
		t.Errorf("deletions %v", h.gone)
	}
	l.names("/Group/g/", "&_type=Patient", "Patient/a", "Patient/c", "Patient/d")
	l.namesOf("/Group/g/", "b")
	l.since = h.at
	m.apply(deletion(t, "Observation/old"), obs(t, "changes", "a", ""))
	l.names("/Group/g/", "") // is no longer in it
}

// TestDepartedFilters: what has changed and does not match its filter is told, of
// the types that are in the export for their own sake.
func TestDepartedFilters(t *testing.T) {
	m := newMachine(t)
	final, draft := `,"status":"final","performer":[{"reference":"Practitioner/p"}]`, `,"status":"preliminary"`
	doctor := func(active bool) store.Change {
		return scanned(t, `{"resourceType":"Practitioner","id":"p","active":%t}`, active)
	}
	m.apply(patient(t, "a"), patient(t, "j"), patient(t, "x"), doctor(true), group(t, "g", "", "Patient/a"), obs(t, "stays", "a", final), obs(t, "unlike", "a", final), obs(t, "alike", "a", draft),
		obs(t, "never", "a", draft), obs(t, "never-changes", "a", draft), obs(t, "moves", "a", final), obs(t, "of-x", "x", final), obs(t, "of-joiner", "j", draft),
		provenance(t, "pr", "2025-01-01T00:00:00Z", "Observation/stays"), provenance(t, "of-joiner", "2025-01-01T00:00:00Z", "Observation/of-joiner"))
	l := &ledger{m: m, since: m.exportOf("/Group/g/", "").at}
	m.each(obs(t, "unlike", "a", draft), obs(t, "alike", "a", final), obs(t, "never-changes", "a", draft+`,"text":{}`), obs(t, "moves", "x", draft), obs(t, "of-x", "x", draft), doctor(false), group(t, "g", "", "Patient/a", "Patient/j"))
	m.restart()
	m.apply()
	const filters = "&_typeFilter=Observation?status=final&_typeFilter=Practitioner?active=true"
	l.names("/Group/g/", filters, "Observation/unlike", "Observation/never-changes", "Observation/moves")
	l.names("/Group/g/", filters+"&_elements=id", "Observation/unlike", "Observation/never-changes", "Observation/moves")
	l.namesOf("/Patient/", "a", "Observation/moves")
	l.names("/Patient/", filters, "Observation/unlike", "Observation/never-changes", "Observation/moves", "Observation/of-x", "Practitioner/p")
	l.names("/", filters+"&_type=Observation,Practitioner", "Observation/unlike", "Observation/never-changes", "Observation/moves", "Observation/of-x", "Practitioner/p")
	l.names("/Group/g/", "&_typeFilter=Provenance?recorded=lt2025", "Observation/moves")
	m.apply(provenance(t, "pr", "2026-01-01T00:00:00Z", "Observation/stays"))
	l.names("/Group/g/", "&_typeFilter=Provenance?recorded=lt2026", "Observation/moves", "Provenance/pr")
	l.names("/Group/g/", "&_typeFilter=Group?_tag=none", "Observation/moves", "Group/g")
}

// TestDepartedUntil: where _until ends a window before the present, who and what has
// left meanwhile is told in one window or the other, and what is in the export is
// told in neither.
func TestDepartedUntil(t *testing.T) {
	m := newMachine(t)
	uses := func(status string) store.Change {
		return obs(t, "user", "b", `,"device":{"reference":"Device/used"},"status":"`+status+`"`)
	}
	m.apply(patient(t, "a"), patient(t, "b"), patient(t, "x"), group(t, "g", "", "Patient/a", "Patient/b"), device(t, "used", "a"), uses("final"),
		obs(t, "dead", "a", ""), obs(t, "old", "a", ""), obs(t, "moves", "a", ""), obs(t, "changes", "b", ""), provenance(t, "about-both", "2025-01-01T00:00:00Z", "Observation/old", "Observation/changes"))
	l := &ledger{m: m, since: m.exportOf("/Group/g/", "").at}
	m.each(group(t, "g", "", "Patient/b"), device(t, "used", ""))
	until := m.db.Now()
	m.passes(until)
	m.each(deletion(t, "Observation/dead"), obs(t, "moves", "x", ""), device(t, "used", ""), scanned(t, `{"resourceType":"Device","id":"used","lotNumber":"1"}`), obs(t, "changes", "b", `,"status":"final"`))
	h := l.names("/Group/g/", "&_until="+until.String(), "Patient/a", "Observation/dead", "Observation/old", "Observation/moves")
	if len(h.gone) > 0 {
		t.Errorf("deletions %v", h.gone)
	}
	l.since = h.at
	l.names("/Group/g/", "")
}

// TestDepartedSaysNoMore: a line says which resource is meant, and nothing else but
// what is the same in all.
func TestDepartedSaysNoMore(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), patient(t, "CANARY"), group(t, "g", "", "Patient/a"), obs(t, "o", "a", ""))
	l := &ledger{m: m, since: m.exportOf("/Group/g/", "").at}
	m.apply(obs(t, "o", "CANARY", `,"note":[{"text":"CANARY"}]`))
	_, _, _, text := m.kick("GET", "/Group/g/", "?"+departed+"&_since="+l.since, "")
	var doc manifest
	m.must(json.Unmarshal([]byte(text), &doc))
	if len(doc.departed()) != 1 || doc.departed()[0].Type != "Bundle" || strings.Contains(text, "CANARY") {
		t.Fatal(text)
	}
	_, body := m.get("/fhir" + strings.TrimPrefix(doc.departed()[0].URL, public))
	want := fmt.Sprintf(`{"resourceType":"Bundle","meta":{"lastUpdated":%q},"type":"transaction","entry":[{"request":{"method":"DELETE","url":"Observation/o"}}]}`, doc.TransactionTime) + "\n"
	if string(body) != want {
		t.Errorf("%swant\n%s", body, want)
	}
	if log := m.log.String(); strings.Contains(log, "CANARY") {
		t.Error(log)
	}
}

// TestDepartedKilled: a job that tells what has left and is cut short, again and
// again, ends with the bytes of one that is not, whatever happened since.
func TestDepartedKilled(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), patient(t, "x"), group(t, "g", "", "Patient/a"))
	several := func(of string, from, to int) (list []store.Change) {
		for i := from; i < to; i++ {
			list = append(list, obs(t, fmt.Sprint(i), of, ""))
		}
		return list
	}
	m.apply(several("a", 0, 3000)...)
	query := "?" + departed + "&_since=" + m.exportOf("/Group/g/", "").at
	m.apply(several("x", 0, 1000)...)
	m.apply(group(t, "g", ""))
	read := func(status string) (text string) {
		for _, f := range m.manifestOf(status).departed() {
			_, b := m.get("/fhir" + strings.TrimPrefix(f.URL, public))
			text += fmt.Sprintln(f.Count) + string(b)
		}
		return text
	}
	first := m.begin("/Group/g/", query)
	want := read(first)
	if n := strings.Count(want, "DELETE"); n != 3001 {
		t.Fatalf("%d resources", n)
	}
	r := rand.New(rand.NewPCG(3, 3))
	var jobs []string
	for range 6 {
		jobs = append(jobs, m.begin("/Group/g/", query))
		time.Sleep(time.Duration(r.IntN(8)) * time.Millisecond)
		m.restart()
	}
	m.apply(several("a", 0, 100)...)
	m.apply(group(t, "g", "", "Patient/a"))
	for _, status := range append(jobs, first) {
		if got := read(status); got != want {
			t.Fatalf("%d bytes, want %d", len(got), len(want))
		}
	}
}
