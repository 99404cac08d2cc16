package bulk

import (
	"fmt"

	"tidemark/api/outcome"
)

// A Kind says in which way a request is wrong. Package api knows which status
// that becomes.
type Kind uint8

// The kinds.
const (
	Invalid       Kind = iota + 1 // parameters or headers
	NotAcceptable                 // no form that we have is accepted
	MediaType                     // of the request's body
	TooLarge                      // the request's body
	Precondition                  // If-Match
	Range                         // lies behind the end
	Missing                       // there is no such thing
	Unfit                         // there is, but it cannot be sent as it is asked for
)

// An Error is a request that cannot be answered as it stands. It says
// everything that is wrong at once.
type Error struct {
	Kind   Kind
	Issues []outcome.Issue
}

// Error tells no more than the kind: issues repeat what the client sent, and
// that stays out of logs.
func (e *Error) Error() string {
	return fmt.Sprintf("request refused: kind %d, %d issues", e.Kind, len(e.Issues))
}

// Refuse makes an Error of one issue.
func Refuse(kind Kind, code outcome.Code, format string, args ...any) error {
	return refuse(kind, code, format, args...)
}

func refuse(kind Kind, code outcome.Code, format string, args ...any) error {
	return &Error{Kind: kind, Issues: []outcome.Issue{fault(code, format, args...)}}
}

func fault(code outcome.Code, format string, args ...any) outcome.Issue {
	return outcome.Issue{Severity: outcome.Error, Code: code, Text: fmt.Sprintf(format, args...)}
}
