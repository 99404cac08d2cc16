package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidemark/store/compaction"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// Erased is what an erasure did: counts and places, nobody's names.
type Erased struct {
	At          time.Time `json:"at"`
	Resources   int       `json:"resources"`   // living ones, each of which has an entry in deleted now
	Rows        int       `json:"rows"`        // that were taken out of segments, earlier versions too
	DeadLetters int       `json:"deadLetters"` // of them
	Segments    int       `json:"segments"`    // that were written anew
	Jobs        []string  `json:"-"`           // exports that held them: ended
	Elsewhere   []string  `json:"elsewhere"`   // backups and folders that may still hold it
	Groups      []string  `json:"-"`           // ids of living Groups that still name an erased Patient
}

// Erase takes a resource, or all of a Patient's compartment, out of all history:
// segments, dead letters and the files of jobs. It says so in one entry of
// `deleted` for each resource that lived, keeps a list that refuses whatever
// brings it back (a replay from Kafka, reindex, restore), and is durable when it
// returns. Asked for again, it finishes what a crash cut short.
func (db *DB) Erase(ctx context.Context, e Erasure) (Erased, error) {
	if e.Compartment && e.Key.Type != patientResource {
		return Erased{}, errors.New("erase a compartment: only that of a Patient can be")
	}
	db.erasing.Lock()
	defer db.erasing.Unlock()
	if err := db.writable(); err != nil {
		return Erased{}, fmt.Errorf("erase: %w", err)
	}
	if err := db.addErased(e); err != nil {
		return Erased{}, err
	}
	if err := db.tellLost(e.Key); err != nil { //nolint:contextcheck // the end of ctx must not cut a commit short
		return Erased{}, fmt.Errorf("erase: %w", err)
	}
	return db.enforce(ctx)
}

// tellLost tells clients that a resource is no more of which a lost store may
// have told them, and this one has not heard again.
func (db *DB) tellLost(key fhir.Key) error {
	db.mu.Lock()
	restored := db.meta.Restored
	db.mu.Unlock()
	st, err := db.newest(key)
	switch {
	case restored == fhir.None || err == nil && (st.Kind == segment.Live || st.Instant > restored):
		return nil
	case err != nil && !errors.Is(err, ErrUnknown):
		return err
	}
	_, err = db.deleteErased([]fhir.Key{key})
	return err
}

// EnforceErasures takes out whatever the list of erased resources refuses: after
// a reindex or a restore, when files may have come back.
func (db *DB) EnforceErasures(ctx context.Context) (Erased, error) {
	db.erasing.Lock()
	defer db.erasing.Unlock()
	if len(db.erased.Load().list) == 0 {
		return Erased{At: time.Now().UTC()}, nil
	}
	return db.enforce(ctx)
}

// enforce takes out what the list refuses, and notes what was done.
func (db *DB) enforce(ctx context.Context) (Erased, error) {
	done, err := db.takeOut(ctx)
	if err == nil {
		err = db.forgetErased(ctx)
	}
	if err != nil {
		return done, fmt.Errorf("erase: %w", err)
	}
	return done, appendErased(db.fs, db.dir, erasedLine{Erased: &done})
}

// takeOut finds all rows that the list refuses, deletes what of them lives, and
// writes their segments anew without them.
func (db *DB) takeOut(ctx context.Context) (Erased, error) {
	db.merging.Lock()
	defer db.merging.Unlock()
	done := Erased{At: time.Now().UTC()}
	doom, err := db.findErased(ctx)
	defer func() { _ = db.release(doom.held) }()
	if err != nil {
		return done, err
	}
	if done.Resources, err = db.deleteErased(doom.living); err != nil { //nolint:contextcheck // nor this one
		return done, err
	}
	segs := doom.segments()
	if done.Jobs, err = db.revoke(segs); err != nil {
		return done, err
	}
	// One segment that cannot be written anew keeps the others from nothing.
	var failed error
	for _, s := range segs {
		rows := doom.rows[s]
		if err := db.purge(ctx, s, rows); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		done.Rows += len(rows)
	}
	more, err := db.revokeAll(segs)
	if err := errors.Join(failed, doom.unread, err); err != nil {
		return done, err
	}
	done.Jobs = append(done.Jobs, more...)
	done.Segments, done.DeadLetters, done.Groups = len(segs), doom.letters, doom.groups
	if err := db.release(doom.held); err != nil {
		return done, err
	}
	doom.held = nil
	done.Elsewhere, err = db.elsewhere(segs)
	return done, err
}

// doomed is what must go: rows by segment, and what of them lives.
type doomed struct {
	held    []*seg // that were searched
	rows    map[*seg]map[uint64]struct{}
	keys    map[fhir.Key]struct{} // of the rows
	theirs  map[fhir.Key]struct{} // of those that go with a Patient's compartment
	unread  error                 // segments that cannot be searched
	living  []fhir.Key
	groups  []string // that name a Patient of the list, and live
	letters int
}

func (d *doomed) add(s *seg, seq uint64) {
	if d.rows[s] == nil {
		d.rows[s] = map[uint64]struct{}{}
	}
	d.rows[s][seq] = struct{}{}
}

func (d *doomed) segments() []*seg {
	list := make([]*seg, 0, len(d.rows))
	for s := range d.rows {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *seg) int { return int(int64(a.id()) - int64(b.id())) })
	return list
}

// findErased finds all that must go. The Binaries that go with it are put on the
// list first, before anything that leads to them goes: so an erasure that is cut
// short finds them again.
func (db *DB) findErased(ctx context.Context) (*doomed, error) {
	d, err := db.searchErased(ctx)
	if err != nil {
		return d, err
	}
	attached, err := db.attached(ctx, d)
	if err != nil || len(attached) == 0 {
		return d, err
	}
	if err := errors.Join(db.addErased(attached...), db.release(d.held)); err != nil {
		d.held = nil
		return d, err
	}
	return db.searchErased(ctx)
}

// searchErased reads the directories of all segments, of those too that were merged
// away and that only snapshots hold. Deletions stay: they say what was deleted
// and in whose compartment it lay, and clients must be told.
func (db *DB) searchErased(ctx context.Context) (*doomed, error) {
	// What was taken in before the list knew is judged by it when it is committed.
	if err := db.Flush(); err != nil { //nolint:contextcheck // the end of ctx must not cut a commit short
		return &doomed{}, err
	}
	d := &doomed{held: db.holdAll(), rows: map[*seg]map[uint64]struct{}{}, keys: map[fhir.Key]struct{}{}, theirs: map[fhir.Key]struct{}{}}
	list := db.erased.Load()
	db.mu.Lock()
	v := span{since: fhir.None, upto: always, w: always, after: db.view.closed}
	db.mu.Unlock()
	for _, s := range d.held {
		if err := ctx.Err(); err != nil {
			return d, err
		}
		dir, err := s.r.OpenDirectory()
		if err != nil {
			d.unread = errors.Join(d.unread, err)
			continue
		}
		d.unread = errors.Join(d.unread, d.search(db, s, dir, list, v.of(s)), dir.Close())
	}
	for _, s := range d.held { // letters last: their keys may be those of rows
		d.unread = errors.Join(d.unread, d.searchLetters(db, s, list))
	}
	return d, nil
}

// holdAll keeps all segments that there are, live ones and those of snapshots.
func (db *DB) holdAll() []*seg {
	db.mu.Lock()
	defer db.mu.Unlock()
	list := make([]*seg, 0, len(db.segs))
	for _, s := range db.segs {
		s.refs++
		list = append(list, s)
	}
	return list
}

func (d *doomed) search(db *DB, s *seg, dir *segment.Directory, list *erasedList, v span) error {
	var rows []segment.Row
	for _, sec := range s.r.Sections() {
		mark := sec.Section == departures
		if sec.Resource().Kind != segment.Live && !mark {
			continue
		}
		for b := sec.From; b < sec.To; b++ {
			var err error
			if rows, err = dir.Rows(rows[:0], b); err != nil {
				return err
			}
			for i := range rows {
				row := &rows[i]
				lives := !mark && !s.dropped && row.Bound().Compare(v.after) > 0 && db.deathOf(s, b, row.Seq) == fhir.None
				switch refused := list.refuses(row.Key, row.Patients); {
				case refused && lives:
					d.living = append(d.living, row.Key)
					d.keys[row.Key] = struct{}{}
				case refused:
					d.keys[row.Key] = struct{}{}
				case row.Key.Type != groupType || !list.names(row.Patients):
					continue
				case lives: // it is about its other members, too: the source must change it
					d.groups = append(d.groups, row.Key.ID)
					continue
				}
				d.add(s, row.Seq)
				if list.takes(row.Key, row.Patients) {
					d.theirs[row.Key] = struct{}{}
				}
			}
		}
	}
	return nil
}

func (d *doomed) searchLetters(db *DB, s *seg, list *erasedList) error {
	info := s.r.Section(deadLetters)
	for b := info.From; b < info.To; b++ {
		err := s.deadLetters(db, b, span{after: segment.NoBound}, "", func(l DeadLetterRow) error {
			if list.refusesLetter(&l.DeadLetter) || d.tells(l.Key) {
				d.add(s, l.Seq)
				d.letters++
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tells whether the key of a record is that of a resource that must go.
func (d *doomed) tells(key []byte) bool {
	k, err := fhir.ParseKey(string(key))
	if err != nil {
		return false
	}
	_, ok := d.keys[k]
	return ok
}

// deleteErased commits a deletion for each resource.
func (db *DB) deleteErased(keys []fhir.Key) (int, error) {
	if len(keys) == 0 {
		return 0, nil
	}
	batches := map[Partition]*taken{}
	for _, k := range keys {
		st, err := db.newest(k)
		if errors.Is(err, ErrUnknown) {
			st.Clock.Origin, err = db.anyPartition()
		}
		if err != nil {
			return 0, err
		}
		t := batches[st.Clock.Origin]
		if t == nil {
			t = &taken{Batch: Batch{Partition: st.Clock.Origin, LeaderEpoch: -1}, at: db.Now(), erasure: true}
			batches[st.Clock.Origin] = t
		}
		t.Changes = append(t.Changes, Change{
			Key: k, Delete: true, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None, Offset: st.Clock.Offset,
		})
	}
	db.mu.Lock()
	for _, t := range batches {
		if len(db.gather.batches) == 0 {
			db.gather.since = time.Now()
		}
		db.gather.batches = append(db.gather.batches, *t)
	}
	db.mu.Unlock()
	if err := db.Flush(); err != nil {
		return 0, err
	}
	for _, k := range keys { // a full disk puts a commit back
		if st, err := db.newest(k); err != nil || st.Kind == segment.Live {
			return 0, errors.Join(errors.New("the deletions could not be committed"), err)
		}
	}
	return len(keys), nil
}

// anyPartition is where a deletion comes from that no record brought.
func (db *DB) anyPartition() (Partition, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for p := range db.parts {
		return p, nil
	}
	return Partition{}, errors.New("no partition is known yet: start the server on its topics first")
}

// revokeAll ends the snapshots that were taken while the segments were being
// written anew, and those that hold copies; none is on its way any more that could
// hold one of the old.
func (db *DB) revokeAll(segs []*seg) ([]string, error) {
	db.pinning.Lock()
	defer db.pinning.Unlock()
	ids, err := db.revoke(segs)
	if err != nil {
		return ids, err
	}
	more, err := db.revokeCopies()
	return append(ids, more...), err
}

// purge writes one segment anew without some rows. Called with merging held.
func (db *DB) purge(ctx context.Context, s *seg, rows map[uint64]struct{}) error {
	db.mu.Lock()
	if s.dropped { // only snapshots hold it, and they were ended
		db.mu.Unlock()
		return nil
	}
	job := compaction.Job{Kind: compaction.Clean, Settled: s.window() != nil, Window: s.window()}
	r := &rewrite{db: db, begun: time.Now(), meta: db.meta, job: job, inputs: []*seg{s}, closed: db.view.closed, horizon: db.horizon(), late: fhir.None}
	s.refs++
	db.mu.Unlock()
	return r.run(ctx, rows)
}

// elsewhere lists what this store knows of that may still hold what was erased:
// backups, and what reindex put aside.
func (db *DB) elsewhere(segs []*seg) ([]string, error) {
	var list []string
	db.mu.Lock()
	for _, s := range segs {
		if s.refs > 0 && db.segs[s.id()] == s {
			list = append(list, "segment "+s.r.ID().BodyName()+", which a download under way still has open: it goes when that ends")
		}
	}
	db.mu.Unlock()
	err := index.Scan(db.kv, index.Backups(), func(k, _ []byte) error {
		list = append(list, "backup "+string(k[1:]))
		return nil
	})
	names, e := db.fs.List(db.dir)
	for _, n := range names {
		if strings.HasPrefix(n, "set-aside-") || strings.HasPrefix(n, "index.old-") {
			list = append(list, "folder "+db.fs.PathJoin(db.dir, n))
		}
	}
	slices.Sort(list)
	return list, errors.Join(err, e)
}
