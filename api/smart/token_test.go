package smart

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestToken: a token says what it was made of, until it expires; nothing else is one.
func TestToken(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 123, time.UTC)
	clock := func() time.Time { return now }
	old, fresh := NewSecret(), NewSecret()
	before := &Minter{Issuer: "https://bulk.example.org/fhir", Secrets: []Secret{old}, Now: clock}
	m := &Minter{Issuer: before.Issuer, Secrets: []Secret{fresh, old}, Now: clock}
	rights := Parse("system/*.rs system/Observation.rs?category=laboratory system/Patient.read")
	client := Client{ID: "app", Serial: 7}
	mint := func(m *Minter) (string, Token) {
		t.Helper()
		text, token, err := m.Mint(client, rights)
		if err != nil {
			t.Fatal(err)
		}
		return text, token
	}
	good, want := mint(m)
	if want.Expires != now.Truncate(time.Second).Add(5*time.Minute) || want.Client != "app" || want.Serial != 7 {
		t.Errorf("%+v", want)
	}
	same := cmp.Options{cmp.AllowUnexported(Right{}), cmpopts.EquateApproxTime(0)}
	for name, text := range map[string]string{"of this secret": good, "of the one before": first(mint(before))} {
		got, err := m.Check(text)
		got.ID, want.ID = "", ""
		if d := cmp.Diff(want, got, same); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", name, err, d)
		}
	}
	other := &Minter{Issuer: "https://elsewhere.example.org/fhir", Secrets: m.Secrets, Now: clock}
	stranger := &Minter{Issuer: m.Issuer, Secrets: []Secret{{ID: fresh.ID, Key: NewSecret().Key}}, Now: clock}
	parts := strings.Split(good, ".")
	for name, text := range map[string]string{
		"nothing": "", "no token": "abc", "of another server": first(mint(other)), "of another secret": first(mint(stranger)),
		"of a secret that is gone": first(mint(&Minter{Issuer: m.Issuer, Secrets: []Secret{NewSecret()}, Now: clock})),
		"changed":                  parts[0] + "." + parts[1][:len(parts[1])-1] + "A." + parts[2], "cut": good[:len(good)-1], "without a signature": parts[0] + "." + parts[1] + ".",
		"an assertion":    newSigner(t, jose.ES384, fresh.ID).sign(t, map[string]any{"typ": tokenType}, map[string]any{"iss": m.Issuer, "exp": now.Add(time.Minute).Unix()}),
		"of another kind": hmacSigned(t, fresh.ID, fresh.Key, map[string]any{"iss": m.Issuer, "exp": now.Add(time.Minute).Unix(), "scope": "system/*.rs"}),
		"longer than any": strings.Repeat("a", maxToken+1),
	} {
		if got, err := m.Check(text); !errors.Is(err, ErrToken) || got.Client != "" || got.Rights != nil {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	now = now.Add(5*time.Minute - time.Second)
	if _, err := m.Check(good); err != nil {
		t.Errorf("a second before it expires: %v", err)
	}
	now = now.Add(time.Second)
	if got, err := m.Check(good); !errors.Is(err, ErrExpired) || got.Client != "" {
		t.Errorf("when it expires: %+v, %v", got, err)
	}
}

func first(text string, _ Token) string { return text }

// TestTokenLifetime: none lives longer than SMART allows, whatever is configured.
func TestTokenLifetime(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	ids := map[string]bool{}
	for life, want := range map[time.Duration]time.Duration{0: 5 * time.Minute, time.Minute: time.Minute, time.Hour: 5 * time.Minute, -1: 5 * time.Minute} {
		m := &Minter{Issuer: "x", Secrets: []Secret{NewSecret()}, Lifetime: life, Now: func() time.Time { return now }}
		_, token, err := m.Mint(Client{ID: "app"}, Parse("system/*.rs"))
		if err != nil || token.Expires != now.Add(want) {
			t.Errorf("%v: until %v, %v", life, token.Expires, err)
		}
		ids[token.ID] = true
	}
	if len(ids) != 4 {
		t.Errorf("tokens share an id: %v", ids)
	}
}
