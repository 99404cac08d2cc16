package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

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

	touched map[fhir.Key]*resource
	groups  map[string]membership
	rows    []row
	sorted  []*row                       // as they will stand in the segment
	deaths  map[segment.ID][]index.Death // of rows in older segments
	own     []index.Death                // of rows in this one
	counts  counts
	states  map[Partition]index.PartitionState // as the batch stores them
	joins   []*partition                       // whose joining the batch stores
}

// row is a row of the segment being sealed and what its line is made from.
type row struct {
	segment.Row
	body   []byte
	inject fhir.Meta
	hidden bool // superseded at its own instant: no watermark shows it, so it is not stored
	death  fhir.Instant
}

// resource is a resource that the commit touches.
type resource struct {
	key      []byte       // in the index
	cur      *index.State // nil: never had
	at       int          // its newest row in this commit, -1 if that is older
	patients []string     // of cur; known if patientsKnown
	known    bool
	changed  bool
}

// counts are what a commit did, for metrics.
type counts struct {
	rows, late, stale, same, gone, dead int64
	bytes                               int64
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
	if err := c.run(); err != nil {
		span.SetStatus(codes.Error, "the commit failed")
		return db.fail(fmt.Errorf("commit %d: %w", c.meta.Commit, err))
	}
	span.SetAttributes(attribute.Int64("rows", c.counts.rows), attribute.Int64("bytes", c.counts.bytes))
	db.m.committed(&c.counts, time.Since(start))
	return nil
}

// begin freezes the line and takes what has gathered; nil if that is nothing.
func (db *DB) begin() *commit {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.failed != nil || len(db.gather.batches) == 0 {
		return nil
	}
	c := &commit{
		db: db, taken: db.gather.batches, meta: db.meta, line: db.watermark(),
		groups: map[string]membership{}, deaths: map[segment.ID][]index.Death{},
	}
	c.meta.Commit++
	db.sealing = &sealing{line: c.line, least: db.gather.least, holds: db.gather.holds}
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
		r.cur = &st
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
			if ch.Dead != nil || c.touched[ch.Key] != nil {
				continue
			}
			at := len(keys)
			keys = index.RowKey(keys, ch.Key)
			r := &resource{at: -1, key: keys[at:len(keys):len(keys)]}
			c.touched[ch.Key] = r
			list = append(list, r)
		}
	}
	return list
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
	if ch.Dead != nil {
		return c.deadLetter(ch, t)
	}
	hash := uint64(0)
	if !ch.Delete {
		hash = xxhash.Sum64(ch.Body)
	}
	r := c.touched[ch.Key]
	switch judge(r.cur, ch, hash, t.Partition) {
	case stale:
		c.counts.stale++
		return nil
	case same:
		c.counts.same++
		return nil
	case gone:
		c.counts.gone++
		c.repeat(ch, t, r)
		return nil
	}
	return c.apply(ch, t, r, hash)
}

// repeat notes what the deletion of something deleted tells of older lives. No
// export shows it, but without it what was deleted could rise again.
func (c *commit) repeat(ch *Change, t *taken, r *resource) {
	_, life := succeed(r.cur, ch, t.Partition)
	if life.FloorVersion == r.cur.Life.FloorVersion && life.FloorUpdated == r.cur.Life.FloorUpdated &&
		slices.Equal(life.Tombstones, r.cur.Life.Tombstones) {
		return
	}
	r.cur.Life, r.changed = life, true
	at := c.instant(ch, t, r.cur)
	n := row{
		Row: segment.Row{
			Section: segment.Section{Kind: segment.Internal, Type: segment.Repeats}, Key: ch.Key, Seq: c.seq(), Instant: at, Placed: at,
			Clock: r.cur.Clock, Life: life,
		},
		body: deleteBundle(ch.Key, at), death: fhir.None,
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
	moved := ch.Delete || old != nil && old.Patients != index.PatientsHash(ch.Patients)
	if moved { // only then is it worth reading the old row
		if err := c.patientsOf(ch.Key, r); err != nil {
			return err
		}
	}
	n := row{
		Row: segment.Row{
			Section: segment.Section{Kind: segment.Live, Type: ch.Key.Type}, Key: ch.Key, Seq: c.seq(), Instant: at,
			Clock: clock, Hash: hash, Placed: at, Patients: ch.Patients, Life: life,
		},
		body: ch.Body, death: fhir.None,
	}
	if ch.Delete {
		n.Patients = r.patients
		n.Section.Kind = segment.Deleted
		if old == nil || old.Kind == segment.Internal {
			n.Section = segment.Section{Kind: segment.Internal, Type: segment.Unseen}
		}
		n.body = deleteBundle(ch.Key, at)
	} else if !c.db.o.KeepMeta {
		n.inject = ch.Meta
	}
	if old != nil && (ch.Delete || !moved) {
		n.Placed = old.Placed
	}
	n.Length = int32(len(n.body)+n.inject.Len(strconv.FormatUint(n.Seq, 10))) + 1
	if err := c.end(r, ch.Key, at); err != nil {
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
		Placed: r.Placed, Patients: index.PatientsHash(r.Patients), Life: r.Life,
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
func (c *commit) end(r *resource, key fhir.Key, at fhir.Instant) error {
	if r.cur == nil {
		return nil
	}
	if r.at >= 0 {
		o := &c.rows[r.at]
		o.death, o.hidden = at, at == o.Instant
		return nil
	}
	s, err := c.db.holder(r.cur.Seq)
	if err != nil {
		return err
	}
	c.deaths[s.id()] = append(c.deaths[s.id()], index.Death{
		Section: r.cur.Section(key.Type), Instant: r.cur.Instant, Seq: r.cur.Seq, Length: r.cur.Length, At: at,
	})
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
	found, err := c.db.rowAt(r.cur.Section(key.Type), r.cur.Instant, r.cur.Seq)
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

// internal adds an internal row beside the change that caused it.
func (c *commit) internal(kind fhir.Type, cause *segment.Row, patients []string, line any) {
	n := row{Row: *cause, death: fhir.None}
	n.Section = segment.Section{Kind: segment.Internal, Type: kind}
	n.Seq, n.Patients, n.Life, n.Placed, n.Hash = c.seq(), patients, segment.NoLife, cause.Instant, 0
	n.body = mustJSON(line)
	n.Length = int32(len(n.body)) + 1
	c.rows = append(c.rows, n)
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // structs of strings and numbers always marshal
	}
	return b
}

// deleteBundle is the line of a tombstone: the one-entry transaction Bundle of
// Bulk Data's `deleted` files. The URL is relative, as every client wants it.
func deleteBundle(k fhir.Key, at fhir.Instant) []byte {
	b := append([]byte(nil), `{"resourceType":"Bundle","meta":{"lastUpdated":"`...)
	b = at.Append(b)
	b = append(b, `"},"type":"transaction","entry":[{"request":{"method":"DELETE","url":"`...)
	b = append(b, k.String()...)
	return append(b, `"}}]}`...)
}

// seal sorts the rows, compresses them block by block on all cores, and makes
// the segment durable. Without rows there is none.
func (c *commit) seal() (*seg, error) {
	for i := range c.rows {
		r := &c.rows[i]
		if r.death != fhir.None && !r.hidden {
			c.own = append(c.own, index.Death{Section: r.Section, Instant: r.Instant, Seq: r.Seq, Length: r.Length, At: r.death})
		}
	}
	c.rows = slices.DeleteFunc(c.rows, func(r row) bool { return r.hidden })
	if len(c.rows) == 0 {
		return nil, nil
	}
	seqs := [2]uint64{c.db.meta.NextSeq, c.meta.NextSeq - 1}
	c.sorted = make([]*row, len(c.rows))
	for i := range c.rows {
		c.sorted[i] = &c.rows[i]
	}
	slices.SortFunc(c.sorted, func(a, b *row) int { return a.Compare(&b.Row) })
	c.id = c.meta.NextSegment
	c.meta.NextSegment++
	w, err := segment.Create(c.db.fs, c.db.segmentsDir(), c.id)
	if err != nil {
		return nil, err
	}
	if err := c.write(w); err != nil {
		return nil, errors.Join(err, w.Abandon())
	}
	r, err := w.Seal(segment.Footer{
		Store: c.meta.Store, Epoch: c.meta.Epoch, Commits: [2]uint64{c.meta.Commit, c.meta.Commit},
		Seqs: seqs, Line: c.line, Offsets: c.offsets(),
	})
	if err != nil {
		return nil, err
	}
	for i := range c.rows {
		c.meta.Newest = max(c.meta.Newest, c.rows[i].Instant)
		c.counts.bytes += int64(c.rows[i].Length)
	}
	c.counts.rows = int64(len(c.rows))
	return newSeg(r), nil
}

// write compresses the sorted rows into blocks and appends them in order.
func (c *commit) write(w *segment.Writer) error {
	blocks := c.blocks()
	compressed := make([]segment.Block, len(blocks))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, rows := range blocks {
		g.Go(func() error {
			compressed[i] = compress(rows)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var plain []segment.Row
	for i, rows := range blocks {
		plain = slices.Grow(plain[:0], len(rows))[:len(rows)]
		for j := range rows {
			plain[j] = rows[j].Row
		}
		if err := w.Append(compressed[i], plain); err != nil {
			return err
		}
		compressed[i].Data = nil
	}
	return nil
}

// blocks cuts the sorted rows where a block is full or a section ends.
func (c *commit) blocks() (list [][]*row) {
	from, size := 0, 0
	for i, r := range c.sorted {
		if i > from && (size >= segment.BlockSize || r.Section != c.sorted[from].Section) {
			list = append(list, c.sorted[from:i])
			from, size = i, 0
		}
		size += int(r.Length)
	}
	return append(list, c.sorted[from:])
}

// compress makes one block of rows, injecting what their meta lacks.
func compress(rows []*row) segment.Block {
	k := compressors.Get().(*segment.Compressor)
	defer compressors.Put(k)
	pieces := make([][]byte, 0, 4*len(rows))
	for _, r := range rows {
		before, injected, behind := r.inject.Pieces(nil, r.body, strconv.FormatUint(r.Seq, 10), r.Instant)
		pieces = append(pieces, before, injected, behind, newline)
	}
	return k.Block(pieces...)
}

var newline = []byte{'\n'}

// offsets is how far every partition had been read with this commit.
func (c *commit) offsets() []segment.Progress {
	next := map[Partition]segment.Progress{}
	c.db.mu.Lock()
	for name, p := range c.db.parts {
		next[name] = segment.Progress{Partition: name, Next: p.durable.Next, LeaderEpoch: p.durable.LeaderEpoch}
	}
	c.db.mu.Unlock()
	for i := range c.taken {
		t := &c.taken[i]
		p := next[t.Partition]
		p.Next, p.LeaderEpoch = max(p.Next, t.Next), max(p.LeaderEpoch, t.LeaderEpoch)
		next[t.Partition] = p
	}
	return slices.SortedFunc(maps.Values(next), func(a, b segment.Progress) int { return a.Partition.Compare(b.Partition) })
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
		st.Next, st.LeaderEpoch, st.Seen = o.Next, o.LeaderEpoch, p.seen
		m[o.Partition] = st
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
		s.bury(c.own)
		db.segs[s.id()] = s
		db.view = append(slices.Clone(db.view), s)
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
