package api

import "tidemark/api/export"

// Jobs are the server's, for tests that serve its Handler without Run.
func (s *Server) Jobs() *export.Jobs { return s.jobs }
