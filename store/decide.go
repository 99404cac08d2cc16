package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// resource is a resource that the commit touches.
type resource struct {
	key      []byte       // in the index
	cur      *index.State // nil: never had
	at       int          // its newest row in this commit, -1 if that is older
	patients []string     // of cur, if known
	known    bool
	changed  bool
	set      uint32 // in whose compartments it lay at any time of the commit, or before
}

// lookUp reads the newest row of every resource that is touched, in key order
// through one iterator: a sorted sweep is several times cheaper than gets, and
// UseL6Filters answers for keys never seen without reading their blocks.
func (c *commit) lookUp() error {
	list := c.touch()
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b *resource) int { return bytes.Compare(a.key, b.key) })
	origin := c.db.origins()
	it, err := c.db.kv.NewIter(&pebble.IterOptions{UseL6Filters: true})
	if err != nil {
		return fmt.Errorf("read the index: %w", err)
	}
	for _, r := range list {
		if !it.SeekPrefixGE(r.key) {
			if err := it.Error(); err != nil { // the next seek would forget it
				return errors.Join(fmt.Errorf("read the index: %w", err), it.Close())
			}
			continue
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return errors.Join(fmt.Errorf("read the index: %w", err), it.Close())
		}
		st, err := index.DecodeState(v, origin)
		if err != nil {
			return errors.Join(fmt.Errorf("read the index: %w", err), it.Close())
		}
		r.cur, r.set = &st, st.Patients
	}
	return errors.Join(it.Error(), it.Close())
}

// touch lists the resources that the changes name, with their keys.
func (c *commit) touch() []*resource {
	n := 0
	for i := range c.taken {
		n += len(c.taken[i].Changes)
	}
	c.touched = make(map[fhir.Key]*resource, n)
	c.rows = make([]row, 0, n)
	list, keys := make([]*resource, 0, n), make([]byte, 0, 20*n)
	for i := range c.taken {
		for j := range c.taken[i].Changes {
			ch := &c.taken[i].Changes[j]
			if !ch.named() || c.touched[ch.Key] != nil {
				continue
			}
			at := len(keys)
			keys = index.RowKey(keys, ch.Key)
			r := &resource{at: -1, key: keys[at:len(keys):len(keys)]}
			c.touched[ch.Key] = r
			list = append(list, r)
		}
	}
	return c.touchTargets(list)
}

// origins returns what tells a partition by its number.
func (db *DB) origins() func(uint64) (Partition, bool) {
	db.mu.Lock()
	defer db.mu.Unlock()
	numbers := maps.Clone(db.numbers)
	return func(n uint64) (Partition, bool) { p, ok := numbers[n]; return p, ok }
}

// decide judges the changes in the order in which they were taken in.
func (c *commit) decide() error {
	for i := range c.taken {
		t := &c.taken[i]
		for j := range t.Changes {
			if err := c.change(&t.Changes[j], t); err != nil {
				return err
			}
		}
		if err := c.resolve(t.Resolved); err != nil {
			return err
		}
	}
	return nil
}

func (c *commit) change(ch *Change, t *taken) error {
	if t.erasure { // beats whatever there is
		r := c.touched[ch.Key]
		if r.cur == nil || r.cur.Kind == segment.Live || r.cur.Instant <= c.meta.Restored {
			return c.apply(ch, t, r, 0)
		}
		return nil
	}
	if c.erased.refusesChange(ch) {
		c.counts.erased++
		return c.refused(ch, t)
	}
	if ch.Dead != nil && !c.revisable(ch) {
		if c.outlived(ch) {
			c.counts.stale++
			return nil
		}
		return c.deadLetter(ch, t)
	}
	if ch.Revise != nil {
		revised, err := c.revise(ch)
		if revised == nil || err != nil {
			return err
		}
		ch = revised
	}
	hash := uint64(0)
	if !ch.Delete {
		hash = xxhash.Sum64(ch.Body)
	}
	if twin, err := c.twin(ch, hash); twin || err != nil {
		c.counts.stale++
		return err
	}
	r := c.touched[ch.Key]
	switch judge(r.cur, ch, hash, c.from(t.Partition, r.cur)) {
	case stale:
		c.counts.stale++
		return c.lived(ch, t, r)
	case same:
		c.counts.same++
		return nil
	case gone:
		clock, life, news := retell(r.cur, ch, t.Partition)
		if news && (c.doubtful(ch, t) || c.livedBetween(ch, r.cur)) {
			break
		}
		c.counts.gone++
		if news {
			r.cur.Clock, r.cur.Life, r.changed = clock, life, true
			c.repeat(ch, t, r)
		}
		return nil
	}
	return c.apply(ch, t, r, hash)
}

// refused tells clients of a resource that an erasure takes from them, by a
// deletion: one that lives here and has moved into an erased compartment, and
// one that a lost store may have told them of and that has not come back.
func (c *commit) refused(ch *Change, t *taken) error {
	if ch.Dead != nil || ch.Revise != nil { // what lives here was taken out of it already
		return nil
	}
	r := c.touched[ch.Key]
	switch {
	case r.cur == nil && c.doubtful(ch, t):
	case r.cur == nil || r.cur.Kind != segment.Live:
		return nil
	default:
		if v := judge(r.cur, ch, xxhash.Sum64(ch.Body), c.from(t.Partition, r.cur)); v == stale || v == same || v == gone {
			return nil
		}
	}
	gone := Change{Key: ch.Key, Delete: true, Version: NoVersion, LastUpdated: ch.LastUpdated, Time: ch.Time, Timestamp: ch.Timestamp, Offset: ch.Offset}
	return c.apply(&gone, t, r, 0)
}

// doubtful tells whether a deletion must be told even of a resource that never
// lived here: before a restore, or in a segment that is lost, it may have, and
// clients may have it. A compacted topic brings only how it ended, be that
// after the restore, until the partition has been read to its end once.
func (c *commit) doubtful(ch *Change, t *taken) bool {
	return c.meta.Restored != fhir.None && (!t.caught || evidence(ch, t.at) <= c.meta.Restored)
}

// lived tells clients of a deletion that was of nothing we had, when a state before it comes
// after all which a lost store may have told them of.
func (c *commit) lived(ch *Change, t *taken, r *resource) error {
	if ch.Delete || r.cur.Kind != segment.Internal || !c.doubtful(ch, t) {
		return nil
	}
	k := r.cur.Clock
	gone := Change{ // with the state's time, by which they may have been told
		Key: ch.Key, Delete: true, Version: k.Version, LastUpdated: ch.LastUpdated, Time: ch.Time, Position: k.Position, Snapshot: k.UpTo,
		Timestamp: k.Timestamp, Offset: ch.Offset,
	}
	if err := c.apply(&gone, t, r, 0); err != nil {
		return err
	}
	now := &c.rows[r.at].Clock
	now.LastUpdated, now.Inherited, now.Told = max(now.LastUpdated, k.LastUpdated), k.Inherited, k.Told
	r.cur.Clock = *now
	return nil
}

// livedBetween tells whether what was deleted must have lived again before it was deleted once
// more, by ch, so that a lost store may have told clients of it.
func (c *commit) livedBetween(ch *Change, cur *index.State) bool {
	at, _ := place(ch, &cur.Clock)
	return at > 0 && c.meta.Restored != fhir.None && cur.Kind == segment.Deleted && cur.Instant <= c.meta.Restored
}

// repeat notes what the deletion of something deleted tells of older lives. No
// export shows it, but without it what was deleted could rise again.
func (c *commit) repeat(ch *Change, t *taken, r *resource) {
	at := c.instant(ch, t, r.cur)
	n := row{
		Row: segment.Row{
			Section: segment.Section{Kind: segment.Internal, Type: segment.Repeats}, Key: ch.Key, Seq: c.seq(), Instant: at, Placed: at,
			Clock: r.cur.Clock, Life: r.cur.Life,
		},
		body: Deletion(ch.Key, at), death: fhir.None,
	}
	n.Length = int32(len(n.body)) + 1
	c.rows = append(c.rows, n)
}

// apply gives the change its instant, makes it the newest row of its resource
// and ends the one before.
func (c *commit) apply(ch *Change, t *taken, r *resource, hash uint64) error {
	old := r.cur
	at := c.instant(ch, t, old)
	clock, life := succeed(old, ch, t.Partition)
	moved := ch.Delete || old != nil && old.Patients != segment.PatientsHash(ch.Patients)
	if moved { // only then is it worth reading the old row
		if err := c.patientsOf(ch.Key, r); err != nil {
			return err
		}
	}
	n := row{
		Row: segment.Row{
			Section: segment.Section{Kind: segment.Live, Type: ch.Key.Type}, Key: ch.Key, Seq: c.seq(), Instant: at,
			Clock: clock, Hash: hash, Placed: at, Patients: ch.Patients, References: ch.References, Life: life,
		},
		body: ch.Body, death: fhir.None,
	}
	if ch.Delete {
		n.Patients = r.patients
		n.Section.Kind = segment.Deleted
		if (old == nil || old.Kind == segment.Internal) && !c.doubtful(ch, t) {
			n.Section = segment.Section{Kind: segment.Internal, Type: segment.Unseen}
		}
		n.body = Deletion(ch.Key, at)
	} else if !c.db.o.KeepMeta {
		n.inject = ch.Meta
	}
	if old != nil && (ch.Delete || !moved && old.Kind == segment.Live) { // who was dead comes anew
		n.Placed = old.Placed
	}
	n.says(ch)
	n.Length = int32(len(n.body)+n.inject.Len(n.version())) + 1
	if err := c.end(r, ch, at); err != nil {
		return err
	}
	before := r.patients
	r.cur, r.at, r.patients, r.known, r.changed = stateOf(&n.Row), len(c.rows), n.Patients, true, true
	c.rows = append(c.rows, n)
	if old != nil && moved && !ch.Delete {
		c.departed(&n.Row, before)
	}
	if ch.Key.Type == groupType {
		return c.regroup(ch, &n.Row)
	}
	return nil
}

var groupType, _ = fhir.ParseType("Group")

// stateOf is what the index keeps of a row.
func stateOf(r *segment.Row) *index.State {
	return &index.State{
		Kind: r.Section.Kind, Seq: r.Seq, Instant: r.Instant, Length: r.Length, Clock: r.Clock, Hash: r.Hash,
		Placed: r.Placed, Patients: segment.PatientsHash(r.Patients), Life: r.Life,
	}
}

// instant gives a change its change instant: its own time if that is no claim
// about the future, but never before the row it supersedes, and always after
// the line, so that no answer that was or may be given is missing it.
func (c *commit) instant(ch *Change, t *taken, old *index.State) fhir.Instant {
	at := evidence(ch, t.at)
	if at == fhir.None && c.line == fhir.None {
		at = t.at
	}
	if old != nil {
		at = max(at, old.Instant)
	}
	if c.line != fhir.None {
		if at <= c.line {
			at = c.line + 1
			c.counts.late++
		}
	}
	return at
}

func (c *commit) seq() uint64 {
	s := c.meta.NextSeq
	c.meta.NextSeq++
	return s
}

// end records that r's newest row, if there is one, is superseded at the given
// instant.
func (c *commit) end(r *resource, by *Change, at fhir.Instant) error {
	if r.cur == nil {
		return nil
	}
	removed := by.Delete && r.cur.Kind == segment.Live
	if r.at >= 0 {
		o := &c.rows[r.at]
		// The last state before a deletion stays for a while, whoever sees it.
		o.death, o.removed, o.hidden = at, removed, at == o.Instant && !removed
		return nil
	}
	sec, place := r.cur.Section(by.Key.Type), r.cur.Place()
	s, err := c.db.holder(sec, place.Bound)
	if err != nil {
		return err
	}
	c.deaths[s.id()] = append(c.deaths[s.id()], index.Death{Section: sec, Place: place, Length: r.cur.Length, At: at, Removed: removed})
	return nil
}

// patientsOf makes r.patients known: the compartments of the newest row, which
// only the directory has.
func (c *commit) patientsOf(key fhir.Key, r *resource) error {
	if r.known || r.cur == nil {
		return nil
	}
	r.known = true
	if r.cur.Patients == 0 {
		return nil
	}
	found, err := c.db.rowAt(r.cur.Section(key.Type), r.cur.Place())
	if err != nil {
		return err
	}
	r.patients = found.Patients
	return nil
}

// departed stores a mark if the new version took patients out of the
// resource's compartments.
func (c *commit) departed(r *segment.Row, old []string) {
	var lost []string
	for _, p := range old {
		if _, still := slices.BinarySearch(r.Patients, p); !still {
			lost = append(lost, p)
		}
	}
	if len(lost) > 0 {
		c.internal(segment.Departures, r, lost, struct {
			Key      string   `json:"key"`
			Departed []string `json:"departed"`
		}{r.Key.String(), lost})
	}
}

// internal adds an internal row beside the change that caused it, and returns
// its sequence number.
func (c *commit) internal(kind fhir.Type, cause *segment.Row, patients []string, line any) uint64 {
	n := row{Row: *cause, death: fhir.None}
	n.Section = segment.Section{Kind: segment.Internal, Type: kind}
	n.Seq, n.Patients, n.References, n.Life, n.Placed, n.Hash = c.seq(), patients, nil, segment.NoLife, cause.Instant, 0
	n.body = mustJSON(line)
	n.Length = int32(len(n.body)) + 1
	c.rows = append(c.rows, n)
	return n.Seq
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // structs of strings and numbers always marshal
	}
	return b
}

// Deletion is the line of a tombstone, without its newline: the one-entry
// transaction Bundle of Bulk Data's `deleted` files. The URL is relative, as
// every client wants it.
func Deletion(k fhir.Key, at fhir.Instant) []byte {
	b := append([]byte(nil), `{"resourceType":"Bundle","meta":{"lastUpdated":"`...)
	b = at.Append(b)
	b = append(b, `"},"type":"transaction","entry":[{"request":{"method":"DELETE","url":"`...)
	b = append(b, k.String()...)
	return append(b, `"}}]}`...)
}
