package outcome

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestQuote(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", `""`},
		{"Patient", `"Patient"`},
		{"a\x00b\r\nc\x1b[31m", `"abc[31m"`},
		{"left\u202eright", `"leftright"`},
		{"bad\xffbyte", `"badbyte"`},
		{strings.Repeat("x", 64), `"` + strings.Repeat("x", 64) + `"`},
		{strings.Repeat("ä", 65), `"` + strings.Repeat("ä", 64) + `…"`},
	}
	for _, tt := range tests {
		if got := Quote(tt.in); got != tt.want {
			t.Errorf("Quote(%q) = %s, want %s", tt.in, got, tt.want)
		}
	}
}

func TestAppendIsOneLineOfJSON(t *testing.T) {
	got := Append([]byte("> "), Issue{Error, Value, "a < b & c\nd"}, Issue{Warning, NotSupported, "é"})
	const want = `> {"resourceType":"OperationOutcome","issue":[` +
		`{"severity":"error","code":"value","diagnostics":"a < b & c\nd"},` +
		`{"severity":"warning","code":"not-supported","diagnostics":"é"}]}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzQuote(f *testing.F) {
	f.Add("Patient")
	f.Add("\x00\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		q := Quote(s)
		if !utf8.ValidString(q) || utf8.RuneCountInString(q) > maxEcho+3 || strings.ContainsAny(q, "\r\n\x00\x1b") {
			t.Errorf("Quote(%q) = %q", s, q)
		}
		var back string
		if b, err := json.Marshal(q); err != nil || json.Unmarshal(b, &back) != nil || back != q {
			t.Errorf("%q does not survive JSON", q)
		}
	})
}
