package api_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"tidemark/store"
)

func provenance(t testing.TB, id, recorded string, targets ...string) store.Change {
	list := ""
	for i, target := range targets {
		if i > 0 {
			list += ","
		}
		list += fmt.Sprintf(`{"reference":%q}`, target)
	}
	return scanned(t, `{"resourceType":"Provenance","id":%q,"recorded":%q,"target":[%s],"agent":[{"who":{"reference":"Practitioner/dr"}}]}`, id, recorded, list)
}

// provenanceIn lists the ids of an export's Provenance.
func provenanceIn(h held) (ids []string) {
	for _, ref := range slices.Sorted(maps.Keys(h.rows)) {
		if id, is := strings.CutPrefix(ref, "Provenance/"); is {
			ids = append(ids, id)
		}
	}
	return ids
}

// TestAttach: which Provenance goes with the rows that are sent: by default what is
// about the Patients' data; the latest or all about what is sent, even if _type
// does not name it and whatever _since; cut and filtered as all else is.
func TestAttach(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), patient(t, "b"), obs(t, "o", "a", `,"status":"final"`), obs(t, "draft", "a", `,"status":"preliminary"`), obs(t, "of-b", "b", ""), group(t, "g", "", "Patient/a"))
	m.apply(
		provenance(t, "old", "2025-01-01T00:00:00Z", "Observation/o", "Observation/draft"),
		provenance(t, "new", "2025-01-01T01:00:00+00:30", "Observation/o"),
		provenance(t, "newer-elsewhere", "2026-01-01T00:00:00Z", "Observation/of-b"),
		provenance(t, "of-patient", "2025-02-01T00:00:00Z", "Patient/a/_history/1", "Device/none"),
	)
	var h held
	holds := func(path, query string, want ...string) {
		t.Helper()
		h = m.exportOf(path, query)
		if got := provenanceIn(h); !slices.Equal(got, want) {
			t.Errorf("%s%s: %v, want %v", path, query, got, want)
		}
	}
	const latest, relevant = "includeAssociatedData=LatestProvenanceResources", "includeAssociatedData=RelevantProvenanceResources"
	holds("/Group/g/", "", "new", "of-patient", "old")
	holds("/Group/g/", "?_type=Observation")
	holds("/Group/g/", "?_type=Observation&"+relevant, "new", "old")
	holds("/Group/g/", "?_type=Observation&"+latest, "new", "old") // old is the latest about the draft
	holds("/Group/g/", "?_type=Observation&"+latest+"&_typeFilter=Observation?status=final", "new")
	holds("/Group/g/", "?_type=Observation&"+latest+","+"RelevantProvenanceResources&_typeFilter=Observation?status=preliminary", "old")
	holds("/Group/g/", "?_type=Patient&"+latest, "of-patient")
	holds("/Group/g/", "?"+relevant+"&_typeFilter=Provenance?recorded=lt2025-01-02", "new", "old")
	holds("/Group/g/", "?_type=Observation,Provenance&"+latest+"&_typeFilter=Provenance?_id=old,of-patient", "old") // the latest of those
	holds("/Patient/", "?_type=Observation&"+relevant+"&_elements=id", "new", "newer-elsewhere", "old")
	if line := h.rows["Provenance/new"]; !strings.Contains(line, `"target"`) || !strings.Contains(line, `"SUBSETTED"`) {
		t.Error(line)
	}
	holds("/", "?"+latest, "new", "newer-elsewhere", "of-patient", "old")

	since := "_since=" + h.at
	m.apply(obs(t, "o", "a", `,"status":"amended"`))
	m.restart()
	m.apply()
	holds("/Group/g/", "?"+since)
	holds("/Group/g/", "?"+since+"&"+latest, "new")
	holds("/Group/g/", "?"+since+"&"+relevant, "new", "old")
	holds("/", "?"+since+"&"+relevant, "new", "old")
	m.apply(provenance(t, "new", "2025-01-01T01:00:00+00:30", "Observation/of-b")) // its block is dirty now
	holds("/", "?"+since+"&"+relevant, "old")
	holds("/", "?"+relevant, "new", "newer-elsewhere", "of-patient", "old")
	m.apply(deletion(t, "Provenance/old"))
	holds("/", "?"+since+"&"+relevant)
	m.apply(obs(t, "of-b", "b", `,"status":"final"`), scanned(t, `{"resourceType":"Patient","id":"a","active":true}`)) // now all that is left of the block goes
	holds("/", "?"+since+"&"+relevant, "new", "newer-elsewhere", "of-patient")
	if !slices.Contains(h.gone, "Provenance/old") {
		t.Errorf("deletions: %v", h.gone)
	}
}

// TestAttachSome: to an export of some Patients no Provenance is attached that is
// about others and comes only because a Practitioner is everybody's; one about the
// Practitioner alone is, and one about a member and others.
func TestAttachSome(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), patient(t, "b"), obs(t, "o", "a", `,"performer":[{"reference":"Practitioner/dr"}]`), obs(t, "of-b", "b", ""),
		scanned(t, `{"resourceType":"Practitioner","id":"dr"}`), group(t, "g", "", "Patient/a"),
		provenance(t, "of-dr", "2025-01-01T00:00:00Z", "Practitioner/dr"),
		provenance(t, "of-both", "2025-01-01T00:00:00Z", "Observation/o", "Observation/of-b"),
		provenance(t, "of-other", "2025-01-01T00:00:00Z", "Practitioner/dr", "Patient/b"),
		provenance(t, "of-other2", "2025-01-01T00:00:00Z", "Observation/of-b", "Practitioner/dr"))
	for _, path := range []string{"/Group/g/", "/"} {
		want := []string{"of-both", "of-dr"}
		if path == "/" {
			want = []string{"of-both", "of-dr", "of-other", "of-other2"}
		}
		if got := provenanceIn(m.exportOf(path, "?includeAssociatedData=RelevantProvenanceResources")); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
}

// TestAttachUnsent: Provenance about a Practitioner, or a Device, that is sent and about
// what is a member's and is not sent is attached: it is about nobody else.
func TestAttachUnsent(t *testing.T) {
	m := newMachine(t)
	doctor := func(active bool) store.Change {
		return scanned(t, `{"resourceType":"Practitioner","id":"dr","active":%t}`, active)
	}
	m.apply(patient(t, "a"), patient(t, "b"), obs(t, "o", "a", `,"performer":[{"reference":"Practitioner/dr"}]`), obs(t, "of-b", "b", ""), device(t, "d", "a"), doctor(false), group(t, "g", "", "Patient/a"),
		provenance(t, "of-dr", "2025-01-01T00:00:00Z", "Practitioner/dr", "Observation/o"), provenance(t, "of-d", "2025-01-01T00:00:00Z", "Device/d", "Patient/a"),
		provenance(t, "of-dr-and-b", "2025-01-01T00:00:00Z", "Practitioner/dr", "Observation/o", "Observation/of-b"), provenance(t, "of-d-and-gone", "2025-01-01T00:00:00Z", "Device/d", "Observation/gone"))
	first := m.exportOf("/Group/g/", "")
	m.apply(scanned(t, `{"resourceType":"Device","id":"d","patient":{"reference":"Patient/a"},"lotNumber":"1"}`), doctor(true))
	for _, query := range []string{"?_type=Practitioner,Device", "?_since=" + first.at, "?" + departed + "&_since=" + first.at} {
		if got, want := provenanceIn(m.exportOf("/Group/g/", query+"&includeAssociatedData=RelevantProvenanceResources")), []string{"of-d", "of-dr"}; !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", query, got, want)
		}
	}
}

// TestAttachFilter: a Provenance that matches a filter is not thereby sent, so one
// about it does not go.
func TestAttachFilter(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), provenance(t, "a-elsewhere", "2025-01-01T00:00:00Z", "Observation/none"))
	m.apply(provenance(t, "b-about-that", "2025-01-01T00:00:00Z", "Provenance/a-elsewhere"), provenance(t, "c", "2025-01-01T00:00:00Z", "Patient/a"))
	for _, filter := range []string{"", "&_typeFilter=Provenance?recorded=gt2024"} {
		got := provenanceIn(m.exportOf("/", "?includeAssociatedData=RelevantProvenanceResources"+filter))
		if want := []string{"c"}; !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", filter, got, want)
		}
	}
}

// TestAttachDeleted: whoever has got Provenance without asking for the type learns
// that it was deleted.
func TestAttachDeleted(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), obs(t, "o", "a", ""), provenance(t, "p", "2025-01-01T00:00:00Z", "Observation/o"), group(t, "g", "", "Patient/a"))
	const query = "?_type=Observation&includeAssociatedData=LatestProvenanceResources"
	first := m.exportOf("/", query)
	if got := provenanceIn(first); !slices.Equal(got, []string{"p"}) {
		t.Fatal(got)
	}
	m.apply(deletion(t, "Provenance/p"), deletion(t, "Patient/a"))
	for _, path := range []string{"/", "/Patient/", "/Group/g/"} {
		if next := m.exportOf(path, query+"&_since="+first.at); !slices.Equal(next.gone, []string{"Provenance/p"}) {
			t.Errorf("%s: deletions %v", path, next.gone)
		}
	}
	if next := m.exportOf("/", "?_type=Observation&_since="+first.at); len(next.gone) > 0 {
		t.Errorf("by default: deletions %v", next.gone)
	}
}
