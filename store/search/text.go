package search

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// A stringTest compares texts: how they begin, without regard to case and accents
// (FHIR R4, "string"), unless a modifier says otherwise.
type stringTest struct {
	want     string // folded, but for :exact
	modifier string
}

func parseString(modifier, text string) test {
	want := unescape(text)
	if modifier != "exact" {
		want = fold(want)
	}
	return stringTest{want, modifier}
}

// parts are the elements of a name or an address that count.
var parts = map[string][]string{
	"HumanName": {"text", "family", "given", "prefix", "suffix"},
	"Address":   {"text", "line", "city", "district", "state", "postalCode", "country"},
}

func (t stringTest) matches(v value) bool {
	names := parts[v.typ]
	if names == nil {
		return t.compare(v.raw)
	}
	for _, name := range names {
		if has(v.raw, name, t.compare) {
			return true
		}
	}
	return false
}

func (t stringTest) compare(raw []byte) bool {
	if raw[0] != '"' {
		return false
	}
	said := plain(raw)
	switch t.modifier {
	case "exact":
		return string(said) == t.want
	case "contains":
		return contains(said, t.want)
	}
	return startsWith(said, t.want)
}

// startsWith compares the beginning of a text with what is folded already. Plain
// ASCII, nearly all there is, costs nothing beside.
func startsWith(said []byte, folded string) bool {
	for i := range len(folded) {
		if i == len(said) {
			return false
		}
		c := said[i]
		switch {
		case c >= utf8.RuneSelf:
			return strings.HasPrefix(fold(string(said)), folded)
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		}
		if c != folded[i] {
			return false
		}
	}
	return true
}

// contains looks for what is folded already.
func contains(said []byte, folded string) bool {
	for _, c := range said {
		if c >= utf8.RuneSelf {
			return strings.Contains(fold(string(said)), folded)
		}
	}
	for i := range said {
		if startsWith(said[i:], folded) {
			return true
		}
	}
	return false
}

// fold takes case and accents away. Upper case comes first: it is one for both
// forms of a small sigma.
func fold(s string) string {
	s = strings.Map(func(c rune) rune {
		if unicode.Is(unicode.Mn, c) {
			return -1
		}
		return unicode.ToLower(unicode.ToUpper(c))
	}, norm.NFKD.String(s))
	return strings.ReplaceAll(s, "ß", "ss")
}
