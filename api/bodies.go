package api

import (
	"errors"
	"net/http"
	"time"
)

// bodyTime bounds how long the body of a request may take to come, whatever the route.
const bodyTime = 30 * time.Second

// punctually has the body of a request come in time, also one that nobody wants: what a
// handler leaves of it net/http reads before it answers, and would wait for that for
// ever. Once all of it has come, net/http takes the deadline away.
func punctually(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime)) // no connection, no deadline
	}
}

// Bodies larger than smallBody are understood few at a time: one that names ten
// thousand Patients takes several times its size in memory, and a processor for long.
// Whoever comes meanwhile is told to come again, rather than made to wait in memory.
const (
	smallBody   = 64 << 10 // bytes
	largeBodies = 4
)

// fewLarge bounds requests with large bodies, or with ones of which nobody said how
// large they are. All else goes on beside them. Only who was let in takes a place.
func (s *Server) fewLarge(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if r.ContentLength >= 0 && r.ContentLength <= smallBody {
			return h(w, r)
		}
		select {
		case s.large <- struct{}{}:
			defer func() { <-s.large }()
			return h(w, r)
		default:
			w.Header().Set("Connection", "close") // the body is not read
			return errLarge
		}
	}
}

var errLarge = errors.New("as many large requests are read as there is memory for")
