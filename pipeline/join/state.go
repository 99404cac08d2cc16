package join

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"tidemark/pipeline/decode"
	"tidemark/store"
	"tidemark/store/fhir"
)

// The names of notes. A number of a resource stands in decimal digits.
const (
	space      = "join/"
	toldEnds   = space + "ends" // messages tell where transactions end: a boundary
	ofResource = space + "r/"   // number: a state
	ofKey      = space + "k/"   // Type/id: a life
	ofTag      = space + "p/"   // pid: the number of the resource that has the tag
	wasTag     = "-"            // in its place, before a grave: the row is gone, for good
	ofTagName  = space + "d/"   // tag_id: a decode.Tag
	waiting    = space + "w/"   // number: a parked version
	forTag     = space + "g/"   // tag_id/number: a version waits for the definition
	ofEnd      = space + "t/"   // transaction: a tally
	forEnd     = space + "u/"   // transaction/number: a resource has it among its Ends
	tagTable   = "hfj_res_tag"  // as messages of transactions count it
	verTable   = "hfj_res_ver"  //
	patience   = 60_000         // milliseconds after which a version that waits is told as a dead letter
	sweep      = 10_000         // milliseconds between two looks for such
	lull       = 5_000          // milliseconds without a snapshot's rows of tags, after which there are no more of them
	stall      = 60_000         // the same, where the last row said that more come
	late       = 10_000         // milliseconds after which a version that has not come is late
)

// A state is what is known of a resource, by its number.
type state struct {
	Key  string          `json:"k,omitempty"` // Type/id; "": not known yet
	Tags map[int64]int64 `json:"t,omitempty"` // definitions by the rows that give them
	Told bool            `json:"s,omitempty"` // rows of its tags have come, if only to go again
	// Position, if it ever had tags, is that of the last that was told of it: what is told next
	// must be later, though the row that it comes of may not be.
	Position uint64 `json:"p,omitempty"`
	// Ends are the transactions, not all of whose rows have come, that have to do with it.
	Ends []string `json:"e,omitempty"`
	// Number and At are of the version that was told last and where its row was written: a
	// connector that begins anew repeats rows, which would be later by Position. Of a deletion,
	// too, which may have been told alone: a snapshot that is taken again would have what was
	// before it live.
	Number int64  `json:"n,omitempty"`
	At     uint64 `json:"a,omitempty"`
	// Written is the time of the newest record of which Position and At are: what is done long
	// after it, at no later place, is of a log that has begun anew. 0: not known.
	Written fhir.Instant `json:"w,omitempty"`
	// Plain: that version has no tags, and had none before when it was told. The store knows what
	// is repeated of it, by where its row stands, until it gets some.
	Plain bool `json:"u,omitempty"`
	// Read: a snapshot told that version, or told it first. One that is taken beside a slot which is
	// there already has what the log tells behind its place.
	Read bool `json:"d,omitempty"`
	// Purged: its row is gone. Rows of other tables that come yet say nothing any more.
	Purged bool  `json:"x,omitempty"`
	Grave  grave `json:"g,omitzero"` // where that was
	// Next is the number of the resource of the same key that was made after this was purged,
	// which is yet to be read; After is, of that, this one's: till then it is not told, for it
	// would seem older.
	Next  int64 `json:"y,omitempty"`
	After int64 `json:"b,omitempty"`
}

// enter forgets the places of a log after which the row's began anew (a database that was moved).
func (s *state) enter(part *decode.Part) {
	last := max(s.Position, s.At)
	if s.Written == 0 || part.Position > last {
		return
	}
	if order, placed := store.InLog(part.Position, part.At, last, s.Written); placed && order > 0 {
		s.Position, s.At = 0, 0
	}
}

// repeats tells whether a version's row was told before, or one that was written later.
func (s *state) repeats(part *decode.Part) bool {
	here := part.Number == s.Number && (s.Told || !s.Plain)
	first := part.Number == s.Number && s.Read && s.At > 0 && part.Made // what the snapshot has came after it, wherever they stand
	return part.Number < s.Number || first || here && part.Position > 0 && part.Position <= s.At
}

// misses tells whether there are versions before this one, or this one is of a snapshot, whose
// tags may not be known.
func (s *state) misses(part *decode.Part) bool {
	return part.Number > s.Number+1 || part.Snapshot && (part.Number > s.Number || s.Plain)
}

func (s state) key() fhir.Key {
	key, err := fhir.ParseKey(s.Key)
	if err != nil {
		panic(err) // it was one when it was noted
	}
	return key
}

func (t *taking) stateOf(n int64) (s state, err error) {
	text, err := t.get(name(ofResource, n))
	if err != nil || text == nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("note of a resource's number: %w", err)
	}
	return s, nil
}

func (t *taking) keep(n int64, s state) {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings and numbers
	}
	t.put(name(ofResource, n), text)
}

// get is what is noted under a name, also since Take began.
func (t *taking) get(name string) ([]byte, error) {
	if v, known := t.noted[name]; known {
		return v, nil
	}
	if v, known := t.fresh[name]; known {
		return v, nil
	}
	return t.notes.Remembered(name)
}

// put notes something with the record that is taken; nil takes it away.
func (t *taking) put(name string, v []byte) {
	t.noted[name] = v
	t.out.Notes = append(t.out.Notes, store.Note{Name: name, Value: v, Offset: t.rec.Offset})
}

// each calls fn for the numbers of resources that are noted behind a prefix, and takes those
// notes away.
func (t *taking) each(prefix string, fn func(n int64) error) error {
	numbers := map[int64]bool{}
	add := func(name string) {
		if n, err := strconv.ParseInt(name[len(prefix):], 10, 64); err == nil {
			numbers[n] = true
		}
	}
	newer := maps.Clone(t.fresh) // few: an answer's at most
	maps.Copy(newer, t.noted)
	for name, v := range newer {
		if v != nil && strings.HasPrefix(name, prefix) {
			add(name)
		}
	}
	err := t.notes.EachRemembered(prefix, func(name string, _ []byte) error {
		if _, known := newer[name]; !known {
			add(name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range slices.Sorted(maps.Keys(numbers)) {
		t.put(prefix+strconv.FormatInt(n, 10), nil)
		if err := fn(n); err != nil {
			return err
		}
	}
	return nil
}

func name(prefix string, n int64) string { return prefix + strconv.FormatInt(n, 10) }
