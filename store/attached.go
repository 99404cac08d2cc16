package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// errStays ends a search for who else refers to a Binary.
var errStays = errors.New("somebody else refers to it")

// attached lists the Binaries to which only what goes with an erased compartment
// refers, or did: an attachment goes with what it is attached to. One that lies in
// a compartment itself goes by that.
func (db *DB) attached(ctx context.Context, d *doomed) (list []Erasure, err error) {
	if len(d.theirs) == 0 {
		return nil, nil
	}
	named := map[string]struct{}{}
	err = index.Scan(db.kv, index.Referrers(), func(k, _ []byte) error {
		binary, by, err := index.ParseReferrerKey(k)
		if _, his := d.theirs[by]; his {
			named[binary] = struct{}{}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	now := db.snapshotNow()
	defer func() { err = errors.Join(err, now.Close()) }()
	erased := db.erased.Load()
	for id := range named {
		key := fhir.Key{Type: fhir.Binary, ID: id}
		if erased.refuses(key, nil) {
			continue
		}
		switch stays, err := now.isOthers(ctx, key, erased); {
		case err != nil:
			return nil, err
		case !stays:
			list = append(list, Erasure{Key: key})
		}
	}
	return list, nil
}

// isOthers tells whether a Binary is about somebody who is not erased: it says so
// itself, or something refers to it that stays.
func (s *Snapshot) isOthers(ctx context.Context, binary fhir.Key, erased *erasedList) (bool, error) {
	st, err := s.db.newest(binary)
	if err != nil && !errors.Is(err, ErrUnknown) {
		return false, err
	}
	if err == nil && st.Kind == segment.Live && st.Patients != 0 {
		return true, nil
	}
	err = s.Referrers(ctx, binary, func(row *segment.Row) error {
		if erased.refuses(row.Key, row.Patients) {
			return nil
		}
		return errStays
	})
	if errors.Is(err, errStays) {
		return true, nil
	}
	return false, err
}

// forgetErased takes out of the index what resources referred to that are gone, and
// what led to Provenance that is. It asks about each key that there is, while merges
// and intake go on.
func (db *DB) forgetErased(ctx context.Context) error {
	var gone [][]byte
	origin := db.origins()
	for _, in := range append(index.Pointers(), index.Referrers()) {
		err := db.whileOpen(func() error {
			return index.Scan(db.kv, in, func(k, _ []byte) error {
				lives, err := db.leadsToLiving(k, origin)
				if err == nil && !lives {
					gone = append(gone, slices.Clone(k))
				}
				return errors.Join(err, ctx.Err())
			})
		})
		if err != nil {
			return err
		}
	}
	if len(gone) == 0 {
		return nil
	}
	db.commitMu.Lock() // a resource may have come back since, and a commit brought its references
	defer db.commitMu.Unlock()
	db.mu.Lock()
	db.forgot = db.meta.Newest // older snapshots may show what is gone since
	db.mu.Unlock()
	return db.whileOpen(func() error {
		b, origin := db.kv.NewBatch(), db.origins()
		defer b.Close()
		w := batchWriter{b: b}
		for _, k := range gone {
			lives, err := db.leadsToLiving(k, origin)
			if err != nil {
				return err
			}
			if !lives {
				w.delete(k)
			}
		}
		if err := errors.Join(w.err, b.Commit(pebble.Sync)); err != nil {
			return db.fail(fmt.Errorf("forget what erased resources referred to: %w", err))
		}
		return nil
	})
}

// leadsToLiving tells whether a key of the index leads to a resource that is alive; or
// to none.
func (db *DB) leadsToLiving(k []byte, origin func(uint64) (Partition, bool)) (bool, error) {
	to, err := index.LeadsTo(k)
	if err != nil {
		return false, fmt.Errorf("read the index: %w", err)
	}
	if to == (fhir.Key{}) {
		return true, nil
	}
	st, err := readState(db.kv, to, origin)
	return st != nil && st.Kind == segment.Live, err
}
