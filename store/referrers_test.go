package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
	"tidemark/store/storetest"
)

var documentType, _ = fhir.ParseType("DocumentReference")

func binaryKey(id string) fhir.Key { return fhir.Key{Type: fhir.Binary, ID: id} }

// binaryChange is a Binary in the compartments of some patients (securityContext).
func binaryChange(id, text string, patients ...string) Change {
	ch := patientChange(id, fhir.None, "")
	ch.Key, ch.Patients = binaryKey(id), patients
	ch.Body = fmt.Appendf(nil, `{"resourceType":"Binary","id":"%s","contentType":"text/plain","data":"%s"}`, id, text)
	return ch
}

// documentOf is a document of a patient with some Binaries attached.
func documentOf(id, patient, text string, binaries ...string) Change {
	ch := observationOf(id, patient, text)
	ch.Key.Type = documentType
	ch.Body = []byte(strings.Replace(string(ch.Body), `"Observation"`, `"DocumentReference"`, 1))
	for _, b := range binaries {
		ch.References = append(ch.References, binaryKey(b))
	}
	slices.SortFunc(ch.References, fhir.Key.Compare)
	return ch
}

// referrers are who refers to a Binary, sorted.
func referrers(t testing.TB, s *Snapshot, id string) []string {
	t.Helper()
	list := []string{}
	err := s.Referrers(t.Context(), binaryKey(id), func(row *segment.Row) error {
		list = append(list, row.Key.String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// TestReferrers: at each watermark those refer to a Binary whose version there
// does, after merges, restarts and with the index made anew.
func TestReferrers(t *testing.T) {
	for seed := range storetest.Rounds(uint64(4)) {
		synctest.Test(t, func(t *testing.T) { testReferrers(t, rand.New(rand.NewPCG(seed, 0))) })
	}
}

func testReferrers(t *testing.T, r *rand.Rand) {
	fs := vfs.NewMem()
	o := Options{FS: fs, SettleAfter: time.Minute, Allowance: time.Millisecond, smallFile: 1}
	db := mustOpen(t, "store", o)
	defer func() { db.Close() }()
	f := newFeed(t, db)
	f.advance(time.Second)
	uuid := func(i int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", i) }
	ids := []string{"b", "b0", "b00", uuid(1), uuid(2)}
	refer := map[string][]fhir.Key{} // what resources refer to now
	at := func(s *Snapshot, want map[string][]fhir.Key) {
		t.Helper()
		for _, b := range ids {
			by := []string{}
			for ref, to := range want {
				if slices.Contains(to, binaryKey(b)) {
					by = append(by, ref)
				}
			}
			slices.Sort(by)
			if d := cmp.Diff(by, referrers(t, s, b)); d != "" {
				t.Errorf("%s (-want +got):\n%s", b, d)
			}
		}
	}
	change := func() Change {
		to := slices.DeleteFunc(slices.Clone(ids), func(string) bool { return r.IntN(3) > 0 })
		ch := documentOf([]string{"d", "d0", uuid(3)}[r.IntN(3)], "anna", fmt.Sprint(r.Uint64()), to...)
		if r.IntN(3) == 0 {
			ch.Key.Type = observationType
			ch.Body = []byte(strings.Replace(string(ch.Body), "DocumentReference", "Observation", 1))
		}
		if r.IntN(5) == 0 {
			ch = Change{Key: ch.Key, Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None}
		}
		refer[ch.Key.String()] = ch.References
		return ch
	}
	for range 60 {
		before, err := db.Present()
		if err != nil {
			t.Fatal(err)
		}
		then := maps.Clone(refer)
		var list []Change
		for range 1 + r.IntN(3) {
			list = append(list, change())
		}
		f.commit(list...)
		at(before, then) // what came since lies behind its watermark
		if err := before.Close(); err != nil {
			t.Fatal(err)
		}
		f.advance(time.Second)
		switch r.IntN(8) {
		case 0:
			f.advance(time.Hour)
			rewriteAll(t, db)
		case 1:
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if r.IntN(2) == 0 {
				if err := errors.Join(fs.RemoveAll("store/index"), Reindex(context.Background(), "store", o, io.Discard)); err != nil {
					t.Fatal(err)
				}
			}
			db = mustOpen(t, "store", o)
			f = newFeed(t, db)
			f.advance(time.Second)
		}
		now, err := db.Present()
		if err != nil {
			t.Fatal(err)
		}
		at(now, refer)
		if err := now.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Check(false); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReferrersMany: whoever wants one of many is not told of all, and who wants
// all is told of each once, whatever their types.
func TestReferrersMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		f.advance(time.Second)
		var list []Change
		for i := range referrersAtOnce + 10 {
			list = append(list, documentOf(fmt.Sprintf("d%03d", i), "anna", "", "logo"))
		}
		observation := observationOf("o", "anna", "")
		observation.References = []fhir.Key{binaryKey("logo")}
		other := binaryChange("other", "") // guarded by it: that lets nobody read it
		other.References = []fhir.Key{binaryKey("logo")}
		f.commit(append(list, observation, other)...)
		f.advance(time.Second)
		s, err := db.Present()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if got := referrers(t, s, "logo"); len(got) != len(list)+1 || len(slices.Compact(got)) != len(list)+1 {
			t.Errorf("%d refer to it, want %d", len(got), len(list)+1)
		}
		asked, enough := 0, errors.New("enough")
		err = s.Referrers(t.Context(), binaryKey("logo"), func(*segment.Row) error { asked++; return enough })
		if !errors.Is(err, enough) || asked != 1 {
			t.Errorf("told of %d, %v", asked, err)
		}
		if err := s.Referrers(t.Context(), fhir.Key{Type: patientType, ID: "logo"}, func(*segment.Row) error { return enough }); err != nil {
			t.Error(err)
		}
	})
}

// TestCheckReferrers: an index that does not lead back from a Binary is found out.
func TestCheckReferrers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mustOpen(t, "store", Options{FS: vfs.NewMem(), Allowance: time.Millisecond})
		defer db.Close()
		f := newFeed(t, db)
		f.commit(documentOf("d", "anna", "", "b"))
		if _, err := db.Check(false); err != nil {
			t.Fatal(err)
		}
		if err := db.kv.Delete(index.ReferrerKey("b", fhir.Key{Type: documentType, ID: "d"}), pebble.Sync); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Check(false); err == nil || !strings.Contains(err.Error(), "R1") {
			t.Errorf("check says %v", err)
		}
	})
}
