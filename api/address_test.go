package api

import (
	"net/http/httptest"
	"net/netip"
	"testing"
)

// Only trusted proxies are believed on whom they speak for, and only what they
// wrote themselves.
func TestClientAddress(t *testing.T) {
	s := &Server{proxies: proxies{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::1/128")}}
	for _, test := range []struct {
		name, remote string
		forwarded    []string
		want         string
	}{
		{"direct", "192.0.2.1:5000", nil, "192.0.2.1"},
		{"spoofed", "192.0.2.1:5000", []string{"10.0.0.1", "198.51.100.7"}, "192.0.2.1"},
		{"a proxy", "10.0.0.1:5000", []string{"198.51.100.7"}, "198.51.100.7"},
		{"a proxy that says nothing", "10.0.0.1:5000", nil, "10.0.0.1"},
		{"spoofed through a proxy", "10.0.0.1:5000", []string{"203.0.113.9, 198.51.100.7"}, "198.51.100.7"},
		{"a spoofed proxy through a proxy", "10.0.0.1:5000", []string{"203.0.113.9, 10.0.0.9, 198.51.100.7"}, "198.51.100.7"},
		{"a chain", "10.0.0.1:5000", []string{"203.0.113.9, 198.51.100.7,10.9.9.9", "10.0.0.2"}, "198.51.100.7"},
		{"within", "10.0.0.1:5000", []string{"10.1.1.1, 10.0.0.2"}, "10.1.1.1"},
		{"with ports", "[fd00::1]:5000", []string{"[2001:db8::7]:443, 10.0.0.3:80"}, "2001:db8::7"},
		{"IPv4 in IPv6", "[::ffff:10.0.0.1]:5000", []string{"::ffff:198.51.100.7"}, "198.51.100.7"},
		{"nonsense", "10.0.0.1:5000", []string{"198.51.100.7, unknown"}, "10.0.0.1"},
		{"nothing", "10.0.0.1:5000", []string{""}, "10.0.0.1"},
		{"a zone", "[fe80::1%eth0]:5000", nil, "fe80::1"},
		{"no address", "@", []string{"198.51.100.7"}, ""},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = test.remote
		for _, f := range test.forwarded {
			r.Header.Add("X-Forwarded-For", f)
		}
		r.Header.Set("Forwarded", "for=203.0.113.66")
		r.Header.Set("X-Real-Ip", "203.0.113.67")
		if got := s.clientAddress(r); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}
