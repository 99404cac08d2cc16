package api

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"tidemark/api/outcome"
)

// hosts are the names under which we answer while no token is asked for. A web
// page may resolve a name of its own to our address (DNS rebinding) and then
// read everything from the browser of somebody inside: such requests carry
// that name in Host (decisions.md 6).
type hosts struct {
	loopback bool     // we listen on loopback only
	names    []string // lower case, without port
}

func newHosts(listen string, public *url.URL, more []string) hosts {
	h := hosts{names: []string{"localhost", hostOf(public.Host)}}
	name, _, err := net.SplitHostPort(listen)
	if err == nil && name != "" {
		h.names = append(h.names, hostOf(name))
	}
	addr, err := netip.ParseAddr(name)
	h.loopback = name == "localhost" || err == nil && addr.IsLoopback()
	for _, m := range more {
		h.names = append(h.names, hostOf(m))
	}
	slices.Sort(h.names)
	h.names = slices.Compact(h.names)
	return h
}

// hostOf is the name in a Host header, comparable.
func hostOf(hostport string) string {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// allowed: an address cannot be rebound, only a name can. HTTP/1.0 clients
// that send no Host are no browsers.
func (h hosts) allowed(hostport string) bool {
	host := hostOf(hostport)
	if host == "" || slices.Contains(h.names, host) {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && (addr.IsLoopback() || !h.loopback)
}

// check lets through what is addressed to us.
func (h hosts) check(next, refuse http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if h.allowed(r.Host) {
			next.ServeHTTP(w, r)
			return
		}
		refuse.ServeHTTP(w, r)
	}
}

// refuse answers a request that is addressed to somebody else.
func (h hosts) refuse(w http.ResponseWriter, r *http.Request) error {
	fail(w, oneFault(http.StatusMisdirectedRequest, outcome.Security,
		"Host: "+outcome.Quote(r.Host)+" is not a name of this server: it answers to "+strings.Join(h.names, ", ")+
			" and to the addresses of its listener; http.public_url names it"))
	return nil
}
