package api

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// A sender is the writer of a download. It counts what goes out and renews the
// connection's write deadline as long as something does, so that a client that
// stopped reading is let go while a slow one may take hours.
//
// It hands pieces of an io.LimitedReader on to the connection as what they
// are: any other reader would end sendfile and cost a factor of two to three.
type sender struct {
	http.ResponseWriter
	rc     *http.ResponseController
	status int
	bytes  int64
	// before is asked before the header goes out; an error has nothing go out.
	before func(status int) error
	err    error // of that
	// still is asked before each piece whether who gets it may still have it; nil: yes.
	still func() bool
}

var _ io.ReaderFrom = (*sender)(nil)

// A client that takes less than sendPiece in stall is taken for dead; that is
// 17 KiB a second. The piece is large enough that renewing the deadline costs
// nothing beside sending it.
const (
	sendPiece = 1 << 20
	stall     = time.Minute
)

func newSender(w http.ResponseWriter) *sender {
	return &sender{ResponseWriter: w, rc: http.NewResponseController(w)}
}

// Unwrap lets http.ResponseController find the connection.
func (s *sender) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (s *sender) WriteHeader(status int) {
	if s.before != nil && s.err == nil && s.status == 0 {
		s.err = s.before(status)
	}
	if s.err != nil {
		return
	}
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

func (s *sender) Write(p []byte) (int, error) {
	if s.status == 0 {
		s.WriteHeader(http.StatusOK)
	}
	if s.err != nil {
		return 0, s.err
	}
	total := 0
	for {
		if err := s.renew(); err != nil {
			return total, err
		}
		n, err := s.ResponseWriter.Write(p[:min(len(p), sendPiece)])
		s.bytes += int64(n)
		total += n
		if p = p[n:]; err != nil || len(p) == 0 {
			return total, err
		}
	}
}

// ReadFrom sends src piece by piece.
func (s *sender) ReadFrom(src io.Reader) (total int64, err error) {
	if s.status == 0 {
		s.WriteHeader(http.StatusOK)
	}
	if s.err != nil {
		return 0, s.err
	}
	to, ok := s.ResponseWriter.(io.ReaderFrom)
	if !ok {
		return io.Copy(writerOnly{s}, src)
	}
	whole, ok := src.(*io.LimitedReader)
	if !ok {
		whole = &io.LimitedReader{R: src, N: 1<<63 - 1}
	}
	for whole.N > 0 {
		piece := &io.LimitedReader{R: whole.R, N: min(whole.N, sendPiece)}
		want := piece.N
		if err := s.renew(); err != nil {
			return total, err
		}
		n, err := to.ReadFrom(piece)
		s.bytes += n
		total += n
		whole.N -= n
		if err != nil || n < want {
			return total, err
		}
	}
	return total, nil
}

// writerOnly hides ReadFrom from io.Copy.
type writerOnly struct{ io.Writer }

// errTaken ends a download in its midst (decisions.md 6).
var errTaken = errors.New("rights were taken from the client that downloads")

// renew lets another piece go out.
func (s *sender) renew() error {
	if s.still != nil && !s.still() {
		return errTaken
	}
	_ = s.rc.SetWriteDeadline(time.Now().Add(stall)) // fails only where there is no connection: in tests
	return nil
}
