package hospital

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var opening = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// small is a hospital that is quick to run through.
func small(seed uint64) Options {
	return Options{Seed: seed, Patients: 12, Years: 1, End: opening, Bare: 0.1}
}

// days runs a hospital through its history and n further records, some to a
// tick of the clock.
func days(opts Options, n int) (*Hospital, []Record) {
	h := New(opts)
	var recs []Record
	keep := func(r Record) bool { recs = append(recs, r); return true }
	h.History(keep)
	for now := opts.End; n > 0; n -= 7 {
		now = now.Add(35 * time.Millisecond)
		h.Live(now, min(n, 7), keep)
	}
	return h, recs
}

func TestSeedDecidesEverything(t *testing.T) {
	_, one := days(small(7), 500)
	_, two := days(small(7), 500)
	sameRecords(t, one, two)
	_, other := days(small(8), 500)
	if bytes.Equal(one[len(one)-1].Value, other[len(other)-1].Value) {
		t.Error("another seed gave the same records")
	}
}

func TestTallyCountsWhatWasYielded(t *testing.T) {
	h, recs := days(small(1), 3000)
	var want Tally
	for _, r := range recs {
		want.Ops[r.Op]++
		want.Bytes += int64(len(r.Key) + len(r.Value))
		if r.Late {
			want.Late++
		}
	}
	if diff := cmp.Diff(want, h.Tally()); diff != "" {
		t.Errorf("tally (-want +got):\n%s", diff)
	}
	for op, n := range h.Tally().Ops {
		if n == 0 {
			t.Errorf("no %v among %d records", Op(op), len(recs))
		}
	}
	if h.Tally().Late == 0 {
		t.Error("nothing came late")
	}
}

// TestBadHabitsCanBeSwitchedOff matters to benchmarks of creates.
func TestBadHabitsCanBeSwitchedOff(t *testing.T) {
	opts := small(3)
	opts.Past, opts.Present, opts.Bare = &Habits{}, &Habits{}, -1
	h, recs := days(opts, 1000)
	for _, op := range []Op{Delete, Recreate, Duplicate, Stale} {
		if n := h.Tally().Ops[op]; n != 0 {
			t.Errorf("%d records are a %v", n, op)
		}
	}
	for _, r := range recs {
		if !bytes.Contains(r.Value, []byte(`"meta":{"versionId":"`)) {
			t.Fatalf("a body without meta.versionId: %s", r.Value)
		}
	}
}

func TestHistoryCanBeReadInPieces(t *testing.T) {
	_, whole := days(small(5), 0)
	h := New(small(5))
	var pieces []Record
	for more := true; more; {
		n := 0
		h.History(func(r Record) bool {
			pieces = append(pieces, r)
			n++
			return n < 100
		})
		more = n == 100
	}
	sameRecords(t, whole, pieces)
}

// sameRecords stops at the first difference: whole streams are too long for a
// readable diff.
func sameRecords(t *testing.T, want, got []Record) {
	t.Helper()
	if len(want) != len(got) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i := range want {
		if diff := cmp.Diff(text(want[i]), text(got[i])); diff != "" {
			t.Fatalf("record %d (-want +got):\n%s", i, diff)
		}
	}
}

func text(r Record) string {
	return fmt.Sprintf("%s %v %v %d %v %v\n%s", r.Key, r.Timestamp, r.Headers, r.Partition, r.Op, r.Late, r.Value)
}

// TestPartitionFollowsKey: no two changes of a resource in different
// partitions, and every partition in use.
func TestPartitionFollowsKey(t *testing.T) {
	_, recs := days(small(2), 1000)
	of, used := map[string]int32{}, map[int32]bool{}
	for _, r := range recs {
		if p, ok := of[string(r.Key)]; ok && p != r.Partition {
			t.Fatalf("%s changed its partition from %d to %d", r.Key, p, r.Partition)
		}
		of[string(r.Key)], used[r.Partition] = r.Partition, true
	}
	if len(used) != 4 {
		t.Errorf("partitions in use: %v, want 4", used)
	}
}

// TestTimes: the history is in order, and nothing claims to come from the future.
func TestTimes(t *testing.T) {
	_, recs := days(small(4), 2000)
	last := time.Time{}
	late := 0
	for _, r := range recs {
		if r.Op.Changes() && r.Timestamp.Before(last) {
			t.Fatalf("%s is written at %v, after %v", r.Key, r.Timestamp, last)
		}
		last = later(last, r.Timestamp)
		at, ok := lastUpdated(t, r)
		if !ok {
			continue
		}
		if at.After(r.Timestamp) {
			t.Fatalf("%s was updated at %v and written before that, at %v", r.Key, at, r.Timestamp)
		}
		if r.Late != (r.Timestamp.Sub(at) >= lateness*time.Millisecond) && r.Op.Changes() {
			t.Fatalf("%s: late %v with %v of delay", r.Key, r.Late, r.Timestamp.Sub(at))
		}
		if r.Late {
			late++
		}
	}
	if late == 0 {
		t.Error("nothing came late")
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func lastUpdated(t *testing.T, r Record) (time.Time, bool) {
	t.Helper()
	if r.Value == nil {
		return time.Time{}, false
	}
	m := parse(t, r.Value).Meta
	if m.LastUpdated == "" {
		return time.Time{}, false
	}
	at, err := time.Parse(time.RFC3339, m.LastUpdated)
	if err != nil {
		t.Fatal(err)
	}
	return at, true
}

type envelope struct {
	ResourceType, ID string
	Meta             struct{ VersionID, LastUpdated string }
}

func parse(t *testing.T, body []byte) (e envelope) {
	t.Helper()
	if err := json.Unmarshal(body, &e); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return e
}

// TestRecordsAreWhatTheySay reads the stream as a store does: by the order of
// changes (version, then lastUpdated, then offset), with the floor that a
// tombstone leaves. Every record must be what the hospital says it is.
func TestRecordsAreWhatTheySay(t *testing.T) {
	for seed := range uint64(6) {
		_, recs := days(small(seed), 4000)
		model := map[string]*row{}
		for i, r := range recs {
			m := model[string(r.Key)]
			if m == nil {
				m = &row{tombstones: map[int64]bool{}}
				model[string(r.Key)] = m
			}
			if got := m.apply(t, r); got != r.Op {
				t.Fatalf("seed %d, record %d (%s): is a %v, said to be a %v", seed, i, r.Key, got, r.Op)
			}
		}
	}
}

// A row is the newest state of a resource.
type row struct {
	had, deleted          bool
	version, floor        int64
	updated, floorUpdated string
	body                  []byte
	tombstones            map[int64]bool
}

func (m *row) apply(t *testing.T, r Record) Op {
	t.Helper()
	if r.Value == nil {
		return m.delete(r)
	}
	e := parse(t, r.Value)
	version, updated := m.version, m.updated // inherited where the change says nothing
	if e.Meta.VersionID != "" {
		v, err := strconv.ParseInt(e.Meta.VersionID, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		version, updated = v, e.Meta.LastUpdated
	}
	switch {
	case m.had && version <= m.floor && updated <= m.floorUpdated && m.floorUpdated != "":
		return Stale // of an old life
	case m.had && (version < m.version || version == m.version && updated < m.updated):
		return Stale
	case m.had && !m.deleted && version == m.version && bytes.Equal(r.Value, m.body):
		return Duplicate
	}
	op := Update
	switch {
	case !m.had:
		op = Create
	case m.deleted:
		op = Recreate
	}
	m.had, m.deleted, m.version, m.updated, m.body = true, false, version, updated, r.Value
	return op
}

func (m *row) delete(r Record) Op {
	at := r.Timestamp.UnixMilli()
	if m.deleted {
		return Duplicate
	}
	if m.tombstones[at] {
		return Stale
	}
	m.tombstones[at], m.deleted = true, true
	m.floor, m.floorUpdated = max(m.floor, m.version), max(m.floorUpdated, m.updated)
	return Delete
}

// TestReferencesResolve looks at what a client has in the end.
func TestReferencesResolve(t *testing.T) {
	_, recs := days(small(9), 3000)
	copyOf := map[string]any{}
	for _, r := range recs {
		switch {
		case r.Op == Delete:
			delete(copyOf, string(r.Key))
		case r.Op.Changes():
			var v any
			if err := json.Unmarshal(r.Value, &v); err != nil {
				t.Fatal(err)
			}
			copyOf[string(r.Key)] = v
		}
	}
	seen := 0
	for key, v := range copyOf {
		walk(v, func(name string, value any) {
			if s, ok := value.(string); ok && name == "reference" {
				seen++
				if copyOf[s] == nil {
					t.Errorf("%s refers to %s, which does not exist", key, s)
				}
			}
		})
	}
	if seen < 10*len(copyOf)/10 {
		t.Errorf("%d references in %d resources", seen, len(copyOf))
	}
}

func walk(v any, visit func(name string, value any)) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			visit(name, value)
			walk(value, visit)
		}
	case []any:
		for _, value := range v {
			walk(value, visit)
		}
	}
}

// required are the elements that R4 demands, as paths; [] stands for each
// entry of a list that must not be empty.
var required = map[string][]string{
	"Organization":         {"name"},
	"Location":             {"status", "name"},
	"Practitioner":         {"name[].family"},
	"Patient":              {"identifier[].value", "name[].family", "gender", "birthDate"},
	"Coverage":             {"status", "beneficiary.reference", "payor[].reference", "class[].type", "class[].value"},
	"Encounter":            {"status", "class.code", "subject.reference", "period.start"},
	"Observation":          {"status", "code.coding[].code", "subject.reference"},
	"DiagnosticReport":     {"status", "code.coding[].code", "result[].reference"},
	"Condition":            {"subject.reference", "clinicalStatus.coding[].code", "verificationStatus.coding[].code"},
	"MedicationRequest":    {"status", "intent", "medicationCodeableConcept.coding[].code", "subject.reference"},
	"Group":                {"type", "actual", "member[].entity.reference"},
	"Provenance":           {"target[].reference", "recorded", "agent[].who.reference"},
	"Claim":                {"status", "type", "use", "patient", "created", "provider", "priority", "insurance[].sequence", "insurance[].focal", "insurance[].coverage", "item[].sequence", "item[].productOrService"},
	"ExplanationOfBenefit": {"status", "type", "use", "patient", "created", "insurer", "provider", "outcome", "insurance[].focal", "insurance[].coverage", "item[].sequence", "item[].productOrService", "item[].adjudication[].category", "total[].category", "total[].amount"},
}

func TestBodiesAreR4(t *testing.T) {
	_, recs := days(small(11), 3000)
	types := map[string]int{}
	for _, r := range recs {
		if r.Value == nil {
			continue
		}
		e := parse(t, r.Value)
		if got := e.ResourceType + "/" + e.ID; got != string(r.Key) {
			t.Fatalf("the key is %s, the body %s", r.Key, got)
		}
		var v map[string]any
		if err := json.Unmarshal(r.Value, &v); err != nil {
			t.Fatal(err)
		}
		for _, path := range required[e.ResourceType] {
			if !has(v, strings.Split(path, ".")) {
				t.Fatalf("no %s in %s", path, r.Value)
			}
		}
		walk(v, func(name string, value any) {
			if empty(value) {
				t.Fatalf("%s is empty in %s", name, r.Value)
			}
		})
		types[e.ResourceType]++
	}
	for name := range required {
		if types[name] == 0 {
			t.Errorf("no %s was written", name)
		}
	}
	if len(types) != len(required) {
		t.Errorf("types written: %v", types)
	}
}

func has(v any, path []string) bool {
	if len(path) == 0 {
		return !empty(v)
	}
	name, list := strings.CutSuffix(path[0], "[]")
	m, ok := v.(map[string]any)
	if !ok {
		return false
	}
	if !list {
		return has(m[name], path[1:])
	}
	entries, _ := m[name].([]any)
	for _, e := range entries {
		if !has(e, path[1:]) {
			return false
		}
	}
	return len(entries) > 0
}

// empty: FHIR has no empty strings, lists and objects.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

// TestDefaultSize is what the demo's first screen promises.
func TestDefaultSize(t *testing.T) {
	h := New(Options{Seed: 42, End: opening})
	h.History(func(Record) bool { return true })
	tally := h.Tally()
	if n := tally.Ops[Create] - tally.Ops[Delete]; n < 50_000 || n > 62_000 {
		t.Errorf("%d resources in %d records", n, tally.Records())
	}
	if tally.Bytes < 45e6 || tally.Bytes > 85e6 {
		t.Errorf("%d bytes", tally.Bytes)
	}
}

func BenchmarkHistory(b *testing.B) {
	var size int64
	for b.Loop() {
		h := New(Options{Seed: 42, End: opening})
		h.History(func(Record) bool { return true })
		size = h.Tally().Bytes
	}
	b.SetBytes(size)
}
