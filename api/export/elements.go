package export

import (
	"tidemark/api/outcome"
	"tidemark/store/elements"
)

// projection is what _elements leaves of resources.
func projection(texts []string) (*elements.Projection, error) {
	p, faults := elements.Parse(texts)
	if len(faults) > 0 { // the kick-off has read it: another version of this program
		return nil, refused(outcome.NotSupported, "_elements: %s: %s", outcome.Quote(faults[0].Value), faults[0].Reason)
	}
	return p, nil
}
