package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// TestCompareIsTheJudge: what Compare says of a version and an instant is what becomes of
// a change that says no more.
func TestCompareIsTheJudge(t *testing.T) {
	versions, instants := []int64{NoVersion, 1, 2, 3}, []fhir.Instant{fhir.None, 1000, 2000, 3000}
	lives := []Life{segment.NoLife}
	for _, v := range versions {
		for _, u := range instants {
			lives = append(lives, Life{FloorVersion: v, FloorUpdated: u}, Life{FloorVersion: v, FloorUpdated: u, Reborn: true})
		}
	}
	here, elsewhere := Partition{Topic: "a"}, Partition{Topic: "z"}
	said := map[int]int{}
	for _, kind := range []Kind{Live, Deleted, Internal} {
		for _, life := range lives {
			for _, v := range versions {
				for _, u := range instants {
					for _, inherited := range []bool{false, true} {
						k := Clock{Version: v, LastUpdated: u, Timestamp: 1500, Origin: here, Inherited: inherited && v != NoVersion}
						st, n := index.State{Kind: kind, Clock: k, Life: life, Hash: 1}, Newest{Kind: kind, Clock: k, Life: life}
						if kind == Live && !inherited && n.Compare(v, u) != 0 { // be it of the instant of what a life that ended left behind
							t.Fatalf("%+v is not what it says itself", st)
						}
						for _, version := range versions {
							for _, updated := range instants {
								ch := Change{Version: version, LastUpdated: updated, Timestamp: 1500, Offset: 1}
								got, verdict := n.Compare(version, updated), judge(&st, &ch, 2, elsewhere)
								if said[got]++; got > 0 && verdict != applies || got < 0 && verdict != stale {
									t.Fatalf("%+v, version %d, %v: got %d, the judge says %d", st, version, updated, got, verdict)
								}
							}
						}
					}
				}
			}
		}
	}
	if len(said) != 3 {
		t.Errorf("only %v were said", said)
	}
}

// TestEachNewest: each resource comes once, as the index has it, in pages; of some types
// only those. EachLine has the line of each living one.
func TestEachNewest(t *testing.T) {
	db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
	defer db.Close()
	f := newFeed(t, db)
	gone := func(id string) Change {
		ch := patientChange(id, fhir.None, "")
		ch.Delete, ch.Body, ch.Patients = true, nil, nil
		return ch
	}
	group := Change{
		Key: fhir.Key{Type: groupType, ID: "g"}, Body: []byte(`{"resourceType":"Group","id":"g"}`), Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None,
	}
	var many []Change
	for i := range 2*newestAtOnce + 10 {
		many = append(many, patientChange(fmt.Sprint("p", i), 1000, "x"))
	}
	f.commit(many...)
	f.commit(patientChange("p7", 2000, "new"), gone("p8"), gone("never"), group)
	f.commit(patientChange("p8", 3000, "again"), gone("p9"))

	all := map[fhir.Key]Kind{}
	lines := map[uint64]fhir.Key{}
	var before []byte
	err := db.EachNewest(t.Context(), nil, func(n *Newest) error {
		key := index.RowKey(nil, n.Key)
		if slices.Compare(before, key) >= 0 {
			t.Fatalf("%v is not sorted", n.Key)
		}
		before = key
		st, err := db.newest(n.Key)
		if d := cmp.Diff(Newest{n.Key, st.Kind, st.Seq, st.Instant, st.Hash, st.Clock, st.Life}, *n); d != "" {
			t.Error(d)
		}
		if all[n.Key] = n.Kind; n.Kind == Live {
			lines[n.Seq] = n.Key
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := len(many) + 2; len(all) != want {
		t.Errorf("%d resources, want %d", len(all), want)
	}
	for id, want := range map[string]Kind{"p7": Live, "p8": Live, "p9": Deleted, "never": Internal} {
		if got := all[fhir.Key{Type: patientResource, ID: id}]; got != want {
			t.Errorf("%s is %v, want %v", id, got, want)
		}
	}
	n := 0
	if err := db.EachNewest(t.Context(), []fhir.Type{groupType}, func(*Newest) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d Groups, want 1 (%v)", n, err)
	}
	err = db.EachLine(t.Context(), nil, func(key fhir.Key, seq uint64, line []byte) error {
		if lines[seq] == key {
			delete(lines, seq)
		}
		if want := fmt.Sprintf(`"id":"%s"`, key.ID); !strings.Contains(string(line), want) {
			t.Errorf("the line of %v is %s", key, line)
		}
		return nil
	})
	if err != nil || len(lines) > 0 {
		t.Errorf("no line of %d living resources (%v)", len(lines), err)
	}
}

// TestSaid: a deletion is as late as its record at least, and so is what has the version
// before.
func TestSaid(t *testing.T) {
	for _, test := range []struct {
		n    Newest
		want fhir.Instant
	}{
		{Newest{Kind: Live, Instant: 9, Clock: Clock{LastUpdated: 3, Timestamp: 5}}, 3},
		{Newest{Kind: Live, Instant: 9, Clock: Clock{LastUpdated: fhir.None, Timestamp: 5}}, 5},
		{Newest{Kind: Live, Instant: 9, Clock: Clock{LastUpdated: fhir.None, Timestamp: fhir.None}}, 9},
		{Newest{Kind: Live, Instant: 9, Clock: Clock{LastUpdated: 3, Timestamp: 5, Inherited: true}}, 5},
		{Newest{Kind: Deleted, Instant: 9, Clock: Clock{LastUpdated: 3, Timestamp: 5}}, 5},
		{Newest{Kind: Deleted, Instant: 9, Clock: Clock{LastUpdated: fhir.None, Timestamp: fhir.None}}, 9},
	} {
		if got := test.n.Said(); got != test.want {
			t.Errorf("%+v: got %d, want %d", test.n, got, test.want)
		}
	}
}
