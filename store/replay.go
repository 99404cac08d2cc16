package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// resources rebuilds what the index knows of each resource. Segments overlap in
// the order in which rows were given, so the rows are first sorted by resource
// and sequence number, on disk; then each row ends the one before it.
func (r *reindex) resources() (err error) {
	dir := r.fs.PathJoin(r.dir, "index.sort")
	if err := errors.Join(r.fs.RemoveAll(dir), r.fs.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	sorted, err := index.Open(dir, index.Options{FS: r.fs, Cache: 8 << 20, Logger: pebbleLog{r.o.Logger}, NoLog: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sorted.Close(), r.fs.RemoveAll(dir)) }()
	for i, g := range r.view.all() {
		if err := r.scatter(sorted, g); err != nil {
			return err
		}
		fmt.Fprintf(r.out, "segment %d of %d\n", i+1, len(r.list))
	}
	return r.replay(sorted)
}

// scatter adds the rows of one segment that count.
func (r *reindex) scatter(sorted *pebble.DB, g *seg) error {
	dir, err := g.r.OpenDirectory()
	if err != nil {
		return err
	}
	defer dir.Close()
	b, refs := sorted.NewBatch(), r.kv.NewBatch()
	defer func() { _, _ = b.Close(), refs.Close() }()
	w := batchWriter{b: refs}
	var rows []segment.Row
	for i := range g.r.Blocks() {
		if rows, err = dir.Rows(rows[:0], i); err != nil {
			return err
		}
		for j := range rows {
			row := &rows[j]
			if g.window() == nil && row.Bound().Compare(r.view.closed) <= 0 {
				continue
			}
			r.rows++
			r.meta.Newest = max(r.meta.Newest, row.Instant)
			if !ofResource(row) {
				continue
			}
			number, ok := r.parts[row.Clock.Origin]
			if !ok {
				return fmt.Errorf("%w: a row comes from %v, of which no footer knows", ErrCorrupt, row.Clock.Origin)
			}
			if err := b.Set(replayKey(row), stateOf(row).Encode(nil, number), nil); err != nil {
				return err
			}
			w.refers(row)
			if err := scatterTargets(b, row); err != nil {
				return err
			}
		}
		if b.Len() > 4<<20 || refs.Len() > 4<<20 {
			if err := errors.Join(w.err, b.Commit(pebble.NoSync), refs.Commit(pebble.NoSync)); err != nil {
				return err
			}
			b, refs = sorted.NewBatch(), r.kv.NewBatch()
			w.b = refs
		}
	}
	return errors.Join(w.err, b.Commit(pebble.NoSync), refs.Commit(pebble.NoSync))
}

// ofResource tells whether a row says something about a resource's newest state.
func ofResource(row *segment.Row) bool {
	return row.Section.Kind != segment.Internal || row.Section.Type == segment.Unseen || row.Section.Type == segment.Repeats
}

// replayKey sorts rows by resource, then by sequence number. Its last byte tells
// a repeated deletion.
func replayKey(row *segment.Row) []byte {
	id := index.RowKey(nil, row.Key)
	k := append([]byte{byte(len(id))}, id...)
	k = binary.BigEndian.AppendUint64(k, row.Seq)
	if row.Section.Kind == segment.Internal && row.Section.Type == segment.Repeats {
		return append(k, 1)
	}
	return append(k, 0)
}

// awaitedLast marks what follows the rows of a resource: a Provenance that is about it.
const awaitedLast = 2

// scatterTargets lets the rows of what a Provenance is about be followed by it.
func scatterTargets(b *pebble.Batch, row *segment.Row) error {
	if row.Section.Kind != segment.Live || row.Key.Type != provenanceType {
		return nil
	}
	by := segment.PackID(nil, row.Key.ID)
	for _, key := range row.References {
		if !fhir.OnlyTargeted(key.Type) {
			continue
		}
		id := index.RowKey(nil, key)
		k := append([]byte{byte(len(id))}, id...)
		k = binary.BigEndian.AppendUint64(k, math.MaxUint64)
		if err := b.Set(append(append(k, by...), awaitedLast), nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// replay goes through the rows of each resource and writes its newest one and
// the deaths of all others.
func (r *reindex) replay(sorted *pebble.DB) error {
	it, err := sorted.NewIter(nil)
	if err != nil {
		return err
	}
	p := &replaying{r: r, deaths: map[segment.ID][]index.Death{}, batch: r.kv.NewBatch()}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err == nil {
			err = p.row(it.Key(), v)
		}
		if err != nil {
			return errors.Join(err, it.Close(), p.batch.Close())
		}
	}
	return errors.Join(it.Close(), p.end(), p.commit(0))
}

type replaying struct {
	r      *reindex
	batch  *pebble.Batch
	key    []byte       // of the resource
	cur    *index.State // its newest row so far
	set    uint32       // in whose compartments any of its rows lies
	deaths map[segment.ID][]index.Death
	count  int
	parts  uint64 // how often deaths were written
}

func (p *replaying) row(k, v []byte) error {
	key, repeat := k[1:1+int(k[0])], k[len(k)-1] == 1
	if string(key) != string(p.key) {
		if err := p.end(); err != nil {
			return err
		}
		p.key, p.set = slices.Clone(key), 0
	}
	if k[len(k)-1] == awaitedLast {
		return p.about(segment.UnpackID(k[1+len(key)+8 : len(k)-1]))
	}
	st, err := index.DecodeState(v, func(n uint64) (segment.Partition, bool) { q, ok := p.r.states[n]; return q, ok })
	if err != nil {
		return err
	}
	if repeat {
		if p.cur != nil { // else what it repeated was dropped: the later row carries what it told
			p.cur.Clock, p.cur.Life = st.Clock, st.Life
		}
		return nil
	}
	if err := p.die(&st); err != nil {
		return err
	}
	p.cur = &st
	return p.place(st.Patients)
}

// place links the places that a resource has had.
func (p *replaying) place(set uint32) error {
	key, err := index.ParseRowKey(p.key)
	if err != nil || !targeted(key.Type) {
		return err
	}
	w := batchWriter{b: p.batch}
	switch {
	case set == 0 && p.set != 0:
		w.set(index.AwaitedKey(index.ResourceHash(key), index.Pointer{Set: p.set}), nil)
	case p.set == 0:
		p.set = set
	case set != p.set:
		w.alike(p.set, set)
	}
	return w.err
}

// about lets the resource lead to a Provenance.
func (p *replaying) about(id string) error {
	key, err := index.ParseRowKey(p.key)
	if err != nil {
		return err
	}
	w, to := batchWriter{b: p.batch}, index.Pointer{Provenance: id}
	switch {
	case key.Type == groupType:
		w.leads(segment.GroupHash(key.ID), to)
	case p.set != 0:
		w.leads(p.set, to)
	default:
		w.set(index.AwaitedKey(index.ResourceHash(key), to), nil)
	}
	return errors.Join(w.err, p.commit(4<<20))
}

// die records that the newest row so far is superseded by next.
func (p *replaying) die(next *index.State) error {
	if p.cur == nil {
		return nil
	}
	key, err := index.ParseRowKey(p.key)
	if err != nil {
		return err
	}
	sec, place := p.cur.Section(key.Type), p.cur.Place()
	s := p.r.view.holder(sec, place.Bound)
	if s == nil {
		return fmt.Errorf("%w: the row with sequence number %d lies in no segment that its place names", ErrCorrupt, place.Seq)
	}
	p.deaths[s.id()] = append(p.deaths[s.id()], index.Death{
		Section: sec, Place: place, Length: p.cur.Length, At: next.Instant,
		Removed: p.cur.Kind == segment.Last || p.cur.Kind == segment.Live && next.Kind == segment.Deleted,
	})
	p.count++
	return nil
}

// end writes the newest row of a resource. A last state that no row follows had
// its deletion in a segment that is lost: it stays dead.
func (p *replaying) end() error {
	if p.cur == nil {
		return nil
	}
	if p.cur.Kind == segment.Last {
		err := p.die(p.cur)
		p.cur = nil
		return err
	}
	if err := p.batch.Set(p.key, p.cur.Encode(nil, p.r.parts[p.cur.Clock.Origin]), nil); err != nil {
		return err
	}
	p.cur = nil
	return p.commit(4 << 20)
}

// maxDeaths bounds the deaths that are gathered before they are written.
const maxDeaths = 100_000

// commit writes what was gathered if that is more than some bytes.
func (p *replaying) commit(bytes int) error {
	if p.count > maxDeaths || bytes == 0 {
		p.parts++
		for id, list := range p.deaths {
			// No commit has this number, and each part brings its own.
			if err := p.batch.Set(index.DeathsKey(id, p.parts<<32), index.EncodeDeaths(list), nil); err != nil {
				return err
			}
		}
		clear(p.deaths)
		p.count = 0
	}
	if p.batch.Len() <= bytes {
		return nil
	}
	if err := p.batch.Commit(pebble.NoSync); err != nil {
		return err
	}
	p.batch = p.r.kv.NewBatch()
	return nil
}
