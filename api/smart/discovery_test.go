package smart

import (
	"encoding/json"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDiscovery: what SMART demands is there, and what is listed works.
func TestDiscovery(t *testing.T) {
	get := func(d Discovery, accept string) map[string]any {
		t.Helper()
		r := httptest.NewRequest("GET", "/fhir/.well-known/smart-configuration", nil)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		d.ServeHTTP(w, r)
		var got map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 || w.Header().Get("Content-Type") != "application/json" {
			t.Fatalf("%d %v %v", w.Code, w.Header(), err)
		}
		return got
	}
	ours := get(Discovery{TokenEndpoint: endpoint, Secrets: true}, "application/fhir+xml")
	algorithms := ours["token_endpoint_auth_signing_alg_values_supported"].([]any)
	if !slices.Contains(algorithms, any("RS384")) || !slices.Contains(algorithms, any("ES384")) || slices.Contains(algorithms, any("none")) {
		t.Errorf("%v", algorithms)
	}
	delete(ours, "token_endpoint_auth_signing_alg_values_supported")
	scopes := []any{"system/*.rs", "system/*.read"}
	want := map[string]any{
		"token_endpoint": endpoint, "grant_types_supported": []any{"client_credentials"}, "scopes_supported": scopes,
		"token_endpoint_auth_methods_supported": []any{"private_key_jwt", "client_secret_basic"}, "code_challenge_methods_supported": []any{"S256"},
		"capabilities": []any{"client-confidential-asymmetric", "permission-v1", "permission-v2"},
	}
	if d := cmp.Diff(want, ours); d != "" {
		t.Error(d)
	}
	want = map[string]any{
		"grant_types_supported": []any{"client_credentials"}, "scopes_supported": scopes, "code_challenge_methods_supported": []any{"S256"},
		"capabilities": []any{"permission-v1", "permission-v2"}, "tls_client_certificate_bound_access_tokens": true,
	}
	if d := cmp.Diff(want, get(Discovery{External: true, Secrets: true, Bound: true}, "")); d != "" {
		t.Error(d)
	}
	for _, scope := range listed {
		if got, err := Parse("system/*.rs").Grant(scope); err != nil || got.String() != scope {
			t.Errorf("%s: %v, %v", scope, got, err)
		}
	}
}
