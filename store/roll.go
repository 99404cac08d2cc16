package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/index"
)

// A Roll is whom the exports of a Group found in it that ended at one instant: the
// next of their chains begins there.
//
// A Group that names its members by identifiers or by searches has those who have
// or match them, and versions of resources that were superseded are not kept: who
// was a member at an earlier instant cannot be found out again. So whoever looks
// leaves what he found.
type Roll struct {
	// Exact: one of them looked at the very instant, not at a later one.
	Exact bool `json:"exact"`
	// Found are the ids of Patients, true if all of them found him, false if some did;
	// nil: no export of the Group ended there, or it is not known any more.
	Found map[string]bool `json:"found"`
}

// A roll is what is kept of a Group's exports.
type roll struct {
	Next  uint64                 `json:"next"` // number of the next call
	Calls []rollCall             `json:"calls,omitempty"`
	Found map[string][][2]uint64 `json:"found,omitempty"` // by id, runs of calls: first and last
}

// A rollCall is one look at who is in the Group.
type rollCall struct {
	N    uint64       `json:"n"`
	Upto fhir.Instant `json:"upto"` // where the export ended
	At   fhir.Instant `json:"at"`   // the watermark at which it looked
}

// maxRoll bounds what is kept of one Group, bytes: beyond it the older half is
// forgotten. A hundred thousand members take 5 MB, each call that finds the same
// ones 50 bytes.
const maxRoll = 16 << 20

func (r *roll) add(upto, at fhir.Instant, found []string) {
	n := r.Next
	r.Next++
	r.Calls = append(r.Calls, rollCall{n, upto, at})
	if r.Found == nil {
		r.Found = map[string][][2]uint64{}
	}
	for _, id := range found {
		runs := r.Found[id]
		if last := len(runs) - 1; last >= 0 && runs[last][1]+1 == n {
			runs[last][1] = n
			continue
		}
		r.Found[id] = append(runs, [2]uint64{n, n})
	}
}

// forget drops the calls of exports that ended before an instant. Those that ended
// in one instant go together: who was not found by one of them must not seem to have
// been found by all.
func (r *roll) forget(before fhir.Instant) {
	r.Calls = slices.DeleteFunc(r.Calls, func(c rollCall) bool { return c.Upto < before })
	first := r.Next
	if len(r.Calls) > 0 {
		first = r.Calls[0].N
	}
	for id, runs := range r.Found {
		if runs = slices.DeleteFunc(runs, func(run [2]uint64) bool { return run[1] < first }); len(runs) == 0 {
			delete(r.Found, id)
			continue
		}
		r.Found[id] = runs
	}
}

// encode forgets what does not fit into so many bytes.
func (r *roll) encode(limit int) []byte {
	for {
		b := mustJSON(r)
		if len(b) <= limit || len(r.Calls) == 0 {
			return b
		}
		ends := make([]fhir.Instant, 0, len(r.Calls))
		for _, c := range r.Calls {
			ends = append(ends, c.Upto)
		}
		slices.Sort(ends)
		r.forget(ends[len(ends)/2] + 1)
	}
}

// of is the Roll of the exports that ended at an instant.
func (r *roll) of(upto fhir.Instant) (out Roll) {
	var calls []uint64
	for _, c := range r.Calls {
		if c.Upto == upto {
			calls = append(calls, c.N)
			out.Exact = out.Exact || c.At == upto
		}
	}
	if len(calls) == 0 {
		return out
	}
	out.Found = map[string]bool{}
	for id, runs := range r.Found {
		n := 0
		for _, c := range calls {
			if slices.ContainsFunc(runs, func(run [2]uint64) bool { return run[0] <= c && c <= run[1] }) {
				n++
			}
		}
		if n > 0 {
			out.Found[id] = n == len(calls)
		}
	}
	return out
}

// Roll is whom earlier exports of a Group found in it that ended at an instant.
func (s *Snapshot) Roll(group string, upto fhir.Instant) (out Roll, err error) {
	err = s.db.whileOpen(func() error {
		r, err := readRoll(s.db.kv, group)
		out = r.of(upto)
		return err
	})
	return out, err
}

// CallRoll keeps whom an export of a Group found at the snapshot's watermark: ids of
// Patients, each once. It is durable when CallRoll returns. Of an export that is not
// certain there are several lists, and each member is in one of them at least.
//
// It is kept as long as deletions are told (Options.Deleted), if it is not too much
// (maxRoll).
func (s *Snapshot) CallRoll(group string, upto fhir.Instant, found ...[]string) error {
	if err := s.db.writable(); err != nil {
		return errors.Join(ErrNoRoom, err)
	}
	return s.db.reroll(group, func(r *roll) {
		for _, ids := range found {
			r.add(upto, s.pin.Watermark, ids)
		}
	})
}

// reroll changes what is kept of a Group's exports, and forgets what is too old.
func (db *DB) reroll(group string, change func(*roll)) error {
	db.rolling.Lock()
	defer db.rolling.Unlock()
	db.mu.Lock()
	before := db.before(db.o.Deleted)
	db.mu.Unlock()
	return db.whileOpen(func() error {
		r, err := readRoll(db.kv, group)
		if err != nil {
			return err
		}
		change(&r)
		r.forget(before)
		b := r.encode(maxRoll)
		if len(r.Calls) == 0 {
			err = db.kv.Delete(index.RollKey(group), pebble.Sync)
		} else {
			err = db.kv.Set(index.RollKey(group), b, pebble.Sync)
		}
		if err != nil {
			return db.fail(fmt.Errorf("store who was found in a Group: %w", err))
		}
		return nil
	})
}

func readRoll(kv pebble.Reader, group string) (r roll, err error) {
	v, closer, err := kv.Get(index.RollKey(group))
	if errors.Is(err, pebble.ErrNotFound) {
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("read the index: %w", err)
	}
	if err := errors.Join(json.Unmarshal(v, &r), closer.Close()); err != nil {
		return r, fmt.Errorf("%w: who was found in a Group: %w", index.ErrCorrupt, err)
	}
	return r, nil
}

// rollsEvery is how often Groups are looked through of which no export is made any
// more: short against every sensible Options.Deleted.
const rollsEvery = 24 * time.Hour

// rollLoop forgets what is too old until ctx ends.
func (db *DB) rollLoop(ctx context.Context) {
	tick := time.NewTicker(rollsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := db.forgetRolls(ctx); err != nil && ctx.Err() == nil {
				db.o.Logger.WarnContext(ctx, "forget who was found in Groups long ago; it is tried again", "err", err, "after", rollsEvery)
			}
		}
	}
}

func (db *DB) forgetRolls(ctx context.Context) error {
	if err := db.writable(); err != nil {
		return err
	}
	var groups []string
	err := db.whileOpen(func() error {
		return index.Scan(db.kv, index.Rolls(), func(k, _ []byte) error {
			groups = append(groups, string(k[1:]))
			return nil
		})
	})
	for _, id := range groups {
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		err = db.reroll(id, func(*roll) {})
	}
	return err
}
