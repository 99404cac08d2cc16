package bulk

import (
	"net/http"
	"slices"
	"strings"

	"tidemark/api/access"
	"tidemark/api/audit"
	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/store/fhir"
)

// permit holds a kick-off to what its client may, and freezes that into the request:
// the job is his, and never has more than he may have now (decisions.md 6).
//
// A type that is asked for and not permitted fails the request, for its client would
// take what is missing for what is not there; without _type it gets what is permitted.
func permit(c *access.Caller, q *export.Request, lenient bool) error {
	if q.Level == export.Group && !c.May.Group(q.Group) {
		return export.UnknownGroup()
	}
	q.Access = &export.Access{Owner: c.Owner(), Rights: c.Rights, Withhold: c.May.Withhold}
	q.Access.Whole = c.May.Level(export.System.Name())
	if c.Rights.All() {
		return nil
	}
	if lenient {
		leaveOut(c, q)
	}
	if err := c.Exports(needed(q)...); err != nil {
		return err
	}
	if len(q.Types) > 0 {
		return nil
	}
	if q.Types = q.Permitted(fhir.AllTypes()); len(q.Types) == 0 {
		return &access.Denied{Text: "the scopes of the access token cover no resource type that an export at this level holds: right is such as system/Patient.rs", Scope: true}
	}
	return nil
}

// needed are the types that a request names in one way or another.
func needed(q *export.Request) []fhir.Type {
	types := slices.Clone(q.Types)
	if q.By != 0 && !slices.Contains(types, q.By) {
		types = append(types, q.By) // the resource that a block is about always stands in it
	}
	if q.Attach != export.ByDefault && !slices.Contains(types, provenanceType) {
		types = append(types, provenanceType)
	}
	return types
}

var provenanceType, _ = fhir.ParseType("Provenance")

// leaveOut drops types that are not permitted while one is left, and says so.
func leaveOut(c *access.Caller, q *export.Request) {
	if !slices.ContainsFunc(q.Types, c.Rights.Exports) {
		return
	}
	var out []string
	q.Types = slices.DeleteFunc(slices.Clone(q.Types), func(t fhir.Type) bool {
		if c.Rights.Exports(t) {
			return false
		}
		out = append(out, t.String())
		return true
	})
	if len(out) > 0 {
		i := fault(outcome.Forbidden, "the scopes of the access token do not cover %s, which was left out", strings.Join(out, ", "))
		i.Severity = outcome.Warning
		q.Notes = append(q.Notes, i)
	}
}

// own is a job of the caller's: others' do not exist for him.
func (h *Handlers) own(r *http.Request, id string) (export.Access, error) {
	a, err := h.Jobs.Access(id)
	e := audit.Note(r.Context())
	e.Job = id
	if err == nil && a.Owner != access.From(r.Context()).Owner() {
		e.Action, e.Reason = audit.Refused, "another client's job"
		err = export.ErrNotFound
	}
	return a, err
}

// mayHave tells whether the caller may know a job whole, as its manifest tells it.
func (h *Handlers) mayHave(r *http.Request, id string) error {
	a, err := h.own(r, id)
	if err != nil {
		return err
	}
	types := a.Types
	if types == nil {
		types = fhir.AllTypes()
	}
	c := access.From(r.Context())
	if err := coversGroup(c, a); err != nil {
		return err
	}
	return covers(c, a, types...)
}

// mayRead tells whether the caller may read a file of a job.
func (h *Handlers) mayRead(r *http.Request, id string, n int) error {
	a, err := h.own(r, id)
	if err != nil {
		return err
	}
	t, err := h.Jobs.FileType(id, n)
	switch {
	case err != nil:
		return err
	case t == 0: // of many types, or of what is said about them
		return h.mayHave(r, id)
	}
	c := access.From(r.Context())
	if a.Rights.Constraints(groupType) != nil { // constraints that were frozen hold everywhere
		if err := coversGroup(c, a); err != nil {
			return err
		}
	}
	return covers(c, a, t)
}

// coversGroup tells whether a token lets read the Group that a job is about, as the one did
// that started it: its level needs that.
func coversGroup(c *access.Caller, a export.Access) error {
	if a.Level != export.Group || c.Rights.CoversReads(groupType, a.Rights) {
		return nil
	}
	return &access.Denied{
		Text:  "the scopes of the access token do not let read the Group that this export is about: right are those that it was started with",
		Scope: true,
	}
}

// covers tells whether a token lets all that was frozen into a job, of some types.
func covers(c *access.Caller, a export.Access, types ...fhir.Type) error {
	var missing []string
	for _, t := range types {
		if !c.Rights.Covers(t, a.Rights) {
			missing = append(missing, t.String())
		}
	}
	if len(missing) == 0 {
		return nil
	}
	const shown = 10
	if n := len(missing); n > shown {
		missing = append(missing[:shown:shown], "...")
	}
	return &access.Denied{
		Text:  "the scopes of the access token do not cover all that this export may hold: right are those that it was started with; missing are " + strings.Join(missing, ", "),
		Scope: true,
	}
}
