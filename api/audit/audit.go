// Package audit keeps on record who was given what, who was refused, and what was done
// to the server: one line of FHIR R4 AuditEvent each, in files that only grow, each line
// chained to the one before.
//
// It knows nothing of HTTP and of how somebody proved who he is, and holds nothing that
// a resource says: but for the values of parameters, which stand here only (decisions.md
// 6), and the ids of Groups, Patients and others that were asked for by name.
//
// Lock order: Trail.disk (one writes), then Trail.mu (what gathers meanwhile). No I/O
// happens under Trail.mu.
package audit

import (
	"errors"
	"time"

	"tidemark/store/fhir"
)

// An Action is what somebody did, or wanted to.
type Action string

// The actions.
const (
	KickOff  Action = "kickoff"  // began an export job
	Download Action = "download" // of a file: a disclosure
	Read     Action = "read"     // of single resources, or a search: a disclosure
	Publish  Action = "publish"  // the server made a page of $bulk-publish
	Delete   Action = "delete"   // of a job
	Token    Action = "token"    // asked for an access token
	Refused  Action = "refused"  // was not let in, whatever he wanted
	Client   Action = "client"   // what a client may was changed
	Command  Action = "command"  // of an administrator
	Begin    Action = "begin"    // a file of the trail begins
	Lost     Action = "lost"     // lines before this one could not be written
)

// An Outcome is how it went (FHIR's audit-event-outcome).
type Outcome string

// The outcomes.
const (
	Done   Outcome = "0"
	Denied Outcome = "4" // refused: the fault of who asked
	Failed Outcome = "8" // broken off, or the server's fault
)

// An Event is what one line says. The zero value of a field is not written.
type Event struct {
	Time    time.Time // when; zero: now
	Action  Action
	Outcome Outcome // "": Done
	Reason  string  // of an outcome that is not Done, in words of the server's
	// Phase is Begun before the first byte of a disclosure is sent, Ended after the
	// last. Both lines have one Pair.
	Phase Phase
	Pair  string

	// Who: a client, or on this machine an operator.
	Client  string // client_id, as it was said
	Issuer  string // of its tokens; "": this server
	Serial  uint64
	TokenID string
	Remote  string // address
	User    string // of the operating system, as name (number)

	// What.
	Job          string
	Level        string // "system", "patient", "group"; "publish" of pages
	Group        string // id
	GroupVersion string
	Resource     string    // that was read by name: Type/id
	W            time.Time // the transactionTime
	Since, Until time.Time
	Types        []string
	Scopes       string // as granted
	Command      string
	Parameters   []Parameter // as they came
	Withheld     bool        // a policy may have left something out

	// How much.
	File   string // number or name within the job
	Kind   string // of the file: "output", "deleted", "error", "departed"
	Parts  int    // files of this kind and type that the job has, if they are several
	Range  string // of the file that was sent, as in Content-Range; "": all of it
	Bytes  int64  // that were sent
	Rows   int64
	Status int // of HTTP
}

// A Phase is a side of a disclosure.
type Phase string

// The phases.
const (
	Begun Phase = "begun"
	Ended Phase = "ended"
)

// A Parameter is one value of a name.
type Parameter struct{ Name, Value string }

// At is an instant as Events have it: None is the zero time.
func At(i fhir.Instant) time.Time {
	if i == fhir.None {
		return time.Time{}
	}
	return i.Time()
}

// Errors of a trail.
var (
	// ErrUnwritable: the event is not on record. What needs to be must not happen.
	ErrUnwritable = errors.New("the audit trail cannot be written")
	// ErrLocked: another process writes the trail.
	ErrLocked = errors.New("another process writes this audit trail")
)
