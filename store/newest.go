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

// Clock is what the source said about when a row came to be.
type Clock = segment.Clock

// Life is what a resource's earlier deletions left behind.
type Life = segment.Life

// Newest is what the store has of a resource: its newest row, as far as the index tells.
type Newest struct {
	Key fhir.Key
	// Kind is Live or Deleted, or Internal where a resource was deleted that never was here.
	Kind    Kind
	Seq     uint64
	Instant fhir.Instant
	Hash    uint64 // of the body as the source sent it (xxHash64)
	Clock   Clock
	Life    Life
}

// Compare tells what becomes of somebody's saying that the resource lives, with a version
// (NoVersion: none) and a lastUpdated (None: none): more than 0 if that is newer than the
// row and would take its place, less than 0 if it is older, or of a life that ended, and 0
// if it says nothing that the row does not say.
func (n *Newest) Compare(version int64, lastUpdated fhir.Instant) int {
	ch := Change{Version: version, LastUpdated: lastUpdated}
	if n.Kind != segment.Live {
		if belowFloor(&n.Life, &n.Clock, &ch) {
			return -1
		}
		return 1 // any other live change beats a deletion, also of what we never had
	}
	o := compareVersions(&ch, &n.Clock)
	if o == 0 {
		o = compareInstants(lastUpdated, n.Clock.LastUpdated)
	}
	if o != 0 && n.Life.Reborn && belowFloor(&n.Life, &n.Clock, &ch) { // 0: the row itself may be of the instant of the floor
		return -1
	}
	return o
}

// Said is when the source said the row, as far as is known: its lastUpdated, else the
// time of its record, else when it came here.
func (n *Newest) Said() fhir.Instant {
	at := n.Clock.LastUpdated
	// A deletion, and a change without a version, may have that of the row before.
	if at == fhir.None || n.Kind != segment.Live || n.Clock.Inherited {
		at = max(at, n.Clock.Timestamp)
	}
	if at == fhir.None {
		return n.Instant
	}
	return at
}

// newestAtOnce is how many are read from the index before anybody is told: he may be slow,
// and the index cannot be closed meanwhile.
const newestAtOnce = 4096

// EachNewest calls fn for what is committed of each resource of some types (nil: all),
// whatever the watermark, sorted as index.RowKey sorts. What is committed meanwhile may be
// among it or not; each resource comes once.
func (db *DB) EachNewest(ctx context.Context, types []fhir.Type, fn func(*Newest) error) error {
	from := index.Rows().LowerBound
	list := make([]Newest, 0, newestAtOnce)
	for from != nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		list = list[:0]
		if list, from, err = db.someNewest(list, from, types); err != nil {
			return err
		}
		for i := range list {
			if err := fn(&list[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// someNewest reads on from a key, and returns the key to go on at; nil: that was all.
func (db *DB) someNewest(list []Newest, from []byte, types []fhir.Type) ([]Newest, []byte, error) {
	origins := db.origins()
	var next []byte
	err := db.whileOpen(func() error {
		it, err := db.kv.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: index.Rows().UpperBound})
		if err != nil {
			return err
		}
		for ok := it.First(); ok; ok = it.Next() {
			if len(list) == cap(list) {
				next = slices.Clone(it.Key())
				break
			}
			v, err := it.ValueAndErr()
			if err == nil {
				list, err = appendNewest(list, it.Key(), v, types, origins)
			}
			if err != nil {
				return errors.Join(err, it.Close())
			}
		}
		return errors.Join(it.Error(), it.Close())
	})
	if err != nil {
		err = fmt.Errorf("read the index: %w", err)
	}
	return list, next, err
}

func appendNewest(list []Newest, k, v []byte, types []fhir.Type, origins func(uint64) (Partition, bool)) ([]Newest, error) {
	key, err := index.ParseRowKey(k)
	if err != nil || types != nil && !slices.Contains(types, key.Type) {
		return list, err
	}
	st, err := index.DecodeState(v, origins)
	return append(list, Newest{key, st.Kind, st.Seq, st.Instant, st.Hash, st.Clock, st.Life}), err
}

// EachLine calls fn for the rows of living resources of some types (nil: all) with their
// lines, old versions and dead ones too, some of them twice. It reads all bodies once. A
// line is valid until the next.
func (db *DB) EachLine(ctx context.Context, types []fhir.Type, fn func(key fhir.Key, seq uint64, line []byte) error) error {
	now := db.snapshotNow()
	for _, s := range now.segs {
		if err := s.eachLine(ctx, types, fn); err != nil {
			return errors.Join(err, now.Close())
		}
	}
	return now.Close()
}

func (s *seg) eachLine(ctx context.Context, types []fhir.Type, fn func(key fhir.Key, seq uint64, line []byte) error) (err error) {
	body, err := s.r.OpenBody()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	dir, err := s.r.OpenDirectory()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	var rows []segment.Row
	var text []byte
	for _, sec := range s.r.Sections() {
		if sec.Kind != segment.Live || types != nil && !slices.Contains(types, sec.Type) {
			continue
		}
		for b := sec.From; b < sec.To && err == nil; b++ {
			if rows, err = dir.Rows(rows[:0], b); err != nil {
				return err
			}
			if text, err = s.r.Lines(text[:0], body, b); err != nil {
				return err
			}
			rest := text
			for i := range rows {
				if err := fn(rows[i].Key, rows[i].Seq, rest[:rows[i].Length]); err != nil {
					return err
				}
				rest = rest[rows[i].Length:]
			}
			err = ctx.Err()
		}
	}
	return err
}

// ReadRefused reads which resources the store in dir refuses for ever, by their keys and
// the Patients in whose compartments they lie: what was erased by now.
func ReadRefused(dir string) (refuses func(key fhir.Key, patients []string) bool, err error) {
	list, err := readErased(Disk, Disk.PathJoin(dir, erasedFile))
	if err != nil {
		return nil, err
	}
	return list.refuses, nil
}
