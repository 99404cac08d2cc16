package join

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"tidemark/pipeline/decode"
	"tidemark/store/fhir"
)

// Where a connector tells where transactions end, a version is told with all the tags that it
// had: once all rows of tags and versions are there of its transaction, and of all that ended
// before, and of all later ones of which a row has come that has to do with the resource.
// Otherwise a security label could come after the resource that it is of, or go before it.

// A tally counts a transaction's rows.
type tally struct {
	Tags     int   `json:"t"`
	Versions int   `json:"v"`
	Order    int64 `json:"o,omitempty"` // of its end among those of others, from 1 on; 0: not ended
	OfTags   int   `json:"ot,omitempty"`
	OfVers   int   `json:"ov,omitempty"`
	// Again: its connector began again in the midst of it, so that its end counts what was told
	// since then, and nobody knows how many rows it has.
	Again bool             `json:"a,omitempty"`
	Last  map[string]place `json:"l,omitempty"` // of its rows that were counted, by topic and partition
	Since fhir.Instant     `json:"s"`
	Waits []int64          `json:"w,omitempty"` // the first resources with it among their Ends
	More  int              `json:"n,omitempty"` // how many more have it: for each there is a note, forEnd, for a tally is written with each row
}

// complete tells whether all rows are there.
func (t tally) complete() bool {
	return t.Order > 0 && !t.Again && t.Tags >= t.OfTags && t.Versions >= t.OfVers
}

// A place is where a row stands in the log, and in what was told of its transaction.
type place struct {
	Position uint64 `json:"p"`
	Order    int64  `json:"o"`
}

// repeats tells of a row whether it was counted: a connector that begins again tells a
// transaction's rows again, in their order.
func (t *tally) repeats(rec decode.Record, here place) bool {
	if here.Position == 0 {
		return false
	}
	of := fmt.Sprintf("%s/%d", rec.Topic, rec.Partition)
	last, some := t.Last[of]
	if some && (here.Position < last.Position || here.Position == last.Position && here.Order <= last.Order) {
		return true
	}
	t.Last = maps.Clone(t.Last)
	if t.Last == nil {
		t.Last = map[string]place{}
	}
	t.Last[of] = here
	return false
}

// A boundary is how far the messages of where transactions begin and end have come.
type boundary struct {
	Open  string       `json:"o,omitempty"` // the transaction that has begun
	First bool         `json:"f,omitempty"` // a connector began again with it
	End   uint64       `json:"e,omitempty"` // of the newest end
	Time  fhir.Instant `json:"t,omitempty"` // and when that was, by the database's clock
}

// told tells of an end whether it came before. In a log that has begun anew places are small
// again, and times are not.
func (b *boundary) told(part *decode.Part) bool {
	return part.Position > 0 && part.Position <= b.End && part.At <= b.Time
}

// ends are the transactions whose ends have come. They come in order, for their topic has one
// partition.
type ends struct {
	loaded  bool
	open    map[int64]bool // by order: not complete
	queue   []int64        // the same, ascending, with some that are complete
	blocked []blocked      // complete, but not all before them are; ascending
}

type blocked struct {
	order int64
	tx    string
}

// load reads what was noted before this process.
func (e *ends) load(n Notes) error {
	if e.loaded {
		return nil
	}
	err := n.EachRemembered(ofEnd, func(name string, what []byte) error {
		var c tally
		if err := json.Unmarshal(what, &c); err != nil {
			return fmt.Errorf("note of a transaction: %w", err)
		}
		switch {
		case c.complete():
			e.block(c.Order, strings.TrimPrefix(name, ofEnd))
		case c.Order > 0:
			e.open[c.Order] = true
			e.queue = append(e.queue, c.Order)
		}
		return nil
	})
	slices.Sort(e.queue)
	e.loaded = err == nil
	return err
}

// came notes that a transaction has ended, and whether it is complete.
func (e *ends) came(order int64, complete bool) {
	switch {
	case complete:
		delete(e.open, order)
	case !e.open[order]:
		e.open[order] = true
		e.queue = append(e.queue, order)
	}
}

// before tells whether some that ended before are not complete.
func (e *ends) before(order int64) bool {
	for len(e.queue) > 0 && !e.open[e.queue[0]] {
		e.queue = e.queue[1:]
	}
	return len(e.queue) > 0 && e.queue[0] < order
}

func (e *ends) block(order int64, tx string) {
	at, found := slices.BinarySearchFunc(e.blocked, order, func(b blocked, order int64) int { return int(b.order - order) })
	if !found {
		e.blocked = slices.Insert(e.blocked, at, blocked{order, tx})
	}
}

// free takes those of the blocked that are so no more.
func (e *ends) free() []blocked {
	n := 0
	for n < len(e.blocked) && !e.before(e.blocked[n].order) {
		n++
	}
	free := e.blocked[:n:n]
	e.blocked = e.blocked[n:]
	return free
}

// abandon no longer waits for rows that have not come though all that was written a
// minute after the transaction ended has been read (upto): they are not captured, or a
// connector that began anew told of the transaction twice. It forgets what else is that old.
func (j *Join) abandon(upto fhir.Instant) (told Taken, left bool, err error) {
	if err := j.ends.load(j.notes); err != nil {
		return told, false, err
	}
	t := &taking{Join: j, rec: decode.Record{Timestamp: fhir.None}, noted: map[string][]byte{}}
	err = j.notes.EachRemembered(ofEnd, func(name string, what []byte) error {
		left = true
		var c tally
		if err := json.Unmarshal(what, &c); err != nil {
			return fmt.Errorf("note of a transaction: %w", err)
		}
		switch tx := strings.TrimPrefix(name, ofEnd); {
		case c.Since+patience > upto && !c.Again, c.Since+late > upto:
		case c.Order > 0 && !c.complete():
			c.OfTags, c.OfVers, c.Again = c.Tags, c.Versions, false
			j.ends.came(c.Order, true)
			j.ends.block(c.Order, tx)
			return t.keepTally(tx, c)
		case c.Order == 0:
			return t.complete(tx)
		}
		return nil
	})
	if err != nil {
		return told, left, err
	}
	for _, b := range j.ends.free() {
		if err := t.complete(b.tx); err != nil {
			return told, left, err
		}
	}
	t.done()
	return t.out, left, nil
}

// errPartitions is no fault of a record's, and nothing is understood until it is mended: it is
// the places of ends in their one partition that tell which of two came first.
var errPartitions = errors.New("it tells where transactions begin and end, and comes from one of several partitions, which tell nobody the order of these: " +
	"have the topic of transactions made anew with one partition, or take it out of topics and transaction metadata out of the connector")

// begin notes that messages tell of transactions, and whether a connector begins again with
// this one: it has not told how the one before ended. Where this began tells nothing, for
// transactions are told in the order of their ends.
func (t *taking) begin() error {
	b, err := t.boundary()
	if err != nil {
		return err
	}
	b.First, b.Open = b.Open != "", t.part.Transaction
	return t.keepBoundary(b)
}

// end learns how many rows of each table a transaction has. If it was told before, the rows are
// those of then: what was lost of them comes again, and what was not is not counted twice.
func (t *taking) end() error {
	b, err := t.boundary()
	if err != nil {
		return err
	}
	again := b.First && b.Open == t.part.Transaction
	b.Open, b.First = "", false
	if b.told(t.part) {
		return errors.Join(t.keepBoundary(b), t.forgetRepeated())
	}
	b.End, b.Time = t.part.Position, t.part.At
	if err := t.keepBoundary(b); err != nil {
		return err
	}
	return t.count(func(c *tally) {
		c.Order, c.OfTags, c.OfVers, c.Again = t.rec.Offset+1, t.part.Counts[tagTable], t.part.Counts[verTable], again
		if again {
			c.Since = t.now()
		}
	})
}

// forgetRepeated forgets the tally of rows that were all counted before.
func (t *taking) forgetRepeated() error {
	c, err := t.tallyOf(t.part.Transaction)
	if err == nil && c.Order == 0 && len(c.Waits) == 0 {
		t.put(ofEnd+t.part.Transaction, nil)
	}
	return err
}

func (t *taking) boundary() (b boundary, err error) {
	text, err := t.get(toldEnds)
	if err != nil || text == nil {
		return b, err
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return b, fmt.Errorf("note of where transactions end: %w", err)
	}
	return b, nil
}

func (t *taking) keepBoundary(b boundary) error {
	text, err := json.Marshal(b)
	if err == nil {
		t.put(toldEnds, text)
	}
	return err
}

// countRow counts a row of tags or versions as one of its transaction's.
func (t *taking) countRow() error {
	return t.count(func(c *tally) {
		switch {
		case c.repeats(t.rec, t.place):
		case t.part.Of == decode.PartTag:
			c.Tags++
		default:
			c.Versions++
		}
	})
}

// count changes the tally of the part's transaction, and tells what waited for that.
func (t *taking) count(change func(*tally)) error {
	tx := t.part.Transaction
	if tx == "" {
		return nil
	}
	if err := t.ends.load(t.notes); err != nil {
		return err
	}
	c, err := t.tallyOf(tx)
	if err != nil {
		return err
	}
	change(&c)
	if err := t.keepTally(tx, c); err != nil || c.Order == 0 {
		return err
	}
	if t.ends.came(c.Order, c.complete()); c.complete() {
		t.ends.block(c.Order, tx)
	}
	for _, b := range t.ends.free() {
		if err := t.complete(b.tx); err != nil {
			return err
		}
	}
	return nil
}

// complete tells what waited for a transaction's end, and forgets the transaction.
func (t *taking) complete(tx string) error {
	c, err := t.tallyOf(tx)
	if err != nil {
		return err
	}
	t.put(ofEnd+tx, nil)
	over := func(n int64) error {
		s, err := t.stateOf(n)
		if err != nil {
			return err
		}
		s.Ends = slices.DeleteFunc(s.Ends, func(of string) bool { return of == tx })
		t.keep(n, s)
		return t.settle(n, s)
	}
	for _, n := range c.Waits {
		if err := over(n); err != nil {
			return err
		}
	}
	if c.More == 0 {
		return nil
	}
	return t.each(forEnd+tx+"/", over)
}

// fewWaits is how many resources a tally names itself.
const fewWaits = 64

// awaitEnd has a resource wait for the end of the part's transaction, if it is told.
func (t *taking) awaitEnd(n int64, s *state) error {
	tx := t.part.Transaction
	told, err := t.get(toldEnds)
	if err != nil || told == nil || tx == "" || slices.Contains(s.Ends, tx) {
		return err
	}
	c, err := t.tallyOf(tx)
	if err != nil {
		return err
	}
	s.Ends = append(s.Ends, tx)
	if len(c.Waits) < fewWaits {
		c.Waits = append(c.Waits, n)
	} else {
		c.More++
		t.put(name(forEnd+tx+"/", n), []byte{})
	}
	return t.keepTally(tx, c)
}

func (t *taking) keepTally(tx string, c tally) error {
	text, err := json.Marshal(c)
	if err == nil {
		t.put(ofEnd+tx, text)
		t.dirty = true
	}
	return err
}

func (t *taking) tallyOf(tx string) (c tally, err error) {
	text, err := t.get(ofEnd + tx)
	switch {
	case err != nil:
		return c, err
	case text == nil:
		return tally{Since: t.now()}, nil
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("note of a transaction: %w", err)
	}
	return c, nil
}
