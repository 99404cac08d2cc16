package api

import "context"

// EndOf ends the jobs of clients that have lost something (decisions.md 6): they are 410
// at the next request, and downloads stop at the next block. It says how many there were.
func (s *Server) EndOf(ctx context.Context, serials []uint64) (jobs int, err error) {
	return s.jobs.EndOf(ctx, serials...)
}
