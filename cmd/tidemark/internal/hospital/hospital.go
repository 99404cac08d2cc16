// Package hospital is a simulated hospital that writes FHIR R4 changes to
// Kafka, as believable as a benchmark, a test and a newcomer need it.
//
// It knows how a hospital's data behave: patients come, are measured, treated
// and billed, results are preliminary before they are final, people correct,
// delete and bring back, and producers repeat themselves, are late and mix up
// the order. It says of each record what it was (Record.Op, Record.Late), so
// that a proof of what a server made of the stream needs no second look at the
// stream. It refuses to know Kafka, the store and the clock: it gives records
// to whoever asks, and the time comes from the caller.
//
// The same Options, and the same calls of Live, give the same bytes. A Hospital
// is not safe for concurrent use.
package hospital

import (
	"math/rand/v2"
	"time"
)

// Options say how large the hospital is and how badly its producers behave.
// The zero value is the hospital of the demo: 100 patients and three years.
type Options struct {
	Seed     uint64
	Patients int       // default 100
	Years    int       // of history, default 3
	End      time.Time // of the history; default now
	Visits   float64   // of a patient in a year, default 7.5

	// Partitions of the topic, default 4. The key alone decides which one a
	// record goes to, so no resource ever changes its partition.
	Partitions int

	// Bare is the share of resources that come from systems which write no
	// meta.versionId and no meta.lastUpdated; default 0.05, negative: none.
	Bare float64

	// Past and Present are the habits of the producers during History and
	// Live; nil means PastHabits and PresentHabits.
	Past, Present *Habits

	// Memory bounds the number of resources that can still be corrected,
	// deleted or brought back, and so the memory of a large hospital; default
	// 131072.
	Memory int
}

// Habits are the shares of records that are out of the ordinary.
type Habits struct {
	Duplicate float64 // the same record again
	Stale     float64 // an older version after a newer one
	Delete    float64
	Recreate  float64 // the next version after a deletion
	Correct   float64 // an edit that no plan foresaw
	Late      float64 // produced seconds after its lastUpdated; only in Live
	Panel     float64 // somebody joins or leaves a Group
	Admit     float64 // a new patient; only in Live
}

// PastHabits are those of three quiet years.
var PastHabits = Habits{Duplicate: 0.005, Stale: 0.001, Delete: 0.004, Recreate: 0.0005, Correct: 0.03, Panel: 0.001}

// PresentHabits are those of a bad week, in which every case is met within
// some hundred records.
var PresentHabits = Habits{
	Duplicate: 0.02, Stale: 0.012, Delete: 0.03, Recreate: 0.008, Correct: 0.15, Late: 0.025, Panel: 0.01, Admit: 0.004,
}

func (o Options) withDefaults() Options {
	setDefault(&o.Patients, 100)
	setDefault(&o.Years, 3)
	setDefault(&o.Visits, 7.5)
	setDefault(&o.Partitions, 4)
	setDefault(&o.Bare, 0.05)
	setDefault(&o.Memory, 1<<17)
	setDefault(&o.Past, &PastHabits)
	setDefault(&o.Present, &PresentHabits)
	if o.End.IsZero() {
		o.End = time.Now()
	}
	return o
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Op says what a record is to one who has read all before it.
type Op uint8

// The kinds of records. Duplicate and Stale change nothing.
const (
	Create Op = iota
	Update
	Delete
	Recreate
	Duplicate
	Stale
	ops
)

func (o Op) String() string {
	return [ops]string{"create", "update", "delete", "recreate", "duplicate", "stale"}[o]
}

// Changes tells whether a record of this kind changes its resource.
func (o Op) Changes() bool { return o < Duplicate }

// A Record is one record for the topic, and what it was. Its slices are never
// written again: the receiver may keep them, and must not change them.
type Record struct {
	Key       []byte // Type/id
	Value     []byte // nil deletes
	Headers   []Header
	Timestamp time.Time
	Partition int32

	Op Op
	// Late: its lastUpdated lies seconds before its Timestamp.
	Late bool
}

// A Header is a header of a Kafka record.
type Header struct {
	Key   string
	Value []byte
}

// A Tally counts what a Hospital has written.
type Tally struct {
	Ops   [ops]int
	Late  int
	Bytes int64 // keys and values
}

// Records is the number of records, of whatever kind.
func (t Tally) Records() (n int) {
	for _, c := range t.Ops {
		n += c
	}
	return n
}

// Sub is what was written since an earlier tally.
func (t Tally) Sub(earlier Tally) Tally {
	for op := range t.Ops {
		t.Ops[op] -= earlier.Ops[op]
	}
	t.Late -= earlier.Late
	t.Bytes -= earlier.Bytes
	return t
}

// A Hospital writes records. Make one with New.
type Hospital struct {
	opts   Options
	habits *Habits
	rng    *rand.Rand

	calendar calendar
	serials  [kinds]uint64
	patients []*patient
	panels   []*panel
	staff    int // practitioners
	begin    int64
	until    int64 // end of the history

	open   ring[*resource] // what can still change
	gone   ring[*resource] // what can come back
	recent ring[sent]      // what can be repeated
	queue  []Record        // what must follow at once
	chunk  []byte          // where the next bodies go
	tally  Tally
}

// sent is a record with the state of its resource at that time.
type sent struct {
	rec     Record
	of      *resource
	version int64
}

// New makes a hospital. It writes nothing yet.
func New(opts Options) *Hospital {
	opts = opts.withDefaults()
	h := &Hospital{
		opts:   opts,
		habits: opts.Past,
		rng:    rand.New(rand.NewPCG(opts.Seed, 0x7469_6465_6d61_726b)),
		open:   newRing[*resource](opts.Memory),
		gone:   newRing[*resource](1024),
		recent: newRing[sent](256),
		until:  opts.End.UnixMilli(),
	}
	h.begin = opts.End.AddDate(-opts.Years, 0, 0).UnixMilli()
	h.found()
	return h
}

// Tally counts everything yielded so far.
func (h *Hospital) Tally() Tally { return h.tally }

// History yields the years before Options.End in the order of time. A second
// call goes on where the yield of the first one returned false.
func (h *Hospital) History(yield func(Record) bool) {
	h.habits = h.opts.Past
	for h.calendar.len() > 0 && h.calendar.next().due <= h.until {
		rec, ok := h.change(min(h.calendar.next().due, h.until), false)
		if ok && !yield(h.count(rec)) {
			return
		}
	}
}

// Live yields n further records as they are written at now, which must not lie
// before the end of the history or before the now of an earlier call. What was
// planned for later days happens now: the hospital runs in fast motion.
func (h *Hospital) Live(now time.Time, n int, yield func(Record) bool) {
	h.habits = h.opts.Present
	for n > 0 {
		rec, ok := h.change(now.UnixMilli(), true)
		if !ok {
			continue
		}
		n--
		if !yield(h.count(rec)) {
			return
		}
	}
}

func (h *Hospital) count(rec Record) Record {
	h.tally.Ops[rec.Op]++
	h.tally.Bytes += int64(len(rec.Key) + len(rec.Value))
	if rec.Late {
		h.tally.Late++
	}
	return rec
}

// A ring keeps the newest of what was put into it.
type ring[T any] struct {
	items []T
	limit int
	next  int
}

func newRing[T any](limit int) ring[T] { return ring[T]{limit: limit} }

func (r *ring[T]) put(v T) {
	if len(r.items) < r.limit {
		r.items = append(r.items, v)
		return
	}
	r.items[r.next] = v
	r.next = (r.next + 1) % r.limit
}

// pick returns one of what it holds, false if that is nothing.
func (r *ring[T]) pick(rng *rand.Rand) (v T, ok bool) {
	if len(r.items) == 0 {
		return v, false
	}
	return r.items[rng.IntN(len(r.items))], true
}
