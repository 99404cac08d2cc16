package decode

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/store"
	"tidemark/store/fhir"
)

func TestNew(t *testing.T) {
	if _, err := New("csv", Options{}); err == nil || err.Error() != `unknown format "csv": known are `+strings.Join(Formats(), ", ") {
		t.Errorf("an unknown format: %v", err)
	}
	_, err := New("resource", Options{MaxRecord: -1, MaxDepth: -2, DropTypes: []string{"Binary", "binary", "Foo"}})
	if err == nil {
		t.Fatal("four faults, and no error")
	}
	for _, part := range []string{"format resource", "max record -1", "max depth -2", `"binary"`, `"Foo"`} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not name %s: %v", part, err)
		}
	}
	if !slices.Contains(Formats(), "resource") {
		t.Errorf("formats: %v", Formats())
	}
}

func TestErrorNamesTheRecord(t *testing.T) {
	err := refuse(record("x", "y"), "key is wrong")
	if got, want := err.Error(), "decode fhir-changes/3 at offset 41: key is wrong"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDeadLetter(t *testing.T) {
	rec := record("k", "", "h", "v")
	want := store.Change{
		Version: store.NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: 1767323045900, Offset: 41,
		Dead: &store.DeadLetter{Reason: "because", Key: []byte("k"), Value: []byte{}, Headers: rec.Headers},
	}
	got := DeadLetter(rec, "because")
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(fhir.Meta{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := DeadLetter(record(null, null), "x").Dead; got.Key != nil || got.Value != nil {
		t.Errorf("null became empty: %+v", got)
	}
	if got := DeadLetter(record("", ""), "x").Dead; got.Key == nil || got.Value == nil {
		t.Errorf("empty became null: %+v", got)
	}
	if got := DeadLetter(record("", "abc"), "x").Dead; got.Length != 3 || got.Truncated || got.SHA256 != "" {
		t.Errorf("a whole dead letter: %+v", got)
	}
}

func TestDeadLetterOfLargeRecord(t *testing.T) {
	o := Options{MaxRecord: 1 << 17}
	value := bytes.Repeat([]byte("0123456789abcdef"), 1<<13)
	rec := record("key", string(value))
	got := o.DeadLetter(rec, "large").Dead
	sum := sha256.Sum256(value)
	want := &store.DeadLetter{
		Reason: "large", Key: []byte("key"), Value: value[:64<<10],
		Length: 1 << 17, SHA256: hex.EncodeToString(sum[:]), Truncated: true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if &got.Value[0] == &rec.Value[0] || cap(got.Value) > 1<<17-1 {
		t.Error("the dead letter keeps the whole record in memory")
	}
	if got := o.DeadLetter(record("", string(value)), "as large as may be").Dead; got.Truncated {
		t.Error("a record at the limit was truncated")
	}
	if got := DeadLetter(rec, "x").Dead; got.Truncated {
		t.Error("the limit of others was applied")
	}
	rec = record(null, null, "a", "1", "b", strings.Repeat("x", 1<<17))
	got = o.DeadLetter(rec, "large headers").Dead
	if got.Key != nil || got.Value != nil || got.Length != 0 || len(got.Headers) != 1 || got.Headers[0].Key != "a" {
		t.Errorf("of headers: %+v", got)
	}
}

// A decoder serves all partitions of its topic.
func TestDecodeConcurrently(t *testing.T) {
	d, err := New("resource", Options{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				changes, err := d.Decode(record(null, withVer))
				if err != nil || len(changes) != 1 || changes[0].Key.ID != "o-1" || changes[0].Patients[0] != "p-1" {
					t.Errorf("Decode = %+v, %v", changes, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkResource(b *testing.B) {
	d, err := New("resource", Options{})
	if err != nil {
		b.Fatal(err)
	}
	rec := record("Observation/o-1", `{"resourceType":"Observation","id":"o-1","subject":{"reference":"Patient/p-1"},"note":[`+
		strings.Repeat(`{"text":"something that was said"},`, 48)+`{}]}`)
	b.SetBytes(int64(len(rec.Value)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Decode(rec); err != nil {
			b.Fatal(err)
		}
	}
}
