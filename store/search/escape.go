package search

import (
	"net/url"
	"strings"
)

// unescapeURL undoes percent-escapes. A plus stays one: what comes here was taken
// out of a query string once already, and instants have pluses.
func unescapeURL(s string) (string, bool) {
	if strings.IndexByte(s, '%') < 0 {
		return s, true
	}
	plain, err := url.PathUnescape(s)
	return plain, err == nil
}

// splitUnescaped splits a value where sep stands without a backslash before it
// (FHIR R4, "Escaping Search Parameters"). Escapes stay.
func splitUnescaped(s string, sep byte) []string {
	var parts []string
	from := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case sep:
			parts = append(parts, s[from:i])
			from = i + 1
		}
	}
	return append(parts, s[from:])
}

// unescape removes the backslashes.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) && strings.IndexByte(`,|$\`, s[i+1]) >= 0 {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
