package search

import (
	"math"
	"strconv"
	"strings"
)

// A number compares as far as it was written: 5.4 is all from 5.35 to 5.45, but
// for prefixes that say where it ends (FHIR R4, "number").
type number struct {
	prefix      string
	want, about interval[float64]
}

func newNumber(prefix, text string) (number, bool) {
	if strings.ContainsAny(text, "xXpP_iInN") { // numbers to Go, not to FHIR
		return number{}, false
	}
	x, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return number{}, false
	}
	n := number{prefix, interval[float64]{x, x}, interval[float64]{x - math.Abs(x)/10, x + math.Abs(x)/10}}
	if prefix == "eq" || prefix == "ne" {
		from, to := rounding(text)
		n.want = interval[float64]{min(from, x), max(math.Nextafter(to, math.Inf(-1)), x)}
	}
	return n, true
}

// rounding is between what a decimal may have been rounded from, half of its last
// digit to either side. The ends are decimals, too, and written out before they
// become numbers: 5.4-0.05 would be 5.3500000000000005, which is not what 5.35
// stands for. 1e2 has one digit and is from 50 to 150, by the rule as it is worded;
// the example beside it (95 to 105) counts two.
func rounding(text string) (from, to float64) {
	size, negative := strings.CutPrefix(strings.ToLower(text), "-")
	size, exponent, _ := strings.Cut(strings.TrimPrefix(size, "+"), "e")
	scale, _ := strconv.Atoi(exponent)
	scale = max(-maxScale, min(scale, maxScale))
	whole, fraction, _ := strings.Cut(size, ".")
	digits := []byte("0" + whole + fraction)
	at := "5e" + strconv.Itoa(scale-len(fraction)-1)
	to, _ = strconv.ParseFloat(string(digits)+at, 64)
	if zero := strings.Trim(string(digits), "0") == ""; zero {
		return -to, to
	}
	i := len(digits) - 1
	for ; digits[i] == '0'; i-- {
		digits[i] = '9'
	}
	digits[i]--
	from, _ = strconv.ParseFloat(string(digits)+at, 64)
	if negative {
		return -to, -from
	}
	return from, to
}

// maxScale is far outside what a float64 can be.
const maxScale = 1 << 14

func (n number) holds(said interval[float64]) bool { return compare(n.prefix, said, n.want, n.about) }

func float(raw []byte) (float64, bool) {
	x, err := strconv.ParseFloat(string(raw), 64)
	return x, err == nil
}

type numberTest struct{ number }

func parseNumber(p *parameter, text string) (test, error) {
	n, ok := newNumber(prefixed(unescape(text)))
	if !ok {
		return nil, wrong("%s is not a value of the search parameter %s: right is a number, after one of %v", quoted(text), p.code, prefixes)
	}
	return numberTest{n}, nil
}

func (t numberTest) matches(v value) bool {
	x, ok := float(v.raw)
	return ok && t.holds(interval[float64]{x, x})
}

// A quantityTest compares numbers of one unit; none are converted.
type quantityTest struct {
	number
	system, code string // "": any
}

func parseQuantity(p *parameter, text string) (test, error) {
	parts := splitUnescaped(text, '|')
	n, ok := newNumber(prefixed(unescape(parts[0])))
	switch {
	case !ok:
		return nil, wrong("%s is not a value of the search parameter %s: right is number, number|system|code or number||code, after one of %v", quoted(parts[0]), p.code, prefixes)
	case len(parts) == 1:
		return quantityTest{number: n}, nil
	case len(parts) != 3:
		return nil, wrong("a value of the search parameter %s has %d parts: right is number, number|system|code or number||code", p.code, len(parts))
	}
	return quantityTest{n, unescape(parts[1]), unescape(parts[2])}, nil
}

func (t quantityTest) matches(v value) bool {
	if v.raw[0] != '{' {
		return false
	}
	switch v.typ {
	case "Money":
		x, ok := numberOf(v.raw, "value")
		return ok && t.isUnit([]byte("urn:iso:std:iso:4217"), text(v.raw, "currency"), nil) && t.holds(interval[float64]{x, x})
	case "Range":
		return t.inRange(v.raw)
	}
	said, ok := quantityOf(v.raw)
	return ok && t.unit(v.raw) && t.holds(said)
}

// quantityOf is the value of a Quantity, of one with a comparator all that it may
// be.
func quantityOf(raw []byte) (interval[float64], bool) {
	x, ok := numberOf(raw, "value")
	said := interval[float64]{x, x}
	switch string(text(raw, "comparator")) {
	case "<":
		said = interval[float64]{math.Inf(-1), math.Nextafter(x, math.Inf(-1))}
	case "<=":
		said.first = math.Inf(-1)
	case ">":
		said = interval[float64]{math.Nextafter(x, math.Inf(1)), math.Inf(1)}
	case ">=":
		said.last = math.Inf(1)
	}
	return said, ok
}

// inRange compares a Range, whose ends may be open.
func (t quantityTest) inRange(raw []byte) bool {
	said, fits, some := interval[float64]{math.Inf(-1), math.Inf(1)}, true, false
	end := func(name string, to *float64) {
		member(raw, name, func(v []byte) {
			if x, ok := numberOf(v, "value"); ok {
				*to, some = x, true
				fits = fits && t.unit(v)
			}
		})
	}
	end("low", &said.first)
	end("high", &said.last)
	return some && fits && t.holds(said)
}

func (t quantityTest) unit(raw []byte) bool {
	return t.isUnit(text(raw, "system"), text(raw, "code"), text(raw, "unit"))
}

// isUnit compares a unit: its code in a system, or as it is shown if no system is
// asked for.
func (t quantityTest) isUnit(system, code, unit []byte) bool {
	if t.system != "" && string(system) != t.system {
		return false
	}
	return t.code == "" || string(code) == t.code || t.system == "" && string(unit) == t.code
}

func numberOf(raw []byte, name string) (x float64, ok bool) {
	member(raw, name, func(v []byte) { x, ok = float(v) })
	return x, ok
}
