package fhir

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestParseInstant(t *testing.T) {
	for _, c := range []struct {
		in, want string
		cut      bool
	}{
		{"2026-01-02T03:04:05.123Z", "2026-01-02T03:04:05.123Z", false},
		{"2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000Z", false},
		{"2026-01-02T03:04:05.1Z", "2026-01-02T03:04:05.100Z", false},
		{"2026-01-02T03:04:05.123456Z", "2026-01-02T03:04:05.123Z", true},
		{"2026-01-02T03:04:05.123999999999999999Z", "2026-01-02T03:04:05.123Z", true},
		{"2026-01-02T03:04:05.123000000Z", "2026-01-02T03:04:05.123Z", false},
		{"2026-01-02T03:04:05.123+00:00", "2026-01-02T03:04:05.123Z", false},
		{"2026-01-02T03:04:05.123-05:30", "2026-01-02T08:34:05.123Z", false},
		{"2026-01-01T03:04:05+14:00", "2025-12-31T13:04:05.000Z", false},
		{"2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000Z", false},
		{"2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000Z", false},
		{"1969-12-31T23:59:59.9999Z", "1969-12-31T23:59:59.999Z", true},
		{"0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z", false},
		{"9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z", false},
	} {
		got, cut, err := ParseInstant(c.in)
		if err != nil || got.String() != c.want || cut != c.cut {
			t.Errorf("ParseInstant(%q) = %v, %v, %v, want %v, %v", c.in, got, cut, err, c.want, c.cut)
		}
	}
}

func TestParseInstantRefuses(t *testing.T) {
	for _, in := range []string{
		"", "2026", "2026-01", "2026-01-02", "2026-01-02T03:04Z", "2026-01-02T03:04:05", "2026-01-02 03:04:05Z",
		"2026-01-02t03:04:05Z", "2026-01-02T03:04:05z", "2026-01-02T24:00:00Z", "2026-01-02T03:60:00Z", "2026-01-02T03:04:61Z",
		"2026-13-02T03:04:05Z", "2026-00-02T03:04:05Z", "2026-02-29T03:04:05Z", "2026-01-32T03:04:05Z", "2026-01-00T03:04:05Z",
		"2026-01-02T03:04:05.Z", "2026-01-02T03:04:05,1Z", "2026-01-02T03:04:05.1", "2026-01-02T03:04:05+0100", "2026-01-02T03:04:05+01",
		"2026-01-02T03:04:05+14:01", "2026-01-02T03:04:05+15:00", "2026-01-02T03:04:05+01:60", "2026-01-02T03:04:05?01:00",
		"2026-01-02T03:04:05Z ", " 2026-01-02T03:04:05Z", "2026-1-2T03:04:05Z", "0000-01-01T00:00:00Z", "02026-01-02T03:04:05Z",
		"0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "2026-01-02T03:04:0xZ", "2026-01-02T03:04:05ZZ", "2026x01-02T03:04:05Z",
	} {
		if got, _, err := ParseInstant(in); err == nil || got != None {
			t.Errorf("ParseInstant(%q) = %v, %v, want an error", in, got, err)
		}
	}
}

func TestInstantRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		want := firstInstant + Instant(rnd.Int64N(int64(lastInstant-firstInstant)+1))
		s := want.String()
		if std := want.Time().Format("2006-01-02T15:04:05.000Z"); s != std {
			t.Fatalf("%d.String() = %s, want %s", want, s, std)
		}
		if got, cut, err := ParseInstant(s); got != want || cut || err != nil {
			t.Fatalf("ParseInstant(%s) = %d, %v, %v, want %d", s, got, cut, err, want)
		}
		if FromTime(want.Time()) != want {
			t.Fatalf("FromTime(%s) is another instant", s)
		}
	}
}

func TestInstantFromTime(t *testing.T) {
	before := time.Date(1969, 12, 31, 23, 59, 59, 999_999_999, time.UTC)
	if got := FromTime(before); got != -1 {
		t.Errorf("FromTime(%v) = %d, want it cut to -1", before, got)
	}
	if got := None.String(); got != "none" {
		t.Errorf("None.String() = %q", got)
	}
	if got := (lastInstant + 1).String(); got != "10000-01-01T00:00:00.000Z" {
		t.Errorf("the first instant of the year 10000 = %q", got)
	}
}

func TestParseDateTime(t *testing.T) {
	for _, c := range []struct{ in, start, end string }{
		{"2024", "2024-01-01T00:00:00.000Z", "2024-12-31T23:59:59.999Z"},
		{"2024-02", "2024-02-01T00:00:00.000Z", "2024-02-29T23:59:59.999Z"},
		{"2023-12", "2023-12-01T00:00:00.000Z", "2023-12-31T23:59:59.999Z"},
		{"2024-02-29", "2024-02-29T00:00:00.000Z", "2024-02-29T23:59:59.999Z"},
		{"2024-02-29T10:00:00+01:00", "2024-02-29T09:00:00.000Z", "2024-02-29T09:00:00.999Z"},
		{"2024-02-29T10:00:00.1Z", "2024-02-29T10:00:00.100Z", "2024-02-29T10:00:00.199Z"},
		{"2024-02-29T10:00:00.12Z", "2024-02-29T10:00:00.120Z", "2024-02-29T10:00:00.129Z"},
		{"2024-02-29T10:00:00.123Z", "2024-02-29T10:00:00.123Z", "2024-02-29T10:00:00.123Z"},
		{"2024-02-29T10:00:00.12345Z", "2024-02-29T10:00:00.123Z", "2024-02-29T10:00:00.123Z"},
		{"9999", "9999-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z"},
	} {
		got, ok := parseDateTime(c.in)
		if !ok || got.start.String() != c.start || got.end.String() != c.end {
			t.Errorf("parseDateTime(%q) = %v to %v, %v", c.in, got.start, got.end, ok)
		}
	}
	for _, in := range []string{"", "20", "0000", "2024-", "2024-2", "2024-13", "2024-02-30", "2024-02-3", "2024/02", "2024-02-29T10:00:00", "2024-02-29T10:00Z"} {
		if got, ok := parseDateTime(in); ok {
			t.Errorf("parseDateTime(%q) = %v, want none", in, got)
		}
	}
}

func FuzzParseInstant(f *testing.F) {
	f.Add("2026-01-02T03:04:05.123456+01:00")
	f.Add("2016-12-31T23:59:60Z")
	f.Fuzz(func(t *testing.T, s string) {
		i, cut, err := ParseInstant(s)
		if err != nil {
			return
		}
		if again, _, err := ParseInstant(i.String()); err != nil || again != i {
			t.Errorf("%q is %s, which is read as %v, %v", s, i, again, err)
		}
		std, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return // a leap second, or a zone that only FHIR allows
		}
		if FromTime(std) != i {
			t.Errorf("ParseInstant(%q) = %s, the standard library says %s", s, i, std.UTC())
		}
		if want := std.Nanosecond()%1e6 != 0; want && !cut {
			t.Errorf("ParseInstant(%q) does not say that it cut", s)
		}
	})
}
