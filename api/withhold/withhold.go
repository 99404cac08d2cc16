// Package withhold knows what is not given out, whatever a client may have: of whom, by
// labels of sensitivity, by searches, by elements. It refuses to know who asks and in which
// way, and who is in a Group.
package withhold

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"tidemark/api/outcome"
	"tidemark/store/elements"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// A Policy is what is withheld from a client, or from all. The zero value is nothing.
type Policy struct {
	// Groups, by their ids, of people who have opted out: what is theirs and nobody else's is withheld while they are members, and the Groups are.
	Groups []string `yaml:"groups" json:"groups,omitempty"`
	// Security labels: a resource is withheld that has one of them in meta.security, or in which a resource stands that has. A label is a system and a code, such as http://terminology.hl7.org/CodeSystem/v3-Confidentiality|R, or the code alone, of whatever system.
	Security []string `yaml:"security" json:"security,omitempty"`
	// Searches, such as Condition?code=http://snomed.info/sct|86406008: what one of them finds is withheld.
	Filters []string `yaml:"filters" json:"filters,omitempty"`
	// Elements that are taken out of what is sent, such as ExplanationOfBenefit.total or Claim.item.net; the narrative goes with them.
	Elements []string `yaml:"elements" json:"elements,omitempty"`
}

// Empty tells whether nothing is withheld.
func (p *Policy) Empty() bool { return len(p.Groups) == 0 && !p.Reads() }

// Reads tells whether a body must be read to know what of it is withheld.
func (p *Policy) Reads() bool { return len(p.Security)+len(p.Filters)+len(p.Elements) > 0 }

// And withholds what either does.
func (p Policy) And(o Policy) Policy {
	both := func(a, b []string) []string {
		return slices.Compact(slices.Sorted(slices.Values(slices.Concat(a, b))))
	}
	return Policy{both(p.Groups, o.Groups), both(p.Security, o.Security), both(p.Filters, o.Filters), both(p.Elements, o.Elements)}
}

// Within tells whether another policy withholds all that this one does, word by word:
// what another spelling would say is not found out.
func (p *Policy) Within(o *Policy) bool {
	in := func(mine, others []string) bool {
		return !slices.ContainsFunc(mine, func(s string) bool { return !slices.Contains(others, s) })
	}
	return in(p.Groups, o.Groups) && in(p.Security, o.Security) && in(p.Filters, o.Filters) && in(p.Elements, o.Elements)
}

// Clone shares nothing with the policy.
func (p Policy) Clone() Policy {
	return Policy{slices.Clone(p.Groups), slices.Clone(p.Security), slices.Clone(p.Filters), slices.Clone(p.Elements)}
}

// Check says what is wrong with each part of a policy.
func (p *Policy) Check() (groups, security, filters, elements error) {
	for _, id := range p.Groups {
		if _, err := fhir.ParseKey("Group/" + id); err != nil {
			groups = errors.Join(groups, fmt.Errorf("%s is not the id of a Group", outcome.Quote(id)))
		}
	}
	for _, label := range p.Security {
		security = errors.Join(security, checkLabel(label))
	}
	for _, text := range p.Filters {
		if _, err := search.Parse(text, search.Env{}); err != nil {
			filters = errors.Join(filters, fmt.Errorf("%s: %w", outcome.Quote(text), err))
		}
	}
	return groups, security, filters, checkElements(p.Elements)
}

// Fault is all that Check says, as one error.
func (p *Policy) Fault() error {
	groups, security, filters, elements := p.Check()
	return errors.Join(groups, security, filters, elements)
}

func checkElements(values []string) (err error) {
	_, faults := elements.ParseRemoval(values)
	for _, f := range faults {
		err = errors.Join(err, fmt.Errorf("%s: %s", outcome.Quote(f.Value), f.Reason))
	}
	return err
}

// strange is in no label, and would mean something else in a search.
const strange = `,$\ ` + "\t\r\n"

func checkLabel(label string) error {
	system, code, both := strings.Cut(label, "|")
	if !both {
		code = system
	}
	if code == "" || both && system == "" || strings.Contains(code, "|") || strings.ContainsAny(label, strange) {
		return fmt.Errorf("%s is no label: right is a code such as R, or system|code", outcome.Quote(label))
	}
	return nil
}

// A Rule is what a policy says of bodies, and was understood. It is never changed and may be shared by
// goroutines. A nil one withholds nothing.
type Rule struct {
	filters  map[fhir.Type]*search.Filter // what matches goes not; each has the labels, too
	elements *elements.Removal
}

// Rule understands a policy; nil if bodies decide nothing. An error says that another version of
// this program has checked it.
func (p *Policy) Rule(env search.Env) (*Rule, error) {
	if !p.Reads() {
		return nil, nil
	}
	r := &Rule{filters: map[fhir.Type]*search.Filter{}}
	queries := map[fhir.Type][]*search.Query{}
	add := func(text string) error {
		q, err := search.Parse(text, env)
		if err != nil {
			return fmt.Errorf("withhold: %s: %w", outcome.Quote(text), err)
		}
		queries[q.Type] = append(queries[q.Type], q)
		return nil
	}
	for _, label := range p.Security {
		if err := checkLabel(label); err != nil {
			return nil, fmt.Errorf("withhold: %w", err)
		}
		for _, t := range fhir.AllTypes() {
			if err := add(t.String() + "?_security=" + escape(label)); err != nil {
				return nil, err
			}
		}
	}
	for _, text := range p.Filters {
		if err := add(text); err != nil {
			return nil, err
		}
	}
	for t, of := range queries {
		r.filters[t] = search.New(of...)
	}
	if err := checkElements(p.Elements); err != nil {
		return nil, fmt.Errorf("withhold: %w", err)
	}
	r.elements, _ = elements.ParseRemoval(p.Elements)
	return r, nil
}

// escape: in what search.Parse reads, a bar divides a system from a code.
func escape(label string) string {
	parts := strings.Split(label, "|")
	for i, part := range parts {
		parts[i] = strings.ReplaceAll(url.QueryEscape(part), "+", "%20")
	}
	return strings.Join(parts, "|")
}

// Whole tells whether some resources are withheld whole, so that deletions may be, too.
func (r *Rule) Whole() bool { return r != nil && len(r.filters) > 0 }

// Cuts tells whether elements are taken out of resources: of any type, for those may
// stand inside of others.
func (r *Rule) Cuts() bool { return r != nil && r.elements != nil }

// Cut appends what is left of a resource.
func (r *Rule) Cut(dst, line []byte, t fhir.Type) []byte {
	if r == nil {
		return append(dst, line...)
	}
	return r.elements.Append(dst, line, t)
}

// Matcher tells which resources of a type may go: compact JSON, as it is stored. Each
// goroutine needs its own.
func (r *Rule) Matcher(t fhir.Type) func(line []byte) bool {
	if !r.Whole() {
		return func([]byte) bool { return true }
	}
	matchers := map[fhir.Type]*search.Matcher{}
	withheld := func(t fhir.Type, body []byte) bool {
		f := r.filters[t]
		if f == nil {
			return false
		}
		if matchers[t] == nil {
			matchers[t] = f.Matcher()
		}
		return matchers[t].Match(body)
	}
	return func(line []byte) bool {
		if withheld(t, line) {
			return false
		}
		lets := true
		elements.Inside(line, t, func(t fhir.Type, body []byte) { lets = lets && !withheld(t, body) })
		return lets
	}
}
