package export

import (
	"encoding/json"
	"fmt"

	"tidemark/store"
	"tidemark/store/fhir"
)

// rollName is what a job that was cut short finds its Roll under.
const rollName = "roll"

// recall finds whom earlier exports of the Group found in it. A job that goes on has
// what it began with: by now others may have been made, or forgotten, and a selection
// that is half of one and half of another would be none.
func (g *gathering) recall() error {
	q := g.r.Pending
	if q.Level != Group || g.r.Since == fhir.None {
		return nil
	}
	c := g.r.Checkpoint
	if c == nil {
		var err error
		g.roll, err = g.s.Roll(q.Group, g.r.Since)
		return err
	}
	if g.rolled = c.Roll; g.rolled == nil {
		return nil
	}
	data, err := g.s.Kept(rollName, *g.rolled)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &g.roll); err != nil {
		return fmt.Errorf("decode whom a Group had: %w", store.ErrCorrupt)
	}
	return nil
}

// keepRoll keeps that with the job, once, if there is any.
func (g *gathering) keepRoll() error {
	if g.roll.Found == nil || g.rolled != nil {
		return nil
	}
	data, err := json.Marshal(g.roll)
	if err != nil {
		return err
	}
	sum, err := g.s.Keep(rollName, data)
	g.rolled = &sum
	return err
}
