package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// A commit is made by one goroutine: what gathered is judged, given its change
// instants, sorted, compressed, written and made true.
type commit struct {
	db    *DB
	taken []taken
	line  fhir.Instant
	id    segment.ID
	meta  index.Meta // as it will be

	erased  *erasedList
	touched map[fhir.Key]*resource
	targets map[fhir.Key]*resource // what else the Provenance is about that comes
	groups  map[string]membership
	rows    []row
	sorted  []*row                       // as they will stand in the segment
	deaths  map[segment.ID][]index.Death // of rows in older segments
	own     []index.Death                // of rows in this one
	counts  counts
	states  map[Partition]index.PartitionState // as the batch stores them
	joins   []*partition                       // whose joining the batch stores
	anew    map[Partition]uint64               // see beginnings
}

// counts are what a commit did, for metrics.
type counts struct {
	rows, late, stale, same, gone, dead, erased int64
	bytes                                       int64
}

// Flush commits what has gathered and returns once it is durable. Run calls it
// when a commit is due; a caller may at any time.
func (db *DB) Flush() error {
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	c := db.begin()
	if c == nil {
		db.mu.Lock()
		defer db.mu.Unlock()
		return db.failed
	}
	start := time.Now()
	_, span := db.o.Tracer.Start(context.Background(), "store.commit", trace.WithAttributes(attribute.Int64("commit", int64(c.meta.Commit))))
	defer span.End()
	if err := c.run(); errors.Is(err, ErrNoRoom) {
		span.SetStatus(codes.Error, "the disk takes nothing")
		return c.putBack(err)
	} else if err != nil {
		span.SetStatus(codes.Error, "the commit failed")
		return db.fail(fmt.Errorf("commit %d: %w", c.meta.Commit, err))
	}
	span.SetAttributes(attribute.Int64("rows", c.counts.rows), attribute.Int64("bytes", c.counts.bytes))
	db.m.committed(&c.counts, time.Since(start))
	return nil
}

// roomWait is how long a commit that found no room waits before it tries again.
const roomWait = 5 * time.Second

// putBack makes a commit that found no room one that never began: what it took
// gathers again, intake waits, exports go on up to what is committed, and when
// there is room the commit is made.
func (c *commit) putBack(why error) error {
	db := c.db
	if err := db.removeFiles(c.id); err != nil && !isReadOnly(err) { // then the next commit writes over them
		return db.fail(fmt.Errorf("commit %d: %w; and what it left cannot be removed: %w", c.meta.Commit, why, err))
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	g := &db.gather
	if s := db.sealing; s.holds && (!g.holds || s.least < g.least) {
		g.holds, g.least = true, s.least
	}
	g.notes = newest(db.sealing.notes, g.notes)
	db.sealing = nil
	g.batches = append(c.taken, g.batches...)
	for i := range c.taken {
		g.bytes += c.taken[i].bytes
	}
	db.waitForRoom()
	db.o.Logger.Error("a commit waits for room on the disk; exports go on", "error", why, "again_in", roomWait)
	return nil
}

// waitForRoom lets what has gathered wait. Called with mu held.
func (db *DB) waitForRoom() {
	db.noRoom = time.Now().Add(roomWait)
	db.gather.since = db.noRoom.Add(-db.o.CommitInterval)
}

// begin freezes the line and takes what has gathered; nil if that is nothing.
func (db *DB) begin() *commit {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.failed != nil || len(db.gather.batches) == 0 {
		return nil
	}
	if db.readOnly.Load() || db.reserve.tight() {
		db.waitForRoom()
		return nil
	}
	c := &commit{
		db: db, taken: db.gather.batches, meta: db.meta, line: db.watermark(),
		erased: db.erased.Load(), anew: db.beginnings(), groups: map[string]membership{}, deaths: map[segment.ID][]index.Death{},
	}
	c.meta.Commit++
	db.sealing = &sealing{line: c.line, least: db.gather.least, holds: db.gather.holds, notes: db.gather.notes}
	db.gather = gathering{}
	db.room.Broadcast()
	return c
}

func (c *commit) run() error {
	if err := c.lookUp(); err != nil {
		return err
	}
	if err := c.decide(); err != nil {
		return err
	}
	s, err := c.seal()
	if isReadOnly(err) {
		c.db.sawReadOnly()
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	if vfs.IsNoSpaceError(err) {
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	if err != nil {
		return err
	}
	b := c.db.kv.NewBatch()
	defer b.Close()
	if err := c.fill(b, s); err != nil {
		return err
	}
	// From here on the commit is true, or the process ends and never was it.
	if err := b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("sync the index: %w", err)
	}
	c.publish(s)
	return c.db.selfCheck()
}

// fill puts everything that makes the commit true into one batch.
func (c *commit) fill(b *pebble.Batch, s *seg) error {
	w := batchWriter{b: b}
	number := c.db.partitionNumbers()
	var value []byte
	for _, r := range c.touched {
		if !r.changed {
			continue
		}
		n, known := number[r.cur.Clock.Origin]
		if !known {
			return fmt.Errorf("a row comes from %v, which has no number", r.cur.Clock.Origin)
		}
		value = r.cur.Encode(value[:0], n)
		w.set(r.key, value)
	}
	for i := range c.rows {
		w.refers(&c.rows[i].Row)
	}
	if err := c.follow(&w); err != nil {
		return err
	}
	for id, list := range c.deaths {
		w.set(index.DeathsKey(id, c.meta.Commit), index.EncodeDeaths(list))
	}
	if s != nil {
		w.set(index.SegmentKey(s.id()), []byte{index.SegmentLive})
		if len(c.own) > 0 {
			w.set(index.DeathsKey(s.id(), c.meta.Commit), index.EncodeDeaths(c.own))
		}
	}
	for g, m := range c.groups {
		w.set(index.GroupKey(g), m.encode())
	}
	c.states = c.reached()
	for p, st := range c.states {
		w.set(index.PartitionKey(p), st.Encode())
	}
	for i := range c.taken {
		if t := &c.taken[i]; t.Topic != nil {
			w.set(index.TopicKey(t.Partition.Topic), t.Topic)
		}
		w.note(c.taken[i].Notes)
	}
	w.set(index.MetaKey(), c.meta.Encode())
	c.joins = c.db.promise(&w, c.line)
	return w.err
}

// reached is what is true of each partition with this commit.
func (c *commit) reached() map[Partition]index.PartitionState {
	offsets := c.offsets()
	c.db.mu.Lock()
	defer c.db.mu.Unlock()
	m := make(map[Partition]index.PartitionState, len(offsets))
	for _, o := range offsets {
		p := c.db.parts[o.Partition]
		st := p.durable
		st.Next, st.LeaderEpoch = o.Next, o.LeaderEpoch
		m[o.Partition] = st
	}
	for i := range c.taken {
		if t := &c.taken[i]; !t.erasure {
			st := m[t.Partition]
			st.Seen = max(st.Seen, t.seen)
			m[t.Partition] = st
		}
	}
	return m
}

// partitionNumbers is short for each partition that a row can come from.
func (db *DB) partitionNumbers() map[Partition]uint64 {
	db.mu.Lock()
	defer db.mu.Unlock()
	m := make(map[Partition]uint64, len(db.parts))
	for name, p := range db.parts {
		m[name] = p.durable.Number
	}
	return m
}

// publish shows the durable commit to readers and lets the watermark move on.
func (c *commit) publish(s *seg) {
	db := c.db
	db.mu.Lock()
	defer db.mu.Unlock()
	db.meta = c.meta
	if !db.noRoom.IsZero() {
		db.noRoom = time.Time{}
		db.o.Logger.Info("there is room on the disk again: intake goes on")
		db.room.Broadcast()
	}
	db.kept(c.line, c.joins)
	db.sealing = nil
	for name, st := range c.states {
		d := &db.parts[name].durable
		d.Next, d.LeaderEpoch, d.Seen = st.Next, st.LeaderEpoch, max(d.Seen, st.Seen)
	}
	for i := range c.taken {
		t := &c.taken[i]
		p := db.parts[t.Partition]
		db.join(p)
		if t.Topic != nil {
			db.topics[t.Partition.Topic] = t.Topic
		}
	}
	db.settle()
	for id, list := range c.deaths {
		db.segs[id].bury(list)
	}
	if s != nil {
		db.work.committed += s.r.BodySize()
		s.bury(c.own)
		db.segs[s.id()] = s
		db.view = db.view.with(s)
	}
}

// batchWriter remembers the first error of many sets.
type batchWriter struct {
	b   *pebble.Batch
	err error
}

func (w *batchWriter) set(k, v []byte) {
	if w.err == nil {
		w.err = w.b.Set(k, v, nil)
	}
}

func (w *batchWriter) delete(k []byte) {
	if w.err == nil {
		w.err = w.b.Delete(k, nil)
	}
}
