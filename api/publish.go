package api

import (
	"log/slog"
	"net/http"

	"github.com/go-chi/chi/v5"

	"tidemark/api/access"
	"tidemark/api/audit"
	"tidemark/api/bulk"
	"tidemark/api/export"
	"tidemark/api/publish"
)

// publishing is what New publishes: Options.Publish, with what it shares with
// exports.
func (o Options) publishing() publish.Options {
	p := o.Publish
	p.Limits = export.Limits{Bytes: o.FileMaxBytes, Resources: o.FileMaxResources}
	p.Withhold, p.Bases = o.Withhold, o.OwnBases
	p.Logger = o.Logger
	p.Meter = o.MeterProvider.Meter("tidemark/api")
	return p
}

// publishRoutes mounts what is published, if anything is.
func (s *Server) publishRoutes(r chi.Router, b *bulk.Publishing) {
	if !s.pages.On() {
		return
	}
	let := s.let
	if s.pages.Public() {
		let = func(h handler) handler { return h }
	}
	manifest := func(pattern, route string, h handler) {
		s.at(r, base+pattern, base+route, reading(s.seen.wrap(base+route, slog.LevelInfo, s.recorded("", let(h)))))
	}
	manifest(bulk.PublishPath, bulk.PublishPath, b.Root)
	manifest(bulk.PagePath, "/publish/{page}", b.Increment)
	manifest(bulk.StubPath, "/publish/{page}/stub", b.Stub)
	const file = base + "/publish/{page}/{file}"
	s.at(r, base+bulk.PageFilePath, file, reading(s.seen.wrapFile(file, s.recorded(audit.Download, let(s.metered(b.File))))))
}

// let lets those have published pages that are not for everybody who may have all of
// the types on them: the pages are the same for each.
func (s *Server) let(h handler) handler {
	return s.enter(func(w http.ResponseWriter, r *http.Request) error {
		caller := access.From(r.Context())
		if err := caller.Whole(s.o.Publish.Types, s.o.Withhold); err != nil {
			return err
		}
		if to, sends := w.(*sender); sends { // a page does not end with what one client may, as its jobs do
			to.still = func() bool { return s.gate.Still(caller) }
		}
		return h(w, r)
	})
}
