package smart

import (
	"encoding/json"
	"net/http"
)

// A Discovery tells clients where and how they get tokens (SMART 2.2.0, "FHIR Authorization
// Endpoint and Capabilities Discovery"). It knows nobody, and may be asked by anybody.
//
// Where another server gives the tokens, it names that server's endpoint if it is known, and
// leaves out how clients prove themselves there: only that server can tell.
type Discovery struct {
	// TokenEndpoint is the absolute URL; "": it is another server's, and not known.
	TokenEndpoint string
	// External: another server gives the tokens.
	External bool
	// Secrets: some client proves itself by Basic.
	Secrets bool
	// Bound: tokens are bound to client certificates (RFC 8705, 3.3).
	Bound bool
}

// configuration is the document. Members that are lists of what cannot be told are left out.
type configuration struct {
	TokenEndpoint string   `json:"token_endpoint,omitempty"`
	Grants        []string `json:"grant_types_supported"`
	Methods       []string `json:"token_endpoint_auth_methods_supported,omitempty"`
	Algorithms    []string `json:"token_endpoint_auth_signing_alg_values_supported,omitempty"`
	Scopes        []string `json:"scopes_supported"`
	Challenges    []string `json:"code_challenge_methods_supported"`
	Capabilities  []string `json:"capabilities"`
	Bound         bool     `json:"tls_client_certificate_bound_access_tokens,omitempty"`
}

// listed are the scopes that it names: each can be asked for, and is granted to a client that may
// have it. With the name of a type in place of *, and with constraints, there are many more.
var listed = []string{"system/*.rs", "system/*.read"}

// ServeHTTP answers with JSON, whatever is accepted (SMART 2.2.0: "regardless of the Accept
// headers").
func (d *Discovery) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(d.document()) // only the connection can fail
}

func (d *Discovery) document() configuration {
	c := configuration{
		TokenEndpoint: d.TokenEndpoint, Grants: []string{"client_credentials"}, Scopes: listed,
		Challenges: []string{"S256"}, Capabilities: []string{"permission-v1", "permission-v2"}, Bound: d.Bound,
	}
	if d.External {
		return c
	}
	c.Methods = []string{"private_key_jwt"}
	if d.Secrets {
		c.Methods = append(c.Methods, "client_secret_basic")
	}
	for _, a := range Algorithms {
		c.Algorithms = append(c.Algorithms, string(a))
	}
	c.Capabilities = append([]string{"client-confidential-asymmetric"}, c.Capabilities...)
	return c
}
