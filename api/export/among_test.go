package export_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/storetest"
)

// An unled store tells of some jobs' snapshots nothing of what leads to Provenance: all
// of it is looked through.
type unled struct {
	export.Store
	jobs map[string]bool
	led  int // how often it was told of others
}

func (u *unled) Snapshot(id string) (export.Snapshot, error) {
	s, err := u.Store.Snapshot(id)
	return unledSnapshot{s, u, u.jobs[id]}, err
}

type unledSnapshot struct {
	export.Snapshot
	of     *unled
	silent bool
}

func (s unledSnapshot) Choosing(c store.Choice) export.Snapshot {
	return unledSnapshot{s.Snapshot.Choosing(c), s.of, s.silent}
}

func (s unledSnapshot) Renewing(renewed func(fhir.Key) bool) export.Snapshot {
	return unledSnapshot{s.Snapshot.Renewing(renewed), s.of, s.silent}
}

func (s unledSnapshot) Veiled(v *store.Veil) export.Snapshot {
	return unledSnapshot{s.Snapshot.Veiled(v), s.of, s.silent}
}

func (s unledSnapshot) ProvenanceOf(ctx context.Context, compartments map[uint32]bool) ([]fhir.Key, bool, error) {
	if s.silent {
		return nil, false, nil
	}
	list, ok, err := s.Snapshot.ProvenanceOf(ctx, compartments)
	if ok {
		s.of.led++
	}
	return list, ok, err
}

// A ward is a small world in which what Provenance is about comes, moves, goes and
// comes again; exports of some of its Patients are asked for in pairs.
type ward struct {
	t     *testing.T
	r     *rand.Rand
	fs    vfs.FS
	db    *store.DB
	jobs  *export.Jobs
	unled *unled
	next  int64
	text  int
	times []fhir.Instant // of exports
}

func (w *ward) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

var wardPartition = store.Partition{Topic: "t"}

func (w *ward) open() {
	w.t.Helper()
	db, err := store.Open("store", store.Options{
		FS: w.fs, Cache: 1 << 20, MergeOff: true, CommitInterval: time.Millisecond, Allowance: 500 * time.Millisecond,
		SettleAfter: time.Minute, LastState: time.Hour, Deleted: 3 * time.Hour,
	})
	w.must(err)
	w.db = db
	w.must(db.Discover(store.Discovery{Complete: true, Partitions: []store.Discovered{{Partition: wardPartition}}}))
	st, _ := db.Partition(wardPartition)
	w.next = st.Next
	w.unled = &unled{Store: export.Of(db), jobs: map[string]bool{}, led: w.unled.led}
	w.jobs = export.New(w.unled, export.Options{Expires: 1000 * time.Hour, Checkpoint: -1, MaxJobs: 1000})
}

func (w *ward) advance(d time.Duration) {
	w.t.Helper()
	time.Sleep(d)
	w.commit()
}

func (w *ward) commit(changes ...store.Change) {
	w.t.Helper()
	for i := range changes {
		changes[i].Offset = w.next
		w.next++
	}
	w.must(w.db.Apply(w.t.Context(), store.Batch{Partition: wardPartition, Changes: changes, Next: w.next, End: w.next, LeaderEpoch: -1, Asked: w.db.Now()}))
	w.must(w.db.Flush())
}

// references is a list of them, as JSON.
func references(format string, list ...string) string {
	var l []string
	for _, ref := range list {
		l = append(l, fmt.Sprintf(format, ref))
	}
	return "[" + strings.Join(l, ",") + "]"
}

func (w *ward) target() string {
	switch w.r.IntN(8) {
	case 0:
		return fmt.Sprint("Patient/", w.r.IntN(5))
	case 1:
		return fmt.Sprint("Group/", w.r.IntN(3))
	case 2:
		return fmt.Sprint("Practitioner/", w.r.IntN(2))
	case 3:
		return fmt.Sprint("Provenance/", w.r.IntN(8))
	}
	return fmt.Sprint("Observation/", w.r.IntN(10))
}

func (w *ward) change() store.Change {
	w.t.Helper()
	w.text++
	var key, more string
	switch i := w.r.IntN(14); {
	case i < 5:
		key = fmt.Sprint("Observation/", w.r.IntN(10))
		switch w.r.IntN(6) {
		case 0: // nobody's
		case 1:
			more = fmt.Sprintf(`,"subject":{"reference":"Patient/%d"},"performer":[{"reference":"Patient/%d"},{"reference":"Practitioner/0"}]`, w.r.IntN(5), w.r.IntN(5))
		default:
			more = fmt.Sprintf(`,"subject":{"reference":"Patient/%d"}`, w.r.IntN(5))
		}
	case i < 10:
		key = fmt.Sprint("Provenance/", w.r.IntN(8))
		var targets []string
		for range 1 + w.r.IntN(3) {
			targets = append(targets, w.target())
		}
		more = `,"target":` + references(`{"reference":%q}`, targets...) + fmt.Sprintf(`,"agent":[{"who":{"reference":"Practitioner/%d"}}]`, w.r.IntN(2))
	case i < 11:
		key = fmt.Sprint("Practitioner/", w.r.IntN(2))
	case i < 12:
		key = fmt.Sprint("Patient/", w.r.IntN(5))
	default:
		n := w.r.IntN(3)
		key = fmt.Sprint("Group/", n)
		var members []string
		for range w.r.IntN(4) {
			members = append(members, fmt.Sprint("Patient/", w.r.IntN(5)))
		}
		if n == 0 && w.r.IntN(2) == 0 {
			members = append(members, "Group/1")
		}
		if len(members) > 0 {
			more = `,"member":` + references(`{"entity":{"reference":%q}}`, members...)
		}
	}
	if key != "Group/0" && w.r.IntN(6) == 0 {
		return wardDeletion(w.t, key)
	}
	return scanned(w.t, key, fmt.Sprintf(`,"meta":{"tag":[{"code":"%d"}]}%s`, w.text, more))
}

func wardDeletion(t *testing.T, ref string) store.Change {
	return store.Change{Key: key(t, ref), Delete: true, Version: store.NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None}
}

func scanned(t *testing.T, ref, more string) store.Change {
	t.Helper()
	k := key(t, ref)
	var s fhir.Scanner
	res, err := s.Scan(fmt.Appendf(nil, `{"resourceType":%q,"id":%q%s}`, k.Type, k.ID, more))
	if err != nil {
		t.Fatal(err)
	}
	return store.Change{
		Key: res.Key, Body: res.Body, Meta: res.Meta, Patients: res.Patients, References: res.References, Members: res.Members,
		Version: store.NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None,
	}
}

// step lets something happen.
func (w *ward) step() {
	w.t.Helper()
	var list []store.Change
	for range 1 + w.r.IntN(4) {
		ch := w.change()
		ch.Timestamp = fhir.FromTime(time.Now()) - fhir.Instant(w.r.IntN(450))
		list = append(list, ch)
	}
	w.commit(list...)
	w.advance([]time.Duration{time.Millisecond, 100 * time.Millisecond, time.Second}[w.r.IntN(3)])
	switch w.r.IntN(12) {
	case 0:
		w.advance(time.Hour)
		w.merge()
	case 1:
		w.advance(4 * time.Hour) // deletions are forgotten
		w.merge()
	}
}

func (w *ward) merge() {
	w.t.Helper()
	for {
		if merged, err := w.db.Merge(w.t.Context()); err != nil || !merged {
			w.must(err)
			return
		}
	}
}

func (w *ward) restart() {
	w.t.Helper()
	w.must(w.db.Close())
	w.open()
	w.advance(time.Second)
}

func (w *ward) request() export.Request {
	q := ofGroup("0")
	q.Departed = w.r.IntN(2) == 0
	if w.r.IntN(3) == 0 {
		q = export.Request{Level: export.Patient, URL: "http://tidemark.test/fhir/Patient/$export", Since: fhir.None, Upto: fhir.None}
		if w.r.IntN(2) == 0 {
			q.Level, q.Group = export.Group, "0"
		}
		q.Patients = []string{fmt.Sprint(w.r.IntN(5)), fmt.Sprint(w.r.IntN(5))}
	}
	if len(w.times) > 0 && w.r.IntN(2) == 0 {
		q.Since = w.times[w.r.IntN(len(w.times))]
	}
	if len(w.times) > 0 && w.r.IntN(3) == 0 {
		if q.Upto = w.times[len(w.times)-1]; q.Upto <= q.Since {
			q.Upto = fhir.None
		}
	}
	return q
}

// held is what an export delivers: lines with the names of their lists.
func (w *ward) held(id string) (lines []string, at fhir.Instant) {
	w.t.Helper()
	m, err := w.jobs.Manifest(id)
	w.must(err)
	for i, f := range m.Files {
		for line := range strings.Lines(read(w.t, w.jobs, id, i+1, false)) {
			lines = append(lines, string(f.List)+" "+line)
		}
	}
	slices.Sort(lines)
	return lines, m.TransactionTime
}

// TestAmong: an export of some Patients is the same whether the index leads to its
// Provenance or all of it is looked through, whatever moves, goes and comes again,
// and whatever happens between its kick-off and its planning.
func TestAmong(t *testing.T) {
	led, sent, rounds := 0, 0, storetest.Rounds(40)
	for _, seed := range []uint64{0, 1, 41} {
		synctest.Test(t, func(t *testing.T) {
			w := &ward{t: t, r: rand.New(rand.NewPCG(seed, 7)), fs: vfs.NewMem(), unled: &unled{}}
			w.open()
			defer func() { w.db.Close() }()
			w.advance(time.Second)
			var first []store.Change
			for i := range 5 {
				first = append(first, scanned(t, fmt.Sprint("Patient/", i), ""))
			}
			w.commit(append(first, scanned(t, "Group/0", `,"member":`+references(`{"entity":{"reference":%q}}`, "Patient/0", "Patient/1")))...)
			w.advance(time.Second)
			for round := range rounds {
				if sent += w.round(); t.Failed() {
					t.Fatalf("seed %d, round %d", seed, round)
				}
			}
			led += w.unled.led
		})
	}
	if led < rounds*3/2 || sent < rounds*3 {
		t.Errorf("the index led to Provenance in %d exports, and %d were sent", led, sent)
	}
}

// round compares one pair of exports, and tells how much Provenance they sent.
func (w *ward) round() (sent int) {
	w.t.Helper()
	for range 1 + w.r.IntN(4) {
		w.step()
	}
	q := w.request()
	one, err := w.jobs.Start(w.t.Context(), q)
	if _, refused := errors.AsType[*export.Refusal](err); refused || errors.Is(err, store.ErrUnknown) {
		return 0 // nobody lives whom it is about
	}
	w.must(err)
	other := start(w.t, w.jobs, q)
	for range w.r.IntN(3) {
		w.step()
	}
	switch w.r.IntN(8) {
	case 0:
		w.restart()
	case 1:
		w.erase()
	}
	w.unled.jobs[other] = true
	stop := runs(w.t, w.jobs)
	synctest.Wait()
	stop()
	if _, err := w.jobs.Manifest(one); errors.Is(err, store.ErrRevoked) {
		return 0
	}
	got, at := w.held(one)
	want, then := w.held(other)
	if at != then {
		w.t.Fatalf("one is of %v, the other of %v", at, then)
	}
	if d := cmp.Diff(want, got); d != "" {
		w.t.Errorf("%+v (-looked through +led):\n%s", q, d)
	}
	w.times = append(w.times, at)
	w.must(errors.Join(w.jobs.Delete(w.t.Context(), one), w.jobs.Delete(w.t.Context(), other)))
	for _, line := range got {
		if strings.HasPrefix(line, `output {"resourceType":"Provenance"`) {
			sent++
		}
	}
	return sent
}

// erase erases something that comes no more.
func (w *ward) erase() {
	w.t.Helper()
	w.commit(scanned(w.t, "Patient/erased", fmt.Sprintf(`,"meta":{"tag":[{"code":"e%d"}]}`, w.text)))
	_, err := w.db.Erase(w.t.Context(), store.Erasure{Key: key(w.t, "Patient/erased")})
	w.must(err)
}
