package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"tidemark/api/access"
	"tidemark/api/audit"
	"tidemark/api/bulk"
	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/api/publish"
	"tidemark/api/read"
	"tidemark/api/smart"
	"tidemark/store"
)

// A fault is an error as a client sees it. This file is the one place where
// errors become status codes.
type fault struct {
	status int
	after  time.Duration // Retry-After, if not 0
	issues []outcome.Issue
	job    int // the status of the job, told apart from that of the request; 0: it is not
	// challenge is WWW-Authenticate (RFC 6750, 3), "" if there is none.
	challenge string
}

func oneFault(status int, code outcome.Code, text string) fault {
	return fault{status: status, issues: []outcome.Issue{{Severity: outcome.Error, Code: code, Text: text}}}
}

// statusOf is the status of each kind of refusal.
var statusOf = map[bulk.Kind]int{
	bulk.Invalid:       http.StatusBadRequest,
	bulk.NotAcceptable: http.StatusNotAcceptable,
	bulk.MediaType:     http.StatusUnsupportedMediaType,
	bulk.TooLarge:      http.StatusRequestEntityTooLarge,
	bulk.Precondition:  http.StatusPreconditionFailed,
	bulk.Range:         http.StatusRequestedRangeNotSatisfiable,
	bulk.Missing:       http.StatusNotFound,
	bulk.Unfit:         http.StatusUnprocessableEntity,
}

// faultOf decides what a client hears of an error. What is no fault of the
// client's is told without details; they are in the log.
func (s *Server) faultOf(err error) fault {
	if e, ok := errors.AsType[*bulk.Error](err); ok {
		return fault{status: statusOf[e.Kind], issues: e.Issues}
	}
	if e, ok := errors.AsType[*export.BusyError](err); ok {
		text := fmt.Sprintf("the files of too many export jobs are kept: %d are allowed (limits.jobs_kept); DELETE the status URL of one that is done with", e.Value)
		switch e.Limit {
		case "limits.jobs":
			text = fmt.Sprintf("too many export jobs are worked on: %d at the same time are allowed (limits.jobs); one whose files are ready does not count", e.Value)
		case "limits.jobs_per_client":
			text = fmt.Sprintf("too many export jobs of this client: %d are worked on at the same time (limits.jobs_per_client); one whose files are ready does not count", e.Value)
		case "limits.polls_per_minute":
			text = fmt.Sprintf("too many status requests: %d a minute are allowed for a job (limits.polls_per_minute); the job goes on", e.Value)
		}
		f := oneFault(http.StatusTooManyRequests, outcome.Throttled, text)
		f.after = e.After
		return f
	}
	if e, ok := errors.AsType[*access.QuotaError](err); ok {
		f := oneFault(http.StatusTooManyRequests, outcome.Throttled,
			fmt.Sprintf("this client had all that it may have today: %d (%s); a day is one of UTC, and what has begun goes on", e.Value, e.Limit))
		f.after = e.After
		return f
	}
	if e, ok := errors.AsType[*export.Refusal](err); ok {
		if e.NotFound {
			return fault{status: http.StatusNotFound, issues: e.Issues}
		}
		return fault{status: http.StatusUnprocessableEntity, issues: e.Issues}
	}
	if e, ok := errors.AsType[*export.FailedError](err); ok {
		status := http.StatusUnprocessableEntity
		if e.Issues[0].Severity == outcome.Fatal {
			status = http.StatusInternalServerError
		}
		if e.Separate {
			return fault{status: http.StatusOK, issues: e.Issues, job: status}
		}
		return fault{status: status, issues: e.Issues}
	}
	if e, ok := errors.AsType[*read.TurnError](err); ok {
		f := oneFault(http.StatusServiceUnavailable, outcome.Transient, "the server is looking for members of Groups on behalf of other requests, which takes long: come again")
		f.after = e.After
		return f
	}
	if f, ok := refusalOf(err); ok {
		return f
	}
	switch {
	case errors.Is(err, export.ErrPolicy): // not which part of it
		return oneFault(http.StatusInternalServerError, outcome.Exception, export.Unappliable)
	case errors.Is(err, export.ErrTakenBack): // decisions.md 6
		return oneFault(http.StatusGone, outcome.Deleted, "this export job was ended because something that it may hold is not permitted to its client any more: start a new one")
	case errors.Is(err, export.ErrNotFound):
		return oneFault(http.StatusNotFound, outcome.NotFound, "no such export job or file: it never existed, was deleted, or has expired")
	case errors.Is(err, publish.ErrNotFound):
		return oneFault(http.StatusNotFound, outcome.NotFound, "no such published page or file, or not any more: begin again at $bulk-publish")
	case errors.Is(err, publish.ErrWithdrawn): // decisions.md 6
		return oneFault(http.StatusGone, outcome.Deleted, "this published page was withdrawn: drop what came from its chain, and begin again at $bulk-publish")
	case errors.Is(err, publish.ErrNoRoot):
		return s.later("nothing is published at this moment: the server is making a manifest, or is still reading its topics for the first time: come again")
	case errors.Is(err, audit.ErrUnwritable):
		return s.later("what is given out here must be put on record, which cannot be done at present: tell the server's operator, and come again")
	case errors.Is(err, errLarge):
		return s.later("the server is reading as many large requests as it has memory for: come again")
	case errors.Is(err, smart.ErrIssuer):
		return s.later("the server cannot get the keys of the authorization server at present: come again")
	case errors.Is(err, read.ErrBusy):
		return s.later("the server is sending as many large attachments as it has memory for: come again")
	case errors.Is(err, store.ErrRevoked): // decisions.md 6
		return oneFault(http.StatusGone, outcome.Deleted, "this export job was ended because something that it held was erased: start a new one")
	case errors.Is(err, store.ErrNotReady):
		return s.later("the server is still reading its topics for the first time and cannot yet say up to when it has everything: come again")
	case errors.Is(err, store.ErrNoRoom):
		return s.later("the server's disk takes no more at present, and this file needs some room before it can be sent: tell the server's operator, and come again; the export stays as it is")
	case errors.Is(err, store.ErrReadOnly):
		return s.later("the server's disk takes no writes at present: no export can be started or deleted, those that are there are served; tell its operator, and come again")
	case errors.Is(err, store.ErrClosed), errors.Is(err, context.Canceled):
		return s.later("the server is shutting down: come again")
	}
	return oneFault(http.StatusInternalServerError, outcome.Exception, "the server could not do this; its log tells why")
}

// refusalOf is what somebody hears who is not known, or may not.
func refusalOf(err error) (fault, bool) {
	if e, ok := errors.AsType[*access.Challenge](err); ok {
		code := outcome.Login
		if e.Code == "invalid_token" {
			code = outcome.Unknown
		}
		if errors.Is(err, smart.ErrExpired) {
			code = outcome.Expired
		}
		f := oneFault(http.StatusUnauthorized, code, e.Text)
		f.challenge = challenge(e.Code, e.Text)
		return f, true
	}
	if e, ok := errors.AsType[*access.Denied](err); ok {
		f := oneFault(http.StatusForbidden, outcome.Forbidden, e.Text)
		if e.Scope {
			f.challenge = challenge("insufficient_scope", "")
		}
		return f, true
	}
	return fault{}, false
}

// challenge is a value of WWW-Authenticate. What it says holds no quotes.
func challenge(code, text string) string {
	c := `Bearer realm="tidemark"`
	if code != "" {
		c += `, error="` + code + `"`
		if text != "" {
			c += `, error_description="` + text + `"`
		}
	}
	return c
}

func (s *Server) later(text string) fault {
	f := oneFault(http.StatusServiceUnavailable, outcome.Transient, text)
	f.after = s.o.RetryAfter
	return f
}

// fail answers with an OperationOutcome.
func fail(w http.ResponseWriter, f fault) {
	body := append(outcome.Append(nil, f.issues...), '\n')
	h := w.Header()
	h.Set("Content-Type", "application/fhir+json")
	h.Set("Content-Length", fmt.Sprint(len(body)))
	h.Set("Cache-Control", "no-store")
	if f.job != 0 {
		h.Set(bulk.ExportStatus, bulk.StatusLine(f.job))
	}
	if f.challenge != "" {
		h.Set("WWW-Authenticate", f.challenge)
	}
	if f.after > 0 {
		h.Set("Retry-After", bulk.RetryAfter(f.after))
	}
	w.WriteHeader(f.status)
	_, _ = w.Write(body) // only the connection can fail
}
