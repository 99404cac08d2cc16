package api

import (
	"context"
	"maps"
	"slices"
	"time"

	"tidemark/api/export"
	"tidemark/api/publish"
)

// Jobs are the server's, for tests that serve its Handler without Run.
func (s *Server) Jobs() *export.Jobs { return s.jobs }

// Pages are the server's, for tests that publish when they want to.
func (s *Server) Pages() *publish.Pages { return s.pages }

// TellStrangers is what Run does for them.
func (s *Server) TellStrangers(ctx context.Context) error { return s.tellStrangers(ctx) }

// Statuses are those that refusals become.
func Statuses() []int { return slices.Sorted(maps.Values(statusOf)) }

// Fault is what a client hears of an error: the status, and when to come again.
func (s *Server) Fault(err error) (status int, after time.Duration) {
	f := s.faultOf(err)
	return f.status, f.after
}

// Mounted are all routes.
func (s *Server) Mounted() []Mount { return s.mounted }
