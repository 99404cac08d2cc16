package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"tidemark/api/access"
	"tidemark/api/audit"
	"tidemark/api/export"
	"tidemark/api/smart"
)

// What is given out stands in the audit trail before the first byte of it is sent, and
// what was refused, too (decisions.md 6). Handlers say what they know of a request in
// audit.Note; who asked is known at the gate, and how it went here.

// recorded puts what a route does on record. Of one without an action only refusals are.
func (s *Server) recorded(action audit.Action, h handler) handler {
	if s.o.Audit == nil {
		return h
	}
	return func(w http.ResponseWriter, r *http.Request) error {
		e := &audit.Event{Action: action, Remote: s.clientAddress(r)}
		stays := context.WithoutCancel(r.Context()) // what was done is on record, whoever hangs up
		d := &disclosing{ResponseWriter: w, s: s, ctx: stays, event: e, head: r.Method == http.MethodHead}
		ctx := audit.In(r.Context(), e, d.intend)
		to := http.ResponseWriter(d)
		if file, is := w.(*sender); is { // what is sent from the disk goes past nobody else
			file.before = d.begin
			to = file
		}
		err := h(to, r.WithContext(ctx))
		if d.refused != nil {
			if file, is := w.(*sender); is {
				file.before, file.err = nil, nil // the refusal itself goes out
			}
			return d.refused
		}
		d.end(w, err)
		if err != nil && !d.begun && d.line == nil {
			return s.refusal(stays, e, err)
		}
		return err
	}
}

// A disclosing puts an answer on record before it goes out.
type disclosing struct {
	http.ResponseWriter

	s       *Server
	ctx     context.Context
	event   *audit.Event
	head    bool
	begun   bool // the header is out
	bytes   int64
	line    *audit.Disclosure
	refused error // it could not be put on record: nothing was sent
}

// Unwrap lets http.ResponseController find the connection.
func (d *disclosing) Unwrap() http.ResponseWriter { return d.ResponseWriter }

func (d *disclosing) WriteHeader(status int) {
	if d.begun || d.refused != nil {
		return
	}
	if d.begin(status) == nil {
		d.ResponseWriter.WriteHeader(status)
	}
}

func (d *disclosing) Write(p []byte) (int, error) {
	if !d.begun {
		d.WriteHeader(http.StatusOK)
	}
	if d.refused != nil {
		return 0, d.refused
	}
	n, err := d.ResponseWriter.Write(p)
	d.bytes += int64(n)
	return n, err
}

// begin puts on record that something is given out. An answer that gives nothing out
// needs no line.
func (d *disclosing) begin(status int) error {
	e := d.event
	e.Status, e.Range = status, d.Header().Get("Content-Range")
	switch {
	case e.Action == "" || status >= http.StatusMultipleChoices || d.head || d.line != nil:
	case e.Action == audit.Download:
		d.line, d.refused = d.s.o.Audit.Begin(d.ctx, *e)
	default:
		d.refused = d.s.o.Audit.Record(d.ctx, *e)
	}
	if d.refused != nil {
		clear(d.Header())
		d.undo()
		return d.refused
	}
	d.begun = true
	return nil
}

// intend puts on record what is about to be done.
func (d *disclosing) intend() (err error) {
	d.line, err = d.s.o.Audit.Begin(d.ctx, *d.event)
	return err
}

// undo ends a job that nobody hears of.
func (d *disclosing) undo() {
	if d.event.Action == audit.KickOff && d.event.Job != "" {
		if err := d.s.jobs.Delete(d.ctx, d.event.Job); err != nil && !errors.Is(err, export.ErrNotFound) {
			d.s.o.Logger.WarnContext(d.ctx, "end an export job that is not on record", "err", err)
		}
	}
}

// end says how much of a file went out, or how what was intended went.
func (d *disclosing) end(w http.ResponseWriter, err error) {
	if d.line == nil {
		return
	}
	if file, is := w.(*sender); is {
		d.bytes = file.bytes
	}
	outcome := audit.Done
	d.line.Event.Status = d.event.Status
	if err != nil {
		outcome = audit.Failed
	}
	if err != nil && !d.begun {
		f := d.s.faultOf(err)
		d.line.Event.Status, d.line.Event.Reason = f.status, string(f.issues[0].Code)
	}
	d.line.End(d.ctx, d.bytes, outcome)
}

// refusal puts on record that somebody was not given what he asked for. He is told so,
// whether that can be written or not.
func (s *Server) refusal(ctx context.Context, e *audit.Event, err error) error {
	f := s.faultOf(err)
	e.Status, e.Outcome, e.Reason = f.status, audit.Denied, string(f.issues[0].Code)
	e.Parameters = brief(e.Parameters)
	switch {
	case f.status == http.StatusUnauthorized, f.status == http.StatusForbidden:
		e.Action = audit.Refused
	case e.Action == "":
		return err
	case f.status >= http.StatusInternalServerError:
		e.Outcome = audit.Failed
	}
	if e.Client == "" && !s.strangers.take(time.Now()) {
		return err
	}
	if unwritable := s.o.Audit.Record(ctx, *e); unwritable != nil {
		s.o.Logger.WarnContext(ctx, "a refusal is not on record", "err", unwritable)
	}
	return err
}

// What was refused gave nothing out, so the trail has of its parameters no more than tells
// what was tried: a client could fill the disk by asking in vain, a mebibyte each time.
const (
	briefBytes = 4 << 10
	eachBytes  = 64 // of a line, beside name and value
)

// brief are parameters as far as that goes; one that is cut ends with an ellipsis.
func brief(list []audit.Parameter) []audit.Parameter {
	left := briefBytes
	for i, p := range list {
		if left -= eachBytes + len(p.Name) + len(p.Value); left < 0 {
			cut := p.Value[:max(0, len(p.Value)+left)]
			return append(slices.Clip(list[:i]), audit.Parameter{Name: p.Name, Value: strings.ToValidUTF8(cut, "") + "…"})
		}
	}
	return list
}

// identified puts who asks into the event of a request.
func identified(ctx context.Context, c *access.Caller) {
	e := audit.Note(ctx)
	e.Client, e.Issuer, e.Serial, e.TokenID = c.Client, c.Issuer, c.Serial, c.Token
	e.Scopes = c.Rights.String()
}

// attempted puts on record who asked for a token. Only those are given out that are on
// record, if the trail is required.
func (s *Server) attempted(ctx context.Context, r *http.Request, a smart.Attempt) error {
	if s.o.Audit == nil {
		return nil
	}
	e := audit.Event{Action: audit.Token, Client: a.Client, Serial: a.Serial, TokenID: a.TokenID, Scopes: a.Granted, Remote: s.clientAddress(r)}
	if a.Error != "" {
		e.Outcome, e.Reason = audit.Denied, a.Error
		if a.Serial == 0 && !s.strangers.take(time.Now()) {
			return nil
		}
	}
	return s.o.Audit.Record(context.WithoutCancel(ctx), e)
}

// Strangers are on record a few times a second: who is not known here could fill the
// disk by asking, and what fills the trail hides what matters in it. Of the others one
// line each second says how many there were.
const strangersPerSecond = 20

type strangers struct {
	more chan struct{} // has a token when there are some to be told of

	mu     sync.Mutex
	second time.Time
	n      int
	others int64 // that have no line of their own
}

func (s *strangers) take(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if second := now.Truncate(time.Second); second != s.second {
		s.second, s.n = second, 0
	}
	if s.n++; s.n <= strangersPerSecond {
		return true
	}
	s.others++
	select {
	case s.more <- struct{}{}:
	default:
	}
	return false
}

// tellStrangers writes their numbers until ctx ends.
func (s *Server) tellStrangers(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.strangers.more:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.tellOthers(ctx)
		}
	}
}

// tellOthers writes how many strangers have come that have no line. If that cannot be
// written the next line has them.
func (s *Server) tellOthers(ctx context.Context) {
	s.strangers.mu.Lock()
	n := s.strangers.others
	s.strangers.others = 0
	s.strangers.mu.Unlock()
	if n == 0 {
		return
	}
	e := audit.Event{Action: audit.Refused, Outcome: audit.Denied, Rows: n, Reason: "so many more of whom nobody knows who they are: no line of each"}
	if err := s.o.Audit.Record(context.WithoutCancel(ctx), e); err != nil {
		s.o.Logger.WarnContext(ctx, "how many strangers were refused is not on record", "err", err)
		s.strangers.mu.Lock()
		s.strangers.others += n
		s.strangers.mu.Unlock()
		select {
		case s.strangers.more <- struct{}{}:
		default:
		}
	}
}
