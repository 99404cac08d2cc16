package api

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"

	"tidemark/api/access"
	"tidemark/api/audit"
	"tidemark/api/bulk"
	"tidemark/api/manual"
	"tidemark/api/outcome"
	"tidemark/api/read"
)

// base is where the FHIR routes lie. What clients see of it is public_url.
const base = "/fhir"

// methods are the handlers of one path.
type methods map[string]http.Handler

// A Mount is a path that is served, and by which methods: a test asks each of them for
// what it gives to whom.
type Mount struct {
	Pattern string
	Methods []string
}

// reading serves GET and HEAD alike.
func reading(h http.Handler) methods {
	return methods{http.MethodGet: h, http.MethodHead: h}
}

// enter lets in who may come in, and tells the handler who it is.
func (s *Server) enter(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		caller, err := s.gate.Enter(r)
		if err != nil {
			return err
		}
		identified(r.Context(), caller)
		return h(w, r.WithContext(access.With(r.Context(), caller)))
	}
}

// at mounts the handlers of a path; every other method is refused.
func (s *Server) at(r chi.Router, pattern, route string, m methods) {
	s.mounted = append(s.mounted, Mount{pattern, slices.Sorted(maps.Keys(m))})
	allowed := strings.Join(slices.Sorted(maps.Keys(m)), ", ")
	other := s.seen.wrap(route, slog.LevelInfo, func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Allow", allowed)
		fail(w, oneFault(http.StatusMethodNotAllowed, outcome.NotSupported,
			"the method "+outcome.Quote(r.Method)+" is not allowed here: allowed are "+allowed))
		return nil
	})
	r.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if h := m[r.Method]; h != nil {
			h.ServeHTTP(w, r)
			return
		}
		other.ServeHTTP(w, r)
	})
}

func (s *Server) routes(b *bulk.Handlers, one *read.Handlers, p *bulk.Publishing, self *manual.Handlers) http.Handler {
	// A route is behind the gate unless it is said to be for everybody.
	info := func(route string, does audit.Action, h handler) http.Handler {
		return s.seen.wrap(route, slog.LevelInfo, s.recorded(does, s.enter(h)))
	}
	open := func(route string, h handler) http.Handler { return s.seen.wrap(route, slog.LevelInfo, h) }
	probe := func(route string, h handler) http.Handler { return s.seen.wrap(route, slog.LevelDebug, h) }
	const (
		metadata   = base + "/metadata"
		operations = base + "/OperationDefinition"
		status     = base + "/export/{job}"
		page       = base + "/export/{job}/page/{page}"
		file       = base + "/export/{job}/{file}"
		binary     = base + "/Binary/{id}"
	)
	named := chi.NewRouter()
	for _, at := range []string{base, base + "/"} {
		s.at(named, at, base, reading(open(base, self.Page)))
	}
	s.authRoutes(named, open)
	s.at(named, metadata, metadata, reading(open(metadata, self.Statement)))
	s.at(named, operations, operations, reading(open(operations, one.AllOwn(self.Operations))))
	s.at(named, operations+"/{id}", operations+"/{id}", reading(open(operations+"/{id}", one.Own(self.Operations))))
	for _, k := range bulk.KickOffs {
		start := info(base+k.Path, audit.KickOff, s.fewLarge(func(w http.ResponseWriter, r *http.Request) error { return b.Start(k, w, r) }))
		by := methods{}
		for _, m := range k.Methods() {
			by[m] = start
		}
		s.at(named, base+k.Pattern(), base+k.Path, by)
	}
	for _, name := range []string{"Patient", "Group"} {
		route := base + "/" + name + "/{id}"
		s.at(named, route, route, reading(info(route, audit.Read, one.Resource(name))))
	}
	s.at(named, binary, binary, reading(s.seen.wrap(binary, slog.LevelInfo, func(w http.ResponseWriter, r *http.Request) error {
		return s.recorded(audit.Download, s.enter(s.metered(one.Binary)))(newSender(w), r)
	})))
	s.at(named, base+"/Group", base+"/Group", reading(info(base+"/Group", audit.Read, one.Groups)))
	job := reading(info(status, "", b.Status))
	job[http.MethodDelete] = info(status, audit.Delete, b.Delete)
	s.at(named, base+bulk.StatusPath, status, job)
	s.at(named, base+bulk.NextPath, page, reading(info(page, "", b.Page)))
	s.at(named, base+bulk.FilePath, file, reading(s.seen.wrapFile(file, s.recorded(audit.Download, s.bySignature(s.metered(b.File))))))
	s.publishRoutes(named, p)
	if s.o.Metrics != nil {
		s.at(named, "/metrics", "/metrics", reading(s.o.Metrics))
	}
	named.NotFound(open("unknown", s.notFound).ServeHTTP)

	// Probes come under whatever name the platform knows us by, and learn
	// nothing: they alone stand before the check of Host.
	all := chi.NewRouter()
	s.at(all, "/healthz", "/healthz", reading(probe("/healthz", s.healthz)))
	s.at(all, "/readyz", "/readyz", reading(probe("/readyz", s.readyz)))
	if s.gate.Needed { // what a foreign page could read in a browser, it has a token for
		all.NotFound(named.ServeHTTP)
	} else {
		all.NotFound(s.hosts.check(named, open("foreign host", s.hosts.refuse)))
	}
	return outermost(onlySecure(s.o.PublicURL, s.cors(all)))
}

// outermost does what holds for every answer. Routing goes by the decoded path,
// so that %24export is $export, and the methods of a path are ours to judge:
// chi would not name those allowed for one it does not know.
func outermost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		punctually(w, r)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		route := chi.NewRouteContext()
		route.RouteMethod = http.MethodGet
		route.RoutePath = r.URL.Path
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), chi.RouteCtxKey, route)))
	})
}

// notFound says where to look instead, in words that stay true whatever is added.
func (s *Server) notFound(w http.ResponseWriter, _ *http.Request) error {
	fail(w, oneFault(http.StatusNotFound, outcome.NotFound,
		"nothing is here: GET "+s.o.PublicURL+"/metadata tells what there is, and to people the page at "+s.o.PublicURL+" does"))
	return nil
}

// healthz says that the process lives; it asks nobody (design.md 5).
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) error {
	return word(w, http.StatusOK, "ok\n")
}

// readyz says whether exports can be served. A broker that is away or a gap in
// a topic does not change that.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) error {
	if !s.o.Ready() {
		w.Header().Set("Retry-After", bulk.RetryAfter(s.o.RetryAfter))
		return word(w, http.StatusServiceUnavailable, "not ready\n")
	}
	return word(w, http.StatusOK, "ready\n")
}

func word(w http.ResponseWriter, status int, text string) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // only the connection can fail
	return nil
}
