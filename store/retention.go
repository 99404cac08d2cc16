package store

import (
	"time"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// A horizon tells what may be forgotten.
type horizon struct {
	deaths      fhir.Instant // rows superseded up to here
	lastState   fhir.Instant // last states whose deletion came up to here
	deleted     fhir.Instant // deletions before, unless they are needed
	overdue     fhir.Instant // what died before keeps deletions from being forgotten in their time: it goes first
	deadLetters fhir.Instant // dead letters before
}

// A fate is what a merge does with a row that died.
type fate uint8

const (
	stays   fate = iota // some watermark may show it
	retires             // it becomes a last state
	goes
)

// fate tells what becomes of a dead row.
func (h horizon) fate(d index.Death) fate {
	switch {
	case d.At > h.deaths:
		return stays
	case d.Removed && d.At > h.lastState && d.Section.Kind == segment.Last:
		return stays
	case d.Removed && d.At > h.lastState:
		return retires
	}
	return goes
}

// deathsIn is up to which death rows of a section are left out or moved.
func (h horizon) deathsIn(sec segment.Section) fhir.Instant {
	if sec.Kind == segment.Last {
		return min(h.deaths, h.lastState)
	}
	return h.deaths
}

// horizon is what may be forgotten now. Called with mu held.
func (db *DB) horizon() horizon {
	h := horizon{
		deaths: db.stored, lastState: db.before(db.o.LastState),
		overdue: db.before(db.o.Deleted), deadLetters: db.before(db.o.DeadLetters),
	}
	// A deletion must outlive whatever row it could be needed to keep dead: after
	// a reindex only a later row of the same resource says that one is.
	h.deleted = h.overdue
	for _, s := range db.view.all() {
		h.deleted = min(h.deleted, s.leastDeath)
	}
	return h
}

// before is the promised instant that lies some time ago. Called with mu held.
func (db *DB) before(d time.Duration) fhir.Instant {
	if db.stored == fhir.None {
		return fhir.None
	}
	return min(db.stored, db.clock.now()-fhir.Instant(d.Milliseconds()))
}

// expires tells whether a row of a section may be forgotten for its age alone.
func (h horizon) expires(sec segment.Section, c fhir.Instant) bool {
	if sec == deadLetters {
		return c < h.deadLetters
	}
	return tellsDeletion(sec) && c < h.deleted
}

// departures is where it is told which Patients a resource has left.
var departures = segment.Section{Kind: segment.Internal, Type: segment.Departures}

// tellsDeletion tells whether rows of a section say that something is no more:
// a resource, or a patient's claim on one.
func tellsDeletion(sec segment.Section) bool {
	return sec.Kind == segment.Deleted || sec.Kind == segment.Internal &&
		(sec.Type == segment.Unseen || sec.Type == segment.Repeats || sec.Type == segment.Departures)
}

// maxExpired bounds the resources that one merge forgets: their entries leave
// the index while intake waits.
const maxExpired = 50_000

// expire forgets a row for its age, if there is room to note it. It is asked of
// a row more than once.
func (r *rewrite) expire(row *segment.Row) bool {
	if _, again := r.expired[row.Seq]; !again {
		if len(r.expired) == maxExpired {
			return false
		}
		if r.expired == nil {
			r.expired = map[uint64]fhir.Key{}
		}
		r.expired[row.Seq] = row.Key
	}
	if row.Section.Kind == segment.Deleted || row.Section == departures {
		r.late = max(r.late, row.Instant)
	}
	return true
}

// forget takes the resources that are forgotten out of the index, unless they
// have come back since.
func (r *rewrite) forget(w *batchWriter) error {
	origin := r.db.origins()
	for seq, key := range r.expired {
		st, err := readState(r.db.kv, key, origin)
		if err != nil {
			return err
		}
		if st != nil && st.Seq == seq {
			w.delete(index.RowKey(nil, key))
			if err := w.remember(r.db.kv, key, st.Patients); err != nil {
				return err
			}
		}
	}
	return w.err
}
