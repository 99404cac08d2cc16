package store

import (
	"context"
	"fmt"
	"math"
	"time"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/watermark"
)

type progress = watermark.Progress

// changeOverhead is counted for each gathered change beside its body: the
// struct, its strings and its share of maps. Bytes.
const changeOverhead = 900

// Discover tells the store what the broker has; again whenever that changed.
// A partition never seen before starts at its log start.
func (db *DB) Discover(d Discovery) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.failed != nil {
		return db.failed
	}
	db.complete = d.Complete
	for _, f := range d.Partitions {
		p := db.parts[f.Partition]
		if p == nil {
			p = db.addPartition(f)
		}
		if p.durable.Forgotten {
			db.revive(p, f)
		}
		if p.progress == nil { // first seen in this process
			p.progress = watermark.New(p.durable.Next)
			p.joinAt = f.End
		}
		if p.durable.TopicID == ([16]byte{}) {
			p.durable.TopicID = f.TopicID
		}
		db.join(p)
	}
	db.settle()
	return nil
}

func (db *DB) addPartition(f Discovered) *partition {
	n := uint64(0) // numbers are never used again: those known may have gaps
	for known := range db.numbers {
		n = max(n, known+1)
	}
	p := &partition{
		durable: index.PartitionState{Number: n, Next: f.Start, LeaderEpoch: -1, TopicID: f.TopicID, Seen: fhir.None},
		seen:    db.Now(),
	}
	db.parts[f.Partition] = p
	db.numbers[n] = f.Partition
	return p
}

// Rewind has a partition read from an offset on again, before anything of it is read in this
// process: what was taken in before is told from what is new as ever. The watermark waits
// until all is read again.
func (db *DB) Rewind(p Partition, offset int64) error {
	db.mu.Lock()
	s := db.parts[p]
	discovered := s != nil && s.progress != nil
	db.mu.Unlock()
	if !discovered {
		return fmt.Errorf("rewind %v: the partition was never discovered", p)
	}
	return db.move(p, func(s *partition) {
		if offset < s.durable.Next {
			s.durable.Next, s.durable.Anew = offset, db.meta.NextSeq // offsets of rows that are here say nothing any more
		}
		s.progress = watermark.New(s.durable.Next)
	})
}

// join marks p as joined once everything below its first end is committed:
// only then may a promise rest on it.
func (db *DB) join(p *partition) {
	if p.joined || p.progress == nil || p.durable.Next < p.joinAt {
		return
	}
	p.joined = true
}

// settle ends the bootstrap once every configured topic exists and every
// partition seen has joined. It is never undone.
func (db *DB) settle() {
	if !db.started && db.waits == fhir.None && db.allJoined() {
		db.started = true
	}
}

func (db *DB) allJoined() bool {
	if !db.complete || len(db.parts) == 0 {
		return false
	}
	for _, p := range db.parts {
		if !p.joined && !p.durable.Forgotten {
			return false
		}
	}
	return true
}

// Wait says that intake has taken records of which it makes no changes yet, for they belong
// together with others that are to come: the least time that these changes claim. As with
// those that are fetched and not committed, the watermark stays below it, and the bootstrap
// is not over. fhir.None: there are none any more.
func (db *DB) Wait(least fhir.Instant) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.waits = least
	db.settle()
}

// Reached is the instant up to which all that was written has been read, whatever waits;
// None while a partition has not joined.
func (db *DB) Reached() fhir.Instant {
	db.mu.Lock()
	defer db.mu.Unlock()
	if !db.started && !db.allJoined() {
		return fhir.None
	}
	return db.reached()
}

// ReachedBeside is Reached for the partitions of all topics but one; before the bootstrap is over, when
// nobody is told of anything, a time to come.
func (db *DB) ReachedBeside(topic string) fhir.Instant {
	db.mu.Lock()
	defer db.mu.Unlock()
	if !db.started {
		return always
	}
	return db.reachedBeside(topic)
}

// reached is the least watermark of the joined partitions, None if one was not heard of since
// the start. Called with mu held.
func (db *DB) reached() fhir.Instant { return db.reachedBeside("") }

func (db *DB) reachedBeside(topic string) fhir.Instant {
	w := fhir.Instant(math.MaxInt64)
	for id, p := range db.parts {
		if !p.joined || id.Topic == topic {
			continue
		}
		if p.progress == nil {
			return fhir.None
		}
		w = min(w, p.progress.Watermark(db.o.Allowance))
	}
	return w
}

// Apply takes a batch into the commit being gathered. It blocks while the
// gathering is full, and returns once the batch is taken in; it is durable once
// Committed says so. An answer without records must be applied too: it moves
// the watermark. What resolves dead letters may also be of a partition that nobody
// reads in this process.
func (db *DB) Apply(ctx context.Context, b Batch) error {
	t := taken{Batch: b, bytes: weight(b.Changes) + noteWeight(b.Notes)}
	stop := context.AfterFunc(ctx, func() {
		db.mu.Lock()
		defer db.mu.Unlock()
		db.room.Broadcast()
	})
	defer stop()
	db.mu.Lock()
	defer db.mu.Unlock()
	for db.failed == nil && ctx.Err() == nil && len(b.Changes)+len(b.Notes) > 0 && db.crowded(t.bytes) {
		db.room.Wait()
	}
	if db.failed != nil {
		return db.failed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	p := db.parts[b.Partition]
	if p != nil && p.durable.Forgotten && b.Resolved == nil {
		return nil // it was on its way when somebody decided to do without
	}
	if p == nil || p.progress == nil && b.Resolved == nil {
		return fmt.Errorf("apply a batch of %v: the partition was never discovered", b.Partition)
	}
	db.take(p, t)
	return nil
}

// maxFresh bounds the fresh segments: beyond it intake waits for merges, for
// every plan and every look-up of a row would grow slower with them.
const maxFresh = 512

// crowded tells whether intake must wait: for the commit under way, or for
// merges that cannot keep up. Called with mu held.
func (db *DB) crowded(bytes int64) bool {
	behind := len(db.view.fresh) >= maxFresh && !db.o.MergeOff
	if behind != db.behind {
		if db.behind = behind; behind {
			db.o.Logger.Warn("intake waits: merges cannot keep up", "segments", len(db.view.fresh), "raise", "compaction.cores, compaction.write_rate")
		} else {
			db.o.Logger.Info("intake goes on: merges have caught up")
		}
	}
	if behind || !db.noRoom.IsZero() || db.readOnly.Load() || db.reserve.tight() {
		return true
	}
	if db.gather.bytes > 0 && db.gather.bytes+bytes > db.o.CommitSize {
		signal(db.full)
		return true
	}
	return false
}

func weight(changes []Change) int64 {
	n := int64(len(changes)) * changeOverhead
	for i := range changes {
		n += int64(len(changes[i].Body))
		if d := changes[i].Dead; d != nil {
			n += int64(len(d.Key) + 2*len(d.Value))
		}
	}
	return n
}

// take is the moment at which a batch counts as fetched: its changes hold the
// watermark back before the watermark moves past them.
func (db *DB) take(p *partition, t taken) {
	t.at = db.Now()
	if t.Asked == fhir.None && t.Resolved != nil { // it is of what was read long ago, and a decision may have moved the partition
		t.Next, t.LeaderEpoch = 0, -1
	}
	moved := t.Topic != nil || t.Notes != nil || t.Resolved != nil && len(t.Resolved)+len(t.Changes) > 0
	if p.progress != nil {
		moved = db.follow(p, &t) || moved
	}
	db.gather.note(t.Notes)
	t.seen = p.seen
	if moved {
		if len(db.gather.batches) == 0 {
			db.gather.since = time.Now()
			signal(db.first)
		}
		db.gather.batches = append(db.gather.batches, t)
		if db.gather.bytes += t.bytes; db.gather.bytes >= db.o.CommitSize {
			signal(db.full)
		}
	}
	db.join(p)
	db.settle()
}

// follow lets a partition that is read move on, and tells whether it did.
func (db *DB) follow(p *partition, t *taken) (moved bool) {
	t.caught = p.caught
	p.caught = p.caught || t.Asked > db.meta.Restored && t.Next >= t.End
	p.progress.Observe(t.Asked, t.End)
	if t.Resolved == nil { // what is decoded again lies below by nature
		t.Changes = t.from(p.progress.Next())
	}
	for i := range t.Changes {
		db.hold(p, &t.Changes[i], t.at)
	}
	moved = t.Next > p.progress.Next()
	p.progress.Fetched(t.Next)
	p.seen = max(p.seen, p.progress.Reached())
	return moved
}

// from drops the changes below next: read twice, they were taken in before.
func (t *taken) from(next int64) []Change {
	n := 0
	for n < len(t.Changes) && t.Changes[n].Offset < next {
		n++
	}
	return t.Changes[n:]
}

// hold keeps the watermark below a change that is on time until it is
// committed, so that its instant can be its own time. A late change, or one
// that claims a time to come, gets an instant after the line instead.
func (db *DB) hold(p *partition, ch *Change, now fhir.Instant) {
	t := evidence(ch, now)
	if !p.joined || t == fhir.None || t <= db.promised || t <= p.progress.At(ch.Offset, db.o.Allowance) {
		return
	}
	if !db.gather.holds || t < db.gather.least {
		db.gather.holds, db.gather.least = true, t
	}
}

// evidence is the time that a change says for itself: lastUpdated, else what
// the decoder found, else the record's timestamp. A time that lay ahead of us
// when the change was fetched is none.
func evidence(ch *Change, now fhir.Instant) fhir.Instant {
	t := ch.LastUpdated
	if t == fhir.None {
		t = ch.Time
	}
	if t == fhir.None {
		t = ch.Timestamp
	}
	if t > now {
		return fhir.None
	}
	return t
}

// watermark is the instant up to which an answer may now speak: None before the
// bootstrap is over. Called with mu held.
func (db *DB) watermark() fhir.Instant {
	if !db.started {
		return db.promised
	}
	w := db.reached()
	if w == fhir.None {
		return db.promised
	}
	if db.waits != fhir.None {
		w = min(w, db.waits-1)
	}
	if db.gather.holds {
		w = min(w, db.gather.least-1)
	}
	if s := db.sealing; s != nil {
		if s.holds {
			w = min(w, s.least-1)
		}
		w = min(w, s.line) // no answer is ahead of a commit under way
	}
	if w == math.MaxInt64 {
		return db.promised
	}
	return max(w, db.promised)
}

// Hold notes, for status and log, why nothing more of p is applied: that is
// what stops the watermark. Of a partition never discovered nothing can be held.
func (db *DB) Hold(p Partition, reason string) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if s := db.parts[p]; s != nil && !s.durable.Forgotten && s.held != reason {
		s.held = reason
		db.o.Logger.Error("partition is held: the watermark waits", "topic", p.Topic, "partition", p.ID, "reason", reason)
	}
}

// Release ends a Hold.
func (db *DB) Release(p Partition) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if s := db.parts[p]; s != nil {
		s.held = ""
	}
}

// Partition returns what is durable about p.
func (db *DB) Partition(p Partition) (PartitionState, bool) {
	db.mu.Lock()
	defer db.mu.Unlock()
	s := db.parts[p]
	if s == nil || s.durable.Forgotten {
		return PartitionState{}, false
	}
	d := s.durable
	return PartitionState{Next: d.Next, LeaderEpoch: d.LeaderEpoch, TopicID: d.TopicID, Joined: s.joined, Seen: d.Seen}, true
}

// Topic returns the pipeline's own state of a topic as it was stored last.
func (db *DB) Topic(name string) []byte {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.topics[name]
}

// Committed returns the durable next offset of every partition that is not forgotten.
func (db *DB) Committed() map[Partition]int64 {
	db.mu.Lock()
	defer db.mu.Unlock()
	m := make(map[Partition]int64, len(db.parts))
	for name, p := range db.parts {
		if !p.durable.Forgotten {
			m[name] = p.durable.Next
		}
	}
	return m
}

// signal wakes whoever waits on c, which holds one token.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
