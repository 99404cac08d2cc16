package store

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// deadLine is a dead letter's line: everything that is needed to decode the
// record again.
type deadLine struct {
	Topic     string       `json:"topic"`
	Partition int32        `json:"partition"`
	Offset    int64        `json:"offset"`
	Timestamp fhir.Instant `json:"timestamp"`
	DeadLetter
}

// deadLetter stores a record that could not be decoded as a row of its own.
func (c *commit) deadLetter(ch *Change, t *taken) error {
	c.counts.dead++
	n := row{
		Row: segment.Row{
			Section: deadLetters, Seq: c.seq(),
			Instant: c.instant(ch, t, nil), Life: segment.NoLife,
			Clock: segment.Clock{
				Version: NoVersion, LastUpdated: fhir.None, Timestamp: ch.Timestamp, Origin: t.Partition, Offset: ch.Offset,
			},
		},
		body:  mustJSON(deadLine{t.Partition.Topic, t.Partition.ID, ch.Offset, ch.Timestamp, *ch.Dead}),
		death: fhir.None,
	}
	n.Placed, n.Length = n.Instant, int32(len(n.body))+1
	c.rows = append(c.rows, n)
	return nil
}

// A DeadLetterRow is a dead letter as it is stored.
type DeadLetterRow struct {
	Bound
	Partition Partition
	Offset    int64
	Timestamp fhir.Instant // of the record, None if it had none
	DeadLetter
}

// DeadLetters calls fn for the dead letters of a topic ("" for all) that were
// not resolved since, oldest first.
func (db *DB) DeadLetters(topic string, fn func(DeadLetterRow) error) error {
	s := db.snapshotNow()
	defer s.Close()
	for _, g := range s.segs {
		info := g.r.Section(deadLetters)
		for b := info.From; b < info.To; b++ {
			if err := g.deadLetters(db, b, s.span(fhir.None, always).of(g), topic, fn); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *seg) deadLetters(db *DB, b int, v span, topic string, fn func(DeadLetterRow) error) error {
	rows, err := s.r.Rows(b)
	if err != nil {
		return err
	}
	db.mu.Lock()
	dead := s.dead[b].until(always)
	db.mu.Unlock()
	body, err := s.r.OpenBody()
	if err != nil {
		return err
	}
	defer body.Close()
	text, err := s.r.Lines(nil, body, b)
	if err != nil {
		return err
	}
	for i := range rows {
		line := text[:rows[i].Length]
		text = text[rows[i].Length:]
		if topic != "" && rows[i].Clock.Origin.Topic != topic || contains(dead, rows[i].Seq) || rows[i].Bound().Compare(v.after) <= 0 {
			continue
		}
		var d deadLine
		if err := json.Unmarshal(bytes.TrimSpace(line), &d); err != nil {
			return fmt.Errorf("%w: dead letter in segment %s: %w", ErrCorrupt, s.r.ID().BodyName(), err)
		}
		k := &rows[i].Clock
		if err := fn(DeadLetterRow{rows[i].Bound(), k.Origin, k.Offset, k.Timestamp, d.DeadLetter}); err != nil {
			return err
		}
	}
	return nil
}

// DeadLettersAfter calls fn for the dead letters with greater numbers than seq that were not
// resolved since, by number, and returns up to which number there is no other.
func (db *DB) DeadLettersAfter(seq uint64, fn func(DeadLetterRow) error) (upTo uint64, err error) {
	db.mu.Lock()
	upTo = max(seq, db.meta.NextSeq-1)
	db.mu.Unlock()
	s := db.snapshotNow()
	defer s.Close()
	type place struct {
		seq uint64
		g   *seg
		b   int
	}
	var list []place
	for _, g := range s.segs {
		if g.r.Footer().Seqs[1] <= seq {
			continue
		}
		info := g.r.Section(deadLetters)
		for b := info.From; b < info.To; b++ {
			rows, err := g.r.Rows(b)
			if err != nil {
				return seq, err
			}
			for i := range rows {
				if rows[i].Seq > seq && rows[i].Seq <= upTo {
					list = append(list, place{rows[i].Seq, g, b})
				}
			}
		}
	}
	slices.SortFunc(list, func(a, b place) int { return cmp.Compare(a.seq, b.seq) })
	of, block := place{}, map[uint64]DeadLetterRow{} // neighbours stand in one block, mostly
	for _, p := range list {
		if p.g != of.g || p.b != of.b {
			of = p
			clear(block)
			err := p.g.deadLetters(db, p.b, s.span(fhir.None, always).of(p.g), "", func(r DeadLetterRow) error { block[r.Seq] = r; return nil })
			if err != nil {
				return seq, err
			}
		}
		if r, there := block[p.seq]; there { // else it was resolved, or is in a window, too
			if err := fn(r); err != nil {
				return seq, err
			}
		}
	}
	return upTo, nil
}

func contains(list []death, seq uint64) bool {
	return slices.ContainsFunc(list, func(d death) bool { return d.seq == seq })
}

// resolve ends the dead letters whose records could be decoded after all: from
// the line on they are counted no more. Those that were resolved before are
// passed over: a row dies once (invariant D2), and a merge may have dropped it.
func (c *commit) resolve(letters []Bound) error {
	for _, l := range letters {
		if s := c.db.holding(deadLetters, l); s != nil {
			if err := c.resolveIn(s, segment.Place{Bound: l}); err != nil {
				return err
			}
		}
	}
	return nil
}

var deadLetters = segment.Section{Kind: segment.Internal, Type: segment.DeadLetters}

func (c *commit) resolveIn(s *seg, p segment.Place) error {
	b := s.r.Find(deadLetters, p)
	if b < 0 {
		return nil
	}
	rows, err := s.r.Rows(b)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(rows, func(r segment.Row) bool { return r.Seq == p.Seq })
	if i < 0 {
		return nil
	}
	c.db.mu.Lock()
	dead := contains(s.dead[b].until(always), p.Seq)
	c.db.mu.Unlock()
	if dead || slices.ContainsFunc(c.deaths[s.id()], func(d index.Death) bool { return d.Place.Seq == p.Seq }) {
		return nil
	}
	at := p.Instant
	if c.line != fhir.None {
		at = max(at, c.line+1)
	}
	c.deaths[s.id()] = append(c.deaths[s.id()], index.Death{Section: deadLetters, Place: p, Length: rows[i].Length, At: at})
	return nil
}
