package smart

import (
	"errors"
	"maps"
	"testing"
)

// TestIssuers: tokens shaped like those that well-known servers make for programs count, with
// the configuration that deploy/OPERATIONS.md has for each of them; those that they make for
// users, who may hold the same scopes, and ID tokens do not, even if they are for us.
func TestIssuers(t *testing.T) {
	type m = map[string]any
	for _, c := range []struct {
		name     string
		set      External // as in deploy/OPERATIONS.md, "Tokens of another server"
		header   m
		program  m // claims, beside those that all have
		others   map[string]m
		scopeAs  any
		clientID string
	}{
		{
			name: "Keycloak", clientID: "research", scopeAs: "profile email system/*.rs",
			set:    External{ClientClaim: "azp", ScopeClaim: "scope", TokenTypes: []string{"JWT"}, Programs: marks(t, "preferred_username=service-account-{client}")},
			header: m{"typ": "JWT"},
			program: m{
				"typ": "Bearer", "azp": "research", "client_id": "research", "sub": "0aa2e1c7-5b7e-4b0a-9c0f-7d9f7a1f3a11", "acr": "1", "email_verified": false,
				"preferred_username": "service-account-research", "clientHost": "10.0.0.7", "clientAddress": "10.0.0.7", "realm_access": m{"roles": []string{"offline_access"}},
			},
			others: map[string]m{
				"a user":                {"preferred_username": "alice", "sub": "7c1e…", "client_id": nil, "clientHost": nil, "clientAddress": nil, "sid": "9f…", "session_state": "9f…"},
				"another's account":     {"preferred_username": "service-account-backup"},
				"a user of that name":   {"sub": "7c1e…", "auth_time": 1764400000, "sid": "9f…"},
				"an ID token":           {"typ": "ID"},
				"a user's ID token":     {"typ": "ID", "preferred_username": "alice", "auth_time": 1764400000, "at_hash": "x"},
				"a refresh token":       {"typ": "Refresh"},
				"a logout token":        {"typ": "Logout", "events": m{}},
				"a name instead of one": {"preferred_username": "service-account-{client}"},
			},
		},
		{
			name: "Microsoft Entra, tokens of version 2", clientID: "6c3ff9a5-2b1b-4f39-9e6c-5a0b7a1c0001", scopeAs: []string{"Bulk.Read"},
			set: External{
				ClientClaim: "azp", ScopeClaim: "roles", TokenTypes: []string{"JWT"}, Programs: marks(t, "idtyp=app"),
				ScopeNames: map[string]string{"Bulk.Read": "system/*.rs"},
			},
			header: m{"typ": "JWT", "x5t": "k"},
			program: m{
				"azp": "6c3ff9a5-2b1b-4f39-9e6c-5a0b7a1c0001", "azpacr": "2", "idtyp": "app", "oid": "b1", "sub": "b1", "tid": "t", "ver": "2.0", "uti": "u", "aio": "a", "rh": "r",
			},
			others: map[string]m{
				"a user with the role":          {"idtyp": nil, "scp": "user_impersonation", "name": "Alice", "preferred_username": "alice@example.org", "oid": "u1", "sub": "p1", "azpacr": "1"},
				"a user with all claims wanted": {"idtyp": "user", "scp": "user_impersonation", "oid": "u1", "sub": "p1"},
				"an ID token":                   {"azp": nil, "idtyp": nil, "nonce": "n", "name": "Alice", "oid": "u1", "sub": "p1"},
			},
		},
		{
			name: "Microsoft Entra, tokens of version 1", clientID: "6c3ff9a5-2b1b-4f39-9e6c-5a0b7a1c0001", scopeAs: []string{"system/*.rs"},
			set:    External{ClientClaim: "appid", ScopeClaim: "roles", TokenTypes: []string{"JWT"}, Programs: marks(t, "idtyp=app")},
			header: m{"typ": "JWT", "x5t": "k"},
			program: m{
				"appid": "6c3ff9a5-2b1b-4f39-9e6c-5a0b7a1c0001", "appidacr": "2", "idtyp": "app", "idp": "https://sts.windows.net/t/", "oid": "b1", "sub": "b1", "tid": "t", "ver": "1.0",
			},
			others: map[string]m{
				"a user with the role": {"idtyp": nil, "scp": "user_impersonation", "upn": "alice@example.org", "amr": []string{"pwd"}, "oid": "u1", "sub": "p1", "appidacr": "0"},
				"an ID token":          {"appid": nil, "idtyp": nil, "nonce": "n", "oid": "u1", "sub": "p1"},
			},
		},
		{
			name: "Auth0", clientID: "q2f9Xk", scopeAs: "system/*.rs",
			set:     External{ClientClaim: "azp", ScopeClaim: "scope", TokenTypes: []string{"JWT"}, Programs: marks(t, "gty=client-credentials")},
			header:  m{"typ": "JWT"},
			program: m{"azp": "q2f9Xk", "sub": "q2f9Xk@clients", "gty": "client-credentials"},
			others: map[string]m{
				"a user":               {"gty": nil, "sub": "auth0|507f1f77", "scope": "openid system/*.rs"},
				"a user by a password": {"gty": "password", "sub": "auth0|507f1f77"},
				"a user's refresh":     {"gty": []string{"refresh_token", "authorization_code"}, "sub": "auth0|507f1f77"},
				"an ID token":          {"gty": nil, "azp": nil, "sub": "auth0|507f1f77", "nonce": "n", "sid": "s"},
			},
		},
		{
			name: "Auth0, with the profile of RFC 9068", clientID: "q2f9Xk", scopeAs: "system/*.rs",
			set:     External{ClientClaim: "client_id", ScopeClaim: "scope", TokenTypes: []string{"at+jwt"}, Programs: marks(t, "gty=client-credentials")},
			header:  m{"typ": "at+jwt"},
			program: m{"client_id": "q2f9Xk", "sub": "q2f9Xk@clients", "gty": "client-credentials"},
			others:  map[string]m{"a user": {"gty": nil, "sub": "auth0|507f1f77", "auth_time": 1764400000}, "a user who says no when": {"gty": nil, "sub": "auth0|507f1f77"}},
		},
		{
			name: "Okta", clientID: "0oa1b2c3", scopeAs: []string{"system/*.rs"},
			set:     External{ClientClaim: "cid", ScopeClaim: "scp", TokenTypes: []string{""}, Programs: marks(t)},
			program: m{"ver": 1, "jti": "1", "cid": "0oa1b2c3", "sub": "0oa1b2c3"},
			others: map[string]m{
				"a user":                  {"uid": "00u1", "sub": "alice@example.org", "auth_time": 1764400000, "scp": []string{"openid", "system/*.rs"}},
				"a user who says no when": {"uid": "00u1", "sub": "alice@example.org"},
				"an ID token":             {"cid": nil, "sub": "00u1", "amr": []string{"pwd"}, "nonce": "n", "auth_time": 1764400000, "at_hash": "h"},
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, mint, _ := newExternal(t)
			e.ClientClaim, e.ScopeClaim, e.TokenTypes, e.Programs, e.ScopeNames = c.set.ClientClaim, c.set.ScopeClaim, c.set.TokenTypes, c.set.Programs, c.set.ScopeNames
			header := maps.Clone(c.header)
			if header == nil {
				header = m{"typ": nil}
			}
			claims := m{"client_id": nil, "scope": nil, c.set.ScopeClaim: c.scopeAs}
			maps.Copy(claims, c.program)
			token, err := e.Check(t.Context(), mint(header, claims))
			if err != nil || token.Client != c.clientID || token.Rights.String() != "system/*.rs" {
				t.Errorf("a program's: %+v, %v", token, err)
			}
			for who, changed := range c.others {
				other := maps.Clone(claims)
				maps.Copy(other, changed)
				if token, err := e.Check(t.Context(), mint(header, other)); !errors.Is(err, ErrToken) {
					t.Errorf("%s: %+v, %v", who, token, err)
				}
			}
		})
	}
}

func marks(t *testing.T, list ...string) []Mark {
	t.Helper()
	all := []Mark{}
	for _, text := range list {
		m, ok := ParseMark(text)
		if !ok {
			t.Errorf("%s is no claim with a value", text)
		}
		all = append(all, m)
	}
	return all
}

// TestClientIsSub: where the client is whoever a token is about, that says of nobody that he
// is a program.
func TestClientIsSub(t *testing.T) {
	e, mint, _ := newExternal(t)
	e.ClientClaim = "sub"
	if token, err := e.Check(t.Context(), mint(nil, nil)); !errors.Is(err, ErrToken) {
		t.Errorf("%+v, %v", token, err)
	}
	if token, err := e.Check(t.Context(), mint(nil, map[string]any{"idtyp": "app"})); err != nil || token.Client != "app" {
		t.Errorf("%+v, %v", token, err)
	}
}
