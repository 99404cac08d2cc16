// Package clients knows the programs that may ask for data: what each is called, how
// it proves that it is the one, and what it may. It refuses to know HTTP and tokens.
package clients

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"tidemark/api/smart"
	"tidemark/api/withhold"
	"tidemark/store/fhir"
)

// A Client is a program that may ask for data.
type Client struct {
	// ID is what it calls itself (client_id).
	ID string `json:"id"`
	// Serial is its own for ever: one that is made later under the same name is another,
	// and has nothing of this one's. 0: it has none yet.
	Serial uint64 `json:"serial"`
	// Name is what people call it.
	Name string `json:"name,omitempty"`
	// Configured says that it stands in the configuration, which alone changes it.
	Configured bool `json:"configured,omitempty"`
	// Disabled clients can do nothing until they are enabled.
	Disabled bool `json:"disabled,omitempty"`

	Proof

	May Permission `json:"may"`
	// Limits of its own.
	Limits Limits `json:"limits,omitzero"`
}

// Limits are a client's own, in place of those that each has. 0: what each has.
type Limits struct {
	Jobs        int   `json:"jobs,omitempty"`          // that are worked on at the same time
	JobsPerDay  int   `json:"jobs_per_day,omitempty"`  // that it starts in a day of UTC
	BytesPerDay int64 `json:"bytes_per_day,omitempty"` // of files that it is sent in a day of UTC
}

// Check says what is wrong with limits.
func (l Limits) Check() error {
	if min(int64(l.Jobs), int64(l.JobsPerDay), l.BytesPerDay) < 0 {
		return errors.New("a limit of its own is less than 0")
	}
	return nil
}

// A Proof is how a client proves itself: by keys of this set, or by those at this URL, or,
// if it cannot sign, by a secret of which a hash is kept.
type Proof struct {
	KeySet     json.RawMessage `json:"jwks,omitempty"`
	KeysURL    string          `json:"jwks_uri,omitempty"`
	SecretHash string          `json:"secret_hash,omitempty"`
}

// A Permission is what a client may. The zero value is nothing.
type Permission struct {
	// Levels of export: "system", "patient", "group".
	Levels []string `json:"levels,omitempty" yaml:"levels"`
	// Groups that it may export, by id; All stands for every one.
	Groups []string `json:"groups,omitempty" yaml:"groups"`
	// Scopes are the most that a token of it can have (SMART 2.2.0, "Scopes").
	Scopes string `json:"scopes,omitempty" yaml:"scopes"`
	// Withhold is what it is not given all the same, beside what nobody is.
	Withhold withhold.Policy `json:"withhold,omitzero" yaml:"withhold"`
}

// All stands for every Group. It must be written out (decisions.md 6).
const All = "*"

// Anything is what everybody may where no tokens are asked for.
var Anything = Permission{Levels: []string{"system", "patient", "group"}, Groups: []string{All}, Scopes: "system/*.rs"}

// Level tells whether exports of a level are permitted.
func (p *Permission) Level(name string) bool { return slices.Contains(p.Levels, name) }

// Group tells whether a Group may be exported.
func (p *Permission) Group(id string) bool {
	return p.Level("group") && (slices.Contains(p.Groups, All) || slices.Contains(p.Groups, id))
}

// Confined tells whether only members of some Groups may be seen.
func (p *Permission) Confined() bool { return !p.Level("system") && !p.Level("patient") }

// Rights are those of the scopes.
func (p *Permission) Rights() smart.Rights { return smart.Parse(p.Scopes) }

// Within tells whether another permission lets all that this one does. What is
// taken away ends what was begun with it (decisions.md 6).
func (p *Permission) Within(o *Permission) bool {
	for _, l := range p.Levels {
		if !o.Level(l) {
			return false
		}
	}
	for _, id := range p.Groups {
		if p.Level("group") && !o.Group(id) {
			return false
		}
	}
	mine, others := p.Rights(), o.Rights()
	for _, t := range fhir.AllTypes() {
		if !others.Covers(t, mine) || !others.CoversReads(t, mine) {
			return false
		}
	}
	return (others.All() || !mine.All()) && o.Withhold.Within(&p.Withhold)
}

// String lists a permission in one line, for people.
func (p *Permission) String() string {
	if len(p.Levels) == 0 && p.Scopes == "" {
		return "nothing yet"
	}
	groups := ""
	if len(p.Groups) > 0 {
		groups = " (" + strings.Join(p.Groups, ", ") + ")"
	}
	withheld := ""
	if !p.Withhold.Empty() {
		withheld = ", but for what is withheld"
	}
	return strings.Join(p.Levels, ", ") + groups + ": " + p.Scopes + withheld
}
