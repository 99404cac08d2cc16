package api

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// What a page of another origin may send and read. None of it depends on the request,
// so that nothing a page asks for decides what it gets. Credentials of the browser
// (cookies, certificates) are never allowed: a client presents its token itself.
const (
	corsMethods = "GET, HEAD, POST, DELETE"
	corsHeaders = "Accept, Authorization, Content-Type, If-Match, If-None-Match, If-Range, Prefer, Range"
	corsExposed = "Accept-Ranges, Content-Disposition, Content-Encoding, Content-Length, Content-Location, Content-Range, ETag, Expires, " +
		"Last-Modified, Preference-Applied, Retry-After, Tidemark-CRC32, WWW-Authenticate, X-Export-Status, X-Progress"
	corsMaxAge = "600" // seconds that a preflight may be kept
)

// cors lets pages of the listed origins read answers, errors included
// (decisions.md 6). Without any there is nothing of it, not even Vary.
func (s *Server) cors(next http.Handler) http.Handler {
	if len(s.o.CORS) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Vary", "Origin") // of who is refused, too: caches must not mix them up
		origin := r.Header.Get("Origin")
		if !slices.Contains(s.o.CORS, origin) {
			next.ServeHTTP(w, r)
			return
		}
		h.Set("Access-Control-Allow-Origin", origin)
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			h.Set("Access-Control-Allow-Methods", corsMethods)
			h.Set("Access-Control-Allow-Headers", corsHeaders)
			h.Set("Access-Control-Max-Age", corsMaxAge)
			w.WriteHeader(http.StatusNoContent)
			return
		}
		h.Set("Access-Control-Expose-Headers", corsExposed)
		next.ServeHTTP(w, r)
	})
}

// hstsAge is how long browsers remember that the server is asked by https only.
const hstsAge = "max-age=31536000"

// onlySecure tells browsers to come by https from now on, if that is how clients see
// us. Not for localhost: it would hold for every other server on this machine.
func onlySecure(publicURL string, next http.Handler) http.Handler {
	public, err := url.Parse(publicURL)
	if err != nil || public.Scheme != "https" || strings.EqualFold(public.Hostname(), "localhost") {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Strict-Transport-Security", hstsAge)
		next.ServeHTTP(w, r)
	})
}
