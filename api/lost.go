package api

import (
	"context"

	"tidemark/api/access"
)

// EndOf ends the jobs of clients that have lost something (decisions.md 6): they are 410
// at the next request, and downloads stop at the next block. It says how many there were.
func (s *Server) EndOf(ctx context.Context, issuer string, serials []uint64) (jobs int, err error) {
	owners := make([]access.Owner, 0, len(serials))
	for _, n := range serials {
		owners = append(owners, access.OwnerOf(issuer, n))
	}
	return s.jobs.EndOf(ctx, owners...)
}
