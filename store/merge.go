package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"tidemark/store/compaction"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// mergeLoop merges fresh segments whenever the plan finds something, until ctx
// ends. A merge that fails makes the store stop: the disk is not to be trusted.
func (db *DB) mergeLoop(ctx context.Context) {
	if db.o.MergeOff {
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for ctx.Err() == nil && !db.busy() {
			merged, err := db.Merge(ctx)
			if err != nil && ctx.Err() == nil {
				_ = db.fail(fmt.Errorf("merge segments: %w", err))
				db.o.Logger.Error("the store stops: a merge failed", "error", err)
				return
			}
			if !merged || err != nil {
				break
			}
		}
	}
}

// manySegments is when merging may no longer wait for a pause in the intake.
const manySegments = 128

// busy tells that commits come back to back: in a bulk load merges would only
// take from it what they can do as well behind it.
func (db *DB) busy() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.gather.bytes > db.o.CommitSize/2 && len(db.view) < manySegments
}

// Merge does the next merge that is worth it, if there is one. It runs beside
// intake and reading; only its beginning and its end take the writer's lock.
func (db *DB) Merge(ctx context.Context) (bool, error) {
	db.merging.Lock()
	defer db.merging.Unlock()
	inputs, horizon := db.plan()
	if len(inputs) == 0 {
		return false, nil
	}
	defer func() { _ = db.release(inputs) }()
	dead := db.deadAt(inputs, horizon)
	id, number, err := db.allot()
	if err != nil {
		return false, err
	}
	out, err := compaction.Merge(ctx, db.fs, db.segmentsDir(), id, readers(inputs), func(seq uint64) bool {
		_, drop := dead[seq]
		return !drop
	}, db.footer(number, inputs))
	if err != nil {
		return false, err
	}
	db.m.merged.Add(ctx, out.Copied, metric.WithAttributes(attribute.Bool("copied", true)))
	db.m.merged.Add(ctx, out.Recompressed, metric.WithAttributes(attribute.Bool("copied", false)))
	return true, db.swap(inputs, dead, id, out.Reader)
}

// plan chooses neighbours to merge and holds them.
func (db *DB) plan() ([]*seg, fhir.Instant) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.failed != nil {
		return nil, fhir.None
	}
	sizes := make([]int64, len(db.view))
	for i, s := range db.view {
		sizes[i] = s.r.BodySize()
	}
	from, to := compaction.Plan(sizes)
	inputs := slices.Clone(db.view[from:to])
	for _, s := range inputs {
		s.refs++
	}
	return inputs, db.stored
}

// deadAt collects the rows of segs that no watermark will ever show again: those
// superseded at or before what is promised.
func (db *DB) deadAt(segs []*seg, horizon fhir.Instant) map[uint64]struct{} {
	db.mu.Lock()
	defer db.mu.Unlock()
	dead := map[uint64]struct{}{}
	for _, s := range segs {
		for _, d := range s.deaths {
			if d.At <= horizon {
				dead[d.Seq] = struct{}{}
			}
		}
	}
	return dead
}

// allot takes a segment number, durably, so that Open knows the files of a merge
// that did not end.
func (db *DB) allot() (segment.ID, uint64, error) {
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	m := db.meta
	id, number := m.NextSegment, m.NextMerge
	m.NextSegment++
	m.NextMerge++
	b := db.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	w.set(index.MetaKey(), m.Encode())
	w.set(index.AllottedKey(id), nil)
	if err := errors.Join(w.err, b.Commit(pebble.Sync)); err != nil {
		return 0, 0, fmt.Errorf("allot a segment: %w", err)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.meta = m
	return id, number, nil
}

func readers(segs []*seg) []*segment.Reader {
	list := make([]*segment.Reader, len(segs))
	for i, s := range segs {
		list[i] = s.r
	}
	return list
}

// footer describes the merge of inputs, which are neighbours.
func (db *DB) footer(number uint64, inputs []*seg) segment.Footer {
	first, last := inputs[0].r.Footer(), inputs[len(inputs)-1].r.Footer()
	f := segment.Footer{
		Store: first.Store, Epoch: last.Epoch, Line: last.Line, Offsets: last.Offsets,
		Commits: [2]uint64{first.Commits[0], last.Commits[1]}, Seqs: [2]uint64{first.Seqs[0], last.Seqs[1]},
		Merge: number, Part: 1, Parts: 1,
	}
	for _, s := range inputs {
		f.Inputs = append(f.Inputs, s.id())
	}
	return f
}

// swap replaces inputs by the merged segment in one synced batch. Deaths that
// came while the merge ran are carried over; those of dropped rows go.
func (db *DB) swap(inputs []*seg, dropped map[uint64]struct{}, id segment.ID, r *segment.Reader) error {
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	var deaths []index.Death
	db.mu.Lock()
	for _, s := range inputs {
		for _, d := range s.deaths {
			if _, gone := dropped[d.Seq]; !gone {
				deaths = append(deaths, d)
			}
		}
	}
	db.mu.Unlock()
	b := db.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	w.delete(index.AllottedKey(id))
	for _, s := range inputs {
		w.set(index.SegmentKey(s.id()), []byte{index.SegmentDropped})
	}
	if r != nil {
		w.set(index.SegmentKey(id), []byte{index.SegmentLive})
		if len(deaths) > 0 {
			w.set(index.DeathsKey(id, db.meta.Commit), index.EncodeDeaths(deaths))
		}
	}
	if err := errors.Join(w.err, b.Commit(pebble.Sync)); err != nil {
		return fmt.Errorf("swap merged segments: %w", err)
	}
	db.show(inputs, deaths, r)
	return db.selfCheck()
}

// show makes the merged segment part of the view.
func (db *DB) show(inputs []*seg, deaths []index.Death, r *segment.Reader) {
	db.mu.Lock()
	defer db.mu.Unlock()
	at := slices.Index(db.view, inputs[0])
	view := slices.Clone(db.view[:at])
	if r != nil {
		s := newSeg(r)
		s.bury(deaths)
		db.segs[s.id()] = s
		view = append(view, s)
	}
	db.view = append(view, db.view[at+len(inputs):]...)
	for _, s := range inputs {
		s.dropped = true
	}
}
