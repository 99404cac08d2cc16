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
	"tidemark/store/disk"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// rewriteLoop does what compaction.Plan finds until ctx ends. Nothing waits for
// it: work that fails is tried again later.
func (db *DB) rewriteLoop(ctx context.Context) {
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
		err := db.rewriteAll(ctx)
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

// rewriteAll works until the plan finds nothing more.
func (db *DB) rewriteAll(ctx context.Context) error {
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
	return db.gather.bytes > db.o.CommitSize/2 && len(db.view.fresh) < manySegments
}

// A rewrite is one job of the rewriter under way.
type rewrite struct {
	db      *DB
	begun   time.Time
	meta    index.Meta // as it was when this was planned
	job     compaction.Job
	inputs  []*seg
	closed  segment.Bound // of the view it was planned over
	horizon horizon
	dead    map[uint64]fate     // of rows that no watermark will ever show again
	expired map[uint64]fhir.Key // rows that are forgotten for their age: deletions that nobody is told any more, old dead letters
	late    fhir.Instant        // the newest of them
	number  uint64
	files   [][]segment.Section
	first   segment.ID // of the outputs, as many as files
	outputs []*segment.Reader
}

// Merge does the next work that is worth it, if there is any. It runs beside
// intake and reading; only its beginning and its end take the writer's lock.
func (db *DB) Merge(ctx context.Context) (bool, error) {
	r, err := db.rewrite(ctx)
	return err == nil && r.job.Kind != compaction.Nothing, err
}

func (db *DB) rewrite(ctx context.Context) (*rewrite, error) {
	db.merging.Lock()
	defer db.merging.Unlock()
	r := db.plan()
	if r.job.Kind == compaction.Nothing {
		return r, nil
	}
	return r, r.run(ctx, nil)
}

// run does the work, and leaves out some rows beside those that died. Called
// with merging held.
func (r *rewrite) run(ctx context.Context, without map[uint64]struct{}) error {
	db := r.db
	defer func() {
		db.mu.Lock()
		db.work.now = 0
		db.mu.Unlock()
		_ = db.release(r.inputs)
	}()
	retired, err := r.deaths()
	if err != nil {
		return fmt.Errorf("merge segments: %w", err)
	}
	for seq := range without {
		r.dead[seq] = goes
	}
	r.files = compaction.Files(readers(r.inputs), retired, r.job.Window, db.o.smallFile)
	if err := r.allot(); err != nil {
		return db.fail(err)
	}
	if err := r.write(ctx); err != nil { // a full disk, say
		if errors.Is(err, ErrCorrupt) {
			r.blame()
		}
		return errors.Join(err, r.giveUp())
	}
	if err := r.swap(); err != nil {
		return db.fail(err)
	}
	return nil
}

// plan chooses the next work and holds its inputs.
func (db *DB) plan() *rewrite {
	db.mu.Lock()
	v, failed := db.view, db.failed != nil || db.readOnly.Load()
	r := &rewrite{db: db, begun: time.Now(), meta: db.meta, closed: v.closed, horizon: db.horizon(), late: fhir.None}
	s := compaction.State{
		Fresh: metas(v.fresh, r.horizon, v.closed), Settled: metas(v.settled, r.horizon, segment.NoBound),
		Closed: v.closed, Settle: db.before(db.o.SettleAfter), Now: db.clock.now(), Tight: db.reserve.tight(),
	}
	db.mu.Unlock()
	if failed {
		return r
	}
	// Until this work is done commits only add to the view.
	if r.job = s.Plan(); r.job.Kind == compaction.Nothing {
		return r
	}
	list := v.fresh
	if r.job.Settled {
		list = v.settled
	}
	r.inputs = slices.Clone(list[r.job.From:r.job.To])
	if r.job.Kind == compaction.Settle {
		r.inputs = slices.DeleteFunc(r.inputs, func(s *seg) bool { return s.first > r.job.Window.To.Instant })
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, s := range r.inputs {
		s.refs++
		db.work.now += s.raw
	}
	return r
}

func metas(list []*seg, h horizon, after segment.Bound) []compaction.Meta {
	out := make([]compaction.Meta, len(list))
	for i, s := range list {
		out[i] = compaction.Meta{
			Damaged: s.damaged, Stored: s.r.BodySize(), Raw: s.raw, Dead: s.droppable(h, after), Wanted: s.wanted, First: s.first, Last: s.last,
			Overdue: s.leastDeath < h.overdue && s.leastDeath <= h.deaths,
			Window:  s.window(), Sections: s.r.Sections(), Blocks: s.r.Blocks(),
		}
	}
	return out
}

// deaths collects the rows of the inputs that no watermark will ever show again,
// and tells the sections of those that become last states.
func (r *rewrite) deaths() (retired []segment.Section, err error) {
	r.dead = map[uint64]fate{}
	err = r.db.deathsOf(r.inputs, func(d index.Death) {
		f := r.horizon.fate(d)
		if f == stays {
			return
		}
		r.dead[d.Place.Seq] = f
		if sec := lastStates(d.Section); f == retires && !slices.Contains(retired, sec) {
			retired = append(retired, sec)
		}
	})
	return retired, err
}

// lastStates is where the last states of resources of a section go.
func lastStates(sec segment.Section) segment.Section {
	return segment.Section{Kind: segment.Last, Type: sec.Type}
}

// deathsOf calls fn for the deaths in segs, from the index: memory has only
// what plans need of them.
func (db *DB) deathsOf(segs []*seg, fn func(index.Death)) error {
	for _, s := range segs {
		var list []index.Death
		err := index.Scan(db.kv, index.DeathsOf(s.id()), func(_, v []byte) (err error) {
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

// allot takes segment numbers, durably, so that Open knows the files of a merge
// that did not end.
func (r *rewrite) allot() error {
	db := r.db
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	m := db.meta
	r.first, r.number = m.NextSegment, m.NextMerge
	m.NextSegment += segment.ID(len(r.files))
	m.NextMerge++
	b := db.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	w.set(index.MetaKey(), m.Encode())
	for i := range r.files {
		w.set(index.AllottedKey(r.first+segment.ID(i)), nil)
	}
	if err := errors.Join(w.err, b.Commit(pebble.Sync)); err != nil {
		return fmt.Errorf("allot a segment: %w", err)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.meta = m
	return nil
}

// write makes the outputs.
func (r *rewrite) write(ctx context.Context) error {
	db := r.db
	pace := newPacer(db)
	var writers []*segment.Writer
	for i, sections := range r.files {
		m := compaction.Merge{
			FS: db.fs, Dir: db.segmentsDir(), Runs: db.runsDir(), ID: r.first + segment.ID(i),
			Inputs: readers(r.inputs), Sections: sections, Keep: r.keeps, Window: r.job.Window, Pace: pace.wait,
		}
		out, err := m.Run(ctx)
		if err != nil {
			return errors.Join(err, abandon(writers))
		}
		db.m.merged.Add(ctx, out.Copied, metric.WithAttributes(attribute.Bool("copied", true)))
		db.m.merged.Add(ctx, out.Recompressed, metric.WithAttributes(attribute.Bool("copied", false)))
		if out.Writer != nil {
			writers = append(writers, out.Writer)
		}
	}
	for i, w := range writers {
		out, err := w.Seal(r.footer(i+1, len(writers)))
		if err != nil {
			return errors.Join(err, abandon(writers[i+1:]))
		}
		r.outputs = append(r.outputs, out)
	}
	return nil
}

// blame finds out which inputs cannot be read, so that the next plan passes
// them by: one damaged file must not keep all others from being merged.
func (r *rewrite) blame() {
	for _, s := range r.inputs {
		if err := prove(s.r, func(int64) error { return nil }); err != nil {
			r.db.found(s, err)
		}
	}
}

func abandon(writers []*segment.Writer) (err error) {
	for _, w := range writers {
		err = errors.Join(err, w.Abandon())
	}
	return err
}

// keeps tells whether a row of the inputs goes into the outputs, and into which
// section of them.
func (r *rewrite) keeps(row *segment.Row) (segment.Section, bool) {
	switch f := r.dead[row.Seq]; {
	case f == goes || !r.moves(row.Bound()):
		return row.Section, false
	case f == retires:
		return lastStates(row.Section), true
	case r.horizon.expires(row.Section, row.Instant):
		return row.Section, !r.expire(row)
	}
	return row.Section, true
}

// moves tells whether the outputs are where a row of the inputs lies from now on.
func (r *rewrite) moves(b segment.Bound) bool {
	switch r.job.Kind {
	case compaction.Settle:
		return r.job.Window.Holds(b)
	case compaction.Join, compaction.Clean:
		return r.job.Settled || b.Compare(r.closed) > 0
	}
	return true
}

func (db *DB) runsDir() string { return db.fs.PathJoin(db.dir, "runs") }

// footer describes one output.
func (r *rewrite) footer(part, parts int) segment.Footer {
	f := segment.Footer{
		Store: r.meta.Store, Epoch: r.meta.Epoch, Line: fhir.None, Seqs: [2]uint64{1<<64 - 1, 0}, Commits: [2]uint64{1<<64 - 1, 0},
		Merge: r.number, Part: part, Parts: parts, Window: r.job.Window,
	}
	for _, s := range r.inputs {
		g := s.r.Footer()
		f.Inputs, f.Reset = append(f.Inputs, s.id()), max(f.Reset, g.Reset)
		f.Seqs = [2]uint64{min(f.Seqs[0], g.Seqs[0]), max(f.Seqs[1], g.Seqs[1])}
		if g.Commits[1] >= f.Commits[1] { // of the newest commit
			f.Line, f.Offsets = max(f.Line, g.Line), g.Offsets
		}
		f.Commits = [2]uint64{min(f.Commits[0], g.Commits[0]), max(f.Commits[1], g.Commits[1])}
	}
	return f
}

func readers(segs []*seg) []*segment.Reader {
	list := make([]*segment.Reader, len(segs))
	for i, s := range segs {
		list[i] = s.r
	}
	return list
}

// giveUp takes back an allotment and what was written under it.
func (r *rewrite) giveUp() error {
	db := r.db
	var err error
	b := db.kv.NewBatch()
	defer b.Close()
	w := batchWriter{b: b}
	for i := range r.files {
		id := r.first + segment.ID(i)
		err = errors.Join(err, db.removeFiles(id))
		w.delete(index.AllottedKey(id))
	}
	err = errors.Join(err, disk.SyncDir(db.fs, db.segmentsDir()), w.err)
	if err == nil {
		err = b.Commit(pebble.Sync)
	}
	if err != nil { // Open will do it
		return fmt.Errorf("remove what a merge left: %w", err)
	}
	return nil
}
