package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tidemark/api/smart"
	"tidemark/cmd/tidemark/internal/config"
)

// TestExternalSettings: what is set of another server decides which of its tokens count.
func TestExternalSettings(t *testing.T) {
	c := config.Default()
	c.Auth.Mode = "external"
	c.Auth.External = config.External{
		Issuer: "https://login.example.org", Audience: "a", JWKSURL: "https://login.example.org/keys", ClientClaim: "azp", ScopeClaim: "roles", TokenTypes: []string{"JWT"},
		ProgramClaims: []string{"preferred_username=service-account-{client}", "a=b=c"}, ScopeNames: []string{"Bulk.Read=system/Patient.rs?_tag=a system/Group.r"},
	}
	want := &smart.External{
		Issuer: "https://login.example.org", Audience: "a", KeysURL: "https://login.example.org/keys", ClientClaim: "azp", ScopeClaim: "roles", TokenTypes: []string{"JWT"},
		Programs:   []smart.Mark{{Claim: "preferred_username", Value: "service-account-{client}"}, {Claim: "a", Value: "b=c"}},
		ScopeNames: map[string]string{"Bulk.Read": "system/Patient.rs?_tag=a system/Group.r"},
	}
	got := authOptions(c, nil, &known{}).External
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(smart.External{}, "Keys", "Now")); d != "" || got.Keys == nil {
		t.Errorf("-want +got:\n%s", d)
	}
	c.Auth.External.ProgramClaims = nil // a list that is empty is not the one that holds where nothing is set
	if got := authOptions(c, nil, &known{}).External; got.Programs == nil || len(got.Programs) != 0 {
		t.Errorf("%v", got.Programs)
	}
}
