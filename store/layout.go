package store

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/compaction"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// A Layout is what the store's segments hold and what keeps them there.
type Layout struct {
	Windows   []WindowStat // those with older rows first; the fresh segments last
	Forgotten fhir.Instant // deletions up to here may be gone, None if none is

	// What the rewriter has to do, in bytes of NDJSON: rows to settle, rows to
	// leave out, and how long that takes at the pace of the work done so far (0
	// before there was any).
	Unsettled, Droppable int64
	Merging              int64 // NDJSON of the segments that are being merged now
	UntilClean           time.Duration

	// Amplification since the process started: bytes written for each byte that
	// came in, compressed. 0 before anything came in.
	Written float64
	// Space is the bytes of NDJSON that lie in segments for each byte of a row that
	// is not dead.
	Space float64

	Pins       int
	OldestPin  time.Time // zero if there is none
	PinnedOnly int64     // bytes of bodies that only snapshots keep
	Merges     map[string]int64

	Damaged []string // bodies of segments that were found damaged
}

// A WindowStat is what lies in one window of time, or in the fresh segments.
type WindowStat struct {
	From, To fhir.Instant // least and greatest change instant of its rows
	Settled  bool
	Segments int
	Stored   int64 // bytes of bodies
	Types    []TypeStat
}

// A TypeStat counts rows of one kind and type.
type TypeStat struct {
	Section     Section
	Rows, Dead  int64
	Bytes, Gone int64 // of NDJSON, and of it in dead rows
}

// Layout tells what the segments hold, from memory.
func (db *DB) Layout() Layout {
	db.mu.Lock()
	defer db.mu.Unlock()
	l := Layout{Forgotten: db.meta.Forgotten, Merging: db.work.now, Pins: len(db.pins), Merges: map[string]int64{}, Damaged: db.damagedFiles()}
	h, v := db.horizon(), db.view
	for i := 0; i < len(v.settled); {
		n := i + 1
		for n < len(v.settled) && *v.settled[n].window() == *v.settled[i].window() {
			n++
		}
		l.Windows = append(l.Windows, windowStat(v.settled[i:n], segment.NoBound))
		i = n
	}
	if len(v.fresh) > 0 {
		l.Windows = append(l.Windows, windowStat(v.fresh, v.closed))
	}
	settle := db.before(db.o.SettleAfter)
	var raw, dead int64
	for _, s := range v.all() {
		raw += s.raw
		if s.window() != nil {
			l.Droppable += s.droppable(h, segment.NoBound)
			continue
		}
		l.Droppable += s.droppable(h, v.closed)
		for b := range compaction.Unsettled(s.r.Sections(), s.r.Blocks(), v.closed) {
			if b.First <= settle {
				l.Unsettled += b.Sum.Size
			}
		}
	}
	for _, w := range l.Windows {
		for _, t := range w.Types {
			dead += t.Gone
		}
	}
	if live := raw - dead; live > 0 {
		l.Space = float64(raw) / float64(live)
	}
	if came := db.work.committed; came > 0 {
		l.Written = float64(came+db.work.merged) / float64(came)
	}
	if w := &db.work; w.raw > 0 {
		l.UntilClean = time.Duration(float64(l.Unsettled+l.Droppable) / float64(w.raw) * float64(w.took))
	}
	for k, n := range db.work.jobs {
		l.Merges[compaction.Kind(k).String()] = n
	}
	delete(l.Merges, compaction.Nothing.String())
	for _, p := range db.pins {
		if at := p.pin.Created.Time(); l.OldestPin.IsZero() || at.Before(l.OldestPin) {
			l.OldestPin = at
		}
	}
	for _, s := range db.segs {
		if s.dropped {
			l.PinnedOnly += s.r.BodySize()
		}
	}
	return l
}

// windowStat sums up segments; rows up to after count elsewhere.
func windowStat(segs []*seg, after segment.Bound) WindowStat {
	w := WindowStat{From: always, To: fhir.None, Settled: segs[0].window() != nil, Segments: len(segs)}
	types := map[Section]*TypeStat{}
	for _, s := range segs {
		w.From, w.To, w.Stored = min(w.From, s.first), max(w.To, s.last), w.Stored+s.r.BodySize()
		for _, sec := range s.r.Sections() {
			t := types[sec.Section]
			if t == nil {
				t = &TypeStat{Section: sec.Section}
				types[sec.Section] = t
			}
			for i := sec.From; i < sec.To; i++ {
				b := &s.r.Blocks()[i]
				t.Rows, t.Bytes = t.Rows+int64(b.Rows), t.Bytes+b.Sum.Size
				if b.Last < after.Instant {
					t.Dead, t.Gone = t.Dead+int64(b.Rows), t.Gone+b.Sum.Size
				} else if d := s.dead[i]; d != nil {
					t.Dead, t.Gone = t.Dead+int64(len(d.list)), t.Gone+d.bytes
				}
			}
		}
	}
	for _, t := range types {
		w.Types = append(w.Types, *t)
	}
	slices.SortFunc(w.Types, func(a, b TypeStat) int { return a.Section.Compare(b.Section) })
	return w
}

// work counts what was written since the process started. DB.mu guards it.
type work struct {
	committed, merged int64         // compressed bytes of bodies
	raw               int64         // NDJSON that merges have read
	now               int64         // NDJSON of the inputs of the one under way
	took              time.Duration // in so long
	jobs              [compaction.Widen + 1]int64
}

// A Version is one row of a resource that still lies in a segment.
type Version struct {
	Section     Section
	Seq         uint64
	Instant     fhir.Instant
	Death       fhir.Instant // None while it is the newest
	Version     int64        // NoVersion if it has none
	LastUpdated fhir.Instant // what the source said, None if nothing
	Partition   Partition
	Offset      int64
	Length      int32 // of its line, bytes
	Patients    []string
	Segment     string // the directory file
	Block       int
}

// ErrUnknown: the store never had the resource, or has forgotten it.
var ErrUnknown = errors.New("the store has no such resource")

// History lists the rows of a resource that still lie in segments, the oldest
// first. It reads the directories of its whole type: it is for people.
func (db *DB) History(key fhir.Key) ([]Version, error) {
	s := db.snapshotNow()
	defer s.Close()
	var list []Version
	for _, sec := range []Section{
		{Kind: segment.Live, Type: key.Type},
		{Kind: segment.Last, Type: key.Type},
		{Kind: segment.Deleted, Type: key.Type},
		{Kind: segment.Internal, Type: segment.Unseen},
		{Kind: segment.Internal, Type: segment.Repeats},
		{Kind: segment.Internal, Type: segment.Departures},
	} {
		for _, g := range s.segs {
			found, err := g.history(db, sec, key, s.span(fhir.None, always).of(g))
			if err != nil {
				return nil, err
			}
			list = append(list, found...)
		}
	}
	if len(list) == 0 {
		return nil, ErrUnknown
	}
	slices.SortFunc(list, func(a, b Version) int { return int(int64(a.Seq) - int64(b.Seq)) })
	return list, nil
}

func (s *seg) history(db *DB, sec Section, key fhir.Key, v span) ([]Version, error) {
	info := s.r.Section(sec)
	if info.From == info.To {
		return nil, nil
	}
	dir, err := s.r.OpenDirectory()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var list []Version
	var rows []segment.Row
	for b := info.From; b < info.To; b++ {
		if rows, err = dir.Rows(rows[:0], b); err != nil {
			return nil, err
		}
		for i := range rows {
			r := &rows[i]
			if r.Key != key || r.Bound().Compare(v.after) <= 0 {
				continue
			}
			list = append(list, Version{
				Section: r.Section, Seq: r.Seq, Instant: r.Instant, Death: db.deathOf(s, b, r.Seq), Version: r.Clock.Version, LastUpdated: r.Clock.LastUpdated,
				Partition: r.Clock.Origin, Offset: r.Clock.Offset, Length: r.Length, Patients: slices.Clone(r.Patients), Segment: s.id().DirectoryName(), Block: b,
			})
		}
	}
	return list, nil
}

// deathOf is when a row died, None if it did not.
func (db *DB) deathOf(s *seg, block int, seq uint64) fhir.Instant {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, d := range s.dead[block].until(always) {
		if d.seq == seq {
			return d.at
		}
	}
	return fhir.None
}

// Body returns the line of one row of a resource, which History listed.
func (db *DB) Body(v Version) ([]byte, error) {
	s := db.snapshotNow()
	defer s.Close()
	for _, g := range s.segs {
		if g.id().DirectoryName() != v.Segment {
			continue
		}
		return g.line(v.Block, v.Seq)
	}
	return nil, fmt.Errorf("%w: segment %s was merged meanwhile: ask again", ErrUnknown, v.Segment)
}

// line reads the line of one row.
func (s *seg) line(block int, seq uint64) ([]byte, error) {
	cells, err := s.cells(block)
	if err != nil {
		return nil, err
	}
	body, err := s.r.OpenBody()
	if err != nil {
		return nil, err
	}
	defer body.Close()
	text, err := s.r.Lines(nil, body, block)
	if err != nil {
		return nil, err
	}
	for _, c := range cells {
		if c.Seq == seq {
			return text[:c.Length], nil
		}
		text = text[c.Length:]
	}
	return nil, fmt.Errorf("%w: segment %s has no row with sequence number %d", ErrCorrupt, s.id().DirectoryName(), seq)
}

// newest is what the index knows of a resource.
func (db *DB) newest(key fhir.Key) (index.State, error) {
	var st index.State
	err := db.whileOpen(func() error {
		v, closer, err := db.kv.Get(index.RowKey(nil, key))
		if errors.Is(err, pebble.ErrNotFound) {
			return ErrUnknown
		}
		if err != nil {
			return fmt.Errorf("read the index: %w", err)
		}
		st, err = index.DecodeState(v, db.origins())
		return errors.Join(err, closer.Close())
	})
	return st, err
}
