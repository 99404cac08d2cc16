package decode

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tidemark/store"
	"tidemark/store/fhir"
)

const (
	bare    = `{"resourceType":"Observation","id":"o-1","subject":{"reference":"Patient/p-1"}}`
	withVer = `{"resourceType":"Observation","id":"o-1","meta":{"versionId":"2","lastUpdated":"2026-01-02T03:04:05.123Z"},"subject":{"reference":"Patient/p-1"}}`
)

func record(key, value string, headers ...string) Record {
	rec := Record{Topic: "fhir-changes", Partition: 3, Offset: 41, Timestamp: 1767323045900}
	if key != null {
		rec.Key = []byte(key)
	}
	if value != null {
		rec.Value = []byte(value)
	}
	for h := range slices.Chunk(headers, 2) {
		rec.Headers = append(rec.Headers, store.Header{Key: h[0], Value: []byte(h[1])})
	}
	return rec
}

// null is Kafka's null in the tables below, where "" is an empty value.
const null = "\x00null"

// change is what the records below have in common.
func change(edit func(*store.Change)) []store.Change {
	c := store.Change{
		Key:         fhir.Key{Type: typeOf("Observation"), ID: "o-1"},
		Version:     store.NoVersion,
		LastUpdated: fhir.None,
		Time:        fhir.None,
		Timestamp:   1767323045900,
		Offset:      41,
	}
	edit(&c)
	return []store.Change{c}
}

func upsert(body string, edit func(*store.Change)) []store.Change {
	return change(func(c *store.Change) {
		c.Body = []byte(body)
		c.Patients = []string{"p-1"}
		edit(c)
	})
}

func deletion(edit func(*store.Change)) []store.Change {
	return change(func(c *store.Change) {
		c.Delete = true
		edit(c)
	})
}

func asIs(*store.Change) {}

func version2(c *store.Change) {
	c.Version = 2
	c.LastUpdated = 1767323045123
}

func TestResource(t *testing.T) {
	withMeta := func(meta string) string {
		return strings.Replace(bare, `"id":"o-1"`, `"id":"o-1","meta":`+meta, 1)
	}
	for _, c := range []struct {
		name string
		rec  Record
		want []store.Change
	}{
		{"with version and instant", record("Observation/o-1", withVer), upsert(withVer, version2)},
		{"without", record("Observation/o-1", bare), upsert(bare, asIs)},
		{"without a key", record(null, withVer), upsert(withVer, version2)},
		{"an empty key is none", record("", withVer), upsert(withVer, version2)},
		{"white space goes", record("Observation/o-1", " "+strings.ReplaceAll(bare, ":", " :\n")), upsert(bare, asIs)},
		{
			"headers say what the body does not",
			record("Observation/o-1", bare, "fhir-op", "update", "fhir-version", "2", "fhir-last-updated", "2026-01-02T03:04:05.123Z"),
			upsert(bare, version2),
		},
		{
			"the body wins over headers",
			record("Observation/o-1", withVer, "fhir-version", "9", "fhir-last-updated", "2027-01-02T03:04:05.123Z"),
			upsert(withVer, version2),
		},
		{
			"each for itself",
			record("Observation/o-1", withMeta(`{"versionId":"2"}`), "fhir-version", "9", "fhir-last-updated", "2026-01-02T03:04:05.123Z"),
			upsert(withMeta(`{"versionId":"2"}`), version2),
		},
		{
			"the last header of a name counts",
			record("Observation/o-1", bare, "fhir-version", "1", "fhir-version", "2", "fhir-last-updated", "2026-01-02T03:04:05.1239+00:00"),
			upsert(bare, version2),
		},
		{
			"headers that say nothing",
			record("Observation/o-1", bare, "fhir-version", `W/"2"`, "fhir-last-updated", "Fri, 02 Jan 2026 03:04:05 GMT", "trace", "x"),
			upsert(bare, asIs),
		},
		{
			"a version that is no number is none, and no header replaces it",
			record("Observation/o-1", withMeta(`{"versionId":"59f47104-395a","lastUpdated":"2026-01-02"}`), "fhir-version", "2", "fhir-last-updated", "2026-01-02T03:04:05.123Z"),
			upsert(withMeta(`{"versionId":"59f47104-395a","lastUpdated":"2026-01-02"}`), asIs),
		},
		{"a version beyond 63 bits", record(null, withMeta(`{"versionId":"9223372036854775808"}`)), upsert(withMeta(`{"versionId":"9223372036854775808"}`), asIs)},
		{"the greatest version", record(null, withMeta(`{"versionId":"9223372036854775807"}`)), upsert(withMeta(`{"versionId":"9223372036854775807"}`), func(c *store.Change) { c.Version = 1<<63 - 1 })},
		{"a signed version", record(null, withMeta(`{"versionId":"+2"}`)), upsert(withMeta(`{"versionId":"+2"}`), asIs)},
		{"version 0", record(null, withMeta(`{"versionId":"0"}`)), upsert(withMeta(`{"versionId":"0"}`), func(c *store.Change) { c.Version = 0 })},
		{
			"an update that is far in the past, for the store to judge (trap 8)",
			record("Observation/o-1", withMeta(`{"versionId":"1","lastUpdated":"2001-01-02T03:04:05Z"}`)),
			upsert(withMeta(`{"versionId":"1","lastUpdated":"2001-01-02T03:04:05Z"}`), func(c *store.Change) { c.Version, c.LastUpdated = 1, 978404645000 }),
		},
		{"a tombstone (traps 1 and 10: the store knows whether it had it)", record("Observation/o-1", null), deletion(asIs)},
		{
			"a tombstone with headers",
			record("Observation/o-1", null, "fhir-op", "delete", "fhir-version", "2", "fhir-last-updated", "2026-01-02T03:04:05.123Z"),
			deletion(version2),
		},
		{"a null value is a deletion, whatever the header", record("Observation/o-1", null, "fhir-op", "update"), deletion(asIs)},
		{"a deletion with its last body, which is not looked at", record("Observation/o-1", withVer, "fhir-op", "delete"), deletion(asIs)},
		{"a deletion with an empty value", record("Observation/o-1", "", "fhir-op", "DELETE"), deletion(asIs)},
		{"re-created (trap 9)", record("Observation/o-1", withVer, "fhir-op", "create"), upsert(withVer, version2)},
		{"a dropped type", record("Binary/b-1", `{"resourceType":"Binary","id":"b-1"}`), nil},
		{"a dropped type is not read", record("Binary/b-1", `{`), nil},
		{"a dropped type, however large", record("Binary/b-1", strings.Repeat(" ", 1<<20)), nil},
		{"a dropped type without a key", record(null, `{"resourceType":"Binary","id":"b-1"}`), nil},
		{"a deletion of a dropped type", record("Binary/b-1", null), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := New("resource", Options{MaxRecord: 1 << 16, DropTypes: []string{"Binary"}})
			if err != nil {
				t.Fatal(err)
			}
			got, err := d.Decode(c.rec)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, cmpopts.IgnoreTypes(fhir.Meta{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// The same record again (trap 7) is the same change at another offset: it is
// the store that finds the version known.
func TestResourceAgain(t *testing.T) {
	d, err := New("resource", Options{})
	if err != nil {
		t.Fatal(err)
	}
	first, err1 := d.Decode(record("Observation/o-1", withVer))
	rec := record("Observation/o-1", withVer)
	rec.Offset = 42
	second, err2 := d.Decode(rec)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	first[0].Offset++
	if diff := cmp.Diff(first, second, cmp.AllowUnexported(fhir.Meta{})); diff != "" {
		t.Errorf("-first +second:\n%s", diff)
	}
}

func TestResourceInjects(t *testing.T) {
	d, err := New("resource", Options{})
	if err != nil {
		t.Fatal(err)
	}
	changes, err := d.Decode(record("Patient/p", ` {"resourceType": "Patient", "id": "p", "meta": {"versionId":"7"} }`))
	if err != nil {
		t.Fatal(err)
	}
	got := changes[0].Meta.Inject(nil, changes[0].Body, "never", 0)
	want := `{"resourceType":"Patient","id":"p","meta":{"lastUpdated":"1970-01-01T00:00:00.000Z","versionId":"7"}}`
	if string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestResourceRefuses(t *testing.T) {
	subsetted := `{"resourceType":"Observation","id":"o-1","meta":{"tag":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}]}}`
	for _, c := range []struct {
		name string
		rec  Record
		want string
	}{
		{"an empty value is no tombstone", record("Observation/o-1", ""), reasonEmpty},
		{"nor without a key", record(null, ""), reasonEmpty},
		{"no JSON", record("Observation/o-1", "Obj\x01avro"), "resource at byte 0: not a JSON object"},
		{"a truncated value", record("Observation/o-1", bare[:len(bare)-1]), fmt.Sprintf("resource at byte %d: unexpected end", len(bare)-1)},
		{"two resources", record("Observation/o-1", bare+bare), fmt.Sprintf("resource at byte %d: something follows the document", len(bare))},
		{"a key of another kind", record("pid.999", bare), reasonKey},
		{"a quoted key", record(`"Observation/o-1"`, bare), reasonKey},
		{"a versioned key", record("Observation/o-1/_history/2", bare), reasonKey},
		{"a key of an unknown type", record("Foo/o-1", bare), reasonKey},
		{"a tombstone with a key of another kind", record("pid.999", null), reasonKey},
		{"a tombstone without a key", record(null, null), reasonNoKey},
		{"a tombstone with an empty key", record("", null), reasonNoKey},
		{"a deletion with a body and no key (trap 5)", record(null, bare, "fhir-op", "delete"), reasonNoKey},
		{"another id in the key", record("Observation/o-2", bare), reasonOther},
		{"another type in the key", record("Patient/o-1", bare), reasonOther},
		{"a part of a resource (trap 12)", record("Observation/o-1", subsetted), reasonSubsetted},
		{"an operation we do not know", record("Observation/o-1", bare, "fhir-op", "purge"), reasonOp},
		{"even with a tombstone", record("Observation/o-1", null, "fhir-op", "undelete"), reasonOp},
		{"a record above the limit", record("Observation/o-1", bare+strings.Repeat(" ", 1024)), reasonLarge},
		{"headers count for the limit", record("Observation/o-1", bare, "x", strings.Repeat("x", 1024)), reasonLarge},
		{"of a dropped type, if only the value says so", record(null, strings.Repeat(" ", 1025)), reasonLarge},
		{"a Debezium envelope", record(null, `{"before":null,"after":{"resourceType":"Patient"},"op":"c"}`), "resource at byte 0: resourceType is missing"},
		{"a Bundle without an id", record(null, `{"resourceType":"Bundle","type":"document"}`), "resource at byte 0: id is missing"},
		{"a Bundle of requests", record(null, `{"resourceType":"Bundle","id":"b","type":"transaction"}`), reasonRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := New("resource", Options{MaxRecord: 1024, DropTypes: []string{"Binary"}})
			if err != nil {
				t.Fatal(err)
			}
			changes, err := d.Decode(c.rec)
			var refused *Error
			if !errors.As(err, &refused) {
				t.Fatalf("Decode = %+v, %v, want it refused", changes, err)
			}
			want := &Error{Topic: "fhir-changes", Partition: 3, Offset: 41, Reason: c.want}
			if diff := cmp.Diff(want, refused); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestResourceReferences(t *testing.T) {
	d, err := New("resource", Options{OwnBases: []string{"http://own.example/fhir/"}})
	if err != nil {
		t.Fatal(err)
	}
	changes, err := d.Decode(record(null, strings.Replace(bare, "Patient/p-1", "http://own.example/fhir/Patient/p-2/_history/1", 1)))
	if err != nil || !slices.Equal(changes[0].Patients, []string{"p-2"}) {
		t.Errorf("Decode = %+v, %v", changes, err)
	}
}

// Whatever is wrong with a record, neither the error nor a dead letter's reason
// says anything of what it holds.
func TestErrorsHoldNoContent(t *testing.T) {
	d, err := New("resource", Options{})
	if err != nil {
		t.Fatal(err)
	}
	key := "Observation/CANARY-o"
	value := `{"resourceType":"Observation","id":"CANARY-o","meta":{"versionId":"CANARY-v"},"subject":{"reference":"Patient/CANARY-p","display":"CANARY"}}`
	check := func(rec Record) {
		t.Helper()
		_, err := d.Decode(rec)
		if err == nil {
			return
		}
		var refused *Error
		if !errors.As(err, &refused) || strings.Contains(err.Error()+refused.Reason, "CANARY") {
			t.Fatalf("%v (%T)", err, err)
		}
	}
	for i := range len(value) {
		check(record(key, value[:i]))
		for _, c := range []string{"\x00", `"`, "{", "}", "n", "\xff"} {
			check(record(key, value[:i]+c+value[i+1:]))
		}
	}
	for i := range len(key) {
		check(record(key[:i], value))
		check(record(key[:i]+"/"+key[i:], null))
	}
	check(record(key, value, "fhir-op", "CANARY"))
	check(record(null, null, "fhir-version", "CANARY"))
}

func FuzzResource(f *testing.F) {
	f.Add([]byte("Observation/o-1"), []byte(withVer), true, true, "update", "2", "2026-01-02T03:04:05.123Z")
	f.Add([]byte(""), []byte(bare), true, true, "", "", "")
	f.Add([]byte("Observation/o-1"), []byte(""), true, false, "delete", "007", "x")
	f.Add([]byte("Binary/x"), []byte(`{"resourceType":"Binary","id":"x"}`), false, true, "DELETE", "-1", "2026-01-02T03:04:05Z")
	d, err := New("resource", Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, key, value []byte, hasKey, hasValue bool, op, version, updated string) {
		if !hasKey {
			key = nil
		}
		if !hasValue {
			value = nil
		} else if value == nil {
			value = []byte{}
		}
		rec := Record{
			Topic: "t", Offset: 7, Timestamp: fhir.None, Key: key, Value: value,
			Headers: []store.Header{{Key: "fhir-op", Value: []byte(op)}, {Key: "fhir-version", Value: []byte(version)}, {Key: "fhir-last-updated", Value: []byte(updated)}},
		}
		changes, err := d.Decode(rec)
		var refused *Error
		if err != nil {
			if !errors.As(err, &refused) || refused.Reason == "" || refused.Offset != 7 || len(changes) > 0 {
				t.Fatalf("%+v, %v", changes, err)
			}
			return
		}
		if len(changes) != 1 {
			t.Fatalf("%d changes", len(changes))
		}
		checkResource(t, rec, changes[0])
	})
}

// checkResource holds the change of a record of this format against it.
func checkResource(t *testing.T, rec Record, c store.Change) {
	t.Helper()
	checkChange(t, rec, c)
	switch {
	case c.Time != fhir.None:
		t.Fatalf("a time from elsewhere: %+v", c)
	case rec.Value == nil && !c.Delete:
		t.Fatal("a tombstone that deletes nothing")
	case len(rec.Key) > 0 && c.Key.String() != string(rec.Key):
		t.Fatal("a change of another resource than the key's")
	}
}

func typeOf(name string) fhir.Type {
	t, ok := fhir.ParseType(name)
	if !ok {
		panic(name)
	}
	return t
}
