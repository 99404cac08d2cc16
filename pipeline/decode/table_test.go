package decode

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"tidemark/store/fhir"
)

func zipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestUnpack: a body in a column is found however it was packed, and is not larger than a
// record may be.
func TestUnpack(t *testing.T) {
	const body = `{"resourceType":"Patient"}`
	zip := zipped(t, []byte(body))
	other := zipped(t, []byte(`{"resourceType":"Device"}`))
	var d changes
	d.prepare(Options{MaxRecord: 1000}, 0)
	for _, c := range []struct {
		name string
		cell cell
		want string
		why  fault
	}{
		{"JSON", cell{isText, []byte(" " + body)}, " " + body, ""},
		{"bytes", cell{isBytes, []byte(body)}, body, ""},
		{"gzip", cell{isBytes, zip}, body, ""},
		{"base64", cell{isText, []byte(base64.StdEncoding.EncodeToString(zip))}, body, ""},
		{"base64 for URLs", cell{isText, []byte(base64.RawURLEncoding.EncodeToString(zip))}, body, ""},
		{"hexadecimal", cell{isText, []byte(hex.EncodeToString(zip))}, body, ""},
		{"a mark of UTF-8", cell{isBytes, zipped(t, []byte("\xef\xbb\xbf"+body))}, body, ""},
		{"half of a gzip", cell{isBytes, zip[:len(zip)/2]}, "", reasonBody},
		{"something else", cell{isText, []byte("<Patient/>")}, "", reasonBody},
		{"larger than may be", cell{isBytes, zipped(t, bytes.Repeat([]byte(body), 100))}, "", reasonBodySize},
		{"as large as may be", cell{isBytes, zipped(t, []byte(`{"x":"`+strings.Repeat("x", 992)+`"}`))}, `{"x":"` + strings.Repeat("x", 992) + `"}`, ""},
		{"one byte more", cell{isBytes, zipped(t, []byte(`{"x":"`+strings.Repeat("x", 993)+`"}`))}, "", reasonBodySize},
		{"odd digits", cell{isText, []byte("7b7")}, "", reasonBody},
	} {
		got, why := d.unpack(c.cell)
		_, _ = d.unpack(cell{isBytes, other}) // is no business of the first
		if string(got) != c.want || why != c.why {
			t.Errorf("%s: %s, %q", c.name, got, why)
		}
	}
}

// TestColumnInstants: times as drivers and connectors write them, in the zone of the source
// where they say none.
func TestColumnInstants(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	const noon = "2026-07-02T12:00:00.123Z"
	for _, c := range []struct {
		zone *time.Location
		cell cell
		want string
	}{
		{time.UTC, cell{isText, []byte("2026-07-02T14:00:00.123456+02:00")}, noon},
		{time.UTC, cell{isText, []byte("2026-07-02 12:00:00.123456")}, noon},
		{berlin, cell{isText, []byte("2026-07-02T14:00:00.123")}, noon},
		{berlin, cell{isText, []byte("2026-07-02T12:00:00.123Z")}, noon},
		{time.UTC, cell{isText, []byte("2026-07-02 14:00:00.123+02")}, noon},
		{time.UTC, cell{isNumber, []byte("1782993600123")}, noon},
		{time.UTC, cell{isNumber, []byte("1782993600123456")}, noon},
		{time.UTC, cell{isNumber, []byte("1782993600123456789")}, noon},
		{time.UTC, cell{isNumber, []byte("1782993600")}, "2026-07-02T12:00:00.000Z"},
		{berlin, cell{isNumber, []byte("1783000800123456")}, noon},
		{time.UTC, cell{isText, []byte("yesterday")}, ""},
		{time.UTC, cell{isNumber, []byte("1.5")}, ""},
		{time.UTC, cell{isNumber, []byte("-62135596800")}, "0001-01-01T00:00:00.000Z"},
		{time.UTC, cell{isNumber, []byte("-62135596801")}, ""},
		{time.UTC, cell{isNumber, []byte("-9223372036832400000")}, ""}, // -infinity
		{time.UTC, cell{}, ""},
	} {
		got := tables{zone: c.zone}.instant(c.cell, false)
		if got == fhir.None != (c.want == "") || got != fhir.None && got.String() != c.want {
			t.Errorf("%s in %v: %v, want %s", c.cell.text, c.zone, got, c.want)
		}
	}
}

// TestWhole: a whole number is a version however it is written, as long as no digit is lost.
func TestWhole(t *testing.T) {
	for text, want := range map[string]string{
		"3": "3", "3.0": "3", "1.0E7": "10000000", "1.5": "1.5", "9007199254740993": "9007199254740993", "9.007199254740992E15": "9.007199254740992E15", "1e999": "1e999",
	} {
		if got := whole(cell{isNumber, []byte(text)}); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	if got := whole(cell{isText, []byte("3.0")}); got != "3.0" {
		t.Errorf("text: %s", got)
	}
}
