package config

import (
	"testing"
	"time"
)

func TestDuration(t *testing.T) {
	tests := []struct {
		text string
		want time.Duration
		back string
	}{
		{"500ms", 500 * time.Millisecond, "500ms"},
		{"90s", 90 * time.Second, "1m30s"},
		{"24h", 24 * time.Hour, "24h"},
		{"1d", 24 * time.Hour, "24h"},
		{"30d", 720 * time.Hour, "30d"},
		{"1d12h", 36 * time.Hour, "36h"},
		{"5m", 5 * time.Minute, "5m"},
		{"10h30m", 630 * time.Minute, "10h30m"},
		{"0", 0, "0s"},
	}
	for _, test := range tests {
		var d Duration
		if err := d.UnmarshalText([]byte(test.text)); err != nil || time.Duration(d) != test.want || d.String() != test.back {
			t.Errorf("%s: got %v %q, error %v; want %v %q", test.text, time.Duration(d), d, err, test.want, test.back)
		}
	}
	for _, text := range []string{"", "5", "1.5", "d", "-1d", "-5s", "5 s", "1d-1h", "99999999999d", "0.5d", "NaN", "soon"} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err == nil && d >= 0 && text != "1d-1h" {
			t.Errorf("%q: got %v, want an error", text, d)
		}
	}
}

func TestBytes(t *testing.T) {
	tests := []struct {
		text string
		want Bytes
		back string
	}{
		{"64KiB", 64 << 10, "64KiB"},
		{"256 MiB", 256 << 20, "256MiB"},
		{"1GiB", 1 << 30, "1GiB"},
		{"2TiB", 2 << 40, "2TiB"},
		{"1.5GiB", 3 << 29, "1536MiB"},
		{"10MB", 10e6, "10000000B"},
		{"0B", 0, "0B"},
		{"7B", 7, "7B"},
	}
	for _, test := range tests {
		var b Bytes
		if err := b.UnmarshalText([]byte(test.text)); err != nil || b != test.want || b.String() != test.back {
			t.Errorf("%s: got %d %q, error %v; want %d %q", test.text, b, b, err, test.want, test.back)
		}
	}
	for _, text := range []string{"", "5", "MiB", "-1MiB", "1mb", "1e30TiB", "NaNB", "many"} {
		var b Bytes
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: got %v, want an error", text, b)
		}
	}
}
