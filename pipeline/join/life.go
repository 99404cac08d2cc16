package join

import (
	"encoding/json"
	"fmt"
	"strings"

	"tidemark/pipeline/decode"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A resource that was expunged may be made again, under another number, and what tells of
// both may come in any order.

// A life is the number that a key stands for, and the row that said so first: what is made
// again after it was purged has another number. Of two the later is told by the log, for
// their rows may be in two partitions.
type life struct {
	Number int64 `json:"n"`
	Since  grave `json:"s"`
}

// A grave is where a row was deleted. What stands before that in the log comes late, from
// another partition (a topic that was given more of them), or is repeated.
type grave struct {
	Position uint64       `json:"p,omitempty"`
	At       fhir.Instant `json:"t,omitempty"`
}

// covers tells whether a row stands before the deletion; unknown is what counts if nothing
// tells.
func (g grave) covers(part *decode.Part, unknown bool) bool {
	order, placed := store.InLog(part.Position, part.At, g.Position, g.At)
	if !placed {
		return unknown
	}
	return order <= 0
}

func graveOf(part *decode.Part) grave { return grave{part.Position, part.At} }

// graveOfTag reads the note of a tag's row that is gone.
func graveOfTag(note []byte) (g grave, gone bool) {
	text, gone := strings.CutPrefix(string(note), wasTag)
	if !gone { // most are not, and each row of a tag asks
		return grave{}, false
	}
	if _, err := fmt.Sscanf(text, "%d %d", &g.Position, &g.At); err != nil {
		return grave{}, true // of an earlier release
	}
	return g, gone
}

func (g grave) ofTag() []byte { return fmt.Appendf(nil, wasTag+"%d %d", g.Position, g.At) }

// succeed notes that a key stands for another number now. over: it did before, and what is
// of this number is of a life that has ended.
func (t *taking) succeed(n int64, s *state) (over bool, err error) {
	if t.part.Position == 0 {
		return false, nil // nothing tells which of two lives was first
	}
	before, err := t.lifeOf(s.Key)
	switch {
	case err != nil || before.Number == n:
		return false, err
	case before.Number != 0 && before.Since.covers(t.part, false):
		t.keep(n, state{Purged: true, Grave: before.Since})
		return true, t.unpark(n)
	}
	since := graveOf(t.part)
	if t.part.Snapshot && t.part.Published > 0 { // a transaction that was under way may have purged it, from before its place
		since.At = t.part.Published
	}
	text, err := json.Marshal(life{n, since})
	if err != nil {
		return false, err
	}
	t.put(ofKey+s.Key, text)
	was, err := t.stateOf(before.Number)
	switch {
	case err != nil || was.Key != s.Key:
		return false, err
	case t.part.Snapshot && t.part.Published > 0:
		return false, t.endBefore(before.Number, was)
	case t.part.Snapshot:
		return false, nil
	}
	was.Next, s.After = n, before.Number
	t.keep(before.Number, was)
	return false, nil
}

// endBefore ends the life of a resource that was made again before a snapshot: that its row went
// may be told late, or never. It was before the other was made.
func (t *taking) endBefore(n int64, was state) error {
	changes := t.decoder.Purged(t.rec, t.part, was.key())
	for i := range changes {
		changes[i].LastUpdated, changes[i].Snapshot, changes[i].Earlier = t.part.Published-1, true, true
	}
	t.out.Changes = append(t.out.Changes, changes...)
	for row := range was.Tags {
		t.put(name(ofTag, row), nil)
	}
	was = state{Purged: true, Grave: graveOf(t.part)}
	t.keep(n, was)
	return t.unpark(n)
}

// outlive has a resource be told that waits for the end of one of the same key, and ends that.
func (t *taking) outlive(n int64, s state) error {
	was, err := t.stateOf(s.After)
	if err != nil {
		return err
	}
	if was.Key == s.Key {
		if err := t.endBefore(s.After, was); err != nil {
			return err
		}
	}
	s.After = 0
	t.keep(n, s)
	return t.again(n)
}

// letLive has a resource be told that was made after one was purged which had its key.
func (t *taking) letLive(n int64) error {
	if n == 0 {
		return nil
	}
	s, err := t.stateOf(n)
	if err != nil || s.After == 0 {
		return err
	}
	s.After = 0
	t.keep(n, s)
	return t.again(n)
}

func (t *taking) lifeOf(key string) (l life, err error) {
	text, err := t.get(ofKey + key)
	if err != nil || text == nil {
		return l, err
	}
	if err := json.Unmarshal(text, &l); err != nil {
		return l, fmt.Errorf("note of a resource's lives: %w", err)
	}
	return l, nil
}
