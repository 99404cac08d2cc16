package clients

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"tidemark/api/outcome"
	"tidemark/api/smart"
	"tidemark/store/fhir"
)

// Rules of what is a right client.
type Rules struct {
	// CheckURL tells whether keys can be fetched from a URL (default: that of a
	// smart.Fetcher with nothing set).
	CheckURL func(url string) error
	// External: clients prove themselves to another server, and need no keys here.
	External bool
}

const (
	maxID     = 255 // bytes: it stands in tokens, headers and the audit
	maxScopes = 200 // that smart.Parse looks at
)

// Check says all that is wrong with a client. No error repeats a key or a secret.
func (r Rules) Check(c *Client) error {
	levels, groups, scopes := c.May.Check()
	optOut, security, filters, elements := c.May.Withhold.Check()
	var named []error
	for _, err := range []error{CheckID(c.ID), r.checkProof(c), levels, groups, scopes, optOut, security, filters, elements, c.Limits.Check()} {
		for _, err := range each(err) {
			named = append(named, fmt.Errorf("client %s: %w", outcome.Quote(c.ID), err))
		}
	}
	return errors.Join(named...)
}

// each are the errors that were joined to one.
func each(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // of the next function, as it is
		return many.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// CheckID says what is wrong with what a client calls itself.
func CheckID(id string) error {
	strange := func(c rune) bool { return c <= ' ' || c > '~' || c == ':' } // RFC 7617, 2: a user has no colon
	if id == "" || len(id) > maxID || strings.ContainsFunc(id, strange) {
		return fmt.Errorf("its id is not 1 to %d printable characters of ASCII without spaces and colons", maxID)
	}
	return nil
}

func (r Rules) checkProof(c *Client) error {
	ways := 0
	for _, given := range []bool{c.KeySet != nil, c.KeysURL != "", c.SecretHash != ""} {
		if given {
			ways++
		}
	}
	if ways > 1 {
		return errors.New("it has several ways to prove itself: right is one of keys, a URL of keys, a secret")
	}
	switch {
	case c.KeySet != nil:
		_, err := smart.ParseKeys(c.KeySet)
		return err
	case c.KeysURL != "":
		check := r.CheckURL
		if check == nil {
			check = new(smart.Fetcher).CheckURL
		}
		if err := check(c.KeysURL); err != nil {
			return fmt.Errorf("the URL of its keys: %w", err)
		}
	case c.SecretHash == "" && !r.External:
		return errors.New("it cannot prove itself: give its public keys, or their URL")
	}
	return nil
}

// Check says what is wrong with each part of a permission.
func (p *Permission) Check() (levels, groups, scopes error) {
	return p.checkLevels(), p.checkGroups(), p.checkScopes()
}

func (p *Permission) checkLevels() error {
	var faults []error
	for _, l := range p.Levels {
		if !slices.Contains(Anything.Levels, l) {
			faults = append(faults, fmt.Errorf("there is no level %s: right are %s", outcome.Quote(l), strings.Join(Anything.Levels, ", ")))
		}
	}
	return errors.Join(faults...)
}

func (p *Permission) checkGroups() error {
	var faults []error
	for _, id := range p.Groups {
		if id != All && !fhir.ValidID(id) {
			faults = append(faults, fmt.Errorf("%s is no id of a Group: right are 1 to 64 of A-Z, a-z, 0-9, . and -, or %s for all", outcome.Quote(id), All))
		}
	}
	switch {
	case p.Level("group") && len(p.Groups) == 0:
		faults = append(faults, fmt.Errorf("the level group wants Groups: name them, or write %s for all", All))
	case !p.Level("group") && len(p.Groups) > 0:
		faults = append(faults, errors.New("Groups are of use with the level group only: add it, or take them out")) //nolint:staticcheck // Group is a name
	}
	return errors.Join(faults...)
}

func (p *Permission) checkScopes() error {
	var faults []error
	list := strings.Fields(p.Scopes)
	if len(list) > maxScopes {
		faults = append(faults, fmt.Errorf("it has %d scopes: right are %d at most", len(list), maxScopes))
	}
	for _, s := range list {
		if smart.Parse(s) == nil {
			faults = append(faults, fmt.Errorf("the scope %s grants nothing: right are such as system/*.rs, system/Patient.rs and system/Observation.rs?category=laboratory", outcome.Quote(s)))
		}
	}
	rights := p.Rights()
	if faults == nil && len(rights) < len(list) {
		faults = append(faults, errors.New("too many of its scopes narrow the same type: right are 20 at most"))
	}
	if len(p.Levels) == 0 || faults != nil {
		return errors.Join(faults...)
	}
	if !slices.ContainsFunc(fhir.AllTypes(), rights.Exports) {
		faults = append(faults, errors.New("there are levels, and no scope that lets export any type: right are such as system/*.rs (to export is r and s)"))
	}
	if group, _ := fhir.ParseType("Group"); p.Level("group") && !rights.Reads(group) {
		faults = append(faults, errors.New("the level group wants a scope to read Groups: add system/Group.rs"))
	}
	return errors.Join(faults...)
}
