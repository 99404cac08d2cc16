package reconcile

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/index"
)

// A Finding is one resource that is not as the export has it. It holds nothing of what the
// resource says.
type Finding struct {
	What  What
	Key   fhir.Key
	Here  *store.Newest // nil: the store never had it
	There *Entry        // nil: the export has it not
}

// A Tally counts resources of a type.
type Tally struct {
	Here     int64 // living in the store
	Exported int64
	By       [whats]int64
}

// A Report is what a comparison found.
type Report struct {
	Types map[fhir.Type]*Tally
	Twice int64 // entries of the export that another of the same resource makes void
}

// Sum counts all types.
func (r *Report) Sum() (sum Tally) {
	for _, t := range r.Types {
		sum.Here, sum.Exported = sum.Here+t.Here, sum.Exported+t.Exported
		for w, n := range t.By {
			sum.By[w] += n
		}
	}
	return sum
}

// Wrong is how many resources are not as they should be.
func (t *Tally) Wrong() (n int64) {
	for _, w := range Faults {
		n += t.By[w]
	}
	return n
}

func (r *Report) of(t fhir.Type) *Tally {
	if r.Types[t] == nil {
		r.Types[t] = &Tally{}
	}
	return r.Types[t]
}

// Compare compares what was added with what a store says it has (WriteRows), and notes
// what is to be repaired. found is told of everything but what is the same.
func (s *Scratch) Compare(here io.Reader, rules *Rules, found func(*Finding) error) (*Report, error) {
	x, err := s.exported()
	if err != nil {
		return nil, err
	}
	c := comparison{s: s, rules: rules, found: found, report: &Report{Types: map[fhir.Type]*Tally{}}}
	err = errors.Join(c.merge(x, bufio.NewReaderSize(here, 64<<10)), x.it.Close(), s.flush())
	c.report.Twice = x.twice
	return c.report, err
}

type comparison struct {
	s      *Scratch
	rules  *Rules
	found  func(*Finding) error
	report *Report
}

// merge walks through both sides, which are sorted alike.
func (c *comparison) merge(x *exported, in *bufio.Reader) error {
	for {
		n, err := readRow(in)
		if errors.Is(err, io.EOF) {
			return c.exportedAlone(x, nil)
		}
		if err != nil {
			return err
		}
		row := index.RowKey(nil, n.Key)
		if err := c.exportedAlone(x, row); err != nil {
			return err
		}
		var e *Entry
		if bytes.Equal(x.row(), row) {
			if e, err = x.next(); err != nil {
				return err
			}
		}
		if err := c.pair(e, n); err != nil {
			return err
		}
	}
}

// exportedAlone takes what the export has before a row of the store; nil: all that is left.
func (c *comparison) exportedAlone(x *exported, row []byte) error {
	for x.ok && (row == nil || bytes.Compare(x.row(), row) < 0) {
		e, err := x.next()
		if err != nil {
			return err
		}
		if err := c.pair(e, nil); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) pair(e *Entry, n *store.Newest) error {
	key := fhir.Key{}
	if e != nil {
		key = e.Key
	} else {
		key = n.Key
	}
	t := c.report.of(key.Type)
	if n != nil && n.Kind == store.Live {
		t.Here++
	}
	if e != nil && !e.Gone {
		t.Exported++
	}
	what := c.rules.judge(e, n)
	if what == Different { // so far only bytes differ
		return c.s.set(index.RowKey([]byte{spaceContent}, key), appendEntry(appendPlace(binary.LittleEndian.AppendUint64(nil, n.Seq), e), e))
	}
	t.By[what]++
	return c.tell(&Finding{what, key, n, e})
}

func (c *comparison) tell(f *Finding) error {
	var err error
	switch f.What {
	case Same, Unjudged:
		return nil
	case Missing, Stale:
		err = c.send(f)
	case Extra:
		err = c.remove(f, c.rules.At)
	case Reborn: // what it says is of a new life only if the old one ended before
		err = errors.Join(c.remove(f, f.There.Updated-1), c.send(f))
	}
	if err != nil {
		return err
	}
	return c.found(f)
}

// send and remove note how a finding is to be repaired.
func (c *comparison) send(f *Finding) error {
	return c.s.set(appendPlace([]byte{spaceRepair}, f.There), nil)
}

func (c *comparison) remove(f *Finding, at fhir.Instant) error {
	return c.s.set(index.RowKey([]byte{spaceExtra}, f.Key), binary.LittleEndian.AppendUint64(nil, uint64(at)))
}

// Unlike tells whether resources are left whose bytes differ under the same version: then
// CompareContent finds out whether they say something else.
func (s *Scratch) Unlike() (bool, error) {
	it, err := s.kv.NewIter(space(spaceContent))
	if err != nil {
		return false, err
	}
	some := it.First()
	return some, errors.Join(it.Error(), it.Close())
}

// CompareContent compares what is left with what a store says its resources hold
// (WriteContent). What has changed there since Compare is newer.
func (s *Scratch) CompareContent(here io.Reader, report *Report, found func(*Finding) error) error {
	in := bufio.NewReaderSize(here, 64<<10)
	for {
		key, seq, hash, err := readContent(in)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := s.content(key, seq, hash, report, found); err != nil {
			return err
		}
	}
	// A row that is gone by now was replaced, or deleted, after the export.
	return s.each(spaceContent, func(k, _ []byte) error {
		key, err := index.ParseRowKey(k)
		if err != nil {
			return err
		}
		report.of(key.Type).By[Newer]++
		return nil
	})
}

func (s *Scratch) content(key fhir.Key, seq, hash uint64, report *Report, found func(*Finding) error) error {
	row := index.RowKey(nil, key)
	k := append([]byte{spaceContent}, row...)
	v, closer, err := s.kv.Get(k)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	v = append([]byte(nil), v...)
	if err := closer.Close(); err != nil || len(v) != 8+placeLen+entryLen || binary.LittleEndian.Uint64(v) != seq {
		return err
	}
	e, err := readEntry(row, v[8:8+placeLen], v[8+placeLen:])
	if err != nil {
		return err
	}
	if err := s.kv.Delete(k, pebble.NoSync); err != nil {
		return err
	}
	if e.Canonical == hash {
		report.of(key.Type).By[Same]++
		return nil
	}
	report.of(key.Type).By[Different]++
	here := &store.Newest{Key: key, Kind: store.Live, Seq: seq, Clock: store.Clock{Version: e.Version, LastUpdated: e.Updated}}
	return found(&Finding{Different, key, here, &e})
}

func (s *Scratch) each(b byte, fn func(k, v []byte) error) error {
	return index.Scan(s.kv, space(b), func(k, v []byte) error { return fn(k[1:], v) })
}
