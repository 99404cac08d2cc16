package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// Who exports some Patients wants the Provenance about what is theirs, which mostly
// names no Patient itself. The index leads to it from the sets of Patients in whose
// compartments its targets lie: a visit's Provenance has one entry however many
// results it is about, and one Patient's lie side by side.
//
// An entry is never wrong for long, only superfluous: it tells where to look, and
// the directory says what is there. So none is taken back when something moves.
// Where it was and where it is lead to one another from then on, for a Provenance
// that is committed now may be shown beside the place of before. What lies in
// nobody's compartment, or has not come, is awaited.

var provenanceType, _ = fhir.ParseType("Provenance")

// targeted tells whether the place of resources of a type is followed for the
// Provenance about them. A Group goes by its name: its members come and go.
func targeted(t fhir.Type) bool { return fhir.OnlyTargeted(t) && t != groupType }

// leads stores that the Provenance about something is found by where that lies.
func (w *batchWriter) leads(set uint32, to index.Pointer) { w.set(index.AboutKey(set, to), nil) }

// alike stores that two sets lead to one another.
func (w *batchWriter) alike(a, b uint32) {
	w.leads(a, index.Pointer{Set: b})
	w.leads(b, index.Pointer{Set: a})
}

// touchTargets adds what the Provenance of the commit is about to what is looked up.
func (c *commit) touchTargets(list []*resource) []*resource {
	c.targets = map[fhir.Key]*resource{}
	for i := range c.taken {
		for j := range c.taken[i].Changes {
			ch := &c.taken[i].Changes[j]
			if ch.Key.Type != provenanceType || ch.Dead != nil || ch.Delete {
				continue
			}
			for _, key := range ch.References {
				if !targeted(key.Type) || c.touched[key] != nil || c.targets[key] != nil {
					continue
				}
				r := &resource{at: -1, key: index.RowKey(nil, key)}
				c.targets[key] = r
				list = append(list, r)
			}
		}
	}
	return list
}

// A followed is a resource for whose Provenance the commit matters, as it is moved.
type followed struct {
	hash uint64
	set  uint32 // in whose compartments it lay at any time of the commit, or before
}

// follow stores what leads to the Provenance of the commit, and what has moved.
func (c *commit) follow(w *batchWriter) (err error) {
	placed, lost, provenance := c.moves(w)
	if len(placed)+len(lost)+len(provenance) == 0 {
		return nil
	}
	it, err := c.db.kv.NewIter(nil)
	if err != nil {
		return fmt.Errorf("read the index: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if err := w.arrive(it, placed); err != nil {
		return err
	}
	for _, f := range lost {
		w.set(index.AwaitedKey(f.hash, index.Pointer{Set: f.set}), nil)
	}
	for _, row := range provenance {
		if err := c.point(w, it, row); err != nil {
			return err
		}
	}
	return w.err
}

// moves finds what the commit gave a place in compartments and what it took out of
// them, links the places of what has moved, and lists the Provenance.
func (c *commit) moves(w *batchWriter) (placed, lost []followed, provenance []*segment.Row) {
	for i := range c.rows {
		row := &c.rows[i].Row
		if row.Section.Kind != segment.Live {
			continue // a deletion has the place of what it deletes
		}
		if row.Key.Type == provenanceType {
			provenance = append(provenance, row)
		}
		if !targeted(row.Key.Type) {
			continue
		}
		r, now := c.touched[row.Key], segment.PatientsHash(row.Patients)
		switch {
		case now == 0 && r.set != 0:
			lost = append(lost, followed{index.ResourceHash(row.Key), r.set})
		case r.set == 0 && now != 0:
			r.set = now
			placed = append(placed, followed{index.ResourceHash(row.Key), now})
		case now != r.set:
			w.alike(r.set, now)
		}
	}
	return placed, lost, provenance
}

// arrive lets places lead to what was awaited there.
func (w *batchWriter) arrive(it *pebble.Iterator, placed []followed) error {
	all := index.Awaited()
	if !it.SeekGE(all.LowerBound) || bytes.Compare(it.Key(), all.UpperBound) >= 0 {
		return it.Error() // nothing is, mostly
	}
	slices.SortFunc(placed, func(a, b followed) int { return cmp.Compare(a.hash, b.hash) })
	for _, f := range placed {
		err := index.Each(it, index.AwaitedOf(f.hash), func(key []byte, to index.Pointer) bool {
			if to.Provenance != "" {
				w.leads(f.set, to)
			} else if to.Set != f.set {
				w.alike(f.set, to.Set)
			}
			w.delete(slices.Clone(key))
			return true
		})
		if err != nil {
			return fmt.Errorf("read the index: %w", err)
		}
	}
	return nil
}

// point lets the places of what a Provenance is about lead to it.
func (c *commit) point(w *batchWriter, it *pebble.Iterator, row *segment.Row) error {
	to := index.Pointer{Provenance: row.Key.ID}
	for _, key := range row.References {
		if key.Type == groupType {
			w.leads(segment.GroupHash(key.ID), to)
		}
		if !targeted(key.Type) {
			continue
		}
		r := c.touched[key]
		if r == nil {
			r = c.targets[key]
		}
		if r == nil {
			continue // revised: it is about the same as before
		}
		if r.set != 0 {
			w.leads(r.set, to)
			continue
		}
		if err := w.awaits(it, index.ResourceHash(key), to); err != nil {
			return err
		}
	}
	return nil
}

// awaits lets a resource without a place lead to a Provenance, as do the places that
// it had: beside its version there, this Provenance may be shown.
func (w *batchWriter) awaits(it *pebble.Iterator, resource uint64, to index.Pointer) error {
	w.set(index.AwaitedKey(resource, to), nil)
	err := index.Each(it, index.AwaitedOf(resource), func(_ []byte, had index.Pointer) bool {
		if had.Provenance == "" {
			w.leads(had.Set, to)
		}
		return had.Provenance == "" // sets come first
	})
	if err != nil {
		return fmt.Errorf("read the index: %w", err)
	}
	return nil
}

// remember stores where something lay that the index forgets, if any Provenance is
// found there: it may come again, and so be what that is about.
func (w *batchWriter) remember(r pebble.Reader, key fhir.Key, set uint32) (err error) {
	if set == 0 || !targeted(key.Type) {
		return nil
	}
	it, err := r.NewIter(index.AboutsOf(set))
	if err != nil {
		return fmt.Errorf("read the index: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if it.First() {
		w.set(index.AwaitedKey(index.ResourceHash(key), index.Pointer{Set: set}), nil)
	}
	return it.Error()
}

// ProvenanceOf lists the Provenance that may be about what lies in the compartments of
// some sets of Patients (Place.Patients), or about Groups (segment.GroupHash): all that
// is, and some that was. ok is false if it cannot be told, as of an old snapshot after
// an erasure or a restart, or that is too many to be looked for one by one.
func (s *Snapshot) ProvenanceOf(ctx context.Context, compartments map[uint32]bool) (list []fhir.Key, ok bool, err error) {
	if !s.db.abouts {
		return nil, false, nil
	}
	err = s.db.whileOpen(func() (err error) {
		it, err := s.db.kv.NewIter(nil)
		if err != nil {
			return fmt.Errorf("read the index: %w", err)
		}
		defer func() { err = errors.Join(err, it.Close()) }()
		if s.db.forgotSince(s.pin.Watermark) { // asked once nothing can be taken from the iterator
			return nil
		}
		found := map[string]bool{}
		ok, err = index.Reach(it, compartments, maxLocated, func(id string) bool {
			found[id] = true
			return len(found) <= maxLocated && ctx.Err() == nil
		})
		list = make([]fhir.Key, 0, len(found))
		for id := range found {
			list = append(list, fhir.Key{Type: provenanceType, ID: id})
		}
		return errors.Join(err, ctx.Err())
	})
	if err != nil || !ok || len(list) > maxLocated {
		return nil, false, err
	}
	return list, true, nil
}

// forgotSince tells whether the index may have forgotten what a snapshot shows.
func (db *DB) forgotSince(watermark fhir.Instant) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return watermark < db.forgot
}
