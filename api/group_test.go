package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/storetest"
)

// held is what a client has of an export, by reference.
type held struct {
	at   string
	rows map[string]string // the lines
	gone []string          // what is deleted
	left []string          // what has departed
}

// exportOf kicks off an export of some level, waits for it and reads it.
func (m *machine) exportOf(path, query string) held {
	m.t.Helper()
	return m.take(m.begin(path, query))
}

// take waits for an export and reads it.
func (m *machine) take(status string) held {
	m.t.Helper()
	doc := m.manifestOf(status)
	h := held{at: doc.TransactionTime, rows: map[string]string{}}
	for _, f := range doc.Output {
		for line := range m.read(f.URL, f.Count) {
			var r struct{ ResourceType, ID string }
			m.must(json.Unmarshal([]byte(line), &r))
			ref := r.ResourceType + "/" + r.ID
			if _, twice := h.rows[ref]; twice {
				m.t.Errorf("%s stands in an export twice", ref)
			}
			h.rows[ref] = line
		}
	}
	h.gone, h.left = m.deletions(doc.Deleted), m.deletions(doc.departed())
	_, err := m.client.Do(must(http.NewRequest(http.MethodDelete, m.base+status, nil)))
	m.must(err)
	return h
}

// manifestOf waits for the manifest of a job.
func (m *machine) manifestOf(status string) (doc manifest) {
	m.t.Helper()
	wait := 20 * time.Millisecond
	for {
		resp, body := m.get(status)
		switch resp.StatusCode {
		case http.StatusOK:
			m.must(json.Unmarshal(body, &doc))
			return doc
		case http.StatusAccepted:
			time.Sleep(wait) // polls are limited
			wait = min(wait*5/4, time.Second)
		default:
			m.t.Fatalf("%s: %s %s", status, resp.Status, body)
		}
	}
}

// text is what an export says in its files, and how many lines each has.
func (m *machine) text(status string) (text string) {
	m.t.Helper()
	doc := m.manifestOf(status)
	for _, f := range append(doc.Output, doc.Error...) {
		_, b := m.get("/fhir" + strings.TrimPrefix(f.URL, public))
		f.prove(m.t, b)
		text += fmt.Sprintln(f.Count) + string(b)
	}
	return text
}

// deletions reads files of Bundles.
func (m *machine) deletions(files []listed) (refs []string) {
	m.t.Helper()
	for _, f := range files {
		for line := range m.read(f.URL, f.Count) {
			var b struct {
				Entry []struct{ Request struct{ URL string } }
			}
			m.must(json.Unmarshal([]byte(line), &b))
			refs = append(refs, b.Entry[0].Request.URL)
		}
	}
	return refs
}

// begin kicks off an export and returns the path of its status.
func (m *machine) begin(path, query string) string {
	m.t.Helper()
	return m.start(must(http.NewRequest(http.MethodGet, m.base+"/fhir"+path+"$export"+query, nil)))
}

// beginPost does so with parameters in a body.
func (m *machine) beginPost(path, parameters string) string {
	m.t.Helper()
	req := must(http.NewRequest(http.MethodPost, m.base+"/fhir"+path+"$export", strings.NewReader(`{"resourceType":"Parameters","parameter":[`+parameters+`]}`)))
	req.Header.Set("Content-Type", "application/fhir+json")
	return m.start(req)
}

// interrupted kicks off an export of everything and restarts the server twice, after some
// milliseconds each.
func (m *machine) interrupted(r *rand.Rand, longest int, query string) (status string) {
	m.t.Helper()
	status = m.begin("/", query)
	for range 2 {
		time.Sleep(time.Duration(r.IntN(longest)) * time.Millisecond)
		m.restart()
	}
	return status
}

func (m *machine) start(req *http.Request) string {
	m.t.Helper()
	req.Header.Set("Accept", "application/fhir+json")
	req.Header.Set("Prefer", "respond-async")
	resp, err := m.client.Do(req)
	m.must(err)
	m.must(resp.Body.Close())
	if resp.StatusCode != http.StatusAccepted {
		m.t.Fatalf("kick-off: %s", resp.Status)
	}
	return "/fhir" + strings.TrimPrefix(resp.Header.Get("Content-Location"), public)
}

func must(r *http.Request, err error) *http.Request {
	if err != nil {
		panic(err)
	}
	return r
}

func (m *machine) read(url string, count int) map[string]bool {
	m.t.Helper()
	_, body := m.get("/fhir" + strings.TrimPrefix(url, public))
	lines := map[string]bool{}
	for line := range bytes.Lines(body) {
		lines[string(bytes.TrimSpace(line))] = true
	}
	if len(lines) != count {
		m.t.Errorf("%s: %d lines, counted %d", url, len(lines), count)
	}
	return lines
}

// A ward is a small world of Patients, what is theirs, and Groups of them.
type ward struct {
	r       *rand.Rand
	version int
	live    map[string]map[string]any
	more    func(kind string, body map[string]any) // adds to what changes, unless nil
}

func (w *ward) pick(kind string, n int) string { return fmt.Sprintf("%s/%d", kind, w.r.IntN(n)) }

// change is a change to any of its resources.
func (w *ward) change(t *testing.T) store.Change {
	w.version++
	kinds := map[string]int{"Patient": 8, "Observation": 30, "Device": 6, "Practitioner": 8, "Organization": 5, "Group": 3, "Provenance": 20}
	kind := []string{"Patient", "Observation", "Observation", "Observation", "Device", "Practitioner", "Organization", "Group", "Group", "Provenance"}[w.r.IntN(10)]
	ref := w.pick(kind, kinds[kind])
	if w.r.IntN(6) == 0 && ref != "Group/0" {
		delete(w.live, ref)
		return deletion(t, ref)
	}
	to := func(kind string) map[string]any { return map[string]any{"reference": w.pick(kind, kinds[kind])} }
	body := map[string]any{"resourceType": kind, "id": ref[strings.Index(ref, "/")+1:], "meta": map[string]any{"tag": []any{map[string]any{"code": fmt.Sprint(w.version)}}}}
	switch kind {
	case "Patient":
		body["generalPractitioner"] = []any{to("Practitioner")}
	case "Observation":
		if w.r.IntN(8) > 0 {
			body["subject"] = to("Patient")
		}
		body["performer"] = []any{to("Practitioner"), to("Organization")}
		body["device"] = to("Device")
	case "Device":
		if w.r.IntN(2) == 0 {
			body["patient"] = to("Patient")
		}
		body["owner"] = to("Organization")
	case "Practitioner":
		body["qualification"] = []any{map[string]any{"issuer": to("Organization")}}
	case "Organization":
		body["partOf"] = to("Organization")
	case "Provenance":
		body["target"] = []any{to([]string{"Observation", "Observation", "Patient", "Practitioner", "Device"}[w.r.IntN(5)])}
		body["agent"] = []any{map[string]any{"who": to("Practitioner")}}
	case "Group":
		var members []any
		for range w.r.IntN(4) {
			members = append(members, map[string]any{"entity": to([]string{"Patient", "Patient", "Group"}[w.r.IntN(3)])})
		}
		body["actual"], body["member"] = true, members
	}
	if w.more != nil {
		w.more(kind, body)
	}
	w.live[ref] = body
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	var s fhir.Scanner
	res, err := s.Scan(text)
	if err != nil {
		t.Fatal(err)
	}
	return store.Change{
		Key: res.Key, Body: res.Body, Meta: res.Meta, Patients: res.Patients, References: res.References, Members: res.Members,
		Version: store.NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None,
	}
}

// members are those of Group/0, and of the Groups in it.
func (w *ward) members() map[string]bool {
	members, groups := map[string]bool{}, map[string]bool{}
	var walk func(ref string)
	walk = func(ref string) {
		if groups[ref] || w.live[ref] == nil {
			return
		}
		groups[ref] = true
		list, _ := w.live[ref]["member"].([]any)
		for _, m := range list {
			to := m.(map[string]any)["entity"].(map[string]any)["reference"].(string)
			if strings.HasPrefix(to, "Group/") {
				walk(to)
			} else {
				members[to] = true
			}
		}
	}
	walk("Group/0")
	return members
}

// belongs lists what an export of Group/0 must hold: an oracle that walks
// through the resources as they are.
func (w *ward) belongs() []string {
	members := w.members()
	refers := func(ref, field string) string {
		to, _ := w.live[ref][field].(map[string]any)
		s, _ := to["reference"].(string)
		return s
	}
	in := map[string]bool{"Group/0": true}
	for ref := range w.live {
		if members[ref] || members[refers(ref, "subject")] || members[refers(ref, "patient")] {
			in[ref] = true
		}
	}
	w.close(in, refers)
	about := map[string]bool{}
	for ref, body := range w.live {
		if strings.HasPrefix(ref, "Provenance/") {
			target, _ := body["target"].([]any)[0].(map[string]any)["reference"].(string)
			kind, _, _ := strings.Cut(target, "/")
			if kind == "Observation" && in[target] || members[target] { // also of a Patient who is not there
				about[ref] = true
			}
		}
	}
	maps.Copy(in, about)
	w.close(in, refers)
	return slices.Sorted(maps.Keys(in))
}

// close adds what those in refer to outside of compartments.
func (w *ward) close(in map[string]bool, refers func(ref, field string) string) {
	for {
		n := len(in)
		for ref := range in {
			if strings.HasPrefix(ref, "Group/") {
				continue // whom it lists is another matter
			}
			text, _ := json.Marshal(w.live[ref])
			for to := range w.live {
				kind, _, _ := strings.Cut(to, "/")
				outside := kind == "Practitioner" || kind == "Organization" || kind == "Device" && refers(to, "patient") == ""
				if outside && bytes.Contains(text, fmt.Appendf(nil, `"reference":%q`, to)) {
					in[to] = true
				}
			}
		}
		if len(in) == n {
			return
		}
	}
}

// TestGroupChain: members come and go, their data moves and is deleted. A full
// export holds just what an oracle says; and who only ever takes increments
// holds all of it in the same versions, and nothing that was deleted while it
// was his to know.
func TestGroupChain(t *testing.T) {
	t.Parallel() // it mostly waits

	for seed := range storetest.Rounds(uint64(6)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newMachine(t)
			w := &ward{r: rand.New(rand.NewPCG(seed, 7)), live: map[string]map[string]any{}}
			for w.live["Group/0"] == nil {
				m.apply(w.change(t))
			}
			client, since := map[string]string{}, ""
			for round := range 25 {
				for range w.r.IntN(6) {
					var changes []store.Change
					for range 1 + w.r.IntN(8) { // in one commit, and so in one block of a type
						changes = append(changes, w.change(t))
					}
					m.apply(changes...)
				}
				if round == 12 {
					m.restart()
					m.apply() // until the watermark has passed everything again
				}
				news := m.exportOf("/Group/0/", since)
				for _, ref := range news.gone {
					delete(client, ref)
				}
				maps.Copy(client, news.rows)
				since = "?_since=" + news.at
				full := m.exportOf("/Group/0/", "")
				if got, want := slices.Sorted(maps.Keys(full.rows)), w.belongs(); !slices.Equal(got, want) {
					t.Fatalf("round %d: a full export holds\n%v, want\n%v", round, got, want)
				}
				for ref, line := range full.rows {
					if client[ref] != line {
						t.Errorf("round %d: who takes increments holds\n%s of %s, a full export has\n%s", round, client[ref], ref, line)
					}
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

// TestGroupChainDeletions: what a member had at the last export and has been
// deleted since is told, whatever became of the membership.
func TestGroupChainDeletions(t *testing.T) {
	t.Parallel() // it mostly waits

	for seed := range storetest.Rounds(uint64(4)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newMachine(t)
			w := &ward{r: rand.New(rand.NewPCG(seed, 17)), live: map[string]map[string]any{}}
			for w.live["Group/0"] == nil {
				m.apply(w.change(t))
			}
			client, since := map[string]string{}, ""
			for round := range 25 {
				was := w.members()
				subject := map[string]string{}
				for ref, b := range w.live {
					if to, ok := b["subject"].(map[string]any); ok && strings.HasPrefix(ref, "Observation/") {
						subject[ref] = to["reference"].(string)
					}
				}
				changed := map[string]bool{}
				var groups []string
				for range w.r.IntN(14) {
					ch := w.change(t)
					if !ch.Delete {
						changed[ch.Key.String()] = true
					}
					if ch.Key.Type.String() == "Group" {
						groups = append(groups, fmt.Sprintf("%s %v", ch.Key, ch.Members))
					}
					m.apply(ch)
				}
				news := m.exportOf("/Group/0/", since)
				for ref, p := range subject {
					if since == "" || changed[ref] || w.live[ref] != nil || !was[p] || client[ref] == "" {
						continue
					}
					if !slices.Contains(news.gone, ref) {
						t.Fatalf("round %d: %s of %s, a member at the last export, was deleted and is not told; Groups: %v", round, ref, p, groups)
					}
				}
				for _, ref := range news.gone {
					delete(client, ref)
				}
				maps.Copy(client, news.rows)
				since = "?_since=" + news.at
			}
		})
	}
}
