package decode

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/linkedin/goavro/v2"

	"tidemark/store/fhir"
)

// schemas are those of a test: AVRO by id, but for what begins with another kind.
type schemas map[uint32]string

var errAway = errors.New("the registry is away")

func (s schemas) Schema(id uint32) (kind, text string, err error) {
	text, ok := s[id]
	switch {
	case !ok:
		return "", "", ErrNoSchema
	case text == "away":
		return "", "", errAway
	}
	if kind, rest, other := strings.Cut(text, ":"); other && !strings.Contains(kind, "{") {
		return kind, rest, nil
	}
	return "AVRO", text, nil
}

// framed writes a value as Confluent's serializers do.
func frame(t *testing.T, s schemas, id uint32, native any) []byte {
	t.Helper()
	c, err := goavro.NewCodec(s[id])
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.BinaryFromNative(binary.BigEndian.AppendUint32([]byte{0}, id), native)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Debezium's envelope and what flattening leaves of it, of a table with a column of each
// kind, in a schema and in the next one.
var avroSchemas = schemas{
	1: `{"type":"record","name":"Key","fields":[{"name":"id","type":"string"}]}`,
	2: strings.ReplaceAll(`{"type":"record","name":"Envelope","namespace":"emr.public.Patient","fields":[
		{"name":"before","type":["null",COLUMNS],"default":null},{"name":"after","type":["null","Value"],"default":null},
		{"name":"source","type":{"type":"record","name":"Source","fields":[{"name":"table","type":"string"},{"name":"lsn","type":["null","long"],"default":null}]}},
		{"name":"op","type":"string"},{"name":"ts_ms","type":["null","long"],"default":null}]}`, "COLUMNS", columns("")),
	3: strings.ReplaceAll(`{"type":"record","name":"Envelope","namespace":"emr.public.Patient","fields":[
		{"name":"before","type":["null",COLUMNS],"default":null},{"name":"after","type":["null","Value"],"default":null},
		{"name":"source","type":{"type":"record","name":"Source","fields":[{"name":"table","type":"string"},{"name":"lsn","type":["null","long"],"default":null}]}},
		{"name":"op","type":"string"},{"name":"ts_ms","type":["null","long"],"default":null}]}`, "COLUMNS", columns(`,{"name":"added","type":["null","string"],"default":null}`)),
	4:  columns(`,{"name":"__deleted","type":["null","string"]},{"name":"__op","type":"string"},{"name":"__lsn","type":["null","long"]}`),
	5:  `JSON:{"type":"object"}`,
	6:  `PROTOBUF:syntax = "proto3";`,
	7:  "away",
	8:  `{"type":"record"`,
	10: `"string"`,
	11: `["null",{"type":"string","connect.name":"io.debezium.data.Json"}]`,
	12: `{"type":"record","name":"Event","fields":[{"name":"payload","type":["null","string"]},{"name":"eventType","type":"string"},{"name":"version","type":["null","long"]}]}`,
	13: `{"type":"record","name":"Res","fields":[{"name":"content","type":["null","string"]}]}`,
	14: `{"type":"record","name":"Long","fields":[{"name":"content","type":{"type":"array","items":"string"}}]}`,
	15: `["null",{"type":"record","name":"Res","fields":[{"name":"content","type":["null","string"]}]}]`,
	17: `{"type":"record","name":"Chain","fields":[{"name":"next","type":["null","Chain"]}]}`,
	18: `{"type":"record","name":"Odd","fields":[{"name":"content","type":["Odd","string"],"default":null}]}`, // goavro panics
	16: `{"type":"record","name":"Key","fields":[{"name":"id","type":["null","string"]}]}`,
	9:  `{"type":"record","name":"Heartbeat","fields":[{"name":"ts_ms","type":"long"}]}`,
}

func columns(more string) string {
	return `{"type":"record","name":"Value","fields":[{"name":"id","type":"string"},{"name":"version","type":["null","int"]},{"name":"changed","type":"long"},
		{"name":"content","type":["null","string"]},{"name":"packed","type":["null","bytes"]},{"name":"gone","type":["null","boolean"]}` + more + `]}`
}

// TestAvro: what was written with the schemas of a registry says what its JSON would.
func TestAvro(t *testing.T) {
	const body = `{"resourceType":"Patient","id":"p-1"}`
	row := func(more map[string]any) map[string]any {
		m := map[string]any{
			"id": "p-1", "version": map[string]any{"int": 3}, "changed": int64(1767323045123456),
			"content": map[string]any{"string": body}, "packed": nil, "gone": map[string]any{"boolean": false},
		}
		maps.Copy(m, more)
		return m
	}
	envelope := func(op string, after any) map[string]any {
		if m, is := after.(map[string]any); is {
			after = map[string]any{"emr.public.Patient.Value": m}
		}
		return map[string]any{
			"before": nil, "after": after, "op": op, "ts_ms": nil,
			"source": map[string]any{"table": "Patient", "lsn": map[string]any{"long": int64(77)}},
		}
	}
	framed := func(id uint32, native any) []byte { return frame(t, avroSchemas, id, native) }
	key := framed(1, map[string]any{"id": "p-1"})
	upsert := "upsert Patient/p-1 version=3 updated=2026-01-02T03:04:05.123Z position=77 patients=p-1\n  " + body + "\n"
	table := Table{Name: "(?P<type>[a-z]+)", ID: "id", Version: "version", LastUpdated: "changed", Body: "content", Deleted: "gone"}
	for _, c := range []struct {
		name, format string
		key, value   []byte
		want         string
	}{
		{"an envelope", "debezium", key, framed(2, envelope("c", row(nil))), upsert},
		{"in the next schema", "debezium", key, framed(3, envelope("u", row(map[string]any{"added": nil}))), upsert},
		{"deleted by a column", "debezium", key, framed(2, envelope("u", row(map[string]any{"gone": map[string]any{"boolean": true}}))), "delete Patient/p-1 version=3 updated=2026-01-02T03:04:05.123Z position=77\n"},
		{"deleted row", "debezium", key, framed(2, envelope("d", nil)), "delete Patient/p-1 position=77\n"},
		{"without a key", "debezium", nil, framed(2, envelope("d", nil)), "refused: " + reasonKeyless + "\n"},
		{"a tombstone", "debezium", key, nil, "nothing\n"},
		{"no row", "debezium", key, framed(2, envelope("c", nil)), "refused: " + string(reasonNoChange) + "\n"},
		{"an unchanged body", "debezium", key, framed(2, envelope("u", row(map[string]any{"content": map[string]any{"string": placeholder}}))), "unchanged Patient/p-1 version=3 updated=2026-01-02T03:04:05.123Z position=77\n"},
		{"truncated", "debezium", nil, framed(2, envelope("t", nil)), "refused: " + reasonTruncated + "\n"},
		{"flattened", "debezium", key, framed(4, row(map[string]any{"__deleted": map[string]any{"string": "false"}, "__op": "u", "__lsn": map[string]any{"long": int64(77)}})), upsert},
		{"flattened deletion", "debezium", key, framed(4, row(map[string]any{"content": nil, "__deleted": map[string]any{"string": "true"}, "__op": "d", "__lsn": map[string]any{"long": int64(77)}})), "delete Patient/p-1 position=77\n"},
		{"a heartbeat", "debezium", nil, framed(9, map[string]any{"ts_ms": int64(5)}), "nothing\n"},
		{"a JSON schema", "debezium", nil, append([]byte{0, 0, 0, 0, 5}, `{"op":"c","after":{"id":"p-1","content":"{\"resourceType\":\"Patient\"}","gone":false,"version":null,"changed":null},"source":{"table":"Patient"}}`...), "upsert Patient/p-1 patients=p-1\n  {\"resourceType\":\"Patient\",\"id\":\"p-1\"}\n"},
		{"Protobuf", "debezium", nil, []byte{0, 0, 0, 0, 6, 1}, "refused: " + reasonSchemaKind + "\n"},
		{"an unknown schema", "debezium", nil, []byte{0, 0, 0, 0, 99, 1}, "refused: " + reasonNoSchema + "\n"},
		{"a broken schema", "debezium", nil, []byte{0, 0, 0, 0, 8, 1}, "refused: " + reasonSchema + "\n"},
		{"a schema that breaks its reader", "debezium", nil, []byte{0, 0, 0, 0, 18, 1}, "refused: " + reasonSchema + "\n"},
		{"a registry that is away", "debezium", nil, []byte{0, 0, 0, 0, 7, 1}, "error: ask for the schema of a record: the registry is away\n"},
		{"less than the schema says", "debezium", key, framed(2, envelope("c", row(nil)))[:40], "refused: " + reasonAvro + "\n"},
		{"more than the schema says", "debezium", key, append(framed(2, envelope("c", row(nil))), 0), "refused: " + reasonAvro + "\n"},
		{"a plain record", "avro", key, framed(4, row(map[string]any{"__deleted": nil, "__op": "", "__lsn": nil})), strings.Replace(upsert, " position=77", "", 1)},
		{"a plain tombstone", "avro", key, nil, "delete Patient/p-1\n"},
		{"an outbox", "outbox", framed(10, "Patient/p-1"), framed(11, map[string]any{"string": body}), "upsert Patient/p-1 patients=p-1\n  " + body + "\n"},
		{"an outbox's null", "outbox", framed(10, "Patient/p-1"), framed(11, nil), "nothing\n"},
		{"an outbox's columns", "outbox", framed(10, "Patient/p-1"), framed(12, map[string]any{"payload": map[string]any{"string": body}, "eventType": "PatientDeleted", "version": map[string]any{"long": int64(4)}}), "delete Patient/p-1 version=4\n"},
		{"an outbox's columns and resource", "outbox", framed(10, "Patient/p-1"), framed(12, map[string]any{"payload": map[string]any{"string": body}, "eventType": "created", "version": nil}), "upsert Patient/p-1 patients=p-1\n  " + body + "\n"},
		{"a deletion by a key that may be null", "debezium", framed(16, map[string]any{"id": map[string]any{"string": "p-1"}}), framed(2, envelope("d", nil)), "delete Patient/p-1 position=77\n"},
		{"an outbox of records", "outbox", framed(1, map[string]any{"id": "p-1"}), framed(2, envelope("d", nil)), "refused: " + string(reasonNoText) + "\n"},
		{"an outbox without the registry", "outbox", nil, []byte{0, 0, 0, 0, 7, 1}, "error: ask for the schema of a record: the registry is away\n"},
		{"a plain tombstone whose key is text", "avro", []byte("Patient/p-1"), nil, "delete Patient/p-1\n"},
		{"a plain tombstone whose key is the id alone", "avro", []byte("p-1"), nil, "refused: key at byte 0: not a JSON value" + reasonKeyText + "\n"},
		{"a plain record whose key is text", "avro", []byte("p-1"), framed(4, row(map[string]any{"__deleted": nil, "__op": "", "__lsn": nil})), strings.Replace(upsert, " position=77", "", 1)},
		{"an envelope whose key is text", "debezium", []byte("Struct{id=p-1}"), framed(2, envelope("c", row(nil))), upsert},
		{"an envelope whose key's schema is unknown", "debezium", []byte{0, 0, 0, 0, 99, 1}, framed(2, envelope("c", row(nil))), upsert},
		{"an envelope whose key's schema cannot be asked for", "debezium", []byte{0, 0, 0, 0, 7, 1}, framed(2, envelope("c", row(nil))), "error: ask for the schema of a record: the registry is away\n"},
		{"a deletion whose key is text", "debezium", []byte("Struct{id=p-1}"), framed(2, envelope("d", nil)), "refused: key at byte 0: not a JSON value" + reasonKeyText + "\n"},
		{"JSON is not Avro", "avro", key, []byte(`{"id":"p-1"}`), "refused: " + reasonNotAvro + "\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := New(c.format, Options{Tables: []Table{table}, Schemas: avroSchemas})
			if err != nil {
				t.Fatal(err)
			}
			got := decoded(t, d, Record{Topic: "emr.public.Patient", Offset: 41, Timestamp: fhir.None, Key: c.key, Value: c.value})
			if got != c.want {
				t.Errorf("got  %swant %s", got, c.want)
			}
		})
	}
}

// TestAvroOneField: a record of one field that may be null is no union, and a union of a record
// is one.
func TestAvroOneField(t *testing.T) {
	const body = `{"resourceType":"Patient","id":"p-1"}`
	d, err := New("avro", Options{Tables: []Table{{Body: "content"}}, Schemas: avroSchemas})
	if err != nil {
		t.Fatal(err)
	}
	one := map[string]any{"content": map[string]any{"string": body}}
	for name, value := range map[string][]byte{
		"a record": frame(t, avroSchemas, 13, one), "a union": frame(t, avroSchemas, 15, map[string]any{"Res": one}),
	} {
		if got := decoded(t, d, Record{Offset: 41, Timestamp: fhir.None, Value: value}); got != "upsert Patient/p-1 patients=p-1\n  "+body+"\n" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestAvroLengths: a record that is not what its schema says has no room made for what it says
// that follows.
func TestAvroLengths(t *testing.T) {
	d, err := New("avro", Options{Tables: []Table{{Body: "content"}}, Schemas: avroSchemas})
	if err != nil {
		t.Fatal(err)
	}
	value := binary.AppendVarint([]byte{0, 0, 0, 0, 14}, 1<<26)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got := decoded(t, d, Record{Offset: 41, Value: value})
	runtime.ReadMemStats(&after)
	allocated := after.TotalAlloc - before.TotalAlloc
	if got != "refused: "+reasonAvro+"\n" || allocated > 64<<20 {
		t.Errorf("%s, %d bytes", got, allocated)
	}
}

// TestAvroRecursive: a record may not be nested deeper than a stack reaches, for that ends the
// process.
func TestAvroRecursive(t *testing.T) {
	d, err := New("avro", Options{Tables: []Table{{Body: "content"}}, Schemas: avroSchemas})
	if err != nil {
		t.Fatal(err)
	}
	for size, want := range map[int]string{maxRecursive: string(reasonNoColumn), maxRecursive + 1: reasonRecursive} {
		value := append([]byte{0, 0, 0, 0, 17}, bytes.Repeat([]byte{2}, size)...)
		value[len(value)-1] = 0
		if got := decoded(t, d, Record{Offset: 41, Value: value}); got != "refused: "+want+"\n" {
			t.Errorf("%d: %s", size, got)
		}
	}
	for schema, want := range map[string]bool{
		avroSchemas[17]: true, avroSchemas[2]: false, avroSchemas[10]: false, avroSchemas[15]: false, "{": false,
		`{"type":"record","name":"a.A","fields":[{"name":"f","type":{"type":"map","values":{"type":"array","items":["null",{"type":"record","name":"B","fields":[{"name":"g","type":"a.A"}]}]}}}]}`: true,
		`{"type":"record","name":"A","fields":[{"name":"f","type":{"type":"record","name":"B","fields":[]}},{"name":"g","type":"B"}]}`:                                                              false,
	} {
		if recursive(schema) != want {
			t.Errorf("%s: %v", schema, !want)
		}
	}
}

// TestAvroTimes: what a connector calls a time is that of a column without a zone; what a
// producer of Avro calls one is an instant.
func TestAvroTimes(t *testing.T) {
	noon := avroCell(time.Date(2026, 7, 2, 12, 0, 0, 0, time.UTC))
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		tables tables
		want   string
	}{
		{tables{zone: time.UTC}, "2026-07-02T12:00:00.000Z"},
		{tables{zone: berlin}, "2026-07-02T10:00:00.000Z"},
		{tables{zone: berlin, instants: true}, "2026-07-02T12:00:00.000Z"},
	} {
		if got := c.tables.instant(noon, false).String(); got != c.want {
			t.Errorf("%+v: %s", c.tables, got)
		}
	}
	if d := newAvro(Options{TimeZone: berlin}).(*avro); !d.tables.instants {
		t.Error("the format avro takes instants for columns")
	}
	if at := (tables{zone: berlin}).instant(avroCell(time.Date(99999, 1, 1, 0, 0, 0, 0, time.UTC)), false); at != fhir.None {
		t.Error(at)
	}
}

// TestAvroWithoutRegistry: the record is kept, and the reason says what to configure.
func TestAvroWithoutRegistry(t *testing.T) {
	d, err := New("debezium", Options{Preset: "medplum"})
	if err != nil {
		t.Fatal(err)
	}
	got := decoded(t, d, Record{Offset: 41, Value: []byte{0, 0, 0, 0, 1, 2}})
	if got != "refused: "+reasonNoRegistry+"\n" {
		t.Error(got)
	}
}

// TestAvroLacks: a plain record without a field that decides is refused, unless it may lack it.
func TestAvroLacks(t *testing.T) {
	value := frame(t, avroSchemas, 13, map[string]any{"content": map[string]any{"string": `{"resourceType":"Patient","id":"p-1"}`}})
	for _, c := range []struct {
		table Table
		want  string
	}{
		{Table{Body: "content", Deleted: "gone"}, "refused: " + string(reasonNoDeleted) + "\n"},
		{Table{Body: "content", Version: "version"}, "refused: " + string(reasonNoVersion) + "\n"},
		{Table{Body: "content", Version: "version", Deleted: "gone", Optional: []string{"deleted", "version"}}, "upsert Patient/p-1 patients=p-1\n  {\"resourceType\":\"Patient\",\"id\":\"p-1\"}\n"},
	} {
		d, err := New("avro", Options{Tables: []Table{c.table}, Schemas: avroSchemas})
		if err != nil {
			t.Fatal(err)
		}
		if got := decoded(t, d, Record{Topic: "plain", Offset: 41, Timestamp: fhir.None, Value: value}); got != c.want {
			t.Errorf("%+v: got  %swant %s", c.table, got, c.want)
		}
	}
}

// TestAvroCells: each kind of Avro's values is a cell.
func TestAvroCells(t *testing.T) {
	r := avroRow{"I": int32(5), "f": 2.5, "s": map[string]any{"string": "x"}, "n": nil, "dup": 1, "DUP": 2}
	cells, once := r.cells([]string{"i", "F", "s", "n", "other", ""})
	var got []string
	for _, c := range cells {
		got = append(got, fmt.Sprintf("%d:%s", c.kind, c.text))
	}
	want := []string{"2:5", "2:2.5", "1:x", "0:", "0:", "0:"}
	if !slices.Equal(got, want) || !once {
		t.Errorf("got %q, %v", got, once)
	}
	if _, once := r.cells([]string{"Dup"}); once {
		t.Error("two columns of one name were read")
	}
	if !r.holds("N") || r.holds("other") {
		t.Error("a column that is null is not there, or one that is not is")
	}
}

// TestScaledDecimals: a number whose column bounds no digits is a record that says them (decimal.handling.mode: precise).
func TestScaledDecimals(t *testing.T) {
	for _, c := range []struct {
		scale int32
		value []byte
		want  string
		yes   bool
	}{
		{0, []byte{1}, "1", true},
		{0, []byte{0}, "0", false},
		{2, []byte{1, 44}, "3", true},
		{1, []byte{0xfb}, "-1/2", true},
		{-2, []byte{3}, "300", true},
		{maxScale + 1, []byte{1}, "", false},
	} {
		got := avroCell(map[string]any{"Decimal": map[string]any{"scale": c.scale, "value": c.value}})
		if string(got.text) != c.want || got.yes() != c.yes {
			t.Errorf("%d, %x: %s, %v", c.scale, c.value, got.text, got.yes())
		}
		text := value(fmt.Sprintf(`{"scale":%d,"value":"%s"}`, c.scale, base64.StdEncoding.EncodeToString(c.value)))
		if got := jsonCell(text); got.kind == isNumber != (c.want != "") || got.kind == isNumber && string(got.text) != c.want {
			t.Errorf("%s: %+v", text, got)
		}
	}
	for _, other := range []string{`{"scale":1}`, `{"scale":1,"value":null}`, `{"scale":"x","value":"AQ=="}`, `{"scale":1,"value":"?"}`, `{"scale":1,"value":"AQ==","more":1}`} {
		if got := jsonCell(value(other)); got.kind != isText || string(got.text) != other {
			t.Errorf("%s: %+v", other, got)
		}
	}
}

// TestFlatTransaction: a flattened row says which transaction it is of where its connector adds that.
func TestFlatTransaction(t *testing.T) {
	id, order := transactionOf(avroRow{
		"pid": int64(5), "__transaction_id": map[string]any{"string": "5791:528905248"}, "__transaction_total_order": map[string]any{"long": int64(2)},
	})
	if id != "5791" || order != 2 {
		t.Errorf("%q, %d", id, order)
	}
}
