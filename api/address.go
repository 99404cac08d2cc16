package api

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// proxies are those whose word is believed on whom they speak for
// (http.trusted_proxies).
type proxies []netip.Prefix

func (p proxies) trust(a netip.Addr) bool {
	return slices.ContainsFunc(p, func(one netip.Prefix) bool { return one.Contains(a) })
}

// clientAddress is from where a request came, without a port; "" if that is unknown.
// It goes into the audit and decides about nothing.
//
// A trusted proxy appends to X-Forwarded-For whom it heard. So the list is read from
// its end, as far as those who wrote it are trusted: what stands before that may be
// made up by the client.
func (s *Server) clientAddress(r *http.Request) string {
	heard, ok := address(r.RemoteAddr)
	if !ok {
		return ""
	}
	told := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, t := range slices.Backward(told) {
		if !s.proxies.trust(heard) {
			break
		}
		next, ok := address(strings.TrimSpace(t))
		if !ok {
			break
		}
		heard = next
	}
	return heard.String()
}

// address reads an address with or without a port, comparable.
func address(s string) (netip.Addr, bool) {
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	return a.Unmap().WithZone(""), err == nil
}
