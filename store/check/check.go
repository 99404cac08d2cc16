// Package check proves the numbered invariants of store/FORMAT.md on an index
// and its segments. It changes nothing and repairs nothing.
package check

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// A Store is what is to be checked: nothing may write to it meanwhile.
type Store struct {
	FS       vfs.FS
	Index    pebble.Reader
	Segments string // the folder
	Bodies   bool   // read and prove every body, not only directories
	// Beside reads and proves, with bodies, what lies beside a snapshot.
	Beside   func(snapshot string) (faults []error)
	Progress func(done, total int)
}

// A Report counts what was proved.
type Report struct {
	Segments, Blocks int
	Rows, Live, Dead int64
	Settled          int64 // rows that still lie in a fresh segment and in a settled one
}

// maxFaults bounds how many faults are told; a broken disk has millions.
const maxFaults = 100

// Run proves the invariants. Every fault is one error, joined; it names the
// invariant, the file and the place, never what a resource holds.
func (s *Store) Run() (Report, error) {
	c := &checker{s: s, numbers: map[uint64]segment.Partition{}, byID: map[segment.ID]*segment.Reader{}}
	if s.Progress == nil {
		s.Progress = func(int, int) {}
	}
	for _, step := range []func() error{c.load, c.segments, c.states, c.pins} {
		if err := step(); err != nil {
			return c.report, errors.Join(append(c.faults, err)...)
		}
	}
	return c.report, errors.Join(c.faults...)
}

type checker struct {
	s       *Store
	meta    index.Meta
	numbers map[uint64]segment.Partition
	next    map[segment.Partition]int64
	anew    map[segment.Partition]uint64
	live    []*segment.Reader
	byID    map[segment.ID]*segment.Reader
	deaths  map[segment.ID]map[uint64]index.Death
	report  Report
	newest  int64 // rows that no death names
	abouts  bool  // the index leads to Provenance by what it is about
	faults  []error
}

func (c *checker) fault(format string, args ...any) {
	if len(c.faults) < maxFaults {
		c.faults = append(c.faults, fmt.Errorf(format, args...))
	}
}

func (c *checker) load() error {
	v, closer, err := c.s.Index.Get(index.MetaKey())
	if err != nil {
		return fmt.Errorf("read the store's state: %w", err)
	}
	c.meta, err = index.DecodeMeta(v)
	if err := errors.Join(err, closer.Close()); err != nil {
		return err
	}
	if c.abouts, err = index.Has(c.s.Index, index.AboutsKey()); err != nil {
		return err
	}
	return errors.Join(c.loadPartitions(), c.loadSegments(), c.loadDeaths())
}

func (c *checker) loadPartitions() error {
	c.next, c.anew = map[segment.Partition]int64{}, map[segment.Partition]uint64{}
	load := func(k, v []byte) error {
		name, err := index.ParsePartitionKey(k)
		if err != nil {
			return err
		}
		st, err := index.DecodePartition(v)
		c.numbers[st.Number] = name
		c.next[name] = max(c.next[name], st.Next)
		c.anew[name] = max(c.anew[name], st.Anew)
		return err
	}
	return errors.Join(index.Scan(c.s.Index, index.Joined(), load), index.Scan(c.s.Index, index.Partitions(), load))
}

func (c *checker) loadSegments() error {
	known := map[segment.ID]bool{c.meta.NextSegment: true} // a commit's that a crash cut short
	err := index.Scan(c.s.Index, index.Segments(), func(k, v []byte) error {
		id, err := index.ParseSegmentKey(k)
		if err != nil {
			return err
		}
		known[id] = true
		r, err := segment.Open(c.s.FS, c.s.Segments, id)
		if err != nil {
			if v[0] == index.SegmentLive {
				c.fault("S2: the catalogue lists segment %s: %w", id.DirectoryName(), err)
			}
			return nil
		}
		c.byID[id] = r
		if v[0] == index.SegmentLive {
			c.live = append(c.live, r)
		}
		if r.Footer().Store != c.meta.Store {
			c.fault("S2: %s belongs to another store", id.DirectoryName())
		}
		if id >= c.meta.NextSegment {
			c.fault("S2: %s has a number that was not given yet", id.DirectoryName())
		}
		return nil
	})
	slices.SortFunc(c.live, func(a, b *segment.Reader) int {
		f, g := a.Footer(), b.Footer()
		switch {
		case f.Window != nil && g.Window != nil:
			return cmp.Or(f.Window.To.Compare(g.Window.To), cmp.Compare(f.ID, g.ID))
		case f.Window != nil:
			return -1
		case g.Window != nil:
			return 1
		}
		return cmp.Compare(f.Seqs[0], g.Seqs[0])
	})
	return errors.Join(err, c.unlisted(known))
}

// unlisted finds files that look like a segment's and belong to none: not of
// the catalogue, nor of a merge that has not ended.
func (c *checker) unlisted(known map[segment.ID]bool) error {
	err := index.Scan(c.s.Index, index.Allotted(), func(k, _ []byte) error {
		id, err := index.ParseSegmentKey(k)
		known[id] = true
		return err
	})
	if err != nil {
		return err
	}
	names, err := c.s.FS.List(c.s.Segments)
	if err != nil {
		return fmt.Errorf("list segments: %w", err)
	}
	for _, n := range names {
		if id, ok := segment.ParseName(n); ok && !known[id] {
			c.fault("S2: %s is not in the catalogue", n)
		}
	}
	return nil
}

func (c *checker) loadDeaths() error {
	c.deaths = map[segment.ID]map[uint64]index.Death{}
	return index.Scan(c.s.Index, index.Deaths(), func(k, v []byte) error {
		id, err := index.ParseDeathsKey(k)
		if err != nil {
			return err
		}
		list, err := index.DecodeDeaths(nil, v)
		if c.deaths[id] == nil {
			c.deaths[id] = map[uint64]index.Death{}
		}
		for _, d := range list {
			if _, twice := c.deaths[id][d.Place.Seq]; twice {
				c.fault("D2: the row with sequence number %d of segment %d died twice", d.Place.Seq, id)
			}
			c.deaths[id][d.Place.Seq] = d
		}
		return err
	})
}

func (c *checker) segments() error {
	var before *segment.Footer
	for i, r := range c.live {
		c.s.Progress(i, len(c.live))
		f := r.Footer()
		if f.Seqs[1] < f.Seqs[0] || f.Seqs[1] >= c.meta.NextSeq {
			c.fault("S5: %s: sequence numbers %d to %d were not given yet", f.ID.DirectoryName(), f.Seqs[0], f.Seqs[1])
		}
		c.neighbours(before, f)
		before = f
		for _, p := range f.Offsets {
			if p.Next > c.next[p.Partition] && f.Seqs[1] >= c.anew[p.Partition] {
				c.fault("P2: %s was sealed at offset %d of %v, but the index would go on reading at %d", f.ID.DirectoryName(), p.Next, p.Partition, c.next[p.Partition])
			}
		}
		if err := c.segment(r); err != nil {
			c.fault("%w", err)
		}
	}
	c.s.Progress(len(c.live), len(c.live))
	return nil
}

// neighbours proves that no two segments can hold the same row.
func (c *checker) neighbours(a, b *segment.Footer) {
	switch w := b.Window; {
	case w == nil:
		if a != nil && a.Window == nil && b.Seqs[0] <= a.Seqs[1] {
			c.fault("S5: %s: sequence numbers %d to %d overlap with those of %s", b.ID.DirectoryName(), b.Seqs[0], b.Seqs[1], a.ID.DirectoryName())
		}
	case w.To.Compare(w.From) <= 0 || w.To.Compare(c.meta.Closed) > 0:
		c.fault("S7: %s: its window ends at %v, settled is what lies up to %v", b.ID.DirectoryName(), w.To.Instant, c.meta.Closed.Instant)
	case a != nil && *a.Window != *w && w.From.Compare(a.Window.To) < 0:
		c.fault("S7: %s: its window overlaps with that of %s", b.ID.DirectoryName(), a.ID.DirectoryName())
	case a != nil && *a.Window == *w:
		for _, s := range c.byID[b.ID].Sections() {
			if c.byID[a.ID].Shares(s.Section) {
				c.fault("S7: %s: rows of %v lie in %s too", b.ID.DirectoryName(), s.Section, a.ID.DirectoryName())
			}
		}
	}
}

func (c *checker) segment(r *segment.Reader) error {
	dir, err := r.OpenDirectory()
	if err != nil {
		return err
	}
	defer dir.Close()
	var body vfs.File
	if c.s.Bodies {
		if body, err = r.OpenBody(); err != nil {
			return fmt.Errorf("S1: %w", err)
		}
		defer body.Close()
		if err := frame(r, body); err != nil {
			c.fault("S1: %s: %w", r.ID().BodyName(), err)
		}
	}
	c.report.Segments++
	buried := 0
	for b := range r.Blocks() {
		rows, err := dir.Rows(nil, b)
		if err != nil {
			c.fault("S4: %w", err)
			continue
		}
		c.report.Blocks++
		c.rows(r, b, rows, &buried)
		if body != nil {
			c.body(r, body, b, rows)
		}
	}
	if n := len(c.deaths[r.ID()]); n != buried {
		c.fault("D1: %s: %d deaths, but only %d of its rows are among them", r.ID().DirectoryName(), n, buried)
	}
	return nil
}

// frame proves a body's header, trailer and length.
func frame(r *segment.Reader, body vfs.File) error {
	st, err := body.Stat()
	if err != nil {
		return err
	}
	if st.Size() != r.BodySize() {
		return fmt.Errorf("%w: %d bytes, the directory says %d", segment.ErrCorrupt, st.Size(), r.BodySize())
	}
	var sum segment.Sum
	for _, b := range r.Blocks() {
		sum = sum.Then(b.Sum)
	}
	want := append(slices.Clone(segment.Header()), segment.Trailer(sum)...)
	got := make([]byte, len(want))
	if _, err := body.ReadAt(got[:segment.HeaderSize], 0); err != nil {
		return err
	}
	if _, err := body.ReadAt(got[segment.HeaderSize:], st.Size()-segment.TrailerSize); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("%w: gzip header or trailer", segment.ErrCorrupt)
	}
	return nil
}

// rows proves order, instants and the index's word about the rows of a block.
func (c *checker) rows(r *segment.Reader, b int, rows []segment.Row, buried *int) {
	k, f, name := &r.Blocks()[b], r.Footer(), r.ID().DirectoryName()
	compare, lead := (*segment.Row).Compare, rows[0].Place()
	if f.Window != nil {
		compare = (*segment.Row).CompareByPatient
	} else {
		lead.Patients = 0
	}
	size, first, last := int64(0), rows[0].Instant, rows[0].Instant
	loose, shared, attached := int32(0), int32(0), int32(0)
	for i := range rows {
		row := &rows[i]
		size += int64(row.Length)
		switch n := len(row.Patients); {
		case n == 0:
			loose++
		case n > 1:
			shared++
		}
		if row.Attached() {
			attached++
		}
		first, last = min(first, row.Instant), max(last, row.Instant)
		c.report.Rows++
		if i > 0 && compare(&rows[i-1], row) >= 0 {
			c.fault("S4: %s, block %d, row %d: out of order", name, b, i)
		}
		if f.Window != nil && !f.Window.Holds(row.Bound()) {
			c.fault("S7: %s, block %d, row %d: it lies outside the segment's window", name, b, i)
		}
		if row.Seq < f.Seqs[0] || row.Seq > f.Seqs[1] {
			c.fault("S5: %s, block %d, row %d: sequence number %d lies outside the segment's", name, b, i, row.Seq)
		}
		if f.Merge == 0 && f.Line != fhir.None && row.Instant <= f.Line {
			c.fault("P1: %s, block %d, row %d: change instant %v is not after the line %v", name, b, i, row.Instant, f.Line)
		}
		d, dead := c.deaths[r.ID()][row.Seq]
		if dead {
			*buried++
			c.report.Dead++
			if d.At < row.Instant || d.Place != row.Place() || d.Section != row.Section || d.Length != row.Length {
				c.fault("D1: %s, block %d, row %d: its death says otherwise: %v %v %d at %v, the row %v %v %d", name, b, i, d.Section, d.Place, d.Length, d.At, row.Section, row.Place(), row.Length)
			}
		}
		if f.Window == nil && row.Bound().Compare(c.meta.Closed) <= 0 {
			c.report.Settled++
			continue // what counts is the same row of a settled segment
		}
		if row.Section.Kind == segment.Last && (!dead || !d.Removed) {
			c.fault("D3: %s, block %d, row %d: it is the last state of something that is not deleted", name, b, i)
		}
		if row.Section.Kind == segment.Live && !dead {
			c.report.Live++
		}
		if keyed(row.Section) && !dead {
			c.newest++
			place := fmt.Sprintf("%s, block %d, row %d", name, b, i)
			c.isNewest(row, place)
			c.refers(row, place)
			c.about(row, place)
		}
	}
	if first != k.First || last != k.Last || lead != k.Lead {
		c.fault("S4: %s, block %d: the table's instants are not its rows'", name, b)
	}
	if loose != k.Loose || shared != k.Shared {
		c.fault("S4: %s, block %d: %d of its rows lie in no compartment and %d in several, the table says %d and %d", name, b, loose, shared, k.Loose, k.Shared)
	}
	if attached != k.Attached {
		c.fault("S4: %s, block %d: attachments of %d of its rows lead elsewhere, the table says %d", name, b, attached, k.Attached)
	}
	if size != k.Sum.Size {
		c.fault("S4: %s, block %d: its rows are %d bytes, the table says %d", name, b, size, k.Sum.Size)
	}
}

// keyed tells whether the index has an entry for rows of this section.
func keyed(s segment.Section) bool {
	return s.Kind == segment.Live || s.Kind == segment.Deleted || s.Kind == segment.Internal && s.Type == segment.Unseen
}

// isNewest proves that the index knows a row that is not dead as the newest of
// its resource, with the same facts.
func (c *checker) isNewest(row *segment.Row, place string) {
	v, closer, err := c.s.Index.Get(index.RowKey(nil, row.Key))
	if err != nil {
		c.fault("I2: %s: the index does not know its resource: %w", place, err)
		return
	}
	defer closer.Close()
	st, err := index.DecodeState(v, func(n uint64) (segment.Partition, bool) { p, ok := c.numbers[n]; return p, ok })
	if err != nil {
		c.fault("I1: %s: %w", place, err)
		return
	}
	if st.Seq != row.Seq {
		c.fault("I2: %s: it is not dead, but the index knows sequence number %d as the newest", place, st.Seq)
		return
	}
	clock := row.Clock
	if row.Section.Kind != segment.Live && (st.Clock.Position != 0 || st.Clock.Version > clock.Version || st.Clock.LastUpdated > clock.LastUpdated) { // a repeated deletion may stand further in the source's log, or be later
		clock = st.Clock
	}
	if st.Instant != row.Instant || st.Length != row.Length || st.Clock != clock || st.Hash != row.Hash ||
		st.Placed != row.Placed || st.Patients != segment.PatientsHash(row.Patients) || st.Section(row.Key.Type) != row.Section ||
		st.Life.Reborn != row.Life.Reborn || st.Life.FloorVersion < row.Life.FloorVersion {
		c.fault("I1: %s: the index has other facts about it", place)
	}
}

// refers proves that the index leads from each Binary to a resource that refers
// to it. What a Binary refers to opens no other.
func (c *checker) refers(row *segment.Row, place string) {
	if row.Section.Kind != segment.Live || row.Key.Type == fhir.Binary {
		return
	}
	for _, k := range row.References {
		if k.Type != fhir.Binary || k.Elsewhere() {
			continue
		}
		_, closer, err := c.s.Index.Get(index.ReferrerKey(k.ID, row.Key))
		if err != nil {
			c.fault("R1: %s: it refers to a Binary, and the index does not lead back: run `tidemark reindex`: %w", place, err)
			return
		}
		closer.Close()
	}
}

// about proves that the index leads to a Provenance from wherever what it is about
// lies now, or from that itself where it lies in no compartment.
func (c *checker) about(row *segment.Row, place string) {
	if !c.abouts || row.Section.Kind != segment.Live || row.Key.Type.String() != "Provenance" {
		return
	}
	it, err := c.s.Index.NewIter(nil)
	if err != nil {
		c.fault("%s: read the index: %w", place, err)
		return
	}
	defer it.Close()
	for _, key := range row.References {
		if !fhir.OnlyTargeted(key.Type) {
			continue
		}
		switch found, err := c.leads(it, key, row.Key.ID); {
		case err != nil:
			c.fault("R2: %s: read what leads to a Provenance: %w", place, err)
			return
		case !found:
			c.fault("R2: %s: it is a Provenance, and the index does not lead to it from the %s that it is about: run `tidemark reindex`", place, key.Type)
			return
		}
	}
}

// leads tells whether the index leads from a resource to a Provenance about it.
func (c *checker) leads(it *pebble.Iterator, from fhir.Key, to string) (found bool, err error) {
	sets := map[uint32]bool{}
	switch set, err := c.placeOf(from); {
	case err != nil:
		return false, err
	case set != 0:
		sets[set] = true
	default:
		resource := index.ResourceHash(from)
		key := index.AwaitedKey(resource, index.Pointer{Provenance: to})
		if it.SeekGE(key) && bytes.Equal(it.Key(), key) {
			return true, nil
		}
		err := index.Each(it, index.AwaitedOf(resource), func(_ []byte, p index.Pointer) bool {
			if p.Provenance == "" { // sets come first
				sets[p.Set] = true
			}
			return p.Provenance == ""
		})
		if err != nil {
			return false, err
		}
	}
	return index.Leads(it, sets, to)
}

// placeOf is the hash of the Patients in whose compartments a resource lies.
func (c *checker) placeOf(key fhir.Key) (uint32, error) {
	if key.Type.String() == "Group" {
		return segment.GroupHash(key.ID), nil
	}
	v, closer, err := c.s.Index.Get(index.RowKey(nil, key))
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer closer.Close()
	st, err := index.DecodeState(v, func(n uint64) (segment.Partition, bool) { p, ok := c.numbers[n]; return p, ok })
	return st.Patients, err
}

// body proves a block's bytes, and that its lines are the rows'.
func (c *checker) body(r *segment.Reader, body vfs.File, b int, rows []segment.Row) {
	text, err := r.Lines(nil, body, b)
	if err != nil {
		c.fault("S1: %w", err)
		return
	}
	var scan fhir.Scanner
	for i := range rows {
		row := &rows[i]
		if int(row.Length) > len(text) || row.Length == 0 || text[row.Length-1] != '\n' {
			c.fault("S6: %s, block %d, row %d: its line does not end where it should", r.ID().BodyName(), b, i)
			return
		}
		line := text[:row.Length-1]
		text = text[row.Length:]
		if row.Section.Resource().Kind != segment.Live {
			continue
		}
		if res, err := scan.Scan(line); err != nil || res.Key != row.Key {
			c.fault("S6: %s, block %d, row %d: its line is not the resource that the directory names", r.ID().BodyName(), b, i)
		}
	}
	if len(text) != 0 {
		c.fault("S6: %s, block %d: more lines than rows", r.ID().BodyName(), b)
	}
}

// states proves that the index knows no resource that has no row.
func (c *checker) states() error {
	n := int64(0)
	err := index.Scan(c.s.Index, index.Rows(), func(k, _ []byte) error {
		n++
		_, err := index.ParseRowKey(k)
		return err
	})
	if n != c.newest {
		c.fault("I2: the index knows %d resources, the segments hold %d", n, c.newest)
	}
	for _, in := range index.Pointers() {
		err = errors.Join(err, index.Scan(c.s.Index, in, func(k, _ []byte) error {
			_, err := index.ParsePointer(k)
			return err
		}))
	}
	return errors.Join(err, index.Scan(c.s.Index, index.Referrers(), func(k, _ []byte) error {
		_, _, err := index.ParseReferrerKey(k)
		return err
	}))
}

// pins proves that what snapshots hold is there.
func (c *checker) pins() error {
	return index.Scan(c.s.Index, index.Pins(), func(k, v []byte) error {
		p, err := index.DecodePin(v)
		if c.s.Bodies && c.s.Beside != nil {
			for _, fault := range c.s.Beside(string(k[1:])) {
				c.fault("J2: a file of an export job or of a published page: %w", fault)
			}
		}
		for _, id := range p.Segments {
			if c.byID[id] == nil {
				c.fault("J1: a snapshot holds segment %d, whose files are gone", id)
			}
		}
		return err
	})
}
