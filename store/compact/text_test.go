package compact

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// FuzzText: a string says what Go's library reads in it, and ends where it ends, whatever
// stands around it.
func FuzzText(f *testing.F) {
	for _, s := range []string{
		`""`, `"plain"`, `"seven b"`, `"eight by"`, `"a long one, without any escape in it"`, `"\""`, `"\\"`, `"\\\\\""`, `"{\"id\":\"p-1\",\"x\":[\"\\\\\"]}"`,
		`"\b\f\n\r\t\/"`, `"\u00fc\u00FC\u20ac and ü€😀"`, `"\ud83d\ude00"`, `"\ud83d\ude00\ud83d\ude00 eight by"`, `"1234567\\"`, `"12345678\"9"`,
		`"\u0041\u0022\u005c\u005C"`, `"` + strings.Repeat(`\"`, 40) + `"`, `"` + strings.Repeat("x", 100) + `\n"`,
	} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, quoted []byte, before uint8) {
		var want string
		if len(quoted) == 0 || quoted[0] != '"' || json.Unmarshal(quoted, &want) != nil || quoted[len(quoted)-1] != '"' || strings.Contains(want, "\ufffd") {
			return // no string, or one that the scanner refuses
		}
		head := bytes.Repeat([]byte{'['}, int(before))
		for _, tail := range []string{"", "]", `,"another\\"`} {
			text := append(append(bytes.Clone(head), quoted...), tail...)
			if got := SkipText(text, len(head)); got != len(head)+len(quoted) {
				t.Fatalf("%q ends at %d, want %d", text, got, len(head)+len(quoted))
			}
		}
		if got := Plain(nil, quoted); string(got) != want {
			t.Fatalf("%q says %q, want %q", quoted, got, want)
		}
		dst := append(make([]byte, 0, 1000), head...)
		if got := Plain(dst, quoted); string(got) != want || !bytes.Equal(dst, head) {
			t.Fatalf("%q behind %q says %q, want %q", quoted, dst, got, want)
		}
	})
}

func BenchmarkText(b *testing.B) {
	for name, piece := range map[string]string{"quotes": `{\"text\":\"something that was said\"},`, "plain": "iVBORw0KGgoAAAANSUhEUgAAAAUA"} {
		text := []byte(`"` + strings.Repeat(piece, 2000/len(piece)) + `"`)
		b.Run("skip "+name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				SkipText(text, 0)
			}
		})
		b.Run("read "+name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			dst := make([]byte, 0, 2*len(text))
			for b.Loop() {
				Unescape(dst, text[1:len(text)-1])
			}
		})
	}
}
