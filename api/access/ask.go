package access

import (
	"strings"

	"tidemark/api/clients"
	"tidemark/api/withhold"
	"tidemark/store/fhir"
)

// Starts tells whether the caller may start exports of a level: "system", "patient" or
// "group".
func (c *Caller) Starts(level string) error {
	if !c.May.Level(level) {
		return &Denied{Text: "exports at the level " + level + " are not permitted to this client: permitted are " + listed(c.May.Levels)}
	}
	if level == "group" && !c.Rights.Reads(groupType) {
		return outside("an export of a Group needs the scope system/Group.r")
	}
	return nil
}

// Exports tells whether the caller may export resources of some types, which a request
// names.
func (c *Caller) Exports(types ...fhir.Type) error {
	var missing []string
	for _, t := range types {
		if !c.Rights.Exports(t) {
			missing = append(missing, "system/"+t.String()+".rs")
		}
	}
	if len(missing) > 0 {
		return outside("the scopes of the access token do not cover all that is asked for: missing are " + strings.Join(missing, " "))
	}
	return nil
}

// Reads tells whether the caller may read resources of a type by their ids.
func (c *Caller) Reads(t fhir.Type) error {
	if !c.Rights.Reads(t) {
		return outside("the scopes of the access token do not let read " + t.String() + ": missing is system/" + t.String() + ".r")
	}
	return c.Sees()
}

// Finds tells whether the caller may search for resources of a type.
func (c *Caller) Finds(t fhir.Type) error {
	if !c.Rights.Exports(t) {
		return outside("the scopes of the access token do not let search for " + t.String() + ": missing is system/" + t.String() + ".rs")
	}
	return c.Sees()
}

// Sees tells whether any data is permitted to the caller at all.
func (c *Caller) Sees() error {
	if len(c.May.Levels) == 0 {
		return &Denied{Text: "no level of export, and so no data, is permitted to this client yet: the server's operator permits it with: tidemark client change"}
	}
	return nil
}

// Whole tells whether the caller may have all there is of some types but for what is
// withheld from everybody, as pages that are the same for everybody hold it.
func (c *Caller) Whole(types []fhir.Type, everybody withhold.Policy) error {
	if err := c.Starts("system"); err != nil {
		return err
	}
	if err := c.Exports(types...); err != nil {
		return err
	}
	if !c.May.Withhold.Within(&everybody) {
		return &Denied{Text: "policy withholds data from this client, and what is published is the same for everybody: an export gives it what it may have"}
	}
	for _, t := range types {
		if c.Rights.Filters(t) != nil {
			return outside("the scopes of the access token narrow " + t.String() + ", and what is published is the same for everybody")
		}
	}
	return nil
}

// AnyGroup tells whether every Group may be exported or seen.
func (c *Caller) AnyGroup() bool { return !c.May.Confined() || c.May.Group(clients.All) }

// SeesGroup tells whether a Group may be seen: a client that is confined to some
// does not learn of others (decisions.md 6).
func (c *Caller) SeesGroup(id string) bool { return !c.May.Confined() || c.May.Group(id) }

func outside(text string) error { return &Denied{Text: text, Scope: true} }

func listed(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

var groupType, _ = fhir.ParseType("Group")
