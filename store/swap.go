package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/compaction"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// swap puts the outputs in the place of what they hold in one synced batch.
// Deaths that came while the merge ran are carried over; those of dropped rows
// go.
func (r *rewrite) swap() error {
	db := r.db
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	db.mu.Lock()
	next, used := r.next()
	db.meta.Forgotten = max(db.meta.Forgotten, r.late) // before the index forgets: who finds nothing there asks then
	meta := db.meta
	db.mu.Unlock()
	meta.Closed = next.closed
	outputs := map[segment.ID]*seg{}
	for _, s := range next.all() {
		if id := s.id(); id >= r.first && id < r.first+segment.ID(len(r.files)) {
			outputs[id] = s
		}
	}
	deaths, err := r.carry(next)
	if err != nil {
		return err
	}
	b := db.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	w.set(index.MetaKey(), meta.Encode())
	for i := range r.files {
		w.delete(index.AllottedKey(r.first + segment.ID(i)))
	}
	for _, s := range used {
		w.set(index.SegmentKey(s.id()), []byte{index.SegmentDropped})
	}
	for id := range outputs {
		w.set(index.SegmentKey(id), []byte{index.SegmentLive})
		if list := deaths[id]; len(list) > 0 {
			w.set(index.DeathsKey(id, meta.Commit), index.EncodeDeaths(list))
		}
	}
	if err := errors.Join(r.forget(&w), b.Commit(pebble.Sync)); err != nil {
		return fmt.Errorf("swap merged segments: %w", err)
	}
	for id, s := range outputs {
		s.bury(deaths[id])
	}
	db.mu.Lock()
	db.meta, db.view = meta, next
	db.work.done(r)
	maps.Copy(db.segs, outputs)
	for _, s := range used {
		s.dropped = true
	}
	db.room.Broadcast()
	db.mu.Unlock()
	return db.selfCheck()
}

// done counts a rewrite.
func (w *work) done(r *rewrite) {
	w.jobs[r.job.Kind]++
	w.took += time.Since(r.begun)
	for _, in := range r.inputs {
		for i := range in.r.Blocks() {
			if b := &in.r.Blocks()[i]; r.job.Window == nil || b.First <= r.job.Window.To.Instant && b.Last >= r.job.Window.From.Instant {
				w.raw += b.Sum.Size
			}
		}
	}
	for _, out := range r.outputs {
		w.merged += out.BodySize()
	}
}

// next is the view with the outputs, and which inputs are in it no more: a
// fresh segment of which some rows have not settled stays. Called with mu held;
// commits may have come since the plan.
func (r *rewrite) next() (v *view, used []*seg) {
	v = &view{fresh: r.db.view.fresh, settled: r.db.view.settled, closed: r.db.view.closed}
	used = r.inputs
	if r.job.Kind == compaction.Settle {
		v.closed = r.job.Window.To
		used = slices.DeleteFunc(slices.Clone(r.inputs), func(s *seg) bool { return !s.within(v.closed) })
	}
	live := slices.DeleteFunc(v.all(), func(s *seg) bool { return slices.Contains(used, s) })
	for _, out := range r.outputs {
		live = append(live, newSeg(out))
	}
	return newView(live, v.closed), used
}

// carry sorts the deaths of rows that have moved by the output that has them.
func (r *rewrite) carry(next *view) (map[segment.ID][]index.Death, error) {
	deaths := map[segment.ID][]index.Death{}
	var lost error
	err := r.db.deathsOf(r.inputs, func(d index.Death) {
		f := r.dead[d.Place.Seq]
		_, expired := r.expired[d.Place.Seq]
		if f == goes || expired || !r.moves(d.Place.Bound) {
			return
		}
		if f == retires {
			d.Section = lastStates(d.Section)
		}
		s := next.holder(d.Section, d.Place.Bound)
		if s == nil {
			lost = fmt.Errorf("%w: after a merge the row with sequence number %d lies in no segment", ErrCorrupt, d.Place.Seq)
			return
		}
		deaths[s.id()] = append(deaths[s.id()], d)
	})
	return deaths, errors.Join(err, lost)
}
