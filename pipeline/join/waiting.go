package join

import (
	"cmp"
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

// A parked version waits.
type parked struct {
	Record decode.Record
	Number int64  // of the version
	At     uint64 // position
	Since  fhir.Instant
	Claims fhir.Instant // when it was last updated
	For    string
	Told   bool // as a dead letter
	// Body is the record of the same version that has its body, if Record leaves it out.
	Body *decode.Record
}

// A moved is a version of a resource that waits now (1), or no longer (-1).
type moved struct {
	p  *parked
	of int64
	n  int
}

// A behind is a version of a resource that waits until all that was written until then has been
// read of the topics beside its own: rows of a snapshot are of no transaction, and its tags stand
// before it there.
type behind struct {
	of     int64
	offset int64
	until  fhir.Instant
}

// written is when it was, by whichever clock is behind.
func (p *parked) written() fhir.Instant { return min(p.Record.Timestamp, p.Since) }

func (j *Join) noteBehind(p *parked, of int64) {
	if p.For != waitsForTopics {
		return
	}
	at := p.origin().Partition
	list, here := j.behind[at], behind{of, p.Record.Offset, p.written()}
	i, known := slices.BinarySearchFunc(list, here, func(a, b behind) int { return cmp.Compare(a.offset, b.offset) })
	if !known {
		j.behind[at] = slices.Insert(list, i, here)
	}
}

// lags tells whether there may be tags yet of a version that was written then, where all that was
// written upto has been read of the topics beside its own. A producer that has more than it gets rid
// of writes a snapshot's tags down seconds late, among its versions and what follows: these come first,
// and tags are awaited until no more of them come: for longer while the connector says that they are not all.
func (j *Join) lags(upto, written fhir.Instant, snapshot bool) bool {
	now := j.now()
	if upto > now { // nobody can see yet what is told
		return false
	}
	return snapshot && upto < written || now < j.awaits
}

// awaitMore notes that a snapshot's row of a tag has come.
func (t *taking) awaitMore() {
	t.awaits = t.now() + lull
	switch {
	case !t.part.More:
		t.ended = max(t.ended, t.rec.Timestamp)
	case t.rec.Timestamp > t.ended: // else it is of another partition than the last
		t.awaits = t.now() + stall
	}
}

// catchUp tells the versions of a partition for which what is beside them has been read.
func (j *Join) catchUp(of store.Partition) (Taken, error) {
	t := &taking{Join: j, rec: decode.Record{Topic: of.Topic, Partition: of.ID, Timestamp: fhir.None}, noted: map[string][]byte{}}
	list := j.behind[of]
	for upto := j.beside(of.Topic); len(list) > 0 && !j.lags(upto, list[0].until, true) && len(t.moved) < lateAtOnce; list = list[1:] {
		p, err := t.parkedAt(list[0].of)
		switch {
		case err != nil:
			return Taken{}, err
		case p == nil || p.For != waitsForTopics || p.Record.Offset != list[0].offset:
			continue // a later one came
		}
		if err := t.release(list[0].of, *p); err != nil {
			return Taken{}, err
		}
	}
	if j.behind[of] = list; len(list) == 0 {
		delete(j.behind, of)
	}
	t.done()
	return t.out, nil
}

// newer tells whether p is a later version than q, or the same, later written.
func (p *parked) newer(q parked) bool {
	if o := cmp.Compare(p.Number, q.Number); o != 0 {
		return o > 0
	}
	return p.At > q.At
}

// is tells whether they are the same row: a connector that begins again repeats it.
func (p *parked) is(q parked) bool { return p.Number == q.Number && p.At == q.At && p.At > 0 }

// park has a version wait.
func (t *taking) park(n int64, p parked) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	before, err := t.parkedAt(n)
	switch {
	case err != nil:
	case before != nil && before.origin() == p.origin(): // it only waits for something else now
		t.moved = append(t.moved, moved{before, n, -1})
	default:
		err = t.unpark(n)
	}
	if err != nil {
		return err
	}
	t.put(name(waiting, n), text)
	t.moved = append(t.moved, moved{&p, n, 1})
	t.dirty = true
	return nil
}

// unpark takes the version of a resource away that waits, if there is one: it is told, or a
// later one is. A dead letter that told of it is none any more.
func (t *taking) unpark(n int64) error {
	p, err := t.parkedAt(n)
	if p == nil || err != nil {
		return err
	}
	t.put(name(waiting, n), nil)
	t.moved = append(t.moved, moved{p, n, -1})
	if p.Told {
		t.out.Answered = append(t.out.Answered, p.origin())
	}
	return nil
}

func (p *parked) origin() Origin {
	return Origin{store.Partition{Topic: p.Record.Topic, ID: p.Record.Partition}, p.Record.Offset}
}

// Overdue tells, now and then, what still waits though all that was written until a minute
// after it came has been read (upto): of a transaction's tags it goes without them; else it is
// a dead letter, of the records of a partition, for it is a hole in what exports say. What it
// waits for may come yet.
func (j *Join) Overdue(of store.Partition, upto fhir.Instant, deadLetter func(rec decode.Record, reason string) store.Change) ([]Taken, error) {
	var late []Taken
	if len(j.behind[of]) > 0 {
		told, err := j.catchUp(of)
		if err != nil {
			return nil, err
		}
		late = append(late, told)
	}
	now := j.now()
	if !j.dirty || upto == fhir.None || now < j.swept[of]+sweep {
		return late, nil
	}
	j.swept[of] = now
	given, waits, err := j.abandon(upto)
	if err != nil {
		return nil, err
	}
	late = append(late, given)
	err = j.notes.EachRemembered(waiting, func(name string, what []byte) error {
		waits = true
		if _, known := j.fresh[name]; known {
			return nil // told just now
		}
		var p parked
		if err := json.Unmarshal(what, &p); err != nil {
			return fmt.Errorf("note of a version that waits: %w", err)
		}
		if p.Told || p.Record.Topic != of.Topic || p.Record.Partition != of.ID || p.Since+patience > upto {
			return nil
		}
		if len(late) > lateAtOnce {
			j.swept[of] = 0 // there is more
			return nil
		}
		j.waits.add(&p, -1)
		p.Told = true
		text, err := json.Marshal(p)
		if err != nil {
			return err
		}
		j.fresh[name] = text
		late = append(late, Taken{
			Changes: []store.Change{deadLetter(p.Record, p.For)}, Notes: []store.Note{{Name: name, Value: text}},
		})
		return nil
	})
	j.dirty = waits
	return late, err
}

// lateAtOnce is how many Overdue tells at a time.
const lateAtOnce = 500

func (t *taking) parkedAt(n int64) (*parked, error) {
	text, err := t.get(name(waiting, n))
	if err != nil || text == nil {
		return nil, err
	}
	var p parked
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, fmt.Errorf("note of a version that waits: %w", err)
	}
	return &p, nil
}

// waits counts the versions that wait by the second in which they came: how many, and the
// least time that any of them has claimed.
type waits map[fhir.Instant]*waitsOf

type waitsOf struct {
	n     int
	least fhir.Instant
	whys  map[string]int // how many for what
}

func (w waits) add(p *parked, n int) {
	if p.Told {
		return
	}
	second := p.Since / 1000
	of := w[second]
	if of == nil {
		of = &waitsOf{least: p.Since, whys: map[string]int{}}
		w[second] = of
	}
	of.whys[p.For] += n
	if of.n += n; of.n <= 0 {
		delete(w, second)
	}
	if p.Claims > p.Since-late { // what is late is a change of when it is told: its own time holds nothing
		of.least = min(of.least, p.Claims)
	}
}

// Waits is what the watermark must stay below: the least time at which a version was written
// that waits, or one that came with it, or when it came if it was late; None if none waits, but
// for those that were told as dead letters.
func (j *Join) Waits() fhir.Instant {
	least := fhir.None
	for _, of := range j.waits {
		if least == fhir.None || of.least < least {
			least = of.least
		}
	}
	return least
}

// A Wait is what versions wait for.
type Wait struct {
	For      string
	Versions int
	Since    fhir.Instant // of the one that waits longest, to the second
}

// Waiting tells what holds the watermark, and why, whoever waits longest first.
func (j *Join) Waiting() (all []Wait) {
	for _, second := range slices.Sorted(maps.Keys(j.waits)) {
		whys := j.waits[second].whys
		for _, why := range slices.Sorted(maps.Keys(whys)) {
			i := slices.IndexFunc(all, func(w Wait) bool { return w.For == why })
			switch n := whys[why]; {
			case n <= 0:
			case i < 0:
				all = append(all, Wait{why, n, second * 1000})
			default:
				all[i].Versions += n
			}
		}
	}
	return all
}

// Load reads what waited when the process before this one ended.
func (j *Join) Load() error {
	return j.notes.EachRemembered(waiting, func(name string, what []byte) error {
		var p parked
		if err := json.Unmarshal(what, &p); err != nil {
			return fmt.Errorf("note of a version that waits: %w", err)
		}
		j.waits.add(&p, 1)
		if p.For == waitsForTopics {
			j.awaits = j.now() + lull // more may come, as it might without the process that ended
		}
		if of, err := strconv.ParseInt(strings.TrimPrefix(name, waiting), 10, 64); err == nil {
			j.noteBehind(&p, of)
		}
		return nil
	})
}
