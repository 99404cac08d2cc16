package export_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"tidemark/api/apitest"
	"tidemark/api/export"
	"tidemark/store/fhir"
)

func typ(t testing.TB, name string) fhir.Type {
	t.Helper()
	typ, ok := fhir.ParseType(name)
	if !ok {
		t.Fatal(name)
	}
	return typ
}

// What others have made durable is no job: it takes no job's place, and nobody
// polls, reads or deletes it as one.
func TestPinsOfOthers(t *testing.T) {
	db := newStore(t, 1)
	s, err := db.Pin(t.Context(), "publish-1-1-00112233445566778899aabbccddeeff", time.Now().Add(-time.Hour), func(export.Snapshot) ([]byte, error) {
		return []byte("{}"), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	j := export.New(db, export.Options{MaxJobs: 1})
	if j.Len() != 0 {
		t.Errorf("%d jobs, want none", j.Len())
	}
	start(t, j, everything())
	if n := len(db.Pinned()); n != 2 {
		t.Errorf("%d pins, want both", n)
	}
}

// TestWhole: it is kept as JSON and reads as it was planned.
func TestWhole(t *testing.T) {
	db := newStore(t, 3)
	db.Put(key(t, "Location/x"), instant(t, "2026-01-01T10:00:00Z"), apitest.Links{})
	db.Delete(key(t, "Location/y"), instant(t, "2026-01-01T11:00:00Z"), apitest.Links{})
	s, err := db.Present()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := export.PlanWhole(s, nil, fhir.None, export.Limits{}); err == nil {
		t.Error("without types everything is planned")
	}
	w, err := export.PlanWhole(s, []fhir.Type{typ(t, "Location")}, instant(t, "2026-01-01T09:00:00Z"), export.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	var again export.Whole
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatal(err)
	}
	ext, err := again.Extents(s)
	if err != nil || len(ext) != 2 || again.Empty() || again.Upto() != s.Watermark() {
		t.Fatal(ext, err, again)
	}
	var text bytes.Buffer
	for n, f := range again.Files() {
		d, err := again.Open(t.Context(), s, n+1, n+1)
		if err != nil {
			t.Fatal(err)
		}
		if d.List != f.List {
			t.Errorf("file %d: %s, want %s", n+1, d.List, f.List)
		}
		if err := d.Write(&text, false, 0, d.Size(false)); err != nil {
			t.Fatal(err)
		}
	}
	want := `{"resourceType":"Location","id":"x","meta":{"lastUpdated":"2026-01-01T10:00:00.000Z"}}
{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":"Location/y"}}]}
`
	if text.String() != want {
		t.Errorf("got %s, want %s", text.String(), want)
	}
	if _, err := again.Open(t.Context(), s, 3, 3); err == nil {
		t.Error("there is a third file")
	}
}
