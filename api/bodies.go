package api

import "net/http"

// Bodies larger than smallBody are understood few at a time: one that names ten
// thousand Patients takes several times its size in memory, and a processor for long.
// Whoever comes meanwhile is told to come again, rather than made to wait in memory.
const (
	smallBody   = 64 << 10 // bytes
	largeBodies = 4
)

// fewLarge bounds requests with large bodies, or with ones of which nobody said how
// large they are. All else goes on beside them.
func (s *Server) fewLarge(next http.Handler) http.Handler {
	places := make(chan struct{}, largeBodies)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength >= 0 && r.ContentLength <= smallBody {
			next.ServeHTTP(w, r)
			return
		}
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
			next.ServeHTTP(w, r)
		default:
			w.Header().Set("Connection", "close") // the body is not read
			fail(w, s.later("the server is reading as many large requests as it has memory for: come again"))
		}
	})
}
