package search

import (
	"bytes"
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
		return strings.Contains(fold(string(said)), t.want)
	}
	return startsWith(said, t.want)
}

// startsWith compares the beginning of a text with what is folded already. Plain
// ASCII, nearly all there is, costs nothing beside.
func startsWith(said []byte, folded string) bool {
	if bytes.IndexFunc(said, func(c rune) bool { return c >= utf8.RuneSelf }) >= 0 {
		return strings.HasPrefix(fold(string(said)), folded)
	}
	if len(said) < len(folded) {
		return false
	}
	for i := range len(folded) {
		c := said[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != folded[i] {
			return false
		}
	}
	return true
}

// fold takes case and accents away.
func fold(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.Is(unicode.Mn, c) {
			return -1
		}
		return unicode.ToLower(c)
	}, norm.NFKD.String(s))
}
