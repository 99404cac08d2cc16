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

// publishOperation is how /metadata lists it, if anything is published.
func publishOperation(o Options) []operation {
	if len(o.Publish.Types) == 0 {
		return nil
	}
	return []operation{{
		Name:          "bulk-publish",
		Definition:    "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/bulk-publish",
		Documentation: "GET: a manifest of all resources of some types, and a chain of increments behind it; files and pages never change. Bulk Data 4.0.",
	}}
}
