package export

import (
	"fmt"

	"tidemark/api/outcome"
	"tidemark/api/withhold"
	"tidemark/store/elements"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// projection is what _elements leaves of resources.
func projection(texts []string) (*elements.Projection, error) {
	p, faults := elements.Parse(texts)
	if len(faults) > 0 { // the kick-off has read it: another version of this program
		return nil, refused(outcome.NotSupported, "_elements: %s: %s", outcome.Quote(faults[0].Value), faults[0].Reason)
	}
	return p, nil
}

// policy is what is withheld from the client of a request.
func (o *Options) policy(q *Request, now fhir.Instant) (*withhold.Rule, error) {
	if !q.Access.withholds() {
		return nil, nil
	}
	rule, err := q.Access.Withhold.Rule(search.Env{Bases: o.Bases, Now: now})
	if err != nil {
		return nil, fmt.Errorf("what this export withholds is not understood; was it started by another version? %w", err)
	}
	return rule, nil
}
