package decode

import (
	"encoding/json"
	"strings"
	"testing"

	"tidemark/store"
	"tidemark/store/fhir"
)

// TestRows: what a row is taken for does not follow from how its columns are called, and
// whether it is deleted only from words that are known.
func TestRows(t *testing.T) {
	d, err := New("debezium", Options{Tables: []Table{{Name: "fhir", TypeColumn: "type", ID: "id", Version: "number", Body: "body", Deleted: "gone"}}})
	if err != nil {
		t.Fatal(err)
	}
	const upsert, deletion = "upsert Patient/p-1 patients=p-1\n  {\"resourceType\":\"Patient\",\"id\":\"p-1\"}\n", "delete Patient/p-1\n"
	row := func(more string) string {
		if !strings.Contains(more, `"gone"`) {
			more += `,"GONE":null`
		}
		if !strings.Contains(more, `"number"`) {
			more += `,"Number":null`
		}
		return `{"type":"Patient","id":"p-1","body":"{\"resourceType\":\"Patient\",\"id\":\"p-1\"}"` + more + `}`
	}
	enveloped := func(op, after string) string {
		return `{"before":null,"after":` + after + `,"source":{"table":"fhir"},"op":"` + op + `"}`
	}
	for _, c := range []struct{ name, value, want string }{
		{"a column called op", row(`,"op":"d"`), upsert},
		{"a column called source", row(`,"source":"lab","__op":"u"`), upsert},
		{"columns called op and source", row(`,"op":"d","source":"lab"`), upsert},
		{"columns called schema and payload", row(`,"schema":{},"payload":{}`), upsert},
		{"columns called ts_ms and status", row(`,"ts_ms":5,"status":"END","other":1`), upsert},
		{"an envelope without its source", `{"before":null,"after":` + row("") + `,"op":"u"}`, upsert},
		{"a deletion without its source", `{"before":null,"after":null,"op":"d"}`, deletion},
		{"a change of columns", `{"source":{"server":"ehr"},"databaseName":"ehr","ddl":"ALTER TABLE fhir …","tableChanges":[]}`, "nothing\n"},
		{"no change", `{"source":{"server":"ehr"}}`, "refused: " + reasonUnknownOp + "\n"},
		{"no column that says whether it is deleted", enveloped("u", strings.Replace(row(""), `"GONE"`, `"went"`, 1)), "refused: " + string(reasonNoDeleted) + "\n"},
		{"no column that says the version", enveloped("u", strings.Replace(row(""), `"Number"`, `"n"`, 1)), "refused: " + string(reasonNoVersion) + "\n"},
		{"what is deleted has no body", enveloped("u", strings.Replace(row(`,"gone":true`), `{\"`, `x`, 1)), deletion},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := decoded(t, d, Record{Topic: "ehr.public.fhir", Offset: 41, Timestamp: fhir.None, Key: []byte(`{"type":"Patient","id":"p-1"}`), Value: []byte(c.value)})
			if got != c.want {
				t.Errorf("got  %swant %s", got, c.want)
			}
		})
	}
	if got := decoded(t, d, Record{Topic: "ehr.public.fhir", Offset: 41, Timestamp: fhir.None, Value: []byte(row(`,"number":3.0`))}); got != strings.Replace(upsert, " patients", " version=3 patients", 1) {
		t.Errorf("a version that is a double: %s", got)
	}
	skips, err := New("debezium", Options{Tables: []Table{{Name: "fhir", TypeColumn: "type", ID: "id", Body: "body", Skip: "old"}}})
	if err != nil {
		t.Fatal(err)
	}
	for more, want := range map[string]string{`,"old":false`: upsert, `,"old":true`: "nothing\n", "": "refused: " + string(reasonNoSkip) + "\n"} {
		if got := decoded(t, skips, Record{Topic: "ehr.public.fhir", Offset: 41, Timestamp: fhir.None, Value: []byte(enveloped("u", row(more)))}); got != want {
			t.Errorf("a table with versions of old, %q: got  %swant %s", more, got, want)
		}
	}
	lax, err := New("debezium", Options{Tables: []Table{{
		Name: "fhir", TypeColumn: "type", ID: "id", Version: "v", LastUpdated: "at", Body: "body", Deleted: "gone", Skip: "old", Optional: []string{"version", "last_updated", "deleted", "skip"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	for more, want := range map[string]string{"": upsert, `,"gone":1`: deletion, `,"old":1`: "nothing\n", `,"v":3`: strings.Replace(upsert, " patients", " version=3 patients", 1)} {
		if got := decoded(t, lax, Record{Topic: "ehr.public.fhir", Offset: 41, Timestamp: fhir.None, Value: []byte(enveloped("u", row(more)))}); got != want {
			t.Errorf("a table with columns that rows may lack, %q: got  %swant %s", more, got, want)
		}
	}
	if _, err := New("debezium", Options{Tables: []Table{{Body: "body", Optional: []string{"body"}}}}); err == nil || !strings.Contains(err.Error(), `"body" is none of version`) {
		t.Errorf("a body that rows may lack: %v", err)
	}
	timed, err := New("debezium", Options{Tables: []Table{{Name: "fhir", TypeColumn: "type", ID: "id", Body: "body", LastUpdated: "at"}}})
	if err != nil {
		t.Fatal(err)
	}
	at := func(instant string) string {
		return strings.Replace(upsert, " patients", " updated="+instant+" patients", 1)
	}
	for more, want := range map[string]string{
		`,"at":1767323045`: at("2026-01-02T03:04:05.000Z"), `,"at":"2026-01-02 03:04:05"`: at("2026-01-02T03:04:05.000Z"), `,"at":null`: upsert, `,"at":""`: upsert,
		`,"at":20455`: "refused: " + string(reasonTime) + "\n", `,"at":"2026-01-02"`: "refused: " + string(reasonTime) + "\n", `,"at":"yesterday"`: "refused: " + string(reasonTime) + "\n",
		"": "refused: " + string(reasonNoUpdated) + "\n",
	} {
		if got := decoded(t, timed, Record{Topic: "ehr.public.fhir", Offset: 41, Timestamp: fhir.None, Value: []byte(enveloped("c", row(more)))}); got != want {
			t.Errorf("a table with times, %q: got  %swant %s", more, got, want)
		}
	}
	refused := "refused: " + string(reasonGone) + "\n"
	for gone, want := range map[any]string{
		true: deletion, false: upsert, nil: upsert, 1: deletion, 0: upsert, json.Number("0.00"): upsert, json.Number("1e999"): deletion,
		"Y": deletion, "deleted": deletion, "Removed": deletion, "2026-01-02T03:04:05Z": deletion, "2026-01-02 03:04:05.123456": deletion,
		"N": upsert, "": upsert, "0": upsert, "active": upsert, "created": upsert, "recreated": upsert, "undeleted": upsert,
		"gelöscht": refused, "AQ==": refused, placeholder: refused,
	} {
		said, err := json.Marshal(gone)
		if err != nil {
			t.Fatal(err)
		}
		got := decoded(t, d, Record{Topic: "ehr.public.fhir", Offset: 41, Timestamp: fhir.None, Value: []byte(enveloped("u", row(`,"gone":`+string(said))))})
		if got != want {
			t.Errorf("gone %s: got  %swant %s", said, got, want)
		}
	}
	for text, want := range map[string]bool{"": false, "\x00\x00": false, "\x00\x01": true} {
		if (cell{isBytes, []byte(text)}).yes() != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}

// TestMoreOfASnapshot: a row of a snapshot says whether others of its table come behind it, in an
// envelope, flattened, in a header, and in Avro.
func TestMoreOfASnapshot(t *testing.T) {
	d := newDebezium(Options{}).(*debezium)
	for mark, want := range map[string]bool{"first": true, "first_in_data_collection": true, "true": true, "last_in_data_collection": false, "last": false, "incremental": false, "false": false} {
		read := func(text string) bool {
			c, err := d.rowChange(Record{Value: []byte(text)}, nil)
			if err != nil {
				t.Fatal(err)
			}
			return c.more
		}
		avro := func(v avroRow) bool {
			c, reason := readAvroChange(v)
			if reason != "" {
				t.Fatal(reason)
			}
			return c.more
		}
		heard := rowChange{op: 'r'}
		heard.hear(Record{Headers: []store.Header{{Key: "__source_snapshot", Value: []byte(mark)}}})
		for how, got := range map[string]bool{
			"in an envelope":          read(`{"before":null,"after":{"id":"1"},"source":{"table":"fhir","snapshot":"` + mark + `"},"op":"r"}`),
			"flattened":               read(`{"id":"1","__op":"r","__source_snapshot":"` + mark + `"}`),
			"in a header":             heard.more,
			"in an envelope, in Avro": avro(avroRow{"op": "r", "after": map[string]any{"id": "1"}, "source": map[string]any{"table": "fhir", "snapshot": map[string]any{"string": mark}}}),
			"flattened, in Avro":      avro(avroRow{"id": "1", "__op": "r", "__source_snapshot": mark}),
		} {
			if got != want {
				t.Errorf("%q %s: more %t, want %t", mark, how, got, want)
			}
		}
	}
}
