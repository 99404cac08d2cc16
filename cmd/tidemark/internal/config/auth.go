package config

import (
	"encoding/json"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"tidemark/api/clients"
	"tidemark/api/smart"
	"tidemark/api/withhold"
)

// A KeySet is a JSON Web Key Set, written as JSON in a text or as YAML.
type KeySet string

// UnmarshalYAML takes it as it is; whether it is right is seen later.
func (k *KeySet) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*k = KeySet(n.Value)
		return nil
	}
	var set any
	if err := n.Load(&set); err != nil {
		return err
	}
	text, err := json.Marshal(set)
	*k = KeySet(text)
	return err
}

// Scopes are those of a client: a list, or one text with spaces between them.
type Scopes []string

// UnmarshalYAML reads both.
func (s *Scopes) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*s = strings.Fields(n.Value)
		return nil
	}
	return n.Load((*[]string)(s))
}

// AuthMode is the mode that holds: none, builtin or external.
func (c *Config) AuthMode() string {
	u, err := url.Parse(c.HTTP.PublicURL)
	switch {
	case c.Auth.Mode != "auto":
		return c.Auth.Mode
	case err == nil && IsLoopback(u.Hostname()) && c.HTTP.Loopback():
		return "none"
	}
	return "builtin"
}

// AuditName is what the audit trail is called in a store's directory.
const AuditName = "audit"

// AuditDir is where the files of the audit trail are.
func (c *Config) AuditDir() string {
	if c.Audit.File != "" {
		return c.Audit.File
	}
	return filepath.Join(c.Store.Path, AuditName)
}

// TokenIssuer is whose tokens count: "" this server's, else that of another.
func (c *Config) TokenIssuer() string {
	if c.AuthMode() == "external" {
		return c.Auth.External.Issuer
	}
	return ""
}

// Rules are those that clients must keep.
func (c *Config) Rules() clients.Rules {
	return clients.Rules{
		CheckURL: (&smart.Fetcher{Allow: c.JWKS.Allow, Plain: c.JWKS.AllowHTTPLoopback}).CheckURL,
		External: c.AuthMode() == "external",
	}
}

// May is what a client of the configuration may.
func (c *Client) May() clients.Permission {
	return clients.Permission{Levels: c.Levels, Groups: c.Groups, Scopes: strings.Join(c.Scopes, " "), Withhold: c.Withhold.Policy()}
}

func (l *loader) validateAuth() {
	if d := l.Auth.TokenLifetime; d <= 0 || d > Duration(smart.MaxTokenLifetime) {
		l.invalid("auth.token_lifetime", "%v is not more than 0 and at most 5m: clients get new ones without anybody's help", d)
	}
	for _, a := range l.Auth.Audiences {
		if !isHTTPURL(a) {
			l.invalid("auth.audiences", "%q is not a URL such as https://proxy.example.org/fhir/token", a)
		}
	}
	for _, host := range l.JWKS.Allow {
		if host == "" || strings.ContainsAny(host, "/ *") {
			l.invalid("jwks.allow", "%q is no host such as keys.intern.example.org", host)
		}
	}
	l.validateExternal()
	seen := map[string]bool{}
	for i := range l.Auth.Clients {
		c, at := &l.Auth.Clients[i], "auth.clients["+strconv.Itoa(i)+"]."
		if seen[c.ID] {
			l.invalid(at+"id", "is listed twice")
		}
		seen[c.ID] = true
		l.validateClient(c, at)
	}
}

func (l *loader) validateExternal() {
	e := &l.Auth.External
	if l.Auth.Mode != "external" {
		if e.Issuer != "" {
			l.invalid("auth.external.issuer", "is set while auth.mode is %s: tokens of another server count with external only", l.Auth.Mode)
		}
		return
	}
	if !isHTTPURL(e.Issuer) {
		l.invalid("auth.external.issuer", "is not a URL such as https://login.example.org")
	}
	if e.Audience == "" {
		l.invalid("auth.external.audience", "is missing: without it tokens for other servers would count here")
	}
	if err := l.Rules().CheckURL(e.JWKSURL); err != nil {
		l.invalid("auth.external.jwks_url", "%s", err)
	}
	if e.ClientClaim == "" {
		l.invalid("auth.external.client_claim", "names no claim")
	}
	if e.ScopeClaim == "" {
		l.invalid("auth.external.scope_claim", "names no claim")
	}
	if len(e.TokenTypes) == 0 {
		l.invalid("auth.external.token_types", "names no type: without one ID tokens would count")
	}
	for _, text := range e.ProgramClaims {
		if _, ok := smart.ParseMark(text); !ok {
			l.invalid("auth.external.program_claims", "%q is no claim with a value such as idtyp=app", text)
		}
	}
	for _, text := range e.ScopeNames {
		if name, scopes, _ := strings.Cut(text, "="); len(strings.Fields(name)) != 1 || smart.Parse(scopes) == nil {
			l.invalid("auth.external.scope_names", "%q is no name with a scope such as Bulk.Read=system/*.rs", text)
		}
	}
}

// Programs are the claims that mark tokens of programs.
func (e *External) Programs() []smart.Mark {
	marks := []smart.Mark{} // not nil, which would be the default
	for _, text := range e.ProgramClaims {
		m, _ := smart.ParseMark(text)
		marks = append(marks, m)
	}
	return marks
}

// Scopes are those that have names of the server's own.
func (e *External) Scopes() map[string]string {
	names := map[string]string{}
	for _, text := range e.ScopeNames {
		name, scopes, _ := strings.Cut(text, "=")
		names[strings.TrimSpace(name)] = scopes
	}
	return names
}

// Own are the limits as the registry of clients has them.
func (c *ClientLimits) Own() clients.Limits {
	return clients.Limits{Jobs: c.Jobs, JobsPerDay: c.JobsPerDay, BytesPerDay: int64(c.BytesPerDay)}
}

// Policy is what is withheld.
func (w *Withhold) Policy() withhold.Policy {
	return withhold.Policy{Groups: w.Groups, Security: w.Security, Filters: w.Filters, Elements: w.Elements}
}

func (l *loader) validateWithhold(w *Withhold, at string) {
	policy := w.Policy()
	groups, security, filters, elements := policy.Check()
	for _, part := range []struct {
		key string
		err error
	}{{"groups", groups}, {"security", security}, {"filters", filters}, {"elements", elements}} {
		if part.err != nil {
			l.invalid(at+part.key, "%s", strings.ReplaceAll(part.err.Error(), "\n", "; "))
		}
	}
}

// validateClient looks at all but the files, which are read at start.
func (l *loader) validateClient(c *Client, at string) {
	if err := clients.CheckID(c.ID); err != nil {
		l.invalid(at+"id", "%s", err)
	}
	l.validateProof(c, at)
	l.validateWithhold(&c.Withhold, at+"withhold.")
	for key, n := range map[string]int{"jobs": c.Limits.Jobs, "jobs_per_day": c.Limits.JobsPerDay} {
		if n < 0 {
			l.invalid(at+"limits."+key, "must be 0 (that of all clients) or more")
		}
	}
	may := c.May()
	levels, groups, scopes := may.Check()
	for key, err := range map[string]error{"levels": levels, "groups": groups, "scopes": scopes} {
		if err != nil {
			l.invalid(at+key, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
}

func (l *loader) validateProof(c *Client, at string) {
	var given []string
	for _, way := range []struct{ key, value string }{
		{"jwks", string(c.JWKS)}, {"jwks_file", c.JWKSFile}, {"jwks_uri", c.JWKSURI}, {"secret_file", c.SecretFile},
	} {
		if way.value != "" {
			given = append(given, way.key)
		}
	}
	switch {
	case len(given) == 0 && l.AuthMode() != "external":
		l.invalid(at+"jwks", "the client %q cannot prove itself: write one of jwks, jwks_file, jwks_uri, secret_file", c.ID)
	case len(given) > 1:
		l.invalid(at+given[1], "the client has %s, too: one way to prove itself is right", given[0])
	case c.JWKS != "":
		if _, err := smart.ParseKeys([]byte(c.JWKS)); err != nil {
			l.invalid(at+"jwks", "%s", err)
		}
	case c.JWKSURI != "":
		if err := l.Rules().CheckURL(c.JWKSURI); err != nil {
			l.invalid(at+"jwks_uri", "%s", err)
		}
	}
}
