package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/cockroachdb/pebble/v2"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"tidemark/store/compaction"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// mergeLoop merges fresh segments whenever the plan finds something, until ctx
// ends. Nothing waits for a merge: one that fails is tried again later.
func (db *DB) mergeLoop(ctx context.Context) {
	if db.o.MergeOff {
		return
	}
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval = time.Second, 5*time.Minute
	wait := time.Second
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		err := db.mergeAll(ctx)
		switch {
		case ctx.Err() != nil || errors.Is(err, ErrClosed):
			return
		case err != nil:
			wait = retry.NextBackOff()
			db.o.Logger.Error("a merge failed; segments grow in number until one succeeds", "error", err, "again_in", wait)
		default:
			retry.Reset()
			wait = time.Second
		}
	}
}

// mergeAll merges until the plan finds nothing more.
func (db *DB) mergeAll(ctx context.Context) error {
	for !db.busy() {
		if merged, err := db.Merge(ctx); err != nil || !merged {
			return err
		}
	}
	return nil
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
	dead, err := db.deadAt(inputs, horizon)
	if err != nil {
		return false, fmt.Errorf("merge segments: %w", err)
	}
	id, number, err := db.allot()
	if err != nil {
		return false, db.fail(err)
	}
	out, err := compaction.Merge(ctx, db.fs, db.segmentsDir(), id, readers(inputs), func(seq uint64) bool {
		_, drop := dead[seq]
		return !drop
	}, db.footer(number, inputs))
	if err != nil { // a full disk, say
		return false, errors.Join(err, db.giveUp(id))
	}
	db.m.merged.Add(ctx, out.Copied, metric.WithAttributes(attribute.Bool("copied", true)))
	db.m.merged.Add(ctx, out.Recompressed, metric.WithAttributes(attribute.Bool("copied", false)))
	if err := db.swap(inputs, dead, id, out.Reader); err != nil {
		return false, db.fail(err)
	}
	return true, nil
}

// giveUp takes back an allotment and what was written under it.
func (db *DB) giveUp(id segment.ID) error {
	err := errors.Join(db.removeFiles(id), segment.SyncDir(db.fs, db.segmentsDir()))
	if err == nil {
		err = db.kv.Delete(index.AllottedKey(id), pebble.Sync)
	}
	if err != nil { // Open will do it
		return fmt.Errorf("remove what a merge left: %w", err)
	}
	return nil
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
func (db *DB) deadAt(segs []*seg, horizon fhir.Instant) (map[uint64]struct{}, error) {
	dead := map[uint64]struct{}{}
	err := db.deathsOf(segs, func(d index.Death) {
		if d.At <= horizon {
			dead[d.Seq] = struct{}{}
		}
	})
	return dead, err
}

// deathsOf calls fn for the deaths in segs, from the index: memory has only
// what plans need of them.
func (db *DB) deathsOf(segs []*seg, fn func(index.Death)) error {
	for _, s := range segs {
		var list []index.Death
		from, to := index.DeathsOf(s.id())
		err := index.Scan(db.kv, &pebble.IterOptions{LowerBound: from, UpperBound: to}, func(_, v []byte) (err error) {
			list, err = index.DecodeDeaths(list[:0], v)
			for _, d := range list {
				fn(d)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("read the index: %w", err)
		}
	}
	return nil
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
	err := db.deathsOf(inputs, func(d index.Death) {
		if _, gone := dropped[d.Seq]; !gone {
			deaths = append(deaths, d)
		}
	})
	if err != nil {
		return err
	}
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
	var merged *seg
	if r != nil {
		merged = newSeg(r)
		merged.bury(deaths)
	}
	db.show(inputs, merged)
	return db.selfCheck()
}

// show makes the merged segment, if any row was left, part of the view.
func (db *DB) show(inputs []*seg, merged *seg) {
	db.mu.Lock()
	defer db.mu.Unlock()
	at := slices.Index(db.view, inputs[0])
	view := slices.Clone(db.view[:at])
	if merged != nil {
		db.segs[merged.id()] = merged
		view = append(view, merged)
	}
	db.view = append(view, db.view[at+len(inputs):]...)
	for _, s := range inputs {
		s.dropped = true
	}
}
