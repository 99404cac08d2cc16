package pipeline

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"tidemark/pipeline/decode"
	"tidemark/store"
)

// topicState is what the store keeps of a topic for us, in the same commit as
// the records it speaks of.
type topicState struct {
	Format string `json:"format"` // and what else decides how records are understood
	Run    int    `json:"run"`    // dead letters since the last good record
}

func parseState(b []byte) (topicState, error) {
	var s topicState
	err := json.Unmarshal(b, &s)
	return s, err
}

func (s topicState) encode() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string and a number
	}
	return b
}

// A topic is one that was discovered.
type topic struct {
	name    string
	cfg     Topic
	decoder decode.Decoder
	noted   map[store.Partition]bool // of which it was said in this process that they are joined

	// order is held from the counting of a batch until the store has the state
	// that comes of it. The store may wait without bound for room on its disk, so
	// nobody takes order only to look or to hold the topic: mu is for that. state
	// and retry are set with both held, and read with either.
	order sync.Mutex

	mu     sync.Mutex
	state  topicState
	held   bool
	paused string          // since when and why, "" if it is not
	sample []decode.Record // newest dead letters
	last   string          // why the newest is one
	likely string          // the format that they look like, "" if not known
	retry  *retry          // dead letters of another format to decode again, nil if none
}

func (t *topic) isHeld() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held
}

func (t *topic) status() TopicStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := TopicStatus{Name: t.name, Format: t.cfg.Format, DeadLetters: t.state.Run}
	if t.held {
		s.Held = t.reason()
	}
	s.Paused = t.paused != ""
	return s
}

// exceeded says whether a run of dead letters is one too long. A run of
// another format than the present one proves nothing about that.
func (t *topic) exceeded(s topicState) bool {
	return t.cfg.StopAfter > 0 && s.Format == t.cfg.reading() && s.Run >= t.cfg.StopAfter
}

// reason says why the topic is held, and what can be done.
func (t *topic) reason() string {
	if t.paused != "" {
		return fmt.Sprintf("topic %s is paused %s: tidemark topic resume %s has it read again", t.name, t.paused, t.name)
	}
	as, correct := fmt.Sprintf("format %q, which is probably not theirs", t.cfg.Format), "format"
	if t.cfg.Format == "debezium" || t.cfg.Format == "avro" {
		as = fmt.Sprintf("format %q: it, the preset or what tables say of the columns is probably not theirs", t.cfg.Format)
		correct = "format, preset or tables"
	}
	return fmt.Sprintf("topic %s: %d records in a row cannot be decoded as %s%s. "+
		"List them with tidemark deadletter list, then either correct the topic's %s and restart, or, if they are rightly refused, "+
		"raise its stop_after (0: never) and restart, or drop them with tidemark deadletter drop", t.name, t.state.Run, as, t.looks(), correct)
}

// looks says why the newest record was refused, and what the newest look like.
func (t *topic) looks() (text string) {
	if t.last != "" {
		text = " (the last one: " + t.last + ")"
	}
	if t.likely != "" {
		text += "; they look like " + t.likely
	}
	return text
}

// A topic is judged by so many of its newest dead letters, none larger than that (bytes).
const (
	sampleRecords = 20
	sampleSize    = 64 << 10
)

// see keeps a dead letter for the case that the topic is held.
func (t *topic) see(rec decode.Record, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = reason
	if len(rec.Key)+len(rec.Value) > sampleSize {
		return
	}
	t.sample = append(t.sample, rec)
	t.sample = t.sample[max(0, len(t.sample)-sampleRecords):]
}

// An outcome is what became of one record.
type outcome struct {
	offset int64
	end    int // of its changes among the batch's
	dead   bool
}

// count follows the run of dead letters through a batch. stop is the outcome at
// which the topic must be held, or -1. Called with t.order held.
func (t *topic) count(d decoded) (s topicState, stop int) {
	s = t.state
	if t.retry != nil {
		s.Run += t.retry.observe(d)
		return s, -1
	}
	if d.good {
		s = topicState{Format: t.cfg.reading()}
	}
	for i, o := range d.outcomes {
		if !o.dead {
			s = topicState{Format: t.cfg.reading()}
			continue
		}
		if s.Run++; t.exceeded(s) {
			return s, i
		}
	}
	return s, -1
}

// cutAt ends a batch behind an outcome: what follows is not applied and will
// be read again.
func cutAt(b store.Batch, o outcome) store.Batch {
	b.Changes = b.Changes[:o.end]
	b.Next = o.offset + 1
	b.Notes = slices.DeleteFunc(b.Notes, func(n store.Note) bool { return n.Offset > o.offset })
	return b
}
