// Package join puts together what the rows of several tables say of a resource: which
// resource a number stands for, its versions, and its tags. Rows of different tables come in
// no order, so what has come is kept, as notes that the store makes true together with the
// rows' offsets, and a version waits until all that belongs to it is there.
//
// It knows what the parts are for, which pipeline/decode reads, and nothing of Kafka.
package join

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	"tidemark/pipeline/decode"
	"tidemark/store"
	"tidemark/store/fhir"
)

// Notes are what was noted: *store.DB.
type Notes interface {
	Remembered(name string) ([]byte, error)
	EachRemembered(prefix string, fn func(name string, what []byte) error) error
}

// Memory are notes that are kept nowhere: of a Join none of whose results is applied.
type Memory struct{}

// Remembered implements Notes.
func (Memory) Remembered(string) ([]byte, error) { return nil, nil }

// EachRemembered implements Notes.
func (Memory) EachRemembered(string, func(name string, what []byte) error) error { return nil }

// A Join is the state of a source's tables. It is not safe for concurrent use: between a Take
// and the store's having its notes there must be no other.
type Join struct {
	decoder decode.Joined
	notes   Notes
	now     func() fhir.Instant
	beside  func(topic string) fhir.Instant

	fresh  map[string][]byte                // noted, and not yet applied; nil: taken away
	ends   ends                             // of transactions
	waits  waits                            // the versions that wait, and are not told as dead letters
	dirty  bool                             // there may be something that waits for too long
	swept  map[store.Partition]fhir.Instant // when Overdue last looked
	behind map[store.Partition][]behind     // the versions that wait for what is beside them, by their offsets
	awaits fhir.Instant                     // until then, at least, more of a snapshot's rows of tags may come
	ended  fhir.Instant                     // when the last of them was written, as far as rows say that
}

// New returns a join of the rows that d reads. now is the store's clock. beside says up to when
// all that was written has been read of all topics but one, or a time to come where nobody can
// see yet what is told; nil: nobody ever can.
func New(d decode.Joined, notes Notes, now func() fhir.Instant, beside func(topic string) fhir.Instant) *Join {
	if beside == nil {
		beside = func(string) fhir.Instant { return math.MaxInt64 }
	}
	return &Join{
		decoder: d, notes: notes, now: now, beside: beside, fresh: map[string][]byte{}, dirty: true, swept: map[store.Partition]fhir.Instant{},
		ends: ends{open: map[int64]bool{}}, waits: waits{}, behind: map[store.Partition][]behind{},
		ended: fhir.None,
	}
}

// Taken is what came of a record.
type Taken struct {
	Changes []store.Change
	Notes   []store.Note
	// Answered are records that were told as dead letters, and are none any more.
	Answered []Origin
}

// An Origin is where a record stands.
type Origin struct {
	Partition store.Partition
	Offset    int64
}

// A taking is one Take under way.
type taking struct {
	*Join
	rec   decode.Record
	part  *decode.Part
	place place             // of the row: what is told of it may get another
	noted map[string][]byte // in this Take; nil: taken away
	moved []moved           // what waits now, and what no longer does
	out   Taken
}

// Take takes a record. What came of it must be applied before anything else is, and then
// Applied be called; records may be taken in between, in the order in which they are applied.
// If the error is a *decode.Error, what came of it is to be applied beside a dead letter; any
// other is none of the record's, and nothing was taken.
func (j *Join) Take(rec decode.Record) (Taken, error) {
	part, err := j.decoder.Part(rec)
	if part == nil || err != nil && !refused(err) {
		return Taken{}, err
	}
	begin := func() *taking {
		return &taking{Join: j, rec: rec, part: part, place: place{part.Position, part.Order}, noted: map[string][]byte{}}
	}
	t := begin()
	if err == nil {
		err = t.take()
	}
	if refused(err) { // a row that nobody understands is one of its transaction's, all the same
		part.Position = t.place.Position
		t = begin()
		if err := t.countRow(); err != nil {
			return Taken{}, err
		}
	} else if err != nil {
		return Taken{}, err
	}
	t.done()
	return t.out, err
}

// done makes what was noted count.
func (t *taking) done() {
	maps.Copy(t.fresh, t.noted)
	for _, m := range t.moved {
		t.waits.add(m.p, m.n)
		if m.n > 0 {
			t.noteBehind(m.p, m.of)
		}
	}
}

func refused(err error) bool {
	_, is := errors.AsType[*decode.Error](err)
	return is
}

// Applied forgets what was noted: the store has it, or never will.
func (j *Join) Applied() { clear(j.fresh) }

func (t *taking) take() error {
	if of := t.part.Of; t.rec.Partition != 0 && (of == decode.PartBegin || of == decode.PartEnd) {
		return errPartitions
	}
	switch t.part.Of {
	case decode.PartResource:
		return t.resource()
	case decode.PartVersion:
		return t.version()
	case decode.PartTag:
		return t.tag()
	case decode.PartDefinition:
		return t.definition()
	case decode.PartBegin:
		return t.begin()
	case decode.PartEnd:
		return t.end()
	}
	return nil
}

// resource learns what a number stands for, or that its resource was purged.
func (t *taking) resource() error {
	n := t.part.Resource
	s, err := t.stateOf(n)
	if err != nil {
		return err
	}
	if t.part.Gone {
		if s.Key != "" {
			t.out.Changes = append(t.out.Changes, t.decoder.Purged(t.rec, t.part, s.key())...)
		}
		for row := range s.Tags {
			t.put(name(ofTag, row), nil)
		}
		t.keep(n, state{Purged: true, Grave: graveOf(t.part)})
		return errors.Join(t.unpark(n), t.letLive(s.Next))
	}
	switch known := s.Key == t.part.Key.String(); {
	case known && s.After != 0 && t.part.Snapshot && t.part.Published > 0: // the other's end may never be told
		return t.outlive(n, s)
	case known || s.Purged && s.Grave.covers(t.part, false):
		return nil
	}
	s.Key, s.Purged = t.part.Key.String(), false
	if over, err := t.succeed(n, &s); over || err != nil {
		return err
	}
	t.keep(n, s)
	return t.again(n)
}

// tag notes that a resource has a tag, or has it no more.
func (t *taking) tag() error {
	if t.part.Snapshot {
		t.awaitMore()
	}
	n, row := t.part.Resource, t.part.Row
	v, err := t.get(name(ofTag, row))
	if err != nil {
		return err
	}
	g, gone := graveOfTag(v)
	late := gone && g.covers(t.part, true) // repeated, or its deletion was read first
	switch {
	case late && t.part.Gone:
		return t.countRow()
	case t.part.Gone:
		n, _ = strconv.ParseInt(string(v), 10, 64)
		t.put(name(ofTag, row), graveOf(t.part).ofTag())
	}
	s, err := t.stateOf(n)
	if err != nil {
		return err
	}
	s.enter(t.part)
	switch had, known := s.Tags[row]; {
	case s.Purged, late && s.Told, !late && known == !t.part.Gone && had == t.part.Tag:
		return t.countRow() // seen before
	case late: // that there was a tag, which its version may wait for, is news
	case t.part.Gone:
		delete(s.Tags, row)
	default:
		s.Tags = maps.Clone(s.Tags)
		if s.Tags == nil {
			s.Tags = map[int64]int64{}
		}
		s.Tags[row] = t.part.Tag
		t.put(name(ofTag, row), strconv.AppendInt(nil, n, 10))
	}
	s.Told, s.Position, s.Written = true, max(s.Position, t.part.Position), max(s.Written, t.rec.Timestamp)
	if err := t.awaitEnd(n, &s); err != nil {
		return err
	}
	t.keep(n, s)
	if err := t.settle(n, s); err != nil {
		return err
	}
	return t.countRow()
}

// settle has the newest version told with the tags as they are now: the one that waits, or
// the one that is stored.
func (t *taking) settle(n int64, s state) error {
	p, err := t.parkedAt(n)
	switch {
	case err != nil || s.Key == "" || len(s.Ends) > 0 || s.After != 0:
		return err
	case p != nil:
		return t.release(n, *p)
	}
	tags, missing, err := t.tagsOf(s)
	switch {
	case err != nil:
		return err
	case missing != 0:
		t.awaitTag(missing, n)
		return nil
	}
	at := fhir.None
	if t.part != nil {
		at = t.part.At
	}
	s.Position, s.Written = s.Position+1, max(s.Written, t.rec.Timestamp)
	t.keep(n, s)
	t.out.Changes = append(t.out.Changes, t.decoder.Retagged(t.rec, s.Position, at, s.key(), tags)...)
	return nil
}

// settleNow is settle with what is noted of the resource.
func (t *taking) settleNow(n int64) error {
	s, err := t.stateOf(n)
	if err != nil {
		return err
	}
	return t.settle(n, s)
}

// awaitTag notes that a resource has something to be told once a tag is defined.
func (t *taking) awaitTag(tag, n int64) { t.put(name(name(forTag, tag)+"/", n), []byte{}) }

// definition learns what a tag is.
func (t *taking) definition() error {
	if t.part.Gone {
		return nil
	}
	text, err := json.Marshal(t.part.Definition)
	if err != nil {
		return err
	}
	had, err := t.get(name(ofTagName, t.part.Row))
	if err != nil || string(had) == string(text) {
		return err
	}
	t.put(name(ofTagName, t.part.Row), text)
	return t.each(name(forTag, t.part.Row)+"/", t.settleNow)
}

// version takes a version, which is told at once if all that belongs to it is there.
func (t *taking) version() error {
	if t.part.Gone { // it was not the newest, or its resource is purged, too
		return t.countRow()
	}
	n := t.part.Resource
	s, err := t.stateOf(n)
	if err != nil {
		return err
	}
	s.enter(t.part)
	if s.Purged || s.repeats(t.part) {
		return t.countRow()
	}
	before, err := t.parkedAt(n)
	if err != nil {
		return err
	}
	here := parked{Record: t.rec, Number: t.part.Number, At: t.part.Position, Since: t.now(), Claims: t.part.Updated}
	if before != nil && (before.newer(here) || before.is(here)) {
		return t.countRow()
	}
	if before != nil && before.Number == here.Number && t.part.Bodiless() {
		if here.Body = before.Body; here.Body == nil {
			here.Body = &before.Record
		}
	}
	if t.part.Tagged && !t.part.Deletion {
		if err := t.awaitEnd(n, &s); err != nil {
			return err
		}
		t.keep(n, s)
	}
	if err := t.tellNow(n, here); err != nil {
		return err
	}
	return t.countRow()
}

// tellNow is tell for the version that has come.
func (t *taking) tellNow(n int64, here parked) error {
	if here.Body != nil {
		return t.release(n, here)
	}
	changes := len(t.out.Changes)
	if err := t.tell(n, here, t.part); err != nil || len(t.out.Changes) > changes {
		return err
	}
	// It waits, or is of a type that is dropped. What is wrong with it must be said of its own
	// record, and now.
	_, err := t.decoder.Version(t.rec, t.part, fhir.Key{Type: t.part.Type, ID: "1"}, nil)
	return err
}

// again tries whether a version that waits need not wait any longer.
func (t *taking) again(n int64) error {
	p, err := t.parkedAt(n)
	if err != nil || p == nil {
		return err
	}
	return t.release(n, *p)
}

// release tries to tell a version.
func (t *taking) release(n int64, p parked) error {
	part, err := t.decoder.Part(p.Record)
	if err != nil {
		return err
	}
	if p.Body != nil {
		whole, err := t.decoder.Part(*p.Body)
		if err != nil {
			return err
		}
		part.Take(whole)
	}
	return t.tell(n, p, part)
}

// tell makes the change of a version if all that belongs to it is there, else has it wait.
func (t *taking) tell(n int64, p parked, part *decode.Part) error {
	s, err := t.stateOf(n)
	if err != nil {
		return err
	}
	s.enter(part)
	tags, reason, err := t.ready(n, s, p, part)
	switch {
	case err != nil:
		return err
	case reason != "":
		p.For = reason
		return t.park(n, p)
	}
	if err := t.unpark(n); err != nil {
		return err
	}
	rec := p.Record
	rec.Offset = t.rec.Offset // it comes with this record
	s.Read = part.Snapshot || s.Read && part.Number == s.Number
	s.Number, s.At, s.Plain = part.Number, part.Position, !part.Tagged && !s.Told && !part.Deletion
	s.Written = max(s.Written, rec.Timestamp)
	if !s.Plain {
		s.Position = max(s.Position+1, part.Position)
		part.Position = s.Position
	}
	t.keep(n, s)
	changes, err := t.decoder.Version(rec, part, s.key(), tags)
	if err != nil {
		return err
	}
	t.out.Changes = append(t.out.Changes, changes...)
	return nil
}

// What a version waits for.
const (
	waitsForKey    = "the row of hfj_resource that says which resource this is a version of has not come: is the table among those that are captured?"
	waitsForPurge  = "the resource was expunged and made again, and the deletion of its row of hfj_resource has not come: is the table among those that are captured?"
	waitsForType   = "the row of hfj_resource says another type of resource: are these the tables of two servers?"
	waitsForTags   = "the resource has tags, which may be security labels, and no row of hfj_res_tag says which: is the table among those that are captured?"
	waitsForTag    = "the row of hfj_tag_def that says what a tag of the resource is has not come: is the table among those that are captured?"
	waitsForTopics = "a snapshot has the version or one before it, and what was written before it in other topics has not all been read: there may be tags of it"
	waitsForEnd    = "the end of the transaction has not come, or not all of its rows: is the topic of transactions still read?"
)

// ready tells the tags of a version, or what it waits for.
func (t *taking) ready(n int64, s state, p parked, part *decode.Part) (tags []decode.Tag, reason string, err error) {
	switch {
	case s.Key == "":
		return nil, waitsForKey, nil
	case s.key().Type != part.Type:
		return nil, waitsForType, nil
	case s.After != 0:
		return nil, waitsForPurge, nil
	case part.Deletion:
		return nil, "", nil
	case len(s.Ends) > 0:
		return nil, waitsForEnd, nil
	case part.Tagged && !s.Told:
		return nil, waitsForTags, nil
	case part.Tagged && s.misses(part) && t.lags(t.beside(p.Record.Topic), p.written(), part.Snapshot):
		return nil, waitsForTopics, nil
	}
	tags, missing, err := t.tagsOf(s)
	if missing != 0 {
		t.awaitTag(missing, n)
		return nil, waitsForTag, nil
	}
	return tags, "", err
}

// tagsOf are a resource's tags in the order in which it got them, or a definition that has
// not come.
func (t *taking) tagsOf(s state) (tags []decode.Tag, missing int64, err error) {
	for _, row := range slices.Sorted(maps.Keys(s.Tags)) {
		text, err := t.get(name(ofTagName, s.Tags[row]))
		switch {
		case err != nil:
			return nil, 0, err
		case text == nil:
			return nil, s.Tags[row], nil
		}
		var tag decode.Tag
		if err := json.Unmarshal(text, &tag); err != nil {
			return nil, 0, fmt.Errorf("note of a tag's definition: %w", err)
		}
		tags = append(tags, tag)
	}
	return tags, 0, nil
}
