package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration that is written with its unit: 500ms, 24h, 30d.
type Duration time.Duration

const (
	millisecond = Duration(time.Millisecond)
	second      = Duration(time.Second)
	minute      = Duration(time.Minute)
	hour        = Duration(time.Hour)
	day         = Duration(24 * time.Hour)
)

// errNoUnit is what a bare 5 earns: seconds to one reader are milliseconds to
// the next.
var errNoUnit = errors.New("has no unit")

// UnmarshalText reads what time.ParseDuration reads, and days before it.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	if _, err := strconv.ParseFloat(s, 64); err == nil && s != "0" {
		return fmt.Errorf("%q %w: write %sms, %ss, %sm, %sh or %sd", s, errNoUnit, s, s, s, s, s)
	}
	days, rest, found := strings.Cut(s, "d")
	if !found {
		days, rest = "", s
	}
	total, err := parseDays(days)
	if err == nil && rest != "" {
		var part time.Duration
		part, err = time.ParseDuration(rest)
		total += part
	}
	if err != nil || (found && days == "") || s == "" {
		return fmt.Errorf("%q is no duration: write for example 500ms, 24h or 30d", s)
	}
	if total < 0 {
		return fmt.Errorf("%q is negative", s)
	}
	*d = Duration(total)
	return nil
}

func parseDays(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	const most = math.MaxInt64 / int64(day) / 2
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > most {
		return 0, errors.New("not a number of days")
	}
	return time.Duration(n) * time.Duration(day), nil
}

// String writes the shortest form that reads back as the same value.
func (d Duration) String() string {
	if d > day && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Bytes is a number of bytes that is written with its unit: 64KiB, 1GiB, 10MB.
type Bytes int64

// Longer names come first: "MiB" also ends in "B".
var units = []struct {
	name string
	size Bytes
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"kB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"B", 1},
}

// UnmarshalText reads a number, which may have a fraction, and a unit.
func (b *Bytes) UnmarshalText(text []byte) error {
	s := string(text)
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		return fmt.Errorf("%q %w: write %sKiB, %sMiB or %sGiB", s, errNoUnit, s, s, s)
	}
	for _, u := range units {
		number, found := strings.CutSuffix(s, u.name)
		if !found {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || !(n >= 0) || n*float64(u.size) > math.MaxInt64/2 {
			break
		}
		*b = Bytes(math.Round(n * float64(u.size)))
		return nil
	}
	return fmt.Errorf("%q is no size: write for example 64KiB, 256MiB or 1GiB", s)
}

// String writes the largest binary unit that divides the value.
func (b Bytes) String() string {
	for i := 3; i >= 0; i-- {
		if u := units[i]; b >= u.size && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}
