package api_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/storetest"
)

func scanned(t testing.TB, format string, args ...any) store.Change {
	t.Helper()
	var s fhir.Scanner
	res, err := s.Scan(fmt.Appendf(nil, format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return store.Change{
		Key: res.Key, Body: res.Body, Meta: res.Meta, Patients: res.Patients, References: res.References, Members: res.Members,
		Version: store.NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None,
	}
}

func patient(t testing.TB, id string) store.Change {
	return scanned(t, `{"resourceType":"Patient","id":%q}`, id)
}

func obs(t testing.TB, id, of, more string) store.Change {
	return scanned(t, `{"resourceType":"Observation","id":%q,"subject":{"reference":"Patient/%s"}%s}`, id, of, more)
}

var groupN atomic.Int64 // tests run side by side

func group(t testing.TB, id, more string, members ...string) store.Change {
	n := groupN.Add(1)
	var l []string
	for _, m := range members {
		if !strings.HasPrefix(m, "{") {
			m = fmt.Sprintf(`{"entity":{"reference":%q}}`, m)
		}
		l = append(l, m)
	}
	text := ""
	if len(l) > 0 {
		text = `,"member":[` + strings.Join(l, ",") + `]`
	}
	return scanned(t, `{"resourceType":"Group","id":%q,"meta":{"tag":[{"code":"%d"}]}%s%s}`, id, n, text, more)
}

// kick returns the answer of a kick-off and, if one began, of the last status.
func (m *machine) kick(method, path, query, body string) (int, string, int, string) {
	m.t.Helper()
	req, err := http.NewRequest(method, m.base+"/fhir"+path+"$export"+query, strings.NewReader(body))
	m.must(err)
	req.Header.Set("Accept", "application/fhir+json")
	req.Header.Set("Prefer", "respond-async")
	if body != "" {
		req.Header.Set("Content-Type", "application/fhir+json")
	}
	resp, err := m.client.Do(req)
	m.must(err)
	b, err := io.ReadAll(resp.Body)
	m.must(err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		return resp.StatusCode, string(b), 0, ""
	}
	status := "/fhir" + strings.TrimPrefix(resp.Header.Get("Content-Location"), public)
	wait := 5 * time.Millisecond
	for {
		resp, body := m.get(status)
		if resp.StatusCode == http.StatusAccepted {
			time.Sleep(wait) // polls are limited
			wait = min(wait*5/4, time.Second)
			continue
		}
		return 202, "", resp.StatusCode, string(body)
	}
}

// passes waits until the watermark has passed an instant.
func (m *machine) passes(at fhir.Instant) {
	m.t.Helper()
	for m.db.Status().Watermark <= at {
		m.apply()
	}
}

func (m *machine) errorsOf(manifestText string) (text string) {
	var doc struct{ Error []struct{ URL string } }
	m.must(json.Unmarshal([]byte(manifestText), &doc))
	for _, f := range doc.Error {
		_, b := m.get("/fhir" + strings.TrimPrefix(f.URL, public))
		text += string(b)
	}
	return text
}

// A deletion while somebody was a member is not told if he left and came
// back in the same window.
func TestGroupRejoinLosesDeletion(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), obs(t, "o", "a", ""), group(t, "g", "", "Patient/a"))
	first := m.exportOf("/Group/g/", "")
	if first.rows["Observation/o"] == "" {
		t.Fatal("setup")
	}
	m.apply(deletion(t, "Observation/o"))
	m.apply(group(t, "g", ""))
	m.apply(group(t, "g", "", "Patient/a"))
	next := m.exportOf("/Group/g/", "?_since="+first.at)
	if !slices.Contains(next.gone, "Observation/o") {
		t.Errorf("the client keeps Observation/o for ever: deleted names %v", next.gone)
	}
}

// Who joined and left within the window: deletions before he joined are told.
func TestGroupShortStay(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), patient(t, "b"), obs(t, "ob", "b", ""), group(t, "g", "", "Patient/a"))
	first := m.exportOf("/Group/g/", "")
	m.apply(deletion(t, "Observation/ob"))
	m.apply(group(t, "g", "", "Patient/a", "Patient/b"))
	m.apply(group(t, "g", "", "Patient/a"))
	next := m.exportOf("/Group/g/", "?_since="+first.at)
	if slices.Contains(next.gone, "Observation/ob") {
		t.Errorf("told of a deletion before the joining: %v", next.gone)
	}
}

// Whose period ended before the window, and who is taken off the list in it.
func TestGroupPeriodEndedBefore(t *testing.T) {
	m := newMachine(t)
	end := m.db.Now() + 300
	m.apply(patient(t, "a"), patient(t, "b"), obs(t, "ob", "b", ""),
		group(t, "g", "", "Patient/a", fmt.Sprintf(`{"entity":{"reference":"Patient/b"},"period":{"end":%q}}`, end.String())))
	m.passes(end)
	first := m.exportOf("/Group/g/", "")
	if first.rows["Observation/ob"] != "" {
		t.Fatal("setup: b is a member still")
	}
	m.apply(deletion(t, "Observation/ob"))
	m.apply(group(t, "g", "", "Patient/a"))
	next := m.exportOf("/Group/g/", "?_since="+first.at)
	if slices.Contains(next.gone, "Observation/ob") {
		t.Errorf("b was a member at no instant of the window, but its deletions are told: %v", next.gone)
	}
}

// A nested Group that is deleted: what its members lost in the window.
func TestGroupNestedGroupDeleted(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), obs(t, "o", "a", ""), group(t, "n", "", "Patient/a"), group(t, "g", "", "Group/n"))
	first := m.exportOf("/Group/g/", "")
	if first.rows["Observation/o"] == "" {
		t.Fatal("setup")
	}
	m.apply(deletion(t, "Observation/o"))
	m.apply(deletion(t, "Group/n"))
	next := m.exportOf("/Group/g/", "?_since="+first.at)
	if !slices.Contains(next.gone, "Observation/o") {
		t.Errorf("a was a member in the window, deleted names %v", next.gone)
	}
}

// A Group by definition that was a member once.
func TestGroupOnceNestedDefinition(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), group(t, "def", `,"actual":false`), group(t, "g", "", "Patient/a"))
	since := m.exportOf("/Group/g/", "").at
	m.apply(group(t, "g", "", "Patient/a", "Group/def"))
	m.apply(group(t, "g", "", "Patient/a"))
	for _, query := range []string{"", "?_since=" + since} {
		if _, _, status, body := m.kick("GET", "/Group/g/", query, ""); status != 200 {
			t.Errorf("Group/g lists one Patient: an export of it (%s) ends with %d %s", query, status, body)
		}
	}
}

// Notes count who is no member any more.
func TestGroupNotesOfLeavers(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), group(t, "g", "", "Patient/a", "Practitioner/p", "Group/none"))
	m.apply(group(t, "g", "", "Patient/a"))
	_, _, _, body := m.kick("GET", "/Group/g/", "", "")
	if text := m.errorsOf(body); text != "" {
		t.Errorf("the Group lists one Patient and nothing else: %s", text)
	}
}

// What the Group that is sent refers to.
func TestGroupGroupsOwnReferences(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), patient(t, "x"), scanned(t, `{"resourceType":"Organization","id":"ours"}`), scanned(t, `{"resourceType":"Organization","id":"theirs"}`),
		scanned(t, `{"resourceType":"Practitioner","id":"theirs"}`),
		group(t, "n", "", "Patient/a"),
		group(t, "g", `,"managingEntity":{"reference":"Organization/ours"}`, "Group/n"),
		group(t, "other", `,"managingEntity":{"reference":"Organization/theirs"}`, "Patient/a", "Patient/x", "Practitioner/theirs"))
	e := m.exportOf("/Group/g/", "")
	if e.rows["Organization/ours"] == "" {
		t.Errorf("missed: Group/g is sent and refers to Organization/ours")
	}
	if e.rows["Organization/theirs"] != "" || e.rows["Practitioner/theirs"] != "" {
		t.Errorf("Group/other is not sent; what only it refers to is: %v %v", e.rows["Organization/theirs"], e.rows["Practitioner/theirs"])
	}
}

// What another patient's Device refers to.
func TestGroupOthersDevice(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), patient(t, "x"), scanned(t, `{"resourceType":"Organization","id":"clinic-of-x"}`),
		scanned(t, `{"resourceType":"Device","id":"of-x","patient":{"reference":"Patient/x"},"owner":{"reference":"Organization/clinic-of-x"}}`),
		obs(t, "o", "a", `,"device":{"reference":"Device/of-x"}`), group(t, "g", "", "Patient/a"))
	e := m.exportOf("/Group/g/", "")
	if e.rows["Device/of-x"] != "" {
		t.Errorf("Device of x sent")
	}
	if e.rows["Organization/clinic-of-x"] != "" {
		t.Errorf("only x's Device, which is not sent, refers to it: %s", e.rows["Organization/clinic-of-x"])
	}
	m.apply(deletion(t, "Device/of-x"))
	e = m.exportOf("/Group/g/", "?_since="+e.at)
	if slices.Contains(e.gone, "Device/of-x") {
		t.Logf("told that the Device of a Patient outside of the Group is deleted: %v", e.gone)
	}
}

// A period that ended with the epoch.
func TestGroupEndOfEpoch(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), patient(t, "b"), obs(t, "ob", "b", ""), group(t, "g", "", "Patient/a",
		`{"entity":{"reference":"Patient/b"},"period":{"end":"1970-01-01T00:00:00.000Z"}}`))
	if e := m.exportOf("/Group/g/", ""); e.rows["Observation/ob"] != "" || e.rows["Patient/b"] != "" {
		t.Errorf("the membership of b ended in 1970, its data is sent: %v", e.rows)
	}
}

// Listed twice, with a time between.
func TestGroupTwicePeriods(t *testing.T) {
	m := newMachine(t)
	end := m.db.Now() + 300
	m.apply(patient(t, "b"), obs(t, "ob", "b", ""), group(t, "g", "",
		fmt.Sprintf(`{"entity":{"reference":"Patient/b"},"period":{"end":%q}}`, end.String()),
		fmt.Sprintf(`{"entity":{"reference":"Patient/b"},"period":{"start":%q}}`, (end+3600_000_000).String())))
	m.passes(end)
	if e := m.exportOf("/Group/g/", ""); e.rows["Observation/ob"] != "" {
		t.Errorf("b is between two memberships, its data is sent")
	}
}

// Valid JSON whose values are of other types than expected.
func TestGroupGroupOfOtherTypes(t *testing.T) {
	for _, more := range []string{`,"actual":"true"`, `,"modifierExtension":{"url":"x"}`, `,"membership":1`} {
		m := newMachine(t)
		m.apply(patient(t, "a"), group(t, "g", more, "Patient/a"))
		code, body, _, _ := m.kick("GET", "/Group/g/", "", "")
		if code == 500 {
			t.Errorf("%s: %d %s", more, code, body)
		}
	}
}

// References that lead nowhere are counted nowhere.
func TestGroupForeignMember(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), group(t, "g", "", "Patient/a", "http://elsewhere.example/fhir/Patient/7", "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0",
		`{"entity":{"reference":"#b","identifier":{"value":"7"}}}`))
	_, _, _, body := m.kick("GET", "/Group/g/", "", "")
	if text := m.errorsOf(body); text == "" {
		t.Errorf("three of four members are not exported and nothing says so")
	}
}

// A Patient that was deleted.
func TestGroupDeletedPatient(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), obs(t, "o", "a", ""))
	ask := `{"resourceType":"Parameters","parameter":[{"name":"patient","valueReference":{"reference":"Patient/a"}}%s]}`
	_, _, _, body := m.kick("POST", "/Patient/", "", fmt.Sprintf(ask, ""))
	var doc manifest
	m.must(json.Unmarshal([]byte(body), &doc))
	m.apply(deletion(t, "Patient/a"), deletion(t, "Observation/o"))
	code, text, _, _ := m.kick("POST", "/Patient/", "", fmt.Sprintf(ask, fmt.Sprintf(`,{"name":"_since","valueInstant":%q}`, doc.TransactionTime)))
	if code != 202 {
		t.Errorf("the next of a chain: %d %s", code, text)
	}
}

// Provenance of what is in the set (decisions.md 3 d).
func TestGroupProvenance(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), patient(t, "x"), obs(t, "o", "a", ""), obs(t, "ox", "x", ""),
		scanned(t, `{"resourceType":"Provenance","id":"of-o","target":[{"reference":"Observation/o"}]}`),
		scanned(t, `{"resourceType":"Provenance","id":"of-a","target":[{"reference":"Patient/a"}]}`),
		group(t, "g", "", "Patient/a"))
	e := m.exportOf("/Group/g/", "")
	if e.rows["Provenance/of-a"] == "" {
		t.Error("of-a missed")
	}
	if e.rows["Provenance/of-o"] == "" {
		t.Errorf("Provenance/of-o, whose target Observation/o is sent, is missed (the Patient level sends it: %v)", m.exportOf("/Patient/", "").rows["Provenance/of-o"] != "")
	}
}

// Who else lists a member is nobody's business, nor is who made that list.
func TestGroupProvenanceAboutGroups(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), group(t, "mine", "", "Patient/a"), group(t, "other", "", "Patient/a"),
		provenance(t, "of-mine", "2025-01-01T00:00:00Z", "Group/mine"), provenance(t, "of-other", "2025-01-01T00:00:00Z", "Group/other"))
	for path, want := range map[string][]string{"/Group/mine/": {"of-mine"}, "/Group/other/": {"of-other"}, "/Patient/": {"of-mine", "of-other"}} {
		if got := provenanceIn(m.exportOf(path, "")); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
}

// Provenance about what comes by reference is nobody's in the Group: by default none
// comes for that alone, at Patient level all does. Who wants it asks for what is
// about the resources that are sent, and gets none that names another's.
func TestGroupProvenanceByReference(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), patient(t, "x"), scanned(t, `{"resourceType":"Practitioner","id":"dr"}`), group(t, "g", "", "Patient/a"),
		obs(t, "o", "a", `,"performer":[{"reference":"Practitioner/dr"}]`), obs(t, "of-x", "x", `,"performer":[{"reference":"Practitioner/dr"}]`),
		provenance(t, "of-dr", "2025-01-01T00:00:00Z", "Practitioner/dr"),
		provenance(t, "of-dr-and-o", "2025-01-01T00:00:00Z", "Practitioner/dr", "Observation/o"),
		provenance(t, "of-dr-and-x", "2025-01-01T00:00:00Z", "Practitioner/dr", "Observation/of-x"))
	for query, want := range map[string][]string{
		"/Group/g/ ": {"of-dr-and-o"},
		"/Patient/ ": {"of-dr", "of-dr-and-o", "of-dr-and-x"},
		"/Group/g/ ?includeAssociatedData=RelevantProvenanceResources": {"of-dr", "of-dr-and-o"},
	} {
		path, query, _ := strings.Cut(query, " ")
		h := m.exportOf(path, query)
		if got := provenanceIn(h); !slices.Equal(got, want) || h.rows["Practitioner/dr"] == "" {
			t.Errorf("%s%s: %v, want %v", path, query, got, want)
		}
	}
}

// What Provenance is about may have changed behind _until: the next window brings
// the change, and the Provenance no more.
func TestGroupProvenanceUntil(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), obs(t, "o", "a", ""), provenance(t, "of-o", "2025-01-01T00:00:00Z", "Observation/o"), group(t, "g", "", "Patient/a"))
	until := m.db.Now()
	m.passes(until)
	m.apply(obs(t, "o", "a", `,"status":"final"`))
	first := m.exportOf("/Group/g/", "?_until="+until.String())
	if next := m.exportOf("/Group/g/", "?_since="+first.at); first.rows["Provenance/of-o"] == "" || next.rows["Observation/o"] == "" {
		t.Errorf("of-o is in no export of the chain: %v, then %v", slices.Sorted(maps.Keys(first.rows)), slices.Sorted(maps.Keys(next.rows)))
	}
}

// What a full export with _type holds, an increment with the same _type must bring.
func TestGroupRefersThroughTypeNotAsked(t *testing.T) {
	m := newMachine(t)
	role := func(to string) store.Change {
		return scanned(t, `{"resourceType":"PractitionerRole","id":"r","practitioner":{"reference":"Practitioner/%s"}}`, to)
	}
	m.apply(patient(t, "a"), scanned(t, `{"resourceType":"Practitioner","id":"p1"}`), scanned(t, `{"resourceType":"Practitioner","id":"p2"}`), role("p1"),
		obs(t, "o", "a", `,"performer":[{"reference":"PractitionerRole/r"}]`), group(t, "g", "", "Patient/a"))
	first := m.exportOf("/Group/g/", "?_type=Practitioner")
	m.apply(role("p2"))
	next := m.exportOf("/Group/g/", "?_type=Practitioner&_since="+first.at)
	full := m.exportOf("/Group/g/", "?_type=Practitioner")
	if full.rows["Practitioner/p2"] == "" || first.rows["Practitioner/p2"] == "" && next.rows["Practitioner/p2"] == "" {
		t.Errorf("a full export has Practitioner/p2, the chain %v then %v never", first.rows, next.rows)
	}
}

// Two identical full exports, one of them read after the store has gone on and been restarted.
func TestGroupSameBytes(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), patient(t, "b"), obs(t, "o", "a", `,"performer":[{"reference":"Practitioner/p"}]`), obs(t, "ob", "b", ""), scanned(t, `{"resourceType":"Practitioner","id":"p"}`), group(t, "g", "", "Patient/a"))
	_, _, _, body := m.kick("GET", "/Group/g/", "", "")
	read := func() (text string) {
		var doc manifest
		m.must(json.Unmarshal([]byte(body), &doc))
		for _, f := range doc.Output {
			_, b := m.get("/fhir" + strings.TrimPrefix(f.URL, public))
			text += string(b)
		}
		return text
	}
	one := read()
	m.apply(group(t, "g", "", "Patient/b"), obs(t, "o", "b", ""), deletion(t, "Practitioner/p"))
	two := read()
	m.restart()
	if three := read(); one != two || two != three {
		t.Errorf("%q\n%q\n%q", one, two, three)
	}
}

// Store: TestGroupStartPassedThenRewritten, seen by a client.
func TestGroupStartPassed(t *testing.T) {
	m := newMachine(t)
	start := m.db.Now() + 3000 // long enough for an export
	m.apply(patient(t, "a"), obs(t, "oa", "a", ""), group(t, "g", "", fmt.Sprintf(`{"entity":{"reference":"Patient/a"},"period":{"start":%q}}`, start.String())))
	first := m.exportOf("/Group/g/", "")
	if first.rows["Observation/oa"] != "" {
		t.Fatal("setup")
	}
	m.passes(start)
	m.apply(group(t, "g", "", "Patient/a"))
	next, full := m.exportOf("/Group/g/", "?_since="+first.at), m.exportOf("/Group/g/", "")
	if full.rows["Observation/oa"] != "" && next.rows["Observation/oa"] == "" {
		t.Errorf("Observation/oa is in a full export and in no export of the chain: %v", next.rows)
	}
}

// The same hole from the other side: whose period has ended in the window,
// and who is then given a later start, has left nowhere.
func TestGroupEndPassedThenStart(t *testing.T) {
	m := newMachine(t)
	end := m.db.Now() + 3000 // long enough for an export
	m.apply(patient(t, "a"), obs(t, "oa", "a", ""), group(t, "g", "", fmt.Sprintf(`{"entity":{"reference":"Patient/a"},"period":{"end":%q}}`, end.String())))
	first := m.exportOf("/Group/g/", "")
	if first.rows["Observation/oa"] == "" {
		t.Fatal("setup")
	}
	m.apply(deletion(t, "Observation/oa"))
	m.passes(end)
	m.apply(group(t, "g", "", fmt.Sprintf(`{"entity":{"reference":"Patient/a"},"period":{"start":%q}}`, (end+3600_000).String())))
	next := m.exportOf("/Group/g/", "?_since="+first.at)
	if !slices.Contains(next.gone, "Observation/oa") {
		t.Errorf("the client keeps Observation/oa: %v", next.gone)
	}
}

// TestGroupManyPatients: ten thousand can be named in a request.
func TestGroupManyPatients(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), obs(t, "o", "a", ""), group(t, "g", "", "Patient/a"))
	named := func(n int) string {
		one := `{"name":"patient","valueReference":{"reference":"Patient/a"}}`
		return `{"resourceType":"Parameters","parameter":[` + strings.Repeat(one+",", n-1) + one + `]}`
	}
	if code, text, status, _ := m.kick("POST", "/Group/g/", "", named(10_000)); code != http.StatusAccepted || status != http.StatusOK {
		t.Errorf("10,000: %d %s, then %d", code, text, status)
	}
	if code, _, _, _ := m.kick("POST", "/Group/g/", "", named(11_001)); code != http.StatusBadRequest {
		t.Errorf("11,001: %d", code)
	}
}

// named is a member of a Group who is named by an identifier only, identified a
// Patient who has some.
func named(value string) string {
	return fmt.Sprintf(`{"entity":{"identifier":{"system":"urn:mrn","value":%q}}}`, value)
}

func identified(t testing.TB, id, more string, values ...string) store.Change {
	var list []string
	for _, v := range values {
		list = append(list, fmt.Sprintf(`{"system":"urn:mrn","value":%q}`, v))
	}
	return scanned(t, `{"resourceType":"Patient","id":%q,"identifier":[%s]%s}`, id, strings.Join(list, ","), more)
}

// Who is named by an identifier is a member with all that is his, from when the
// Group names him or he has the identifier, whichever is later; not one of several
// who have it, nor one whom the Group does not mean.
func TestGroupByIdentifier(t *testing.T) {
	m := newMachine(t)
	person := func(id, more string, values ...string) store.Change { return identified(t, id, more, values...) }
	m.apply(person("a", "", "1", "1"), obs(t, "of-a", "a", ""), person("b", "", "2"), obs(t, "of-b", "b", ""), person("c", "", "3"), obs(t, "of-c", "c", ""),
		person("twin", "", "twins"), person("twin2", "", "twins"), obs(t, "of-twin", "twin", ""),
		scanned(t, `{"resourceType":"Patient","id":"other","identifier":[{"system":"urn:other","value":"1"},{"value":"2"}]}`), obs(t, "of-other", "other", ""))
	practitioner := `{"entity":{"type":"Practitioner","identifier":{"system":"urn:mrn","value":"3"}}}`
	m.apply(group(t, "g", "", named("1"), named("twins"), named("nobody"), practitioner))
	holds := func(query string, want ...string) held {
		t.Helper()
		h := m.exportOf("/Group/g/", query)
		delete(h.rows, "Group/g")
		if got := slices.Sorted(maps.Keys(h.rows)); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", query, got, want)
		}
		return h
	}
	h := holds("", "Observation/of-a", "Patient/a")
	_, _, _, text := m.kick("GET", "/Group/g/", "", "")
	errs := m.errorsOf(text)
	for _, want := range []string{"no Patient here has: 1", "several Patients here have: none of them is exported for that: 1", "leads to nobody: 1"} {
		if !strings.Contains(errs, want) {
			t.Errorf("errors: %s\nwant %s", errs, want)
		}
	}

	since := "?_since=" + h.at
	m.apply(group(t, "g", "", named("1"), named("2"))) // joins
	h = holds(since, "Observation/of-b", "Patient/b")
	since = "?_since=" + h.at
	m.apply(person("c", "", "2", "3"), person("b", "")) // the identifier moves on
	h = holds(since, "Observation/of-c", "Patient/c")
	since = "?_since=" + h.at
	m.apply(person("c", `,"active":true`, "2", "3"))
	holds("?_since="+notOurs(t, h), "Observation/of-c", "Patient/c") // may be new: comes whole again
	h = holds(since, "Patient/c")
	since = "?_since=" + h.at
	m.apply(deletion(t, "Observation/of-c"))
	m.restart()
	m.apply()
	if h = holds(since); !slices.Equal(h.gone, []string{"Observation/of-c"}) {
		t.Errorf("deletions %v", h.gone)
	}
	body := func(id string) string {
		return fmt.Sprintf(`{"resourceType":"Parameters","parameter":[{"name":"patient","valueReference":{"reference":"Patient/%s"}}]}`, id)
	}
	if code, _, status, _ := m.kick("POST", "/Group/g/", "", body("c")); code != 202 || status != 200 {
		t.Errorf("patient who is named by an identifier: %d, %d", code, status)
	}
	if code, _, status, _ := m.kick("POST", "/Group/g/", "", body("other")); code != 202 || status < 400 {
		t.Errorf("patient who is no member: %d, %d", code, status)
	}
}

// notOurs is an instant right behind the end of an export, at which none has ended:
// who was a member then nobody has looked. before is one right before it.
func notOurs(t testing.TB, h held) string { t.Helper(); return h.shifted(t, 1) }

func before(t testing.TB, h held) string { t.Helper(); return h.shifted(t, -1) }

func (h held) shifted(t testing.TB, ms fhir.Instant) string {
	t.Helper()
	at, err := time.Parse(time.RFC3339, h.at)
	if err != nil {
		t.Fatal(err)
	}
	return (fhir.FromTime(at) + ms).String()
}

// A Patient who was named by an identifier and is deleted, or shares it since with
// another, has left: his deletions are told, and what lives of his has departed.
// Who was one of several and is the only one now has joined.
func TestGroupByIdentifierGone(t *testing.T) {
	m := newMachine(t)
	named := func(value string) string { return fmt.Sprintf(`{"entity":{"identifier":{"value":%q}}}`, value) }
	person := func(id, value, more string) store.Change {
		return scanned(t, `{"resourceType":"Patient","id":%q,"identifier":[{"value":%q}]%s}`, id, value, more)
	}
	m.apply(person("a", "1", ""), obs(t, "of-a", "a", ""), obs(t, "lives-of-a", "a", ""), person("b", "2", ""), obs(t, "of-b", "b", ""),
		person("c", "3", ""), obs(t, "of-c", "c", ""), person("twin-of-c", "3", ""), obs(t, "of-twin", "twin-of-c", ""),
		person("e", "5", ""), person("f", "6", ""), obs(t, "of-e", "e", ""), obs(t, "of-f", "f", ""))
	m.apply(group(t, "g", "", named("1"), named("2"), named("3"), named("5"), named("6")))
	l := &ledger{m: m, since: m.exportOf("/Group/g/", "").at}
	m.each(deletion(t, "Patient/a"), deletion(t, "Observation/of-a"), person("b-too", "2", ""), obs(t, "of-b-too", "b-too", ""), deletion(t, "Patient/twin-of-c"), deletion(t, "Observation/of-twin"),
		deletion(t, "Patient/e"), deletion(t, "Observation/of-e"), person("e-again", "5", ""), person("f", "6", `,"active":true`), person("f-too", "6", ""))
	m.restart()
	m.apply()
	h := l.names("/Group/g/", "", "Observation/lives-of-a", "Observation/of-b", "Patient/b", "Observation/of-f", "Patient/f") // f has changed, but was found
	slices.Sort(h.gone)
	if want := []string{"Observation/of-a", "Observation/of-e", "Patient/a", "Patient/e"}; !slices.Equal(h.gone, want) {
		t.Errorf("deletions %v, want %v", h.gone, want)
	}
	delete(h.rows, "Group/g")
	if got, want := slices.Sorted(maps.Keys(h.rows)), []string{"Observation/of-c", "Patient/c", "Patient/e-again"}; !slices.Equal(got, want) {
		t.Errorf("rows %v, want %v", got, want)
	}
}

// What is deleted in the very instant behind the last export, as late changes may
// be, is told of a member whose Patient has changed since, too.
func TestGroupByIdentifierLateDeletion(t *testing.T) {
	m := newMachine(t)
	m.apply(identified(t, "a", "", "1"), obs(t, "o", "a", ""), group(t, "g", "", named("1")))
	first := m.exportOf("/Group/g/", "")
	if first.rows["Observation/o"] == "" {
		t.Fatal("setup")
	}
	m.late(deletion(t, "Observation/o"), identified(t, "a", `,"active":true`, "1"))
	if next := m.exportOf("/Group/g/", "?_since="+first.at); !slices.Equal(next.gone, []string{"Observation/o"}) {
		t.Errorf("the client keeps Observation/o: %v", next.gone)
	}
}

// late takes in changes that come long after their time, and moves the watermark
// only when they are committed.
func (m *machine) late(changes ...store.Change) {
	m.t.Helper()
	asked, at := m.db.Status().Watermark, fhir.FromTime(time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC))
	for i := range changes {
		changes[i].Offset, changes[i].Timestamp = m.offset, at
		m.offset++
	}
	m.must(m.db.Apply(m.t.Context(), store.Batch{Partition: partition, Changes: changes, Next: m.offset, LeaderEpoch: -1, Asked: asked, End: m.offset}))
	m.must(m.db.Flush()) // they do not hold the watermark back
	m.apply()
}

// Whoever has an identifier alone because another who had it was deleted is a new
// member, whose data no export has brought.
func TestGroupByIdentifierTwinDeleted(t *testing.T) {
	m := newMachine(t)
	m.apply(identified(t, "a", "", "1"), identified(t, "twin", "", "1"), obs(t, "o", "a", ""), group(t, "g", "", named("1")))
	first := m.exportOf("/Group/g/", "")
	if first.rows["Patient/a"] != "" {
		t.Fatal("setup")
	}
	m.apply(deletion(t, "Patient/twin"))
	next := m.exportOf("/Group/g/", "?_since="+first.at)
	if next.rows["Patient/a"] == "" || next.rows["Observation/o"] == "" {
		t.Errorf("a full export has Observation/o, the chain never: %v", next.rows)
	}
	m.apply(obs(t, "o2", "a", ""))
	if last := m.exportOf("/Group/g/", "?_since="+next.at); len(last.rows) != 1 {
		t.Errorf("nobody was deleted since, and %v comes again", last.rows)
	}
}

// Who is no member any more because another has got his identifier, too, has left:
// what of his was deleted before is told, what changed is not sent.
func TestGroupByIdentifierTwinComes(t *testing.T) {
	m := newMachine(t)
	m.apply(identified(t, "a", "", "1"), obs(t, "o", "a", ""), obs(t, "o2", "a", ""), group(t, "g", "", named("1")))
	first := m.exportOf("/Group/g/", "")
	m.apply(deletion(t, "Observation/o"), obs(t, "o2", "a", `,"status":"final"`))
	m.apply(identified(t, "twin", "", "1"), obs(t, "of-twin", "twin", ""))
	next := m.exportOf("/Group/g/", "?_since="+first.at)
	if !slices.Equal(next.gone, []string{"Observation/o"}) || len(next.rows) > 0 {
		t.Errorf("deletions %v, rows %v", next.gone, next.rows)
	}
}

// A Patient who cannot be read may be the one whom an identifier means, or a second
// who has it: the export says that it is not whole.
func TestGroupByIdentifierDamage(t *testing.T) {
	m := newMachine(t)
	m.apply(group(t, "g", "", named("1")))
	m.apply(identified(t, "a", "", "1"), identified(t, "b", "", "2"))
	m.damage(0)
	_, _, status, text := m.kick("GET", "/Group/g/", "?_type=Observation", "")
	if errs := m.errorsOf(text); status != http.StatusOK || !strings.Contains(errs, "Patient: 2 resources are damaged") {
		t.Errorf("%d %s\n%s", status, text, errs)
	}
}

// A clinic is a small world of Patients, of whom two may have each identifier, and
// of Groups that name them by those.
type clinic struct {
	t        *testing.T
	r        *rand.Rand
	version  int
	patients map[string]bool   // that live
	subject  map[string]string // of Observations that live
}

func (c *clinic) change() store.Change {
	c.version++
	tag := fmt.Sprintf(`,"meta":{"tag":[{"code":"%d"}]}`, c.version)
	n, value := c.r.IntN(6), fmt.Sprint("x", c.r.IntN(3))
	p := fmt.Sprint("p", n)
	switch c.r.IntN(9) {
	case 0, 1:
		if c.patients[p] {
			delete(c.patients, p)
			return deletion(c.t, "Patient/"+p)
		}
		fallthrough
	case 2, 3:
		c.patients[p] = true
		var values []string
		if c.r.IntN(4) > 0 { // he may lose it, too
			values = []string{fmt.Sprint("x", n/2)}
		}
		return identified(c.t, p, tag, values...)
	case 4, 5:
		o := fmt.Sprint("o", c.r.IntN(10))
		if c.subject[o] != "" && c.r.IntN(4) == 0 {
			delete(c.subject, o)
			return deletion(c.t, "Observation/"+o)
		}
		c.subject[o] = cmp.Or(c.subject[o], p)
		return obs(c.t, o, c.subject[o], tag+[]string{"", `,"status":"final"`}[c.r.IntN(2)])
	}
	var members []string
	for range c.r.IntN(3) {
		members = append(members, []string{"Patient/" + p, "Group/1", named(value), named("x0")}[c.r.IntN(4)])
	}
	return group(c.t, fmt.Sprint(c.r.IntN(2)), "", members...)
}

// TestGroupChainIdentifiers: who only ever takes increments of a Group whose members
// are named by identifiers, or chosen by a search, holds what a full export does, and
// nothing else; is told of no deletion or departure of what is in it, and of the
// deletion of all that a member had at the last export.
func TestGroupChainIdentifiers(t *testing.T) {
	t.Parallel() // it mostly waits

	for seed := range storetest.Rounds(uint64(4)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newMachine(t)
			c := &clinic{t: t, r: rand.New(rand.NewPCG(seed, 3)), patients: map[string]bool{}, subject: map[string]string{}}
			m.apply(group(t, "0", "", named("x0"), "Group/1"), group(t, "found", filters("Observation?status=final")))
			chains := []*follower{{path: "/Group/0/"}, {path: "/Group/found/"}}
			for round := range 30 {
				was := maps.Clone(c.subject)
				for range c.r.IntN(4) {
					take := []func(...store.Change){m.apply, m.apply, m.late}[c.r.IntN(3)]
					take(c.change(), c.change())
				}
				for _, f := range chains {
					f.take(m, c, was)
				}
				if t.Failed() {
					t.Fatalf("round %d", round)
				}
			}
		})
	}
}

// A follower is a client that takes increments of a Group.
type follower struct {
	path, since string
	has         map[string]string
}

func (f *follower) take(m *machine, c *clinic, was map[string]string) {
	t := m.t
	news, full := m.exportOf(f.path, "?"+departed+f.since), m.exportOf(f.path, "").rows
	for _, ref := range news.gone {
		if id := strings.TrimPrefix(ref, "Patient/"); c.patients[id] || c.subject[strings.TrimPrefix(ref, "Observation/")] != "" {
			t.Errorf("%s: %s lives and is deleted", f.path, ref)
		}
	}
	for _, ref := range news.left {
		if full[ref] != "" {
			t.Errorf("%s: %s has departed and is in a full export", f.path, ref)
		}
	}
	for o, p := range was {
		if f.has["Observation/"+o] != "" && f.has["Patient/"+p] != "" && c.subject[o] == "" && !slices.Contains(news.gone, "Observation/"+o) {
			t.Errorf("%s: Observation/%s of %s, a member at the last export, was deleted and is not told", f.path, o, p)
		}
	}
	for _, ref := range slices.Concat(news.gone, news.left) {
		delete(f.has, ref)
	}
	if f.has == nil {
		f.has = map[string]string{}
	}
	maps.Copy(f.has, news.rows)
	f.since = "&_since=" + news.at
	if !maps.Equal(f.has, full) {
		t.Errorf("%s: who takes increments holds\n%v\na full export has\n%v", f.path, f.has, full)
	}
}
