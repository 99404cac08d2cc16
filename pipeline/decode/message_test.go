package decode

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"go.yaml.in/yaml/v4"

	"tidemark/store"
	"tidemark/store/fhir"
)

// TestMessages decodes the messages in testdata/messages: what producers write to Kafka,
// one file a format. A case is a message in the notation of message, and what it says.
func TestMessages(t *testing.T) {
	datadriven.Walk(t, "testdata/messages", func(t *testing.T, path string) {
		var d Decoder
		datadriven.RunTest(t, path, func(t *testing.T, c *datadriven.TestData) string {
			switch c.Cmd {
			case "format":
				var err error
				if d, err = New(c.CmdArgs[0].Key, optionsOf(t, c)); err != nil {
					return err.Error() + "\n"
				}
				return ""
			case "decode":
				return decoded(t, d, parseMessage(t, c.Input))
			}
			t.Fatalf("%s: unknown command %s", c.Pos, c.Cmd)
			return ""
		})
	})
}

func optionsOf(t *testing.T, c *datadriven.TestData) (o Options) {
	for _, arg := range c.CmdArgs[1:] {
		switch arg.Key {
		case "drop":
			o.DropTypes = arg.Vals
		case "mixed":
			o.Mixed = true
		case "preset":
			o.Preset = arg.Vals[0]
		case "zone":
			var err error
			if o.TimeZone, err = time.LoadLocation(arg.Vals[0]); err != nil {
				t.Fatal(err)
			}
		case "table":
			var table Table
			if err := yaml.Unmarshal([]byte(strings.Join(arg.Vals, "\n")), &table); err != nil {
				t.Fatal(err)
			}
			o.Tables = append(o.Tables, table)
		default:
			t.Fatalf("%s: unknown option %s", c.Pos, arg.Key)
		}
	}
	return o
}

// A message is a record as the test files write it: key and value are JSON, or a string of
// what they hold, or {"$base64": …}.
type message struct {
	Topic   string            `json:"topic"`
	TS      *int64            `json:"ts"` // milliseconds
	Headers map[string]string `json:"headers"`
	Key     json.RawMessage   `json:"key"`
	Value   json.RawMessage   `json:"value"`
}

func parseMessage(t *testing.T, text string) Record {
	t.Helper()
	var m message
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	rec := Record{Topic: m.Topic, Offset: 41, Timestamp: fhir.None, Key: content(t, m.Key), Value: content(t, m.Value)}
	if m.TS != nil {
		rec.Timestamp = fhir.Instant(*m.TS)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Headers)) {
		rec.Headers = append(rec.Headers, store.Header{Key: name, Value: []byte(m.Headers[name])})
	}
	return rec
}

func content(t *testing.T, raw json.RawMessage) []byte {
	t.Helper()
	var text string
	var coded struct {
		Base64 []byte `json:"$base64"`
	}
	switch {
	case raw == nil || string(raw) == "null":
		return nil
	case json.Unmarshal(raw, &text) == nil:
		return []byte(text)
	case bytes.Contains(raw, []byte(`"$base64"`)) && json.Unmarshal(raw, &coded) == nil:
		return coded.Base64
	}
	return raw // as it is written, white space and all
}

// decoded is what became of a message.
func decoded(t *testing.T, d Decoder, rec Record) string {
	t.Helper()
	changes, err := d.Decode(rec)
	if d, joins := d.(Joined); joins {
		p, err := d.Part(rec)
		if err == nil && p != nil {
			return part(t, d, rec, p)
		}
		if refused, is := errors.AsType[*Error](err); is && p != nil { // it is one of its transaction's rows, all the same
			return saysOf(p) + "\nrefused: " + refused.Reason + "\n"
		}
	}
	if refused, ok := errors.AsType[*Error](err); ok {
		return "refused: " + refused.Reason + "\n"
	}
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	if len(changes) == 0 {
		return "nothing\n"
	}
	var b strings.Builder
	for _, c := range changes {
		checkChange(t, rec, c)
		op := "upsert"
		switch {
		case c.Delete:
			op = "delete"
		case c.Revise != nil:
			op = "unchanged"
			if _, changed := c.Revise([]byte(`{"resourceType":"Patient"}`)); changed || c.Dead == nil {
				t.Fatal("what leaves its body out changes one, or is no dead letter where there is none")
			}
		}
		fmt.Fprintf(&b, "%s %s", op, c.Key)
		if c.Version != store.NoVersion {
			fmt.Fprintf(&b, " version=%d", c.Version)
		}
		for _, i := range []struct {
			name string
			at   fhir.Instant
		}{{"updated", c.LastUpdated}, {"time", c.Time}} {
			if i.at != fhir.None {
				fmt.Fprintf(&b, " %s=%v", i.name, i.at)
			}
		}
		if c.Position != 0 {
			fmt.Fprintf(&b, " position=%d", c.Position)
		}
		if c.Snapshot {
			b.WriteString(" snapshot")
		}
		if c.Earlier {
			b.WriteString(" earlier")
		}
		if len(c.Patients) > 0 {
			fmt.Fprintf(&b, " patients=%s", strings.Join(c.Patients, ","))
		}
		b.WriteByte('\n')
		if c.Body != nil {
			fmt.Fprintf(&b, "  %s\n", c.Body)
		}
	}
	return b.String()
}

// saysOf is what a row says.
func saysOf(p *Part) string {
	text := [...]string{PartResource: "number", PartVersion: "version", PartTag: "tag", PartDefinition: "definition", PartBegin: "begin", PartEnd: "end"}[p.Of]
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Part]()) {
		if v := reflect.ValueOf(*p).FieldByIndex(f.Index); f.IsExported() && f.Name != "Of" && !v.IsZero() {
			text += fmt.Sprintf(" %s=%+v", strings.ToLower(f.Name), v)
		}
	}
	return text
}

// part is what a row says, and of a version the change that it is with the id a1 and two tags.
func part(t *testing.T, d Joined, rec Record, p *Part) string {
	t.Helper()
	text := saysOf(p)
	if p.Of != PartVersion || p.Gone || p.Bodiless() {
		return text + "\n"
	}
	tags := []Tag{{Kind: TagSecurity, System: "s", Code: "R"}, {Kind: TagTag, System: "s", Code: "<\"1\">", Display: "one", UserSelected: "true"}}
	changes, err := d.Version(rec, p, fhir.Key{Type: p.Type, ID: "a1"}, tags)
	if refused, is := errors.AsType[*Error](err); is {
		return text + "\nrefused: " + refused.Reason + "\n"
	}
	if err != nil || len(changes) > 1 {
		t.Fatal(changes, err)
	}
	for _, c := range changes {
		checkChange(t, rec, c)
		text += fmt.Sprintf("\n%v %v %s", c.Version, c.LastUpdated, c.Body)
	}
	return text + "\n"
}

// checkChange holds a change against the promises of store.Change.
func checkChange(t *testing.T, rec Record, c store.Change) {
	t.Helper()
	switch {
	case c.Offset != rec.Offset || c.Timestamp != rec.Timestamp || c.Dead != nil && c.Revise == nil:
		t.Fatalf("another record's change: %+v", c)
	case c.Revise == nil && c.Delete != (c.Body == nil):
		t.Fatal("a deletion with a body, or a resource without")
	case !fhir.ValidID(c.Key.ID) || c.Version < store.NoVersion:
		t.Fatalf("key or version: %+v", c)
	case bytes.ContainsAny(c.Body, "\n\r"):
		t.Fatal("a body of more than one line")
	}
}

// FuzzMessages: whatever a record holds, it is understood or refused, in every format, and
// an error says nothing of it but our own words.
func FuzzMessages(f *testing.F) {
	decoders := map[string]Decoder{}
	for _, name := range Formats() {
		o := Options{}
		if name == "debezium" || name == "avro" {
			o.Preset = "medplum"
		}
		d, err := New(name, o)
		if err != nil {
			f.Fatal(err)
		}
		decoders[name] = d
		seed(f, name)
	}
	f.Fuzz(func(t *testing.T, format string, key, value []byte, action string) {
		d := decoders[format]
		if d == nil {
			return
		}
		rec := Record{Topic: "outbox.event.Patient", Offset: 7, Timestamp: fhir.None, Key: key, Value: value, Headers: []store.Header{
			{Key: "eventType", Value: []byte(action)}, {Key: "ce_type", Value: []byte(action)},
		}}
		changes, err := d.Decode(rec)
		if err != nil {
			if refused, ok := errors.AsType[*Error](err); !ok || refused.Reason == "" || len(changes) > 0 {
				t.Fatalf("%+v, %v", changes, err)
			}
		}
		for _, c := range changes {
			checkChange(t, rec, c)
		}
	})
}

// seed adds the messages of a format's file.
func seed(f *testing.F, format string) {
	text, err := os.ReadFile("testdata/messages/" + format)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range strings.Split(string(text), "\ndecode\n")[1:] {
		input, _, _ := strings.Cut(c, "\n----")
		var m message
		if err := json.Unmarshal([]byte(input), &m); err != nil {
			f.Fatal(err)
		}
		var text string
		if json.Unmarshal(m.Value, &text) == nil {
			m.Value = []byte(text)
		}
		f.Add(format, []byte(m.Key), []byte(m.Value), m.Headers["eventType"])
	}
}
