package api

import (
	"net/http"

	"tidemark/api/access"
)

// metered counts the bytes that h sends, and lets it send none to a client that had all
// of its day. What is public has no client and is not counted.
func (s *Server) metered(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		owner := access.From(r.Context()).Owner()
		if err := s.o.Quota.Send(owner); err != nil {
			return err
		}
		to, counts := w.(*sender)
		if counts {
			defer func() { s.o.Quota.Sent(owner, to.bytes) }()
		}
		return h(w, r)
	}
}
