package decode

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/linkedin/goavro/v2"

	"tidemark/store"
	"tidemark/store/fhir"
)

// An event is one of a history: a version of a resource, or its end.
type event struct {
	key     fhir.Key
	version int
	at      fhir.Instant
	body    string // "" deletes
}

// TestSameInEveryFormat: one history is the same changes in the same order, whatever format
// it was written in, as far as the format can say so.
func TestSameInEveryFormat(t *testing.T) {
	for seed := range uint64(20) {
		history := randomHistory(rand.New(rand.NewPCG(seed, 7)))
		for _, w := range writers {
			t.Run(fmt.Sprintf("%s/%d", w.name, seed), func(t *testing.T) {
				d, err := New(w.format, w.options)
				if err != nil {
					t.Fatal(err)
				}
				var got, want []string
				for rec := range w.write(t, rand.New(rand.NewPCG(seed, 8)), history) {
					rec.Offset = int64(len(got))
					changes, err := d.Decode(rec)
					if err != nil {
						t.Fatalf("%v: %s %s", err, rec.Key, rec.Value)
					}
					for _, c := range changes {
						got = append(got, line(c, w.says))
					}
				}
				for _, e := range history {
					want = append(want, line(e.change(), w.says))
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			})
		}
	}
}

func randomHistory(r *rand.Rand) (all []event) {
	type state struct {
		version int
		live    bool
	}
	known := map[fhir.Key]*state{}
	at := fhir.Instant(1767323045123)
	for range 40 {
		at += fhir.Instant(1 + r.IntN(5000))
		typ := []string{"Patient", "Observation", "Condition"}[r.IntN(3)]
		key := fhir.Key{Type: typeOf(typ), ID: fmt.Sprintf("%s-%d", strings.ToLower(typ), r.IntN(6))}
		s := known[key]
		if s == nil {
			s = &state{}
			known[key] = s
		}
		s.version++
		e := event{key: key, version: s.version, at: at}
		if s.live && r.IntN(4) == 0 {
			s.live = false
			all = append(all, e)
			continue
		}
		s.live = true
		rest := []string{
			`"active":true`, `"text":{"div":"<div>\"quoted\" \\ \/ \u00fc ü \n</div>"}`, `"extension":[{"valueDecimal":1.50},{"valueDecimal":-1e+3}]`,
		}[r.IntN(3)]
		if typ != "Patient" {
			rest += fmt.Sprintf(`,"subject":{"reference":"Patient/patient-%d"}`, r.IntN(6))
		}
		e.body = fmt.Sprintf(`{"resourceType":%q,"id":%q,"meta":{"versionId":"%d","lastUpdated":%q},%s}`, typ, key.ID, e.version, e.at, rest)
		all = append(all, e)
	}
	return all
}

// change is the event as a decoder tells it.
func (e event) change() store.Change {
	c := store.Change{Key: e.key, Delete: e.body == "", Version: int64(e.version), LastUpdated: e.at, Body: []byte(e.body)}
	if c.Delete {
		c.Body = nil
	}
	if _, ref, is := strings.Cut(e.body, `"reference":"Patient/`); is {
		c.Patients = []string{ref[:strings.IndexByte(ref, '"')]}
	} else if e.body != "" {
		c.Patients = []string{e.key.ID}
	}
	return c
}

// What a format says of a deletion, beside which resource is deleted.
const (
	saysVersion = 1 << iota
	saysInstant
)

func line(c store.Change, says int) string {
	s := fmt.Sprintf("%s %v %v %s", c.Key, c.Delete, c.Patients, c.Body)
	if !c.Delete || says&saysVersion != 0 {
		s += fmt.Sprintf(" version=%d", c.Version)
	}
	if !c.Delete || says&saysInstant != 0 {
		s += " updated=" + c.LastUpdated.String()
	}
	return s
}

// A writer writes histories in a format.
type writer struct {
	name, format string
	options      Options
	says         int
	write        func(t *testing.T, r *rand.Rand, history []event) func(yield func(Record) bool)
}

// each writes a record an event.
func each(record func(t *testing.T, e event) Record) func(*testing.T, *rand.Rand, []event) func(func(Record) bool) {
	return func(t *testing.T, _ *rand.Rand, history []event) func(func(Record) bool) {
		return func(yield func(Record) bool) {
			for _, e := range history {
				if !yield(record(t, e)) {
					return
				}
			}
		}
	}
}

// some writes several events to a record, but none of the same resource twice.
func some(record func(t *testing.T, events []event) Record) func(*testing.T, *rand.Rand, []event) func(func(Record) bool) {
	return func(t *testing.T, r *rand.Rand, history []event) func(func(Record) bool) {
		return func(yield func(Record) bool) {
			for len(history) > 0 {
				n := 1
				for n < len(history) && r.IntN(4) > 0 && !slices.ContainsFunc(history[:n], func(e event) bool { return e.key == history[n].key }) {
					n++
				}
				if !yield(record(t, history[:n])) {
					return
				}
				history = history[n:]
			}
		}
	}
}

// js is a value as JSON.
func js(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err)
	}
	return bytes.TrimSpace(b.Bytes())
}

// raw is a body that stands in a message as JSON; null if there is none.
func raw(body string) any {
	if body == "" {
		return nil
	}
	return json.RawMessage(body)
}

type obj = map[string]any

func (e event) op(created, updated, deleted string) string {
	switch {
	case e.body == "":
		return deleted
	case e.version == 1:
		return created
	}
	return updated
}

func (e event) entry() obj {
	m := obj{"request": obj{"method": e.op("PUT", "PUT", "DELETE"), "url": e.key.String()}}
	if e.body != "" {
		m["resource"], m["fullUrl"] = raw(e.body), "http://ehr/fhir/"+e.key.String()
	}
	return m
}

func zip64(body string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(body)); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

var ownTable = []Table{{Name: "res", TypeColumn: "type", ID: "id", Version: "version", LastUpdated: "changed", Body: "body", Deleted: "gone"}}

func (e event) row() obj {
	m := obj{"type": e.key.Type.String(), "id": e.key.ID, "version": e.version, "changed": int64(e.at) * 1000, "body": nil, "gone": e.body == ""}
	if e.body != "" {
		m["body"] = e.body
	}
	return m
}

var writers = []writer{
	{name: "resource", format: "resource", says: saysVersion | saysInstant, write: each(func(_ *testing.T, e event) Record {
		if e.body != "" {
			return Record{Key: []byte(e.key.String()), Value: []byte(e.body)}
		}
		return Record{Key: []byte(e.key.String()), Headers: []store.Header{
			{Key: "fhir-version", Value: fmt.Append(nil, e.version)}, {Key: "fhir-last-updated", Value: []byte(e.at.String())},
		}}
	})},
	{name: "bundle-transaction", format: "bundle", write: some(func(_ *testing.T, events []event) Record {
		var entries []obj
		for _, e := range events {
			entries = append(entries, e.entry())
		}
		return Record{Value: js(obj{"resourceType": "Bundle", "type": "transaction", "entry": entries})}
	})},
	{name: "bundle-history", format: "bundle", says: saysVersion | saysInstant, write: some(func(_ *testing.T, events []event) Record {
		var entries []obj
		for _, e := range slices.Backward(events) {
			m := e.entry()
			m["response"] = obj{"etag": fmt.Sprintf(`W/"%d"`, e.version), "lastModified": e.at.String()}
			entries = append(entries, m)
		}
		return Record{Value: js(obj{"resourceType": "Bundle", "type": "history", "entry": entries})}
	})},
	{name: "notification", format: "notification", write: some(func(_ *testing.T, events []event) Record {
		var told, entries []obj
		for _, e := range events {
			told = append(told, obj{"focus": obj{"reference": e.key.String()}, "timestamp": e.at.String()})
			m := e.entry()
			m["fullUrl"] = "http://ehr/fhir/" + e.key.String()
			entries = append(entries, m)
		}
		status := obj{"resource": obj{"resourceType": "SubscriptionStatus", "type": "event-notification", "notificationEvent": told}}
		return Record{Value: js(obj{"resourceType": "Bundle", "type": "subscription-notification", "entry": append([]obj{status}, entries...)})}
	})},
	{name: "hapi-message", format: "hapi-message", says: saysVersion, write: each(func(_ *testing.T, e event) Record {
		return Record{Value: js(obj{"payload": obj{
			"operationType": e.op("CREATE", "UPDATE", "DELETE"), "payloadId": e.key.String(), "payloadVersion": fmt.Sprint(e.version), "payload": e.body,
		}})}
	})},
	{name: "lfh-event", format: "lfh-event", says: saysVersion | saysInstant, write: each(func(_ *testing.T, e event) Record {
		return Record{Value: js(obj{
			"operationType": e.op("create", "update", "delete"), "location": fmt.Sprintf("%s/_history/%d", e.key, e.version), "lastUpdated": e.at.String(), "resource": raw(e.body),
		})}
	})},
	{name: "firely", format: "firely", says: saysVersion, write: some(func(_ *testing.T, events []event) Record {
		var told []obj
		for _, e := range events {
			m := obj{"changeType": e.op("create", "update", "delete"), "reference": obj{"resourceType": e.key.Type.String(), "resourceId": e.key.ID, "version": fmt.Sprint(e.version)}}
			if e.body != "" {
				m["resource"] = e.body
			}
			told = append(told, m)
		}
		return Record{Value: js(obj{"headers": obj{"fhir-release": "R4"}, "message": obj{"changes": told}})}
	})},
	{name: "outbox", format: "outbox", says: saysVersion | saysInstant, write: each(func(_ *testing.T, e event) Record {
		rec := Record{Key: []byte(e.key.String()), Headers: []store.Header{
			{Key: "eventType", Value: []byte(e.op("created", "updated", "deleted"))}, {Key: "version", Value: fmt.Append(nil, e.version)}, {Key: "lastUpdated", Value: []byte(e.at.String())},
		}}
		if e.body != "" {
			rec.Value = js(e.body)
		}
		return rec
	})},
	{name: "cloudevents", format: "cloudevents", says: saysVersion, write: each(func(_ *testing.T, e event) Record {
		return Record{Value: js(obj{
			"specversion": "1.0", "type": e.op("fhir.created", "fhir.updated", "fhir.deleted"), "subject": fmt.Sprintf("%s/_history/%d", e.key, e.version), "time": e.at.String(), "data": raw(e.body),
		})}
	})},
	{name: "debezium", format: "debezium", options: Options{Tables: ownTable}, says: saysVersion | saysInstant, write: each(func(_ *testing.T, e event) Record {
		return Record{Key: js(obj{"id": e.key.ID}), Value: js(obj{"before": nil, "after": e.row(), "op": e.op("c", "u", "u"), "source": obj{"table": "res", "lsn": int64(e.at)}})}
	})},
	{name: "debezium-flat", format: "debezium", options: Options{Tables: ownTable}, says: saysVersion | saysInstant, write: each(func(_ *testing.T, e event) Record {
		m := e.row()
		m["__op"], m["__table"], m["__deleted"], m["__lsn"] = e.op("c", "u", "u"), "RES", "false", int64(e.at)
		return Record{Key: js(obj{"id": e.key.ID}), Value: js(m)}
	})},
	{name: "debezium-avro", format: "debezium", options: Options{Tables: ownTable, Schemas: sameSchemas}, says: saysVersion | saysInstant, write: each(func(t *testing.T, e event) Record {
		row := obj{"type": e.key.Type.String(), "id": e.key.ID, "version": e.version, "changed": int64(e.at) * 1000, "body": nil, "gone": e.body == ""}
		if e.body != "" {
			row["body"] = obj{"string": e.body}
		}
		return Record{Value: frame(t, sameSchemas, 1, obj{"after": obj{"Row": row}, "op": e.op("c", "u", "u"), "source": obj{"table": "res"}})}
	})},
	{name: "avro", format: "avro", options: Options{Tables: ownTable, Schemas: sameSchemas}, says: saysVersion | saysInstant, write: each(func(t *testing.T, e event) Record {
		row := obj{"type": e.key.Type.String(), "id": e.key.ID, "version": e.version, "changed": int64(e.at) * 1000, "body": nil, "gone": e.body == ""}
		if e.body != "" {
			row["body"] = obj{"string": e.body}
		}
		return Record{Topic: "res", Value: frame(t, sameSchemas, 2, row)}
	})},
	{name: "medplum", format: "debezium", options: Options{Preset: "medplum"}, says: saysInstant, write: each(func(_ *testing.T, e event) Record {
		row := obj{"id": e.key.ID, "lastUpdated": e.at.String(), "content": e.body}
		return Record{Value: js(obj{"after": row, "op": "c", "source": obj{"table": e.key.Type.String() + "_History"}})}
	})},
	{name: "lfh", format: "debezium", options: Options{Preset: "lfh"}, says: saysVersion | saysInstant, write: each(func(_ *testing.T, e event) Record {
		body := e.body
		if body == "" {
			body = fmt.Sprintf(`{"resourceType":%q,"id":%q}`, e.key.Type, e.key.ID)
		}
		row := obj{"version_id": e.version, "last_updated": int64(e.at) * 1000, "is_deleted": e.op("N", "N", "Y"), "data": zip64(body)}
		return Record{Value: js(obj{"after": row, "op": "c", "source": obj{"table": strings.ToLower(e.key.Type.String()) + "_resources"}})}
	})},
	{name: "msfhir", format: "debezium", options: Options{Preset: "msfhir"}, says: saysVersion | saysInstant, write: each(func(_ *testing.T, e event) Record {
		body := e.body
		if body == "" {
			body = fmt.Sprintf(`{"resourceType":%q,"id":%q}`, e.key.Type, e.key.ID)
		}
		row := obj{
			"ResourceTypeId": 1, "ResourceId": e.key.ID, "Version": e.version, "IsHistory": false, "IsDeleted": e.body == "",
			"ResourceSurrogateId": (int64(e.at) + msBefore1970) * 1e4 * 8, "RawResource": zip64("\xef\xbb\xbf" + body),
		}
		return Record{Value: js(obj{"after": row, "op": "c", "source": obj{"table": "Resource"}})}
	})},
	{name: "aidbox", format: "debezium", options: Options{Preset: "aidbox"}, says: saysVersion | saysInstant, write: each(func(_ *testing.T, e event) Record {
		// As the server keeps it: without type and id, references apart, choices as objects.
		body := strings.Replace(e.body, fmt.Sprintf(`"resourceType":%q,"id":%q,`, e.key.Type, e.key.ID), "", 1)
		body = regexp.MustCompile(`\{"reference":"([A-Za-z]+)/([a-z0-9-]+)"`).ReplaceAllString(body, `{"resourceType":"$1","id":"$2"`)
		body = regexp.MustCompile(`"valueDecimal":([-+.0-9e]+)`).ReplaceAllString(body, `"value":{"decimal":$1}`)
		row := obj{"id": e.key.ID, "txid": e.version, "ts": e.at.String(), "resource_type": e.key.Type.String(), "status": e.op("created", "updated", "deleted"), "resource": body}
		return Record{Value: js(obj{"after": row, "op": "c", "source": obj{"table": strings.ToLower(e.key.Type.String()) + e.op("", "", "_history")}})}
	})},
	{name: "miracum", format: "debezium", options: Options{Preset: "miracum"}, says: saysInstant, write: each(func(_ *testing.T, e event) Record {
		row := obj{"type": e.key.Type.String(), "fhir_id": e.key.ID, "last_updated_at": e.at.String(), "data": e.body, "is_deleted": e.body == ""}
		return Record{Value: js(obj{"after": row, "op": "u", "source": obj{"table": "resources"}})}
	})},
}

var sameSchemas = schemas{
	1: `{"type":"record","name":"Envelope","fields":[{"name":"after","type":["null",` + sameRow + `]},{"name":"op","type":"string"},
		{"name":"source","type":{"type":"record","name":"Source","fields":[{"name":"table","type":"string"}]}}]}`,
	2: sameRow,
}

const sameRow = `{"type":"record","name":"Row","fields":[{"name":"type","type":"string"},{"name":"id","type":"string"},{"name":"version","type":"int"},
	{"name":"changed","type":"long"},{"name":"body","type":["null","string"]},{"name":"gone","type":"boolean"}]}`

// TestEveryFormatIsWritten: a format that no writer writes would not be compared.
func TestEveryFormatIsWritten(t *testing.T) {
	for _, format := range Formats() {
		if !slices.ContainsFunc(writers, func(w writer) bool { return w.format == format }) {
			t.Errorf("nobody writes a history as %s", format)
		}
	}
	for _, preset := range Presets() {
		if preset == hapiPreset {
			continue // its rows must be joined: TestHistories in pipeline/join writes them
		}
		if !slices.ContainsFunc(writers, func(w writer) bool { return w.options.Preset == preset }) {
			t.Errorf("nobody writes a history as the tables of %s", preset)
		}
	}
}

// BenchmarkFormats decodes one resource in each format, and in the same run measures what
// cannot be had for less: reading the resource alone, and a row in Avro with goavro alone;
// and copying the message.
func BenchmarkFormats(b *testing.B) {
	pad := strings.Repeat(`{"text":"something that was said"},`, 48) + `{}`
	e := event{key: fhir.Key{Type: typeOf("Observation"), ID: "o-1"}, version: 2, at: 1767323045123}
	e.body = fmt.Sprintf(`{"resourceType":"Observation","id":"o-1","meta":{"versionId":"2","lastUpdated":%q},"subject":{"reference":"Patient/p-1"},"note":[%s]}`, e.at, pad)
	for _, w := range writers {
		b.Run(w.name, func(b *testing.B) {
			d, err := New(w.format, w.options)
			if err != nil {
				b.Fatal(err)
			}
			var rec Record
			for rec = range w.write(&testing.T{}, rand.New(rand.NewPCG(1, 1)), []event{e}) {
			}
			b.SetBytes(int64(len(rec.Value)))
			b.ReportAllocs()
			for b.Loop() {
				if changes, err := d.Decode(rec); err != nil || len(changes) != 1 {
					b.Fatal(changes, err)
				}
			}
		})
	}
	b.Run("scan alone", func(b *testing.B) {
		s, body := fhir.Scanner{}, []byte(e.body)
		b.SetBytes(int64(len(body)))
		for b.Loop() {
			if _, err := s.Scan(body); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("copy alone", func(b *testing.B) {
		to := make([]byte, len(e.body))
		b.SetBytes(int64(len(e.body)))
		for b.Loop() {
			copy(to, e.body)
		}
	})
	b.Run("goavro alone", func(b *testing.B) {
		codec, err := goavro.NewCodec(sameRow)
		if err != nil {
			b.Fatal(err)
		}
		row, err := codec.BinaryFromNative(nil, obj{"type": "Observation", "id": "o-1", "version": 2, "changed": int64(e.at), "body": obj{"string": e.body}, "gone": false})
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(row)))
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := codec.NativeFromBinary(row); err != nil {
				b.Fatal(err)
			}
		}
	})
}
