package export

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"tidemark/api/access"
	"tidemark/api/outcome"
	"tidemark/api/smart"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
)

// Access is whose a job is, and what of the level he may have. nil in a Request:
// nobody's, and all (no tokens are asked for). It is frozen when the job starts.
type Access struct {
	Owner  access.Owner
	Rights smart.Rights
	// Types are those that the job can hold; nil: all. One that has ended holds none.
	Types []fhir.Type
	// Whole: he may have exports of the whole, and so learn how much of what the server has
	// or lacks; others learn that of their own exports.
	Whole bool
	// Level of the job: who may not read its Group may not have it.
	Level Level
	// Withhold is what he is not given all the same.
	Withhold withhold.Policy
}

// ErrTakenBack says of a job that rights were taken from its client. It is a
// store.ErrRevoked, too.
var ErrTakenBack = fmt.Errorf("the export was ended, for rights were taken from its client: %w", store.ErrRevoked)

// everything is what may be where no tokens are asked for.
var everything = smart.Rights{{Read: true, Search: true}}

// of is a with nothing left open.
func (a *Access) of() Access {
	if a == nil {
		return Access{Rights: everything, Whole: true}
	}
	return *a
}

// exports tells whether a type may be in any list at all.
func (a *Access) exports(t fhir.Type) bool { return a == nil || a.Rights.Exports(t) }

// constraints are the searches of which a resource of a type must match one; nil: all
// may be had.
func (a *Access) constraints(t fhir.Type) []string {
	if a == nil {
		return nil
	}
	return a.Rights.Filters(t)
}

// withholds tells whether there is a policy, whether it hits anything or not.
func (a *Access) withholds() bool { return a != nil && !a.Withhold.Empty() }

// readsToWithhold tells whether bodies must be read to know what is withheld.
func (a *Access) readsToWithhold() bool { return a != nil && a.Withhold.Reads() }

// freeze reduces a request to what its client may have (decisions.md 6: no _type is
// reduced to the scope), without what is withheld from everybody.
func (q *Request) freeze(everybody withhold.Policy) error {
	if q.Access == nil && everybody.Empty() {
		return nil
	}
	a := q.Access.of()
	a.Level = q.Level
	a.Withhold = a.Withhold.And(everybody)
	if q.Access = &a; a.withholds() {
		q.Notes = append(slices.Clip(q.Notes), withheld)
	}
	if a.Rights.All() && len(q.Types) == 0 {
		return nil
	}
	asked := q.Types
	if len(asked) == 0 {
		asked = fhir.AllTypes()
	}
	if q.Types = q.Permitted(asked); len(q.Types) == 0 {
		return refused(outcome.Security, "the scopes that were granted let nothing be exported that was asked for: ask for a token with others")
	}
	q.Access.Types = q.Permitted(q.deletable())
	return nil
}

// Permitted are those of some types that a job of this level holds and its client may have.
func (q *Request) Permitted(types []fhir.Type) []fhir.Type {
	return slices.DeleteFunc(slices.Clone(types), func(t fhir.Type) bool { return !q.Level.Holds(t) || !q.Access.exports(t) })
}

// constrained are the types of a request of which only some resources may be had.
func (q *Request) constrained() (types []fhir.Type) {
	if q.Access == nil {
		return nil
	}
	for _, t := range q.Access.Types { // nil: all of everything may be had
		if q.Access.constraints(t) != nil {
			types = append(types, t)
		}
	}
	return types
}

// accessForm is how an Access is kept.
type accessForm struct {
	Owner  access.Owner `json:"owner,omitempty"`
	Scopes string       `json:"scopes"`
	Types  []string     `json:"types"` // null: all
	Whole  bool         `json:"whole,omitempty"`

	Withhold withhold.Policy `json:"withhold,omitzero"`
}

func (a *Access) form() (*accessForm, error) {
	if a == nil {
		return nil, nil
	}
	form := &accessForm{Owner: a.Owner, Scopes: a.Rights.String(), Whole: a.Whole, Withhold: a.Withhold}
	if _, err := parseRights(form.Scopes); err != nil {
		return nil, err
	}
	if a.Types != nil {
		form.Types = []string{}
	}
	for _, t := range a.Types {
		form.Types = append(form.Types, t.String())
	}
	return form, nil
}

func (f *accessForm) access() (*Access, error) {
	if f == nil {
		return nil, nil
	}
	rights, err := parseRights(f.Scopes)
	if err != nil {
		return nil, err
	}
	if err := f.Withhold.Fault(); err != nil {
		return nil, fmt.Errorf("the rule withholds what this program does not understand: was the store used by a newer one? %w", err)
	}
	a := &Access{Owner: f.Owner, Rights: rights, Whole: f.Whole, Withhold: f.Withhold}
	if f.Types != nil {
		a.Types = []fhir.Type{}
	}
	for _, name := range f.Types {
		t, known := fhir.ParseType(name)
		if !known {
			return nil, fmt.Errorf("the rule is of the resource type %q", name)
		}
		a.Types = append(a.Types, t)
	}
	return a, nil
}

// parseRights refuses what it does not understand to the last word: fewer rights than a
// job had would hide rows that its manifest counts, and none would be no limit.
func parseRights(scopes string) (rights smart.Rights, err error) {
	for scope := range strings.FieldsSeq(scopes) {
		rights = append(rights, smart.Parse(scope)...)
	}
	if rights.String() != scopes {
		return nil, errors.New("the rule has scopes that this program does not understand: was the store used by a newer one?")
	}
	return rights, nil
}
