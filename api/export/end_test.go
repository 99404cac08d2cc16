package export_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/api/access"
	"tidemark/api/export"
	"tidemark/api/smart"
	"tidemark/store"
	"tidemark/store/fhir"
)

func owned(owner access.Owner, scopes string) export.Request {
	return export.Request{URL: "x", Since: fhir.None, Upto: fhir.None, Access: &export.Access{Owner: owner, Rights: smart.Parse(scopes)}}
}

// TestEndOf: jobs of a client whose rights are taken say so, a download under way
// stops, their disk and places are free, also after a restart; others' jobs stay.
func TestEndOf(t *testing.T) {
	disk := vfs.NewMem()
	db := makingStore(t, disk)
	j := export.New(export.Of(db), export.Options{MaxJobs: 4})
	mine := start(t, j, owned("#1", "system/*.rs?_id=1,3"))
	whole := start(t, j, owned("https://issuer.test/#a#1", "system/*.rs")) // of another mode's issuer
	other, free := start(t, j, owned("#21", "system/*.rs")), start(t, j, everything())
	stop := runs(t, j)
	planned(t, j, mine)
	stop()
	if len(leftOnDisk(t, disk, mine)) == 0 {
		t.Fatal("nothing is kept of the job")
	}
	d, err := j.Open(t.Context(), whole, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Start(t.Context(), owned("#2", "system/*.rs")); err == nil {
		t.Error("there was a place more")
	}
	n, err := j.EndOf(t.Context(), 1, 3, 0)
	if err != nil || n != 2 {
		t.Errorf("%d jobs were ended, %v", n, err)
	}
	if err := d.Write(io.Discard, false, 0, d.Size(false)); !errors.Is(err, store.ErrRevoked) {
		t.Errorf("a download under way: %v", err)
	}
	_ = d.Close()
	for _, when := range []string{"at once", "after a restart"} {
		for _, id := range []string{mine, whole} {
			_, err := j.Manifest(id)
			_, open := j.Open(t.Context(), id, 1)
			_, typ := j.FileType(id, 1)
			for _, err := range []error{err, open, typ} {
				if !errors.Is(err, export.ErrTakenBack) || !errors.Is(err, store.ErrRevoked) {
					t.Errorf("%s: %v", when, err)
				}
			}
			a, err := j.Access(id)
			owner := map[string]access.Owner{mine: "#1", whole: "https://issuer.test/#a#1"}[id]
			if diff := cmp.Diff(export.Access{Owner: owner, Types: []fhir.Type{}}, a); diff != "" || err != nil {
				t.Errorf("%s: %v %s", when, err, diff)
			}
			if left := leftOnDisk(t, disk, id); len(left) > 0 {
				t.Errorf("%s: left on the disk: %v", when, left)
			}
		}
		for _, id := range []string{other, free} {
			if _, err := j.Manifest(id); err != nil || j.Len() != 2 {
				t.Errorf("%s: another's job: %v, %d hold places", when, err, j.Len())
			}
		}
		j = export.New(export.Of(db), export.Options{MaxJobs: 4})
	}
	if n, err := j.EndOf(t.Context(), 1); n != 2 || err != nil {
		t.Errorf("once more: %d, %v", n, err)
	}
	if err := j.Delete(t.Context(), mine); err != nil {
		t.Errorf("its owner deletes it: %v", err)
	}
}

// TestEndOfWhilePlanning: who plans the job stops, and it is not tried again.
func TestEndOfWhilePlanning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := groupStore(t)
		enter, leave := make(chan struct{}), make(chan struct{})
		var reads atomic.Int64
		db.OnRead = func() {
			if reads.Add(1) == 1 {
				enter <- struct{}{}
				<-leave
			}
		}
		j := export.New(db, export.Options{})
		q := ofGroup("g")
		q.Access = &export.Access{Owner: "#1", Rights: smart.Parse("system/*.rs")}
		id := start(t, j, q)
		stop := runs(t, j)
		<-enter
		if n, err := j.EndOf(t.Context(), 1); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		close(leave)
		time.Sleep(time.Hour)
		if _, err := j.Manifest(id); !errors.Is(err, export.ErrTakenBack) {
			t.Error(err)
		}
		if n := reads.Load(); n > 2 {
			t.Errorf("the store was read %d times", n)
		}
		if n := db.Open(); n != 0 {
			t.Errorf("%d snapshots are open", n)
		}
		stop()
	})
}

// TestEndOfIsTriedAgain: what the disk does not take is refused nevertheless.
func TestEndOfIsTriedAgain(t *testing.T) {
	db := newStore(t, 1)
	j := export.New(db, export.Options{})
	id := start(t, j, owned("#1", "system/*.rs"))
	db.Fail(errors.New("not now"))
	if n, err := j.EndOf(t.Context(), 1); n != 0 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
	db.Fail(nil)
	if _, err := j.Manifest(id); !errors.Is(err, export.ErrTakenBack) {
		t.Error(err)
	}
	if n, err := j.EndOf(t.Context(), 1); n != 1 || err != nil {
		t.Errorf("once more: %d, %v", n, err)
	}
	if _, err := export.New(db.Restart(), export.Options{}).Manifest(id); !errors.Is(err, export.ErrTakenBack) {
		t.Errorf("after a restart: %v", err)
	}
}

// TestErasureKeepsOwner: a client is told of an erasure after a restart, too.
func TestErasureKeepsOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newStore(t, 1)
		j := export.New(db, export.Options{})
		id := start(t, j, owned("#1", "system/Patient.rs system/Observation.rs?patient=Patient/secret"))
		db.Erase()
		stop := runs(t, j)
		time.Sleep(2 * time.Minute)
		stop()
		for _, p := range db.Pinned() {
			if strings.Contains(string(p.Rule), "secret") {
				t.Errorf("left: %s", p.Rule)
			}
		}
		j = export.New(db.Restart(), export.Options{})
		if a, err := j.Access(id); err != nil || a.Owner != "#1" {
			t.Errorf("%+v, %v", a, err)
		}
		if _, err := j.Manifest(id); !errors.Is(err, store.ErrRevoked) || errors.Is(err, export.ErrTakenBack) {
			t.Error(err)
		}
	})
}

// TestAccess: whose a job is and what it can hold is frozen, also over a restart.
func TestAccess(t *testing.T) {
	for _, c := range []struct {
		name, scopes, asked string
		level               export.Level
		attach              export.Attachment
		types               string // "": all; of more than 9 how many
	}{
		{name: "all", scopes: "system/*.read"},
		{name: "all of one", scopes: "system/*.read", asked: "Patient", types: "Patient"},
		{name: "what was granted", scopes: "system/Patient.rs system/Location.rs system/Observation.r", types: "Location Patient"},
		{name: "less than is asked for", scopes: "system/Patient.rs", asked: "Patient Observation", types: "Patient"},
		{name: "attached", scopes: "system/Patient.rs system/Provenance.rs", asked: "Patient", attach: export.Latest, types: "Patient Provenance"},
		{name: "attached without a right", scopes: "system/Patient.rs", attach: export.Latest, types: "Patient"},
		{name: "of a level", scopes: "system/Patient.rs system/Subscription.rs", level: export.Patient, types: "Patient"},
		{name: "nothing", scopes: "system/Subscription.rs", level: export.Patient, types: "refused"},
	} {
		db := newStore(t, 1)
		j := export.New(db, export.Options{})
		q := owned("#1", c.scopes)
		q.Level, q.Attach = c.level, c.attach
		for name := range strings.FieldsSeq(c.asked) {
			typ, _ := fhir.ParseType(name)
			q.Types = append(q.Types, typ)
		}
		id, err := j.Start(t.Context(), q)
		if _, refused := errors.AsType[*export.Refusal](err); refused != (c.types == "refused") {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil {
			continue
		}
		for range 2 {
			a, err := j.Access(id)
			var types []string
			for _, typ := range a.Types {
				types = append(types, typ.String())
			}
			slices.Sort(types)
			if got := strings.Join(types, " "); err != nil || got != c.types || (a.Types == nil) != (got == "") || a.Rights.String() != c.scopes || a.Owner != "#1" {
				t.Errorf("%s: %+v, %q, %v", c.name, a, got, err)
			}
			j = export.New(db.Restart(), export.Options{})
		}
	}
	db := newStore(t, 1)
	j := export.New(db, export.Options{})
	a, err := j.Access(start(t, j, everything()))
	if err != nil || a.Owner != "" || !a.Rights.All() || a.Types != nil {
		t.Errorf("where no tokens are asked for: %+v, %v", a, err)
	}
	if _, err := j.Access("none"); !errors.Is(err, export.ErrNotFound) {
		t.Error(err)
	}
}

// TestFileType tells of what type a file is before it is opened.
func TestFileType(t *testing.T) {
	db := newStore(t, 1)
	j := export.New(db, export.Options{})
	id := start(t, j, everything())
	m, err := j.Manifest(id)
	if err != nil || len(m.Files) == 0 {
		t.Fatal(m, err)
	}
	for i, f := range m.Files {
		if typ, err := j.FileType(id, i+1); err != nil || typ != f.Type {
			t.Errorf("%v, %v", typ, err)
		}
	}
	for _, n := range []int{0, len(m.Files) + 1} {
		if _, err := j.FileType(id, n); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("file %d: %v", n, err)
		}
	}
}

// TestConstraintsPlan: a kick-off with plain types plans at once from counts; only
// constraints have bodies read.
func TestConstraintsPlan(t *testing.T) {
	for scopes, working := range map[string]bool{
		"system/*.rs": false, "system/Patient.rs system/Location.rs?status=active": true, "system/Patient.rs": false,
	} {
		j := export.New(newStore(t, 1), export.Options{})
		_, err := j.Manifest(start(t, j, owned("#1", scopes)))
		if _, is := errors.AsType[*export.WorkingError](err); is != working {
			t.Errorf("%q: %v", scopes, err)
		}
	}
	j := export.New(newStore(t, 1), export.Options{})
	q := owned("#1", "system/Patient.rs system/Location.rs?status=active")
	patient, _ := fhir.ParseType("Patient")
	q.Types = []fhir.Type{patient}
	if _, err := j.Manifest(start(t, j, q)); err != nil {
		t.Errorf("another type is constrained: %v", err)
	}
}
