package config

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const someKeys = `{"keys":[{"crv":"P-256","kid":"1","kty":"EC","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}`

// Clients are understood however they are written, printed so that they can be read
// again, and each fault has its key and line.
func TestAuthClients(t *testing.T) {
	text := `auth:
  clients:
    - id: a
      jwks:
        keys:
          - {kty: EC, crv: P-256, kid: "1", x: MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4, y: 4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM}
      levels: [group]
      groups: ["*"]
      scopes: [system/Group.rs, "system/Observation.rs?category=laboratory&status=final,amended"]
    - id: b
      name: The registry
      jwks_uri: https://b.example.org/jwks.json
      levels: [system]
      scopes: system/Patient.rs system/Encounter.rs
      withhold: {groups: [opt-out], security: [R, V], filters: "Condition?code=1,2", elements: [Claim.total]}
      limits: {jobs: 2, bytes_per_day: 50GiB}
`
	l := load(t, Source{File: write(t, text), Set: []string{"auth.clients[1].scopes=system/Observation.rs?status=final,amended system/Patient.rs", "auth.clients[2].id=c", "auth.clients[2].secret_file=s"}})
	want := []Client{
		{ID: "a", JWKS: someKeys, Levels: []string{"group"}, Groups: []string{"*"}, Scopes: Scopes{"system/Group.rs", "system/Observation.rs?category=laboratory&status=final,amended"}},
		{
			ID: "b", Name: "The registry", JWKSURI: "https://b.example.org/jwks.json", Levels: []string{"system"}, Scopes: Scopes{"system/Observation.rs?status=final,amended", "system/Patient.rs"},
			Withhold: Withhold{Groups: []string{"opt-out"}, Security: []string{"R", "V"}, Filters: Scopes{"Condition?code=1,2"}, Elements: []string{"Claim.total"}},
			Limits:   ClientLimits{Jobs: 2, BytesPerDay: 50 << 30},
		},
		{ID: "c", SecretFile: "s"},
	}
	if d := cmp.Diff(want, l.Auth.Clients); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	var printed bytes.Buffer
	if err := l.Print(&printed); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, load(t, Source{File: write(t, printed.String())}).Auth.Clients); d != "" {
		t.Errorf("printed and read again (-want +got):\n%s\n%s", d, printed.String())
	}
}

func TestAuthFaults(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"lifetime", "auth: {token_lifetime: 6m}", []string{
			"tidemark.yaml:1: auth.token_lifetime: 6m is not more than 0 and at most 5m: clients get new ones without anybody's help",
		}},
		{"hosts and URLs", "auth:\n  audiences: [token]\njwks:\n  allow: [https://a]\n", []string{
			`tidemark.yaml:2: auth.audiences: "token" is not a URL such as https://proxy.example.org/fhir/token`,
			`tidemark.yaml:4: jwks.allow: "https://a" is no host such as keys.intern.example.org`,
		}},
		{"clients", "auth:\n  clients:\n    - id: a:b\n      jwks_uri: http://a.example/keys\n    - id: c\n      levels: [all]\n      scopes: user/*.rs\n    - id: c\n      jwks_uri: https://c.example/\n      secret_file: s\n      groups: [x]\n", []string{
			"tidemark.yaml:3: auth.clients[0].id: its id is not 1 to 255 printable characters of ASCII without spaces and colons",
			"tidemark.yaml:4: auth.clients[0].jwks_uri: its scheme is not https",
			"tidemark.yaml:5: auth.clients[1].jwks: the client \"c\" cannot prove itself: write one of jwks, jwks_file, jwks_uri, secret_file",
			`tidemark.yaml:6: auth.clients[1].levels: there is no level "all": right are system, patient, group`,
			`tidemark.yaml:7: auth.clients[1].scopes: the scope "user/*.rs" grants nothing: right are such as system/*.rs, system/Patient.rs and system/Observation.rs?category=laboratory`,
			"tidemark.yaml:8: auth.clients[2].id: is listed twice",
			"tidemark.yaml:10: auth.clients[2].secret_file: the client has jwks_uri, too: one way to prove itself is right",
			"tidemark.yaml:11: auth.clients[2].groups: Groups are of use with the level group only: add it, or take them out",
		}},
		{"withheld", "withhold: {groups: ['*'], security: ['|R'], filters: 'Conditions?code=1', elements: [Claim.total]}\nauth:\n  clients:\n    - id: a\n      jwks_uri: https://a.example/\n      withhold:\n        elements: [Claim.status, Claim.net]\n", []string{
			`tidemark.yaml:1: withhold.groups: "*" is not the id of a Group`,
			`tidemark.yaml:1: withhold.security: "|R" is no label: right is a code such as R, or system|code`,
			`tidemark.yaml:1: withhold.filters: "Conditions?code=1": what stands before ? is not a resource type of FHIR R4 (4.0.1)`,
			`tidemark.yaml:7: auth.clients[0].withhold.elements: "Claim.status": a resource without it would be invalid, or mean something else: withhold the resource with a filter instead; "Claim.net": Claim has no such root element in FHIR R4 (4.0.1)`,
		}},
		{"limits", "auth:\n  clients:\n    - id: a\n      jwks_uri: https://a.example/\n      limits:\n        jobs: -1\n        jobs_per_day: -2\n", []string{
			"tidemark.yaml:6: auth.clients[0].limits.jobs: must be 0 (that of all clients) or more",
			"tidemark.yaml:7: auth.clients[0].limits.jobs_per_day: must be 0 (that of all clients) or more",
		}},
		{"keys", "auth:\n  clients:\n    - id: a\n      jwks: '{}'\n", []string{
			`tidemark.yaml:4: auth.clients[0].jwks: it is no JSON Web Key Set: right is {"keys": [{"kty": "EC", "kid": "1", ...}]}`,
		}},
		{"external", "auth:\n  mode: external\n  external: {client_claim: '', scope_claim: '', token_types: [], program_claims: [idtyp], scope_names: [Read=patient/*.rs]}\n  clients:\n    - id: a\n", []string{
			"tidemark.yaml:3: auth.external.client_claim: names no claim",
			"tidemark.yaml:3: auth.external.scope_claim: names no claim",
			"tidemark.yaml:3: auth.external.token_types: names no type: without one ID tokens would count",
			`tidemark.yaml:3: auth.external.program_claims: "idtyp" is no claim with a value such as idtyp=app`,
			`tidemark.yaml:3: auth.external.scope_names: "Read=patient/*.rs" is no name with a scope such as Bulk.Read=system/*.rs`,
			"default: auth.external.issuer: is not a URL such as https://login.example.org",
			"default: auth.external.audience: is missing: without it tokens for other servers would count here",
			"default: auth.external.jwks_url: it is no absolute URL without user and fragment, such as https://client.example.org/jwks.json",
		}},
		{"external, not meant", "auth:\n  external:\n    issuer: https://a.example\n", []string{
			"tidemark.yaml:3: auth.external.issuer: is set while auth.mode is auto: tokens of another server count with external only",
		}},
		{"plain keys of this machine", "auth:\n  clients:\n    - {id: a, jwks_uri: 'http://127.0.0.1/keys'}\njwks: {allow_http_loopback: true}\n", nil},
	} {
		if d := cmp.Diff(c.want, faults(t, Source{File: write(t, c.text)})); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}
