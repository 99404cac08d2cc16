package api

import (
	"errors"
	"net/http"
	"time"
)

// bodyTime bounds how long the body of a request may take to come, whatever the route;
// answerTime how long a client may then take to accept an answer: downloads renew it as
// long as they move (sender).
const (
	bodyTime   = 30 * time.Second
	answerTime = 30 * time.Second
)

// punctually has a client be in time, also with a body that nobody wants: what a handler
// leaves of it net/http reads before it answers, and would wait for that for ever. Once
// all of it has come, net/http takes its deadline away.
func punctually(w http.ResponseWriter, r *http.Request) {
	to, answered := http.NewResponseController(w), time.Now().Add(answerTime)
	if r.ContentLength != 0 {
		_ = to.SetReadDeadline(time.Now().Add(bodyTime)) // no connection, no deadline
		answered = answered.Add(bodyTime)
	}
	_ = to.SetWriteDeadline(answered)
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
