package api

import (
	"log/slog"

	"github.com/go-chi/chi/v5"

	"tidemark/api/bulk"
	"tidemark/api/export"
	"tidemark/api/publish"
)

// publishing is what New publishes: Options.Publish, with what it shares with
// exports.
func (o Options) publishing() publish.Options {
	p := o.Publish
	p.Limits = export.Limits{Bytes: o.FileMaxBytes, Resources: o.FileMaxResources}
	p.Logger = o.Logger
	p.Meter = o.MeterProvider.Meter("tidemark/api")
	return p
}

// publishRoutes mounts what is published, if anything is.
func (s *Server) publishRoutes(r chi.Router, b *bulk.Publishing) {
	if !s.pages.On() {
		return
	}
	manifest := func(pattern, route string, h handler) {
		s.at(r, base+pattern, base+route, reading(s.seen.wrap(base+route, slog.LevelInfo, h)))
	}
	manifest(bulk.PublishPath, bulk.PublishPath, b.Root)
	manifest(bulk.PagePath, "/publish/{page}", b.Increment)
	manifest(bulk.StubPath, "/publish/{page}/stub", b.Stub)
	const file = base + "/publish/{page}/{file}"
	s.at(r, base+bulk.PageFilePath, file, reading(s.seen.wrapFile(file, b.File)))
}
