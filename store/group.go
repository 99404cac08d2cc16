package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// A membership is who a Group lists and has not said to be inactive, and since
// when: the change instant of the version that first does so after an absence
// (decisions: joining).
type membership map[string]member

type member struct {
	Since fhir.Instant `json:"since"`
	End   fhir.Instant `json:"end,omitempty"` // of its period; zero: open
}

// over tells whether the period has ended.
func (m member) over(at fhir.Instant) bool { return m.End != 0 && m.End < at }

func (m membership) encode() []byte { return mustJSON(m) }

// regroup stores how a version of a Group changed its membership.
func (c *commit) regroup(ch *Change, r *segment.Row) error {
	old, err := c.group(ch.Key.ID)
	if err != nil {
		return err
	}
	next := membership{}
	if !ch.Delete {
		for _, m := range ch.Members {
			if m.Ref == "" || m.Inactive || (member{End: orZero(m.End)}).over(r.Instant) {
				continue // named by an identifier only: resolved at export; or no member any more
			}
			n := member{Since: r.Instant, End: orZero(m.End)}
			if twice, ok := next[m.Ref]; ok && (twice.End == 0 || n.End != 0 && n.End < twice.End) {
				n.End = twice.End
			}
			if was, ok := old[m.Ref]; ok && !was.over(r.Instant) {
				n.Since = was.Since
			}
			next[m.Ref] = n
		}
	}
	var joined, left []string
	for ref := range next {
		if was, ok := old[ref]; !ok || was.over(r.Instant) {
			joined = append(joined, ref)
		}
	}
	for ref := range old {
		if _, ok := next[ref]; !ok {
			left = append(left, ref)
		}
	}
	c.groups[ch.Key.ID] = next
	if len(joined)+len(left) == 0 {
		return nil
	}
	slices.Sort(joined)
	slices.Sort(left)
	c.internal(segment.Memberships, r, nil, struct {
		Group  string   `json:"group"`
		Joined []string `json:"joined,omitempty"`
		Left   []string `json:"left,omitempty"`
	}{r.Key.String(), joined, left})
	return nil
}

func orZero(i fhir.Instant) fhir.Instant {
	if i == fhir.None {
		return 0
	}
	return i
}

// group is a Group's membership before the version being applied.
func (c *commit) group(id string) (membership, error) {
	if m, ok := c.groups[id]; ok {
		return m, nil
	}
	v, closer, err := c.db.kv.Get(index.GroupKey(id))
	if errors.Is(err, pebble.ErrNotFound) {
		return membership{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	defer closer.Close()
	m := membership{}
	if err := json.Unmarshal(v, &m); err != nil {
		return nil, fmt.Errorf("%w: membership of a Group: %w", index.ErrCorrupt, err)
	}
	return m, nil
}
