package smart

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestCapability: a signature counts for one file of one job, until it expires.
func TestCapability(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	old, fresh := NewSecret(), NewSecret()
	before := &Capability{Secrets: []Secret{old}, Now: func() time.Time { return now }}
	c := &Capability{Secrets: []Secret{fresh, old}, Now: before.Now}
	until := now.Add(time.Hour)
	good := c.Sign("job1", 12, 7, until)
	for name, text := range map[string]string{"of this secret": good, "of the one before": before.Sign("job1", 12, 7, until)} {
		if serial, err := c.Check("job1", 12, text); serial != 7 || err != nil {
			t.Errorf("%s: %d, %v", name, serial, err)
		}
	}
	if _, err := before.Check("job1", 12, good); !errors.Is(err, ErrCapability) {
		t.Errorf("of a secret that nobody has: %v", err)
	}
	parts := strings.Split(good, ".")
	with := func(i int, text string) string {
		changed := append([]string{}, parts...)
		changed[i] = text
		return strings.Join(changed, ".")
	}
	for _, c2 := range []struct {
		name, job string
		file      int
		text      string
	}{
		{"another job", "job2", 12, good},
		{"another file", "job1", 1, good},
		{"parts moved", "job11", 2, good},
		{"another client", "job1", 12, with(1, "8")},
		{"a zero more", "job1", 12, with(1, "07")},
		{"a plus", "job1", 12, with(2, "+"+parts[2])},
		{"longer", "job1", 12, with(2, fmt.Sprint(until.Unix()+1))},
		{"another secret", "job1", 12, with(0, old.ID)},
		{"a secret of nobody", "job1", 12, with(0, "x")},
		{"cut", "job1", 12, good[:len(good)-1]},
		{"more", "job1", 12, good + "A"},
		{"unsigned", "job1", 12, with(3, "")},
		{"nothing", "job1", 12, ""},
		{"no numbers", "job1", 12, "a.b.c.d"},
		{"too long", "job1", 12, strings.Repeat("a", maxCapability+1)},
	} {
		if serial, err := c.Check(c2.job, c2.file, c2.text); serial != 0 || !errors.Is(err, ErrCapability) {
			t.Errorf("%s: %d, %v", c2.name, serial, err)
		}
	}
	now = until.Add(-time.Second)
	if _, err := c.Check("job1", 12, good); err != nil {
		t.Errorf("a second before it expires: %v", err)
	}
	now = until
	if serial, err := c.Check("job1", 12, good); serial != 0 || !errors.Is(err, ErrCapabilityExpired) {
		t.Errorf("when it expires: %d, %v", serial, err)
	}
	if _, err := c.Check("job1", 12, with(1, "8")); !errors.Is(err, ErrCapability) {
		t.Errorf("forged and expired: %v", err)
	}
}

// FuzzCapability: what was not signed counts for nothing.
func FuzzCapability(f *testing.F) {
	c := &Capability{Secrets: []Secret{NewSecret()}}
	f.Add("job", 1, c.Secrets[0].ID+".1.9999999999.AAAA")
	f.Fuzz(func(t *testing.T, job string, file int, text string) {
		if serial, err := c.Check(job, file, text); err == nil || serial != 0 {
			t.Errorf("%q counts for %d of %q", text, file, job)
		}
	})
}
