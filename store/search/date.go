package search

import (
	"math"
	"strings"

	"tidemark/store/fhir"
)

// A dateTest compares spans of time in milliseconds: 2026 is all of the year. What
// has no zone is UTC.
type dateTest struct {
	prefix      string
	want, about interval[int64]
}

func parseDate(p *parameter, text string, now fhir.Instant) (test, error) {
	prefix, rest := prefixed(unescape(text))
	want, ok := searchedSpan(rest)
	if _, lost := searchedSpan(strings.Replace(rest, " ", "+", 1)); !ok && lost {
		return nil, wrong("%s is not a value of the search parameter %s: the + of an offset is written %%2B in a URL", quoted(text), p.code)
	}
	if !ok {
		return nil, wrong("%s is not a value of the search parameter %s: right is a date as in 2026-01-31, or a time with a zone, as in 2026-01-31T08:00:00Z, after one of %v", quoted(text), p.code, prefixes)
	}
	// A tenth of how long ago it is (FHIR R4, "Prefixes": ap).
	far := int64(now) - want.first
	if far < 0 {
		far = want.last - int64(now)
	}
	far = max(far, 0) / 10
	return dateTest{prefix, want, interval[int64]{want.first - far, want.last + far}}, nil
}

// searchedSpan reads a date as a client may write it: also to the minute only, and
// without a zone.
func searchedSpan(s string) (interval[int64], bool) {
	const minute = "2026-01-31T08:00"
	width := int64(0)
	if len(s) >= len(minute) && s[10] == 'T' {
		if rest := s[len(minute):]; rest == "" || strings.IndexByte("Z+-", rest[0]) >= 0 {
			s = s[:len(minute)] + ":00" + s[len(minute):]
			width = 59_000
		}
		if !strings.ContainsAny(s[len(minute):], "Z+-") {
			s += "Z"
		}
	}
	first, last, ok := fhir.ParseSpan(s)
	return interval[int64]{int64(first), int64(last) + width}, ok
}

func (t dateTest) matches(v value) bool {
	said, ok := spanOf(v.raw, v.typ)
	return ok && compare(t.prefix, said, t.want, t.about)
}

const (
	always = math.MinInt64
	never  = math.MaxInt64
)

// spanOf is what time a value covers. A Period that is open goes on for ever.
func spanOf(raw []byte, typ string) (interval[int64], bool) {
	switch typ {
	case "Period":
		return periodOf(raw)
	case "Timing":
		return timingOf(raw)
	}
	if raw[0] != '"' {
		return interval[int64]{}, false
	}
	first, last, ok := fhir.ParseSpan(plain(raw))
	return interval[int64]{int64(first), int64(last)}, ok
}

func periodOf(raw []byte) (interval[int64], bool) {
	span := interval[int64]{always, never}
	start, end := text(raw, "start"), text(raw, "end")
	first, _, starts := fhir.ParseSpan(start)
	_, last, ends := fhir.ParseSpan(end)
	if starts {
		span.first = int64(first)
	}
	if ends {
		span.last = int64(last)
	}
	wrong := start != nil && !starts || end != nil && !ends // which is not open
	return span, (starts || ends) && !wrong
}

// timingOf is from the first to the last time of a schedule (FHIR R4, "date":
// only its outer limits count).
func timingOf(raw []byte) (interval[int64], bool) {
	span, some := interval[int64]{never, always}, false
	add := func(s interval[int64], ok bool) {
		if ok {
			span, some = interval[int64]{min(span.first, s.first), max(span.last, s.last)}, true
		}
	}
	member(raw, "event", func(v []byte) { add(spanOf(v, "dateTime")) })
	member(raw, "repeat", func(v []byte) {
		member(v, "boundsPeriod", func(v []byte) { add(periodOf(v)) })
	})
	return span, some
}
