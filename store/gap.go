package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/index"
)

// A Decision says how a partition goes on whose log does not continue what was read of it.
type Decision struct {
	Partition Partition
	Next      int64    // where reading goes on
	TopicID   [16]byte // of the topic that it is now
	// Anew: what the log holds has other offsets than what was read, so that they tell nothing
	// of what is newer than the rows of now.
	Anew bool
	// Lost tells what may be missing: a dead letter that exports speak of, for a window with a
	// hole is what it is.
	Lost DeadLetter
}

// Decide has a partition go on after a gap in its log. It is durable when it returns. The
// partition must be discovered again before it is read: until it has reached its end, the
// watermark waits. A crash in between may leave what is lost told, and the gap as it is.
//
// Nothing that was read before the gap may be on its way into the store.
func (db *DB) Decide(ctx context.Context, d Decision) error {
	st, known := db.Partition(d.Partition)
	if !known {
		return fmt.Errorf("decide about %v: it was never read", d.Partition)
	}
	lost := Change{
		Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None, Offset: st.Next, Dead: &d.Lost,
	}
	err := db.Apply(ctx, Batch{Partition: d.Partition, Changes: []Change{lost}, Asked: fhir.None, LeaderEpoch: -1, Resolved: []Bound{}})
	if err := errors.Join(err, db.Flush()); err != nil { //nolint:contextcheck // a commit is not cut short
		return fmt.Errorf("note what is lost of %v: %w", d.Partition, err)
	}
	return db.move(d.Partition, func(p *partition) {
		s := &p.durable
		s.Next, s.LeaderEpoch, s.TopicID, s.Seen = d.Next, -1, d.TopicID, db.Now()
		if d.Anew {
			s.Anew = db.meta.NextSeq
		}
	})
}

// Forget has the watermark go on without a partition that nobody will read again. What came
// of it stays. If the partition comes back, it is a new one, and read from its beginning.
func (db *DB) Forget(p Partition) error {
	if _, known := db.Partition(p); !known {
		return fmt.Errorf("forget %v: it was never read", p)
	}
	return db.move(p, func(p *partition) {
		p.durable.Forgotten = true
		p.joined, p.stored, p.held = false, false, ""
	})
}

// move changes what is durable of a partition, beside all commits.
func (db *DB) move(name Partition, change func(*partition)) error {
	if err := db.writable(); err != nil {
		return err
	}
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	db.mu.Lock()
	next := *db.parts[name]
	next.progress = nil // to be discovered again, unless change says how far it is
	change(&next)
	db.mu.Unlock()
	err := db.whileOpen(func() error {
		b := db.kv.NewBatch()
		defer b.Close()
		w := batchWriter{b: b}
		w.set(index.PartitionKey(name), next.durable.Encode())
		if next.joined && next.stored {
			w.set(index.JoinedKey(name), next.durable.Encode())
		} else {
			w.delete(index.JoinedKey(name))
		}
		return errors.Join(w.err, b.Commit(pebble.Sync))
	})
	if err != nil {
		return db.fail(fmt.Errorf("move %v: %w", name, err))
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	*db.parts[name] = next
	db.settle()
	return nil
}

// revive has a partition read again that was forgotten. Where its log is the one that was read
// before it goes on where that ended; else it is a new one, with its number.
func (db *DB) revive(p *partition, f Discovered) {
	known := p.durable
	same := f.TopicID != ([16]byte{}) && f.TopicID == known.TopicID
	if same && f.Start <= known.Next && known.Next <= f.End { // shorter, it has lost something
		known.Forgotten = false
		*p = partition{durable: known, seen: db.Now()}
		return
	}
	*p = partition{
		durable: index.PartitionState{
			Number: known.Number, Next: f.Start, LeaderEpoch: -1, TopicID: f.TopicID, Seen: fhir.None, Anew: db.meta.NextSeq,
		},
		seen: db.Now(),
	}
}

// from is the partition a change comes from, as far as its offset can be compared with that
// of the row: a log that begins anew is another one.
func (c *commit) from(p Partition, cur *index.State) Partition {
	if cur == nil || cur.Clock.Origin != p || cur.Seq >= c.anew[p] {
		return p
	}
	return Partition{Topic: p.Topic + "\x00", ID: p.ID} // after the row's, where nothing else tells
}

// beginnings are from which sequence number on rows are of the logs of now, for partitions
// whose logs are not the first. Called with mu held.
func (db *DB) beginnings() map[Partition]uint64 {
	var m map[Partition]uint64
	for name, p := range db.parts {
		if p.durable.Anew > 0 {
			if m == nil {
				m = map[Partition]uint64{}
			}
			m[name] = p.durable.Anew
		}
	}
	return m
}
