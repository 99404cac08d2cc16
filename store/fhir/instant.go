package fhir

import (
	"errors"
	"math"
	"time"
)

// An Instant is a point in time in milliseconds since the Unix epoch, UTC.
// JavaScript clients keep no more, so neither do we.
type Instant int64

// None is no instant at all; it lies before every other.
const None Instant = math.MinInt64

// Instants are written with four digits of the year.
const (
	firstInstant Instant = -62135596800000 // 0001-01-01T00:00:00.000Z
	lastInstant  Instant = 253402300799999 // 9999-12-31T23:59:59.999Z
)

const msPerDay = 24 * 60 * 60 * 1000

// errInstant does not repeat the text: times belong to patients' records.
var errInstant = errors.New("not a FHIR instant")

// FromTime cuts t to milliseconds.
func FromTime(t time.Time) Instant {
	ms := t.Unix() * 1000
	return Instant(ms + int64(t.Nanosecond()/1e6))
}

// Time is the instant as a time in UTC.
func (i Instant) Time() time.Time { return time.UnixMilli(int64(i)).UTC() }

// Writable tells whether FHIR can say it: its year has four digits.
func (i Instant) Writable() bool { return i >= firstInstant && i <= lastInstant }

// String is the form in which instants leave us: fixed width, UTC, so that
// the order of strings is that of time. None is "none".
func (i Instant) String() string { return string(i.Append(make([]byte, 0, 24))) }

// Append appends what String returns.
func (i Instant) Append(dst []byte) []byte {
	if i == None {
		return append(dst, "none"...)
	}
	if !i.Writable() {
		return i.Time().AppendFormat(dst, "2006-01-02T15:04:05.000Z")
	}
	t := i.Time()
	year, month, day := t.Date()
	hour, minute, sec := t.Clock()
	dst = append(appendTwo(dst, year/100), byte('0'+year/10%10), byte('0'+year%10), '-')
	dst = append(appendTwo(dst, int(month)), '-')
	dst = append(appendTwo(dst, day), 'T')
	dst = append(appendTwo(dst, hour), ':')
	dst = append(appendTwo(dst, minute), ':')
	dst = append(appendTwo(dst, sec), '.')
	ms := t.Nanosecond() / 1e6
	return append(dst, byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10), 'Z')
}

func appendTwo(dst []byte, n int) []byte {
	return append(dst, byte('0'+n/10), byte('0'+n%10))
}

// ParseInstant reads a FHIR instant: date, time to at least the second, and a
// zone. What is finer than a millisecond is cut, not rounded; cut says whether
// that lost anything.
func ParseInstant(s string) (i Instant, cut bool, err error) {
	i, cut, ok := parseInstant(s)
	if !ok {
		return None, false, errInstant
	}
	return i, cut, nil
}

func parseInstant[T string | []byte](s T) (i Instant, cut, ok bool) {
	d, ok := parseDateTime(s)
	if !ok || d.precision < seconds {
		return None, false, false
	}
	return d.start, d.cut, true
}

// precision is how far a FHIR dateTime goes.
type precision uint8

const (
	years precision = iota
	months
	days
	seconds
	fractions
)

// A timespan is what a dateTime of some precision covers, both ends included.
type timespan struct {
	start, end Instant
	precision  precision
	cut        bool // a fraction finer than a millisecond was cut off
}

// ParseSpan reads a FHIR date, dateTime or instant of any precision: it covers
// first to last, both included. A date without a zone is taken as UTC.
func ParseSpan[T string | []byte](s T) (first, last Instant, ok bool) {
	d, ok := parseDateTime(s)
	return d.start, d.end, ok
}

// parseDateTime reads a FHIR dateTime of any precision. A date without a zone
// is taken as UTC. A leap second is the first one of the next minute.
func parseDateTime[T string | []byte](s T) (timespan, bool) {
	year, ok := digits(s, 0, 4)
	if !ok || year == 0 {
		return timespan{}, false
	}
	if len(s) == 4 {
		return spanOf(date(year, 1, 1), date(year+1, 1, 1), years), true
	}
	month, ok := digits(s, 5, 2)
	if !ok || s[4] != '-' || month < 1 || month > 12 {
		return timespan{}, false
	}
	if len(s) == 7 {
		return spanOf(date(year, month, 1), date(year, month+1, 1), months), true
	}
	day, ok := digits(s, 8, 2)
	if !ok || s[7] != '-' || day < 1 || day > daysIn(year, month) {
		return timespan{}, false
	}
	midnight := date(year, month, day)
	if len(s) == 10 {
		return spanOf(midnight, midnight+msPerDay, days), true
	}
	return parseClock(s, midnight)
}

// parseClock reads what follows the date of s: T, time and zone.
func parseClock[T string | []byte](s T, midnight Instant) (timespan, bool) {
	if len(s) < len("2006-01-02T15:04:05Z") || s[10] != 'T' || s[13] != ':' || s[16] != ':' {
		return timespan{}, false
	}
	hour, ok1 := digits(s, 11, 2)
	minute, ok2 := digits(s, 14, 2)
	sec, ok3 := digits(s, 17, 2)
	if !ok1 || !ok2 || !ok3 || hour > 23 || minute > 59 || sec > 60 {
		return timespan{}, false
	}
	ms, width, at, cut, ok := fraction(s, 19)
	if !ok {
		return timespan{}, false
	}
	east, ok := zone(s, at)
	if !ok {
		return timespan{}, false
	}
	start := midnight + Instant(((hour*60+minute)*60+sec)*1000+ms) - east
	if start < firstInstant || start > lastInstant {
		return timespan{}, false
	}
	res := spanOf(start, start+width, fractions)
	if at == 19 {
		res.precision = seconds
	}
	res.cut = cut
	return res, true
}

// fraction reads the fraction of a second at s[at:], if there is one: its
// milliseconds, how long a span of its precision is, and where it ends.
func fraction[T string | []byte](s T, at int) (ms int, width Instant, end int, cut, ok bool) {
	width = 1000
	if s[at] != '.' {
		return 0, width, at, false, true
	}
	unit := 100
	for end = at + 1; end < len(s) && s[end] >= '0' && s[end] <= '9'; end++ {
		digit := int(s[end] - '0')
		cut = cut || unit == 0 && digit != 0
		ms += digit * unit
		unit /= 10
		width = max(width/10, 1)
	}
	return ms, width, end, cut, end > at+1
}

// zone reads the zone that ends s.
func zone[T string | []byte](s T, at int) (Instant, bool) {
	if len(s) == at+1 && s[at] == 'Z' {
		return 0, true
	}
	if len(s) != at+6 || s[at+3] != ':' {
		return 0, false
	}
	hours, ok1 := digits(s, at+1, 2)
	minutes, ok2 := digits(s, at+4, 2)
	if !ok1 || !ok2 || minutes > 59 || hours > 14 || hours == 14 && minutes > 0 {
		return 0, false
	}
	ms := Instant((hours*60 + minutes) * 60 * 1000)
	switch s[at] {
	case '+':
		return ms, true
	case '-':
		return -ms, true
	}
	return 0, false
}

func spanOf(start, next Instant, p precision) timespan {
	return timespan{start: start, end: next - 1, precision: p}
}

func digits[T string | []byte](s T, at, n int) (int, bool) {
	if len(s) < at+n {
		return 0, false
	}
	v := 0
	for i := at; i < at+n; i++ {
		c := s[i] - '0'
		if c > 9 {
			return 0, false
		}
		v = v*10 + int(c)
	}
	return v, true
}

func date(year, month, day int) Instant {
	return Instant(time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC).UnixMilli())
}

func daysIn(year, month int) int {
	return time.Date(year, time.Month(month)+1, 0, 0, 0, 0, 0, time.UTC).Day()
}
