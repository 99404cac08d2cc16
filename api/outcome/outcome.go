// Package outcome knows FHIR's OperationOutcome: how a fault, a warning or a
// remark is said to a client. It refuses to know HTTP: which status a fault
// becomes is decided in package api alone.
package outcome

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Severity is FHIR's issue-severity.
type Severity string

// The severities that we use.
const (
	Fatal       Severity = "fatal"
	Error       Severity = "error"
	Warning     Severity = "warning"
	Information Severity = "information"
)

// Code is FHIR's issue-type.
type Code string

// The codes that we use. After one of the transient family (Transient,
// Throttled, Incomplete, Exception) clients may come again.
const (
	Invalid      Code = "invalid"
	Structure    Code = "structure"
	Required     Code = "required"
	Value        Code = "value"
	NotSupported Code = "not-supported"
	NotFound     Code = "not-found"
	Deleted      Code = "deleted"
	TooLong      Code = "too-long"
	TooCostly    Code = "too-costly"
	Security     Code = "security"
	Login        Code = "login"
	Unknown      Code = "unknown"
	Expired      Code = "expired"
	Forbidden    Code = "forbidden"
	Suppressed   Code = "suppressed"
	Transient    Code = "transient"
	Throttled    Code = "throttled"
	Incomplete   Code = "incomplete"
	Exception    Code = "exception"
)

// An Issue is one thing that is said.
type Issue struct {
	Severity Severity `json:"severity"`
	Code     Code     `json:"code"`
	Text     string   `json:"diagnostics"`
}

// Append appends one OperationOutcome as a line of NDJSON, without the newline.
func Append(dst []byte, issues ...Issue) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	// Strings and slices of strings cannot fail to encode.
	_ = enc.Encode(struct {
		ResourceType string  `json:"resourceType"`
		Issue        []Issue `json:"issue"`
	}{"OperationOutcome", issues})
	return append(dst, bytes.TrimSuffix(b.Bytes(), []byte("\n"))...)
}

// A Tally is how many issues there are of a severity.
type Tally struct {
	Severity Severity
	Count    int
}

// Count tallies the issues of lines that Append has made, the worst first.
func Count(lines string) []Tally {
	n := map[Severity]int{}
	for line := range strings.Lines(lines) {
		var o struct{ Issue []Issue }
		_ = json.Unmarshal([]byte(line), &o) // Append made it
		for _, i := range o.Issue {
			n[i.Severity]++
		}
	}
	var all []Tally
	for _, s := range []Severity{Fatal, Error, Warning, Information} {
		if n[s] > 0 {
			all = append(all, Tally{s, n[s]})
		}
	}
	return all
}

// maxEcho is how many characters of a client's string we repeat
// (decisions.md 6): enough to recognize it, too few to carry anything away.
const maxEcho = 64

// Quote prepares a string that came from a client for being repeated to it:
// quoted, cut at 64 characters, without control and formatting characters.
func Quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	n := 0
	for _, r := range s {
		if r == utf8.RuneError || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			continue
		}
		if n == maxEcho {
			b.WriteString("…")
			break
		}
		b.WriteRune(r)
		n++
	}
	b.WriteByte('"')
	return b.String()
}
