package config

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What stands between the server and everybody else is refused where it would
// mean something else than it looks like.
func TestOutside(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{
			"certificates of clients without TLS", "http:\n  tls: {client_ca_file: ca.pem}",
			[]string{"tidemark.yaml:2: http.tls.client_ca_file: asks for clients' certificates without TLS: http.tls.cert_file and http.tls.key_file are missing"},
		},
		{"admin for itself", `admin: {listen: "127.0.0.1:1"}`, nil},
		{"admin for others", `admin: {listen: ":1"}`, []string{
			"tidemark.yaml:1: admin.listen: :1 is not a loopback address: metrics and profiles have no password; use a loopback address such as 127.0.0.1, or accept the risk with admin.allow_open: true",
		}},
		{"admin for others is no matter of tokens", "admin: {listen: 10.0.0.1:1}\nauth: {allow_open_data: true}", []string{
			"tidemark.yaml:1: admin.listen: 10.0.0.1:1 is not a loopback address: metrics and profiles have no password; use a loopback address such as 127.0.0.1, or accept the risk with admin.allow_open: true",
		}},
		{"admin for others, as was said", `admin: {listen: ":1", allow_open: true}`, nil},
		{"admin on the port of clients", `admin: {listen: "127.0.0.1:8080"}`, []string{
			"tidemark.yaml:1: admin.listen: is http.listen too: leave it empty to have /metrics there",
		}},
		{"less than no connections", "limits:\n  connections: -1\n  connections_per_address: -1", []string{
			"tidemark.yaml:2: limits.connections: must be 0 (no bound) or more", "tidemark.yaml:3: limits.connections_per_address: must be 0 (no bound) or more",
		}},
		{"what is right", `http: {cors: {origins: [https://a.example.org, "http://localhost:3000"]}, trusted_proxies: [10.0.0.1, 10.0.0.0/8, "fd00::/8"]}`, nil},
		{"no address", "http: {trusted_proxies: [10.0.0.1, proxy]}", []string{`tidemark.yaml:1: http.trusted_proxies: "proxy" is no address or network, such as 10.0.0.1 or 10.0.0.0/8`}},
		{"no network", "http: {trusted_proxies: [10.0.0.0/33]}", []string{`tidemark.yaml:1: http.trusted_proxies: "10.0.0.0/33" is no address or network, such as 10.0.0.1 or 10.0.0.0/8`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if d := cmp.Diff(test.want, faults(t, Source{File: write(t, test.text)})); d != "" {
				t.Error(d)
			}
		})
	}
}

// An origin that browsers never send, or that stands for everybody, is a fault.
func TestOrigins(t *testing.T) {
	for origin, why := range map[string]string{
		"*":                      "stands for pages that nobody knows",
		"https://*.example.org":  "stands for pages that nobody knows",
		"null":                   "is what any page can send that hides its origin",
		"":                       "is no URL",
		"app.example.org":        "is no URL",
		"ftp://app.example.org":  "is no URL",
		"https://a.example.org/": "has more than a scheme, a host and a port, or capitals",
		"https://A.example.org":  "has more than a scheme, a host and a port, or capitals",
		"http://a:80":            "has a port that browsers leave out",
		"https://a:443":          "has a port that browsers leave out",
	} {
		want := []string{fmt.Sprintf("tidemark.yaml:1: http.cors.origins: %q %s: right is an origin as browsers send it, such as https://app.example.org", origin, why)}
		if d := cmp.Diff(want, faults(t, Source{File: write(t, fmt.Sprintf("http: {cors: {origins: [%q]}}", origin))})); d != "" {
			t.Error(d)
		}
	}
}
