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

// refers stores that the Binaries to which a row refers lead to its resource. What
// a Binary refers to is only who guards it (securityContext): that opens nothing.
func (w *batchWriter) refers(r *segment.Row) {
	if r.Section.Kind != segment.Live || r.Key.Type == fhir.Binary {
		return
	}
	for _, k := range r.References {
		if k.Type == fhir.Binary && !k.Elsewhere() {
			w.set(index.ReferrerKey(k.ID, r.Key), nil)
		}
	}
}

// referrersAtOnce is how many resources are looked for together: of a letterhead
// there may be a hundred thousand, and most who ask want one.
const referrersAtOnce = 100

// Referrers calls fn for each resource that refers to a Binary at the snapshot's
// watermark, with its row, which fn may not keep. An error of fn ends it and is
// returned. To be asked of a snapshot that is new: the index forgets resources that
// are gone since.
func (s *Snapshot) Referrers(ctx context.Context, binary fhir.Key, fn func(*segment.Row) error) error {
	if binary.Type != fhir.Binary {
		return nil
	}
	in := index.ReferrersOf(binary.ID)
	for {
		keys, typ, err := s.db.someReferrers(in)
		if err != nil || len(keys) == 0 {
			return err
		}
		// The index knows who refers to it or did: the directory says who does.
		of := s.Choosing(Choice{Keys: keys})
		err = of.Rows(ctx, segment.Section{Kind: segment.Live, Type: typ}, fhir.None, s.pin.Watermark, func(row *segment.Row) error {
			if !slices.Contains(row.References, binary) {
				return nil
			}
			return fn(row)
		})
		if err != nil {
			return err
		}
	}
}

// someReferrers are the next resources of one type that refer to a Binary or did,
// as a Choice wants them. It leaves in what is behind them.
func (db *DB) someReferrers(in *pebble.IterOptions) (keys map[fhir.Key]fhir.Instant, typ fhir.Type, err error) {
	keys = map[fhir.Key]fhir.Instant{}
	err = db.whileOpen(func() error {
		it, err := db.kv.NewIter(in)
		if err != nil {
			return fmt.Errorf("read the index: %w", err)
		}
		for ok := it.First(); ok && len(keys) < referrersAtOnce; ok = it.Next() {
			_, by, err := index.ParseReferrerKey(it.Key())
			if err != nil {
				return errors.Join(fmt.Errorf("read the index: %w", err), it.Close())
			}
			if len(keys) > 0 && by.Type != typ {
				break
			}
			keys[by], typ = fhir.None, by.Type
			in.LowerBound = append(slices.Clone(it.Key()), 0)
		}
		return errors.Join(it.Error(), it.Close())
	})
	return keys, typ, err
}
