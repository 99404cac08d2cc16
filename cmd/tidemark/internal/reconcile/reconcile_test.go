package reconcile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/index"
)

var patient, _ = fhir.ParseType("Patient")

func key(id string) fhir.Key { return fhir.Key{Type: patient, ID: id} }

// here is a resource of the store, there one of the export.
func here(id string, kind store.Kind, version int64, updated fhir.Instant) *store.Newest {
	return &store.Newest{
		Key: key(id), Kind: kind, Instant: updated,
		Clock: store.Clock{Version: version, LastUpdated: updated, Timestamp: fhir.None, Origin: store.Partition{Topic: "t"}},
		Life:  store.Life{FloorVersion: store.NoVersion, FloorUpdated: fhir.None},
	}
}

func there(id string, version int64, updated fhir.Instant) *Entry {
	return &Entry{Key: key(id), Version: version, Updated: updated}
}

// Each case that the help tells of, and those between them.
func TestJudge(t *testing.T) {
	const at = 1000
	deleted := func(updated, floor fhir.Instant) *store.Newest {
		n := here("x", store.Deleted, 2, updated)
		n.Life = store.Life{FloorVersion: 2, FloorUpdated: floor}
		return n
	}
	ofAnotherType := func(n *store.Newest) *store.Newest { n.Key.Type++; return n }
	from := func(n *store.Newest, topic string) *store.Newest { n.Clock.Origin.Topic = topic; return n }
	tests := []struct {
		name string
		e    *Entry
		n    *store.Newest
		want What
	}{
		{"the same", there("x", 2, 500), here("x", store.Live, 2, 500), Same},
		{"never came", there("x", 2, 500), nil, Missing},
		{"an update was lost", there("x", 3, 600), here("x", store.Live, 2, 500), Stale},
		{"an update was lost, without versions", there("x", store.NoVersion, 600), here("x", store.Live, store.NoVersion, 500), Stale},
		{"changed since", there("x", 2, 500), here("x", store.Live, 3, 1500), Newer},
		{"made again from version 1", there("x", 1, 600), here("x", store.Live, 3, 500), Reborn},
		{"made again, and changed since", there("x", 1, 600), here("x", store.Live, 3, 1500), Newer},
		{"the source went back", there("x", 2, 400), here("x", store.Live, 3, 500), Behind},
		{"a deletion was lost", nil, here("x", store.Live, 2, at), Extra},
		{"made since", nil, here("x", store.Live, 1, at+1), Newer},
		{"of a type that was not asked for", nil, ofAnotherType(here("x", store.Live, 2, 500)), Unjudged},
		{"of another source", nil, from(here("x", store.Live, 2, 500), "other"), Unjudged},
		{"deleted on both sides", nil, deleted(500, 500), Same},
		{"deleted since", there("x", 2, 500), deleted(1500, 500), Newer},
		{"deleted and made again, which was lost", there("x", 3, 700), deleted(600, 500), Missing},
		{"deleted by mistake", there("x", 2, 500), deleted(600, 600), Deleted},
		{"deleted before it ever came", there("x", 2, 500), here("x", store.Internal, store.NoVersion, 400), Missing},
		{"deleted before it ever came, since", there("x", 2, 500), here("x", store.Internal, store.NoVersion, 1500), Newer},
		{"the export says it is gone", &Entry{Key: key("x"), Gone: true}, here("x", store.Live, 2, 500), Extra},
		{"the export says it is gone, of another source", &Entry{Key: key("x"), Gone: true}, from(here("x", store.Live, 2, 500), "other"), Extra},
		{"the export says it is gone, and it is back", &Entry{Key: key("x"), Gone: true}, here("x", store.Live, 2, 1500), Newer},
		{"the export says it is gone, and it never came", &Entry{Key: key("x"), Gone: true}, nil, Same},
		{"erased", &Entry{Key: key("x"), Version: 2, Refused: true}, deleted(500, 500), Erased},
		{"other bytes", &Entry{Key: key("x"), Version: 2, Updated: 500, Hash: 1}, here("x", store.Live, 2, 500), Different},
	}
	rules := &Rules{At: at, Whole: map[fhir.Type]bool{patient: true}, From: func(topic string) bool { return topic == "t" }, Content: true}
	for _, test := range tests {
		if got := rules.judge(test.e, test.n); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}

// Two random sides, compared on the disk, give what a map gives.
func TestCompareIsAMap(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s, err := NewScratch(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		id := func(i int) string {
			switch i % 3 {
			case 0:
				return fmt.Sprintf("%08x-0000-4000-8000-000000000000", i*2654435761)
			case 1:
				return strings.Repeat("a", 1+i%7)
			}
			return fmt.Sprint(i)
		}
		rules := &Rules{At: 1000, Whole: map[fhir.Type]bool{patient: true}, From: func(string) bool { return true }}
		entries, rows := map[string][]Entry{}, map[string]*store.Newest{}
		for i := range 300 {
			if rng.IntN(3) > 0 {
				n := here(id(rng.IntN(300)), []store.Kind{store.Live, store.Live, store.Deleted, store.Internal}[rng.IntN(4)], int64(rng.IntN(3)), fhir.Instant(900+rng.IntN(200)))
				rows[n.Key.ID] = n
			}
			if rng.IntN(3) > 0 {
				e := there(id(rng.IntN(300)), int64(rng.IntN(3)), fhir.Instant(900+rng.IntN(100)))
				e.File, e.Line, e.Gone = uint32(rng.IntN(3)), uint64(i), rng.IntN(9) == 0
				entries[e.Key.ID] = append(entries[e.Key.ID], *e)
				if err := s.Add(e); err != nil {
					t.Fatal(err)
				}
			}
		}
		want := map[string]What{}
		for name, list := range entries {
			want[name] = rules.judge(newest(list), rows[name])
		}
		for name, n := range rows {
			if entries[name] == nil {
				want[name] = rules.judge(nil, n)
			}
		}
		for name, what := range want {
			if what == Same || what == Unjudged {
				delete(want, name)
			}
		}
		got := map[string]What{}
		var stream bytes.Buffer
		for _, n := range slices.SortedFunc(maps(rows), func(a, b *store.Newest) int { return bytes.Compare(index.RowKey(nil, a.Key), index.RowKey(nil, b.Key)) }) {
			stream.Write(appendRow(nil, n))
		}
		report, err := s.Compare(&stream, rules, func(f *Finding) error { got[f.Key.ID] = f.What; return nil })
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("seed %d: %s", seed, d)
		}
		sum, n := report.Sum(), int64(0)
		for _, k := range sum.By {
			n += k
		}
		union := len(entries)
		for name := range rows {
			if entries[name] == nil {
				union++
			}
		}
		if n != int64(union) {
			t.Errorf("seed %d: %d are counted of %d", seed, n, union)
		}
		repaired(t, s, entries, got)
		dir := s.dir
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the scratch is left: %v", err)
		}
	}
}

func maps(rows map[string]*store.Newest) func(func(*store.Newest) bool) {
	return func(yield func(*store.Newest) bool) {
		for _, n := range rows {
			if !yield(n) {
				return
			}
		}
	}
}

// repaired looks whether exactly the right lines are to be sent, and the right resources deleted.
func repaired(t *testing.T, s *Scratch, entries map[string][]Entry, found map[string]What) {
	t.Helper()
	wanted, deleted := map[string]fhir.Instant{}, map[string]fhir.Instant{}
	lines := map[[2]uint64]bool{}
	for id, what := range found {
		if what == Missing || what == Stale || what == Reborn {
			e := newest(entries[id])
			lines[[2]uint64{uint64(e.File), e.Line}] = true
		}
		switch what {
		case Extra:
			wanted[id] = 1000
		case Reborn:
			wanted[id] = newest(entries[id]).Updated - 1
		}
	}
	r, err := s.Repairs()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for file := range uint32(3) {
		has := r.Has(file)
		for line := range uint64(300) {
			want := lines[[2]uint64{uint64(file), line}]
			if got := r.Wants(file, line); got != want || want && !has {
				t.Errorf("file %d, line %d: %v, want %v", file, line, got, want)
			}
		}
	}
	if err := s.EachExtra(func(k fhir.Key, at fhir.Instant) error { deleted[k.ID] = at; return nil }); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(wanted, deleted); d != "" {
		t.Errorf("deleted: %s", d)
	}
}

// A row that is written is read as it was; what breaks off is no end.
func TestRows(t *testing.T) {
	n := here("x", store.Deleted, 7, 500)
	n.Seq, n.Hash, n.Clock.Inherited, n.Clock.Timestamp = 1<<63+1, 1<<63+2, true, 600
	n.Life = store.Life{FloorVersion: 6, FloorUpdated: 400, Reborn: true}
	line := appendRow(nil, n)
	got, err := readRow(bufio.NewReader(bytes.NewReader(line)))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(n, got); d != "" {
		t.Error(d)
	}
	for i := range len(line) {
		if _, err := readRow(bufio.NewReader(bytes.NewReader(line[:i]))); i == 0 && !errors.Is(err, io.EOF) || i > 0 && !errors.Is(err, errRow) {
			t.Errorf("the first %d bytes: %v", i, err)
		}
	}
}

// What a resource says is the same however it is written, and nothing else is.
func TestCanonical(t *testing.T) {
	const plain = `{"resourceType":"Patient","id":"a","meta":{"versionId":"1","lastUpdated":"2026-01-01T00:00:00Z","tag":[{"code":"x"}]},"name":[{"family":"Ü"}],"n":1.0}`
	same := []string{
		`{"id":"a","resourceType":"Patient","n":1.0,"name":[{"family":"\u00dc"}],"meta":{"tag":[{"code":"x"}]}}`,
		`{"resourceType":"Patient","id":"a","meta":{"tag":[{"code":"x"}],"versionId":"7"},"name":[{"family":"Ü"}],"n":1.0}`,
	}
	for _, s := range same {
		if Canonical([]byte(s)) != Canonical([]byte(plain)) {
			t.Errorf("%s is another", s)
		}
	}
	seen := map[uint64]string{Canonical([]byte(plain)): plain}
	for _, edit := range [][2]string{
		{`1.0`, `1.00`},
		{`"x"`, `"y"`},
		{`[{"family":"Ü"}]`, `{"family":"Ü"}`},
		{`"Ü"`, `"U"`},
		{`"n":1.0`, `"n":"1.0"`},
		{`,"n":1.0`, ``},
		{`"name"`, `"nam"`},
		{`{"family":"Ü"}`, `{"family":"Ü"},{}`},
		{`"n":1.0`, `"n":null`},
		{`"n":1.0`, `"n":{"versionId":"1"}`},
		{`"n":1.0`, `"n":{"versionId":"2"}`},
	} {
		s := strings.Replace(plain, edit[0], edit[1], 1)
		h := Canonical([]byte(s))
		if seen[h] != "" {
			t.Errorf("%s is the same as %s", s, seen[h])
		}
		seen[h] = s
	}
	if Canonical([]byte(`{"id":"a","meta":{"versionId":"1"}}`)) != Canonical([]byte(`{"id":"a"}`)) {
		t.Error("a meta with nothing but what a store injects is none")
	}
}
