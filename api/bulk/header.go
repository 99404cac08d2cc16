package bulk

import (
	"net/http"
	"strconv"
	"strings"

	"tidemark/api/outcome"
)

// element is one member of a header that is a list: its value and what stands
// behind the first semicolon.
type element struct {
	value  string // lower case
	params string
}

// list reads a header that is a list, whether it came as one line or several.
// A comma or semicolon in quotes belongs to the text.
func list(h http.Header, name string) []element {
	var all []element
	for _, line := range h.Values(name) {
		for _, e := range cut(line, ',') {
			value, params := e, ""
			if parts := cut(e, ';'); len(parts) > 1 {
				value, params = parts[0], strings.TrimPrefix(e[len(parts[0]):], ";")
			}
			if value = strings.TrimSpace(value); value != "" {
				all = append(all, element{strings.ToLower(value), params})
			}
		}
	}
	return all
}

// cut splits s at sep outside of quotes.
func cut(s string, sep byte) []string {
	var parts []string
	quoted, start := false, 0
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == sep && !quoted:
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	return append(parts, s[start:])
}

// param is what a parameter of an element says.
func (e element) param(name string) (value string, is bool) {
	for _, p := range cut(e.params, ';') {
		n, v, _ := strings.Cut(p, "=")
		if strings.EqualFold(strings.TrimSpace(n), name) {
			return strings.TrimSpace(v), true
		}
	}
	return "", false
}

// q is the weight of an element, 1 if none is given; what is no number is 0:
// a client that garbles a weight did not ask for the thing.
func (e element) q() float64 {
	value, is := e.param("q")
	if !is {
		return 1
	}
	q, err := strconv.ParseFloat(value, 64)
	if err != nil || !(q >= 0 && q <= 1) {
		return 0
	}
	return q
}

// fhirVersion is the release of FHIR that an element is about, "" if any will do.
func (e element) fhirVersion() string {
	v, _ := e.param("fhirVersion")
	return strings.Trim(v, `"`)
}

// preferences are what a kick-off asks for in Prefer (RFC 7240).
type preferences struct {
	async    bool
	lenient  bool
	separate bool
}

// prefer reads Prefer. Of a preference named twice the first counts (RFC 7240
// section 2); unknown ones are nobody's business.
func prefer(h http.Header) (preferences, error) {
	var p preferences
	handling := ""
	for _, e := range list(h, "Prefer") {
		name, value, _ := strings.Cut(e.value, "=")
		switch strings.TrimSpace(name) {
		case "respond-async":
			p.async = true
		case "separate-export-status":
			p.separate = true
		case "handling":
			if handling == "" {
				handling = strings.Trim(strings.TrimSpace(value), `"`)
			}
		}
	}
	p.lenient = handling == "lenient"
	if !p.async {
		return p, refuse(Invalid, outcome.Required, `the header Prefer lacks respond-async: exports are asynchronous, send "Prefer: respond-async"`)
	}
	return p, nil
}

// applied is the answer to Prefer.
func (p preferences) applied() string {
	all := "respond-async"
	if p.separate {
		all += ", separate-export-status"
	}
	if p.lenient {
		all += ", handling=lenient"
	}
	return all
}

// gzipWanted chooses between the two codings that a file has. gzip goes only
// to those who offer it by name, or who refuse the other one; where both are
// as welcome, gzip, for that is how the bytes lie on disk.
func gzipWanted(h http.Header) bool {
	const unset = -1
	gzip, identity, any := float64(unset), float64(unset), float64(unset)
	for _, e := range list(h, "Accept-Encoding") {
		switch e.value {
		case "gzip", "x-gzip":
			gzip = max(gzip, e.q())
		case "identity":
			identity = e.q()
		case "*":
			any = e.q()
		}
	}
	if identity == unset {
		identity = any // "*" stands for what is not named
	}
	if gzip == unset && identity == 0 {
		gzip = any
	}
	return gzip > 0 && gzip >= identity
}
