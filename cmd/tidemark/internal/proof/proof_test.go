package proof

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/cmd/tidemark/internal/hospital"
)

func TestHonestServerIsAccepted(t *testing.T) {
	for seed := range uint64(6) {
		r := newRun(t, seed)
		v := r.judge(t)
		if !v.OK() {
			t.Errorf("seed %d: %v\n%s", seed, v, strings.Join(v.Examples(20), "\n"))
		}
		if v.Windows != len(r.exports) || v.Records != len(r.log) || v.Deletions == 0 {
			t.Errorf("seed %d: %+v", seed, v)
		}
	}
}

// TestSabotageIsFound changes one thing in what the client receives; the proof
// must name it.
func TestSabotageIsFound(t *testing.T) {
	honest := newRun(t, 5)
	for _, test := range []struct {
		name     string
		sabotage func(*testing.T, *run)
		want     Fault
	}{
		{"a resource is left out", leaveOut, Missed},
		{"a deletion is left out", leaveOutDeletion, Missed},
		{"a window comes too late for a change", moveToNext, Overdue},
		{"a window holds what lies after it", moveToPrevious, Early},
		{"a resource comes again in the next window", again, Doubled},
		{"a deletion comes again in the next window", againDeletion, Doubled},
		{"a resource twice in one window", twice, Doubled},
		{"a resource in output and in deleted", both, Doubled},
		{"a superseded version instead of the newest", superseded, Stale},
		{"a version that came too late to count", void, Stale},
		{"a living resource is deleted", deleteLiving, Wrong},
		{"a full export with deletions", deleteInFull, Wrong},
		{"one digit is another", alter, Altered},
		{"white space is not as it was", alterSpace, Altered},
		{"a resource without injected meta", stripMeta, Altered},
		{"a resource in the file of another type", misfile, Altered},
		{"a resource that nobody wrote", invent, Unknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := honest.clone()
			test.sabotage(t, r)
			v := r.judge(t)
			if v.Counts[test.want] == 0 || v.OK() {
				t.Errorf("not found: %v %v", v, v.Where)
			}
			if n := total(v); n > 2 {
				t.Errorf("one change, %d faults: %v", n, v.Where)
			}
			for _, where := range v.Examples(10) {
				if strings.ContainsAny(where, "/-") {
					t.Errorf("an example names a resource: %s", where)
				}
			}
		})
	}
}

func total(v *Verdict) (n int) {
	for _, c := range v.Counts {
		n += c
	}
	return n
}

const middle = 3 // a window with windows on both sides

// only returns the index of an output line of the window whose resource fits
// and appears in no later window.
func (r *run) only(t *testing.T, k int, fits func(line) bool) int {
	t.Helper()
	i := slices.IndexFunc(r.exports[k].output, func(l line) bool { return fits(l) && !r.after(k, l.key) })
	if i < 0 {
		t.Fatal("the run has nothing of the kind to change")
	}
	return i
}

func (r *run) after(k int, key string) bool {
	for _, e := range r.exports[k+1:] {
		if slices.Contains(e.deleted, key) || slices.ContainsFunc(e.output, func(l line) bool { return l.key == key }) {
			return true
		}
	}
	return false
}

func anything(line) bool { return true }

func hasMeta(l line) bool {
	return !bytes.Contains(l.body, []byte("ebbandflood.example/fhir/StructureDefinition/edited"))
}

func (e *export) take(i int) line {
	l := e.output[i]
	e.output = slices.Delete(e.output, i, i+1)
	return l
}

func leaveOut(t *testing.T, r *run) { r.exports[middle].take(r.only(t, middle, anything)) }

func leaveOutDeletion(t *testing.T, r *run) {
	e := &r.exports[middle]
	i := slices.IndexFunc(e.deleted, func(key string) bool { return !r.after(middle, key) })
	e.deleted = slices.Delete(e.deleted, i, i+1)
}

// moveToNext takes a change that was written on time.
func moveToNext(t *testing.T, r *run) {
	e := &r.exports[middle]
	i := r.only(t, middle, func(l line) bool { f, _ := read(l.body); return hasMeta(l) && f.updated > e.since })
	r.exports[middle+1].output = append(r.exports[middle+1].output, e.take(i))
}

func moveToPrevious(t *testing.T, r *run) {
	e := &r.exports[middle]
	i := r.only(t, middle, func(l line) bool { f, _ := read(l.body); return f.updated > e.since && f.version == 1 })
	r.exports[middle-1].output = append(r.exports[middle-1].output, e.take(i))
}

func again(t *testing.T, r *run) {
	i := r.only(t, middle, anything)
	r.exports[middle+1].output = append(r.exports[middle+1].output, r.exports[middle].output[i])
}

func againDeletion(t *testing.T, r *run) {
	i := slices.IndexFunc(r.exports[middle].deleted, func(key string) bool { return !r.after(middle, key) })
	r.exports[middle+1].deleted = append(r.exports[middle+1].deleted, r.exports[middle].deleted[i])
}

func twice(t *testing.T, r *run) {
	e := &r.exports[middle]
	e.output = append(e.output, e.output[r.only(t, middle, anything)])
}

func both(t *testing.T, r *run) {
	e := &r.exports[middle]
	i := slices.IndexFunc(e.deleted, func(key string) bool { return !r.after(middle, key) })
	for _, rec := range r.log {
		if string(rec.Key) == e.deleted[i] && rec.Value != nil {
			e.output = append(e.output, line{e.deleted[i], rec.Value})
			return
		}
	}
}

// superseded looks for a resource that changed twice in a window.
func superseded(t *testing.T, r *run) {
	e := &r.exports[middle]
	i := r.only(t, middle, func(l line) bool { return r.before(l, e.since) != nil })
	e.output[i].body = r.before(e.output[i], e.since)
}

// before returns the state before the one shown, if it lies after since too.
func (r *run) before(l line, since int64) (body []byte) {
	for _, rec := range r.log {
		switch {
		case string(rec.Key) != l.key || !rec.Op.Changes() || rec.Value == nil:
		case bytes.Equal(rec.Value, l.body):
			return body
		case rec.Timestamp.UnixMilli() > since:
			body = rec.Value
		}
	}
	return nil
}

// void delivers what arrived after a newer version, for the first time.
func void(t *testing.T, r *run) {
	written := map[string]bool{}
	for _, rec := range r.log {
		fresh := !written[string(rec.Value)]
		written[string(rec.Value)] = true
		if rec.Op.String() != "stale" || rec.Value == nil || !fresh {
			continue
		}
		for k := range r.exports {
			for i, l := range r.exports[k].output {
				if l.key == string(rec.Key) && !r.after(k, l.key) {
					r.exports[k].output[i].body = rec.Value
					return
				}
			}
		}
	}
	t.Fatal("nothing was written in the wrong order")
}

func deleteLiving(t *testing.T, r *run) {
	i := r.only(t, 0, func(l line) bool { return strings.HasPrefix(l.key, "Patient/") })
	r.exports[middle].deleted = append(r.exports[middle].deleted, r.exports[0].output[i].key)
}

func deleteInFull(t *testing.T, r *run) {
	i := r.only(t, 0, anything)
	r.exports[0].deleted = append(r.exports[0].deleted, r.exports[0].take(i).key)
}

func alter(t *testing.T, r *run) {
	e := &r.exports[middle]
	i := r.only(t, middle, func(l line) bool { return bytes.Contains(l.body, []byte(`"value":1`)) })
	e.output[i].body = bytes.Replace(e.output[i].body, []byte(`"value":1`), []byte(`"value":2`), 1)
}

// alterSpace changes nothing that JSON knows of.
func alterSpace(t *testing.T, r *run) {
	e := &r.exports[middle]
	i := r.only(t, middle, hasMeta)
	e.output[i].body = bytes.Replace(e.output[i].body, []byte(`,"`), []byte(`, "`), 1)
}

func stripMeta(t *testing.T, r *run) {
	e := &r.exports[middle]
	i := r.only(t, middle, func(l line) bool { return !hasMeta(l) })
	for _, rec := range r.log {
		a, _ := read(e.output[i].body)
		if string(rec.Key) != e.output[i].key || rec.Value == nil {
			continue
		}
		if b, _ := read(rec.Value); a.content == b.content {
			e.output[i].body = rec.Value
		}
	}
}

func misfile(t *testing.T, r *run) {
	e := &r.exports[middle]
	i := r.only(t, middle, func(l line) bool { return strings.HasPrefix(l.key, "Observation/") })
	e.output[i].key = "Patient/" + strings.TrimPrefix(e.output[i].key, "Observation/")
}

func invent(t *testing.T, r *run) {
	e := &r.exports[middle]
	e.output = append(e.output, line{"Patient/nobody", []byte(`{"resourceType":"Patient","id":"nobody"}`)})
}

// TestOneFullExport: a client that comes only in the end is judged by the same
// rules, and shows what a chain must add up to.
func TestOneFullExport(t *testing.T) {
	r := newRun(t, 3)
	r.exports = []export{r.full}
	if v := r.judge(t); !v.OK() || v.Windows != 1 || v.Delivered != len(r.full.output) {
		t.Errorf("%v %v", v, v.Where)
	}
	leave := *r
	leave.exports = []export{{since: minusInf, until: r.full.until, output: r.full.output[1:]}}
	if v := leave.judge(t); v.Counts[Missed] != 1 {
		t.Errorf("%v %v", v, v.Where)
	}
}

// TestDeletionsThatLookAlike: a resource that died, came back and died again
// between two exports is listed once. Nothing tells which death that was.
func TestDeletionsThatLookAlike(t *testing.T) {
	at := func(s int) time.Time { return time.UnixMilli(int64(s) * 1000) }
	record := func(op hospital.Op, version, s int) hospital.Record {
		rec := hospital.Record{Key: []byte("Patient/p"), Timestamp: at(s), Op: op}
		if op != hospital.Delete {
			rec.Value = fmt.Appendf(nil, `{"resourceType":"Patient","id":"p","meta":{"versionId":"%d","lastUpdated":"%s"}}`,
				version, at(s).UTC().Format(time.RFC3339))
		}
		return rec
	}
	written := []hospital.Record{
		record(hospital.Create, 1, 1), record(hospital.Delete, 2, 21),
		record(hospital.Recreate, 3, 22), record(hospital.Delete, 4, 23),
		record(hospital.Recreate, 5, 32), record(hospital.Delete, 6, 33),
	}
	for _, test := range []struct {
		name    string
		deleted []int // windows that list a deletion; a window ends every ten seconds
		written int
		want    Fault
	}{
		{"two deaths, told once", []int{2}, 4, faults},
		{"three deaths in two windows, told twice", []int{2, 3}, 6, faults},
		{"three deaths, two told, both in the wrong window", []int{3, 4}, 6, Overdue},
		{"two deaths in one window, told in two", []int{2, 3}, 4, faults}, // the first may have come late
		{"one death, told twice", []int{2, 3}, 2, Doubled},
		{"two deaths, told three times", []int{2, 3, 4}, 4, Doubled},
		{"two deaths, never told", nil, 4, Missed},
		{"told before it happened", []int{1}, 2, Early},
	} {
		t.Run(test.name, func(t *testing.T) {
			ledger := NewLedger(Options{Allowance: time.Second})
			for _, rec := range written[:test.written] {
				receipt, err := ledger.Sent(rec)
				if err != nil {
					t.Fatal(err)
				}
				// Too slow to be on time, so that only content and order count.
				delay := 5 * time.Second
				if test.want == Overdue {
					delay = 0
				}
				ledger.Acked(receipt, rec.Timestamp.Add(delay))
			}
			c := ledger.Chain()
			since := time.Time{}
			for k := range 6 {
				if err := c.Window(since, at(10*(k+1))); err != nil {
					t.Fatal(err)
				}
				since = at(10 * (k + 1))
				if k == 0 {
					if err := c.Output("Patient", written[0].Value); err != nil {
						t.Fatal(err)
					}
				}
				if slices.Contains(test.deleted, k) {
					c.Deleted("Patient/p")
				}
			}
			v := c.Judge()
			if v.OK() != (test.want == faults) || test.want < faults && v.Counts[test.want] == 0 {
				t.Errorf("%v %v", v, v.Where)
			}
		})
	}
}

// TestUnacknowledgedRecords cannot be missed, but the proof is not complete.
func TestUnacknowledgedRecords(t *testing.T) {
	r := newRun(t, 3)
	rec := r.log[0]
	rec.Key, rec.Value = []byte("Patient/p"), []byte(`{"resourceType":"Patient","id":"p"}`)
	if _, err := r.ledger.Sent(rec); err != nil {
		t.Fatal(err)
	}
	if v := r.judge(t); v.OK() || v.Lacking() != 0 || !strings.Contains(v.String(), "not acknowledged 1") {
		t.Errorf("%v %v", v, v.Where)
	}
}

func TestChainMustBeAChain(t *testing.T) {
	at := func(s int64) time.Time { return time.UnixMilli(s) }
	for _, test := range []struct {
		name    string
		windows [][2]time.Time
		want    string
	}{
		{"begins in the middle", [][2]time.Time{{at(5), at(10)}}, "begins with a full export"},
		{"a gap", [][2]time.Time{{{}, at(10)}, {at(11), at(20)}}, "does not begin where"},
		{"time goes back", [][2]time.Time{{{}, at(10)}, {at(10), at(9)}}, "went back"},
		{"nothing happened", [][2]time.Time{{{}, at(10)}, {at(10), at(10)}}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := NewLedger(Options{}).Chain()
			var err error
			for _, w := range test.windows {
				err = c.Window(w[0], w[1])
			}
			if got := err != nil; got != (test.want != "") || got && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

func TestFacts(t *testing.T) {
	plain := `{"resourceType":"Patient","id":"a","meta":{"source":"s"},"n":[1,{"x":"}\""}],"z":-1.0}`
	for _, test := range []struct {
		body string
		same bool // content
	}{
		{`{"resourceType":"Patient","id":"a","meta":{"versionId":"7","lastUpdated":"2026-01-02T03:04:05.123Z","source":"s"},"n":[1,{"x":"}\""}],"z":-1.0}`, true},
		{`{"resourceType":"Patient","id":"a","meta":{"source":"s","lastUpdated":"2026-01-02T04:04:05.123+01:00","versionId":"7"},"n":[1,{"x":"}\""}],"z":-1.0}`, true},
		{`{"resourceType":"Patient","id":"a","meta":{"source":"s"},"n":[1,{"x":"}\""}],"z":-1}`, false},
		{`{"resourceType":"Patient","id":"a","meta":{"source":"t"},"n":[1,{"x":"}\""}],"z":-1.0}`, false},
		{`{"resourceType":"Patient","id":"a","n":[1,{"x":"}\""}],"z":-1.0}`, false},
	} {
		a, errA := read([]byte(plain))
		b, errB := read([]byte(test.body))
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if got := a.content == b.content; got != test.same {
			t.Errorf("%s: same content: %v, want %v", test.body, got, test.same)
		}
		if strings.Contains(test.body, "versionId") {
			if diff := cmp.Diff([]int64{7, 1767323045123}, []int64{b.version, b.updated}); diff != "" {
				t.Errorf("%s (-want +got):\n%s", test.body, diff)
			}
		}
	}
	for _, bad := range []string{``, `[]`, `{"resourceType":"Patient"}`, `{"resourceType":"Patient","id":"a",}`, `{"resourceType":"Patient","id":"a"`} {
		if _, err := read([]byte(bad)); err == nil {
			t.Errorf("no error for %s", bad)
		}
	}
}
