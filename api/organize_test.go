package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/storetest"
)

// A file of an export in blocks: what the manifest says of it, and its text.
type blockFile struct {
	text      string
	continues bool
}

// organized is an export in blocks.
func (m *machine) organized(path, query, by string) (files []blockFile, notes string) {
	m.t.Helper()
	_, _, status, text := m.kick("GET", path, query+"&organizeOutputBy="+by, "")
	if status != 200 {
		m.t.Fatalf("%s%s: %d %s", path, query, status, text)
	}
	var doc manifest
	m.must(json.Unmarshal([]byte(text), &doc))
	if doc.OutputOrganizedBy != by {
		m.t.Errorf("organized by %q, want %s", doc.OutputOrganizedBy, by)
	}
	for i, f := range doc.Output {
		_, b := m.get("/fhir" + strings.TrimPrefix(f.URL, public))
		if f.prove(m.t, b); f.Type != "" || f.Extension.CRC32 == "" {
			m.t.Errorf("file %+v", f)
		}
		if on := f.ContinuesInFile; on != "" && (i+1 == len(doc.Output) || on != doc.Output[i+1].URL) {
			m.t.Errorf("goes on in %s", on)
		}
		files = append(files, blockFile{string(b), f.ContinuesInFile != ""})
	}
	return files, m.errorsOf(text)
}

var header = regexp.MustCompile(`^\{"resourceType":"Parameters","parameter":\[\{"name":"header","valueReference":\{"reference":"(\w+/[\w.-]+)"\}\}\]\}\n$`)

// inBlocks takes files apart, and insists on what the guide says of them.
func inBlocks(t *testing.T, files []blockFile) map[string][]string {
	t.Helper()
	blocks := map[string][]string{}
	block, goesOn := "", false
	for _, f := range files {
		first := true
		for line := range strings.Lines(f.text) {
			h := header.FindStringSubmatch(line)
			switch {
			case h == nil && first:
				t.Fatalf("a file begins with %s", line)
			case h == nil:
				blocks[block] = append(blocks[block], strings.TrimSpace(line))
			case first && goesOn:
				if h[1] != block {
					t.Errorf("%s goes on with the header of %s", block, h[1])
				}
			default:
				if _, met := blocks[h[1]]; met {
					t.Errorf("%s has two blocks", h[1])
				}
				block = h[1]
				blocks[block] = nil
			}
			first = false
		}
		goesOn = f.continues
	}
	if goesOn {
		t.Error("the last file goes on")
	}
	for ref, lines := range blocks {
		if len(lines) == 0 {
			t.Errorf("the block of %s is a header only", ref)
		}
	}
	return blocks
}

// listsOf are types of which a Provenance or a Group draws in nothing.
var listsOf = map[string]bool{"Patient": true, "Observation": true, "Group": true, "Provenance": true}

func kindOf(ref string) string { kind, _, _ := strings.Cut(ref, "/"); return kind }

var literal = regexp.MustCompile(`"reference":"(\w+/\w+)"`)

// refersTo lists what a resource of the ward refers to.
func (w *ward) refersTo(ref string) (refs []string) {
	text, _ := json.Marshal(w.live[ref])
	for _, m := range literal.FindAllStringSubmatch(string(text), -1) {
		if m[1] != ref {
			refs = append(refs, m[1])
		}
	}
	return refs
}

// owners are the blocks that a resource belongs to by itself. only: those of
// members.
func (w *ward) owners(ref, by string, only map[string]bool) (blocks []string) {
	kind := kindOf(ref)
	for _, to := range append(w.refersTo(ref), ref) {
		mine := kindOf(to) == by
		if by == "Patient" {
			field := map[string]string{"Observation": "subject", "Device": "patient", "Provenance": "target"}[kind]
			text, _ := json.Marshal(w.live[ref][field])
			mine = mine && (to == ref || bytes.Contains(text, fmt.Appendf(nil, "%q", to))) && (only == nil || only[to])
		}
		if mine {
			blocks = append(blocks, to)
		}
	}
	return blocks
}

// arranged says which of the rows sent stand in which blocks: an oracle that walks
// through the resources as they are. whole is what the export holds whatever its
// window.
func (w *ward) arranged(by string, sent, whole map[string]string, only map[string]bool) (blocks map[string][]string, left map[string]int) {
	in := map[string]map[string]bool{} // resource → blocks
	put := func(ref, block string) (news bool) {
		if in[ref] == nil {
			in[ref] = map[string]bool{}
		}
		news = !in[ref][block]
		in[ref][block] = true
		return news
	}
	for ref := range whole {
		if by == "Patient" && kindOf(ref) == "Group" {
			continue
		}
		owners := w.owners(ref, by, only)
		for _, block := range owners {
			put(ref, block)
		}
		if kindOf(ref) == "Provenance" && len(owners) == 0 {
			for _, to := range w.refersTo(ref) {
				if _, there := whole[to]; there && listsOf[kindOf(to)] {
					for _, block := range w.owners(to, by, only) {
						put(ref, block)
					}
				}
			}
		}
	}
	for again := true; again; {
		again = false
		for ref := range whole {
			kind, owners := kindOf(ref), w.owners(ref, by, only)
			from := owners
			if len(owners) == 0 { // leads on
				from = slices.Collect(maps.Keys(in[ref]))
			}
			for _, to := range w.refersTo(ref) {
				switch k := kindOf(to); {
				case k == by, listsOf[k] && (kind == "Provenance" || kind == "Group"):
					continue
				case by == "Patient" && (kind == "Group" || listsOf[k] || len(w.owners(to, by, only)) > 0):
					continue
				}
				for _, block := range from {
					again = put(to, block) || again
				}
			}
		}
	}
	blocks, left = map[string][]string{}, map[string]int{}
	for ref, line := range sent {
		if len(in[ref]) == 0 {
			left[kindOf(ref)]++
		}
		for block := range in[ref] {
			blocks[block] = append(blocks[block], line)
		}
	}
	for block, lines := range blocks {
		if line, there := whole[block]; there && !slices.Contains(lines, line) {
			blocks[block] = append(lines, line)
		}
	}
	return blocks, left
}

// TestOrganized: at every level, of everything and of an increment, an export in
// blocks has the rows of the one without in the blocks that an oracle says, and
// counts those that stand in none; sorted in the least memory or much, whole or in
// files that are too small for a block, it is the same.
func TestOrganized(t *testing.T) {
	for seed := range storetest.Rounds(uint64(2)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newMachine(t)
			w := &ward{r: rand.New(rand.NewPCG(seed, 47)), live: map[string]map[string]any{}}
			for w.live["Group/0"] == nil {
				m.apply(w.change(t))
			}
			since, placed, missing := "", 0, 0
			for round := range 5 {
				for range w.r.IntN(4) {
					var changes []store.Change
					for range 10 + w.r.IntN(40) {
						changes = append(changes, w.change(t))
					}
					m.apply(changes...)
				}
				if round == 3 {
					m.restart()
					m.apply()
				}
				now := m.present()
				at := ""
				for _, level := range []string{"/", "/Patient/", "/Group/0/"} {
					whole, sent := m.exportOf(level, "?"), m.exportOf(level, "?"+since)
					var only map[string]bool
					if level == "/Group/0/" {
						only = now.members()
					}
					at = sent.at
					types := []string{"Patient", "Practitioner", "Organization", "Device", "Observation"}
					if level == "/" {
						types = append(types, "Group")
					}
					w.r.Shuffle(len(types), func(i, j int) { types[i], types[j] = types[j], types[i] })
					for _, by := range types[:max(2, storetest.Rounds(len(types)))] {
						want, left := now.arranged(by, sent.rows, whole.rows, only)
						files, notes := m.organized(level, "?"+since, by)
						got := inBlocks(t, files)
						for ref, lines := range got {
							if focal, there := whole.rows[ref]; there && lines[0] != focal {
								t.Errorf("the block of %s begins with %s", ref, lines[0])
							}
						}
						if d := cmp.Diff(sortedBlocks(want), sortedBlocks(got)); d != "" {
							t.Fatalf("round %d, %s by %s, %s (-oracle +export):\n%s", round, level, by, since, d)
						}
						for kind, n := range left {
							missing++
							if !regexp.MustCompile(fmt.Sprintf(`[ :]%s %d[,"]`, kind, n)).MatchString(notes) {
								t.Errorf("round %d, %s by %s: %s %d are left out, and it is said %s", round, level, by, kind, n, notes)
							}
						}
						if len(left) == 0 && strings.Contains(notes, "left out") {
							t.Errorf("nothing is left out: %s", notes)
						}
						placed += len(got)
						if (round+int(seed))%3 == 0 && w.r.IntN(3) == 0 {
							m.sameHowever(level, since, by, files)
						}
					}
				}
				if round%2 == 1 {
					since = "_since=" + at
				}
			}
			if placed < 100 || missing == 0 {
				t.Errorf("%d blocks, %d counts: nothing was tried", placed, missing)
			}
		})
	}
}

// present is the ward as the store has it: of a change and a deletion at one instant
// it may keep either.
func (m *machine) present() *ward {
	now := &ward{live: map[string]map[string]any{}}
	for ref, line := range m.exportOf("/", "?").rows {
		var body map[string]any
		m.must(json.Unmarshal([]byte(line), &body))
		now.live[ref] = body
	}
	return now
}

func sortedBlocks(blocks map[string][]string) map[string][]string {
	sorted := map[string][]string{}
	for ref, lines := range blocks {
		sorted[ref] = slices.Sorted(slices.Values(lines))
	}
	return sorted
}

// sameHowever makes an export again, with little memory and in small files.
func (m *machine) sameHowever(path, since, by string, want []blockFile) {
	m.t.Helper()
	q := export.Request{URL: "x", Since: fhir.None, Upto: fhir.None}
	q.Level = map[string]export.Level{"/": export.System, "/Patient/": export.Patient, "/Group/0/": export.Group}[path]
	if q.Level == export.Group {
		q.Group = "0"
	}
	if since != "" {
		q.Since = instant(m.t, strings.TrimPrefix(since, "_since="))
	}
	q.By, _ = fhir.ParseType(by)
	whole := ""
	for _, f := range want {
		whole += f.text
	}
	for _, o := range []export.Options{
		{Memory: 1 << 10},
		{Memory: 20 << 10},
		{Memory: 1 << 10, Limits: export.Limits{Bytes: 700}},
		{Limits: export.Limits{Resources: 3}},
		{Limits: export.Limits{Resources: 40}},
	} {
		files := m.inDirect(q, o)
		for i, f := range files {
			lines := int64(strings.Count(f.text, "\n"))
			if l := o.Limits; lines > 2 && (l.Resources > 0 && lines > l.Resources || l.Bytes > 0 && int64(len(f.text)) > l.Bytes) {
				m.t.Errorf("file %d has %d lines and %d bytes, limits are %+v", i, lines, len(f.text), l)
			}
			if f.continues && i > 0 && !files[i-1].continues && strings.Count(f.text, `"name":"header"`) > 1 {
				m.t.Errorf("a block that goes on in another file begins behind others: %s", f.text)
			}
		}
		if o.Limits == (export.Limits{}) {
			got := ""
			for _, f := range files {
				got += f.text
			}
			if got != whole {
				m.t.Fatalf("%s by %s, %s, in %d bytes of memory: %d bytes, want %d", path, by, since, o.Memory, len(got), len(whole))
			}
		} else if d := cmp.Diff(inBlocks(m.t, want), inBlocks(m.t, files)); d != "" {
			m.t.Fatalf("%s by %s, %s, cut at %+v (-whole +cut):\n%s", path, by, since, o.Limits, d)
		}
	}
}

// TestOrganizedKilled: a job in blocks that is cut short, again and again, ends with
// the bytes of one that is not; it leaves only its files, and tells the log nobody's
// name.
func TestOrganizedKilled(t *testing.T) {
	m := newMachine(t)
	long := strings.Repeat("x", 3000)
	for i := range 10 {
		var changes []store.Change
		for n := range 100 {
			changes = append(changes, obs(t, fmt.Sprintf("%d-%d", i, n), fmt.Sprintf("canary%d", n), fmt.Sprintf(`,"note":[{"text":"%s"}],"performer":[{"reference":"Practitioner/dr"}]`, long)))
		}
		m.apply(append(changes, patient(t, fmt.Sprintf("canary%d", i)), scanned(t, `{"resourceType":"Practitioner","id":"dr"}`))...)
	}
	const query = "?organizeOutputBy=Patient"
	want := m.text(m.begin("/", query))
	if n, drs := strings.Count(want, `"header"`), strings.Count(want, `"id":"dr"`); n != 100 || drs != 100 {
		t.Fatalf("%d blocks, the Practitioner in %d", n, drs)
	}
	r := rand.New(rand.NewPCG(3, 3))
	for range 8 {
		status := m.interrupted(r, 40, query)
		if got := m.text(status); got != want {
			t.Fatalf("%d bytes, want %d", len(got), len(want))
		}
		names, err := filepath.Glob(filepath.Join(m.dir, "jobs", status[strings.LastIndex(status, "/")+1:], "*.tmp"))
		if err != nil || len(names) > 0 {
			t.Errorf("stay: %v, %v", names, err)
		}
	}
	if log := m.log.String(); strings.Contains(log, "canary") {
		t.Errorf("the log names a Patient: %s", log)
	}
}

// TestOrganizedDamage: what cannot be read is missing in its blocks, and counted.
func TestOrganizedDamage(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), obs(t, "sound", "a", ""))
	m.apply(obs(t, "damaged", "a", ""), obs(t, "too", "b", ""))
	m.damage(0)
	for _, by := range []string{"Patient", "Observation"} {
		files, notes := m.organized("/", "?", by)
		if blocks := inBlocks(t, files); len(blocks) != 1 || !strings.Contains(notes, "Observation: 2 resources are damaged") {
			t.Errorf("by %s: %v\n%s", by, blocks, notes)
		}
	}
}

// TestOrganizedDamageElsewhere: what refers to something that is sent and cannot be read
// is counted, though it is not asked for itself, or has not changed in the window.
func TestOrganizedDamageElsewhere(t *testing.T) {
	m := newMachine(t)
	org := func(active bool) store.Change {
		return scanned(t, `{"resourceType":"Organization","id":"o","active":%t}`, active)
	}
	m.apply(scanned(t, `{"resourceType":"Practitioner","id":"dr"}`), org(false))
	m.apply(scanned(t, `{"resourceType":"PractitionerRole","id":"damaged","practitioner":{"reference":"Practitioner/dr"},"organization":{"reference":"Organization/o"}}`))
	at := m.exportOf("/", "?").at
	m.damage(0)
	m.apply(org(true))
	const said = "PractitionerRole: 1 resources are damaged on the server's disk, so it is not known what they refer to"
	for _, query := range []string{"?_type=Practitioner,Organization", "?_since=" + at} {
		for by, want := range map[string]bool{"Practitioner": true, "Patient": false} { // of a Patient directories tell
			files, notes := m.organized("/", query, by)
			if blocks := inBlocks(t, files); strings.Contains(notes, said) != want || len(blocks["Practitioner/dr"]) > 1 {
				t.Errorf("%s by %s: %v\n%s", query, by, blocks, notes)
			}
		}
	}
}

// TestOrganizedProvenance: what is attached goes with what it is about, and brings
// along who made it; a Patient who has not changed begins his block.
func TestOrganizedProvenance(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), patient(t, "b"), obs(t, "o", "a", ""), obs(t, "of-b", "b", ""), scanned(t, `{"resourceType":"Practitioner","id":"dr"}`),
		provenance(t, "old", "2025-01-01T00:00:00Z", "Observation/o"), provenance(t, "of-b", "2025-01-01T00:00:00Z", "Observation/of-b"))
	at := m.exportOf("/", "?").at
	m.apply(obs(t, "o", "a", `,"status":"final"`), provenance(t, "new", "2025-02-01T00:00:00Z", "Observation/o"), scanned(t, `{"resourceType":"Practitioner","id":"dr","active":true}`))
	of := func(query, by string) map[string]string {
		files, _ := m.organized("/Patient/", query, by)
		got := map[string]string{}
		for block, lines := range inBlocks(t, files) {
			for _, line := range lines {
				var r struct{ ResourceType, ID string }
				m.must(json.Unmarshal([]byte(line), &r))
				got[block] += r.ResourceType + "/" + r.ID + " "
			}
		}
		return got
	}
	for _, c := range []struct {
		query, by string
		want      map[string]string
	}{
		{"?_since=" + at, "Patient", map[string]string{
			"Patient/a": "Patient/a Observation/o Practitioner/dr Provenance/new ", "Patient/b": "Patient/b Practitioner/dr ",
		}},
		{"?_since=" + at + "&includeAssociatedData=RelevantProvenanceResources", "Patient", map[string]string{
			"Patient/a": "Patient/a Observation/o Practitioner/dr Provenance/old Provenance/new ",
		}},
		{"?includeAssociatedData=LatestProvenanceResources&_type=Observation,Practitioner", "Observation", map[string]string{
			"Observation/o": "Observation/o Practitioner/dr Provenance/new ", "Observation/of-b": "Observation/of-b Practitioner/dr Provenance/of-b ",
		}},
		{"?_typeFilter=Patient%3F_id=b&_type=Patient,Observation", "Patient", map[string]string{
			"Patient/a": "Observation/o ", "Patient/b": "Patient/b Observation/of-b ",
		}},
	} {
		if d := cmp.Diff(c.want, of(c.query, c.by)); d != "" {
			t.Errorf("%s by %s (-want +got):\n%s", c.query, c.by, d)
		}
	}
}

// inDirect does a job without HTTP.
func (m *machine) inDirect(q export.Request, o export.Options) (files []blockFile) {
	m.t.Helper()
	j := export.New(export.Of(m.db), o)
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	defer func() { cancel(); m.must(<-done) }()
	id, err := j.Start(ctx, q)
	m.must(err)
	var man export.Manifest
	for {
		if man, err = j.Manifest(id); err == nil {
			break
		}
		if _, working := errors.AsType[*export.WorkingError](err); !working {
			m.t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	for i, f := range man.Files {
		if f.List != export.Output {
			continue
		}
		d, err := j.Open(ctx, id, i+1)
		m.must(err)
		var b bytes.Buffer
		m.must(d.Write(&b, false, 0, d.Size(false)))
		m.must(d.Close())
		files = append(files, blockFile{b.String(), f.Continues})
	}
	m.must(j.Delete(ctx, id))
	return files
}
