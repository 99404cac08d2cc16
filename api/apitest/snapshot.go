package apitest

import (
	"context"
	"hash/crc32"
	"slices"
	"strconv"
	"time"

	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// A Snapshot is a fake of store.Snapshot.
type Snapshot struct {
	store            *Store
	id               string
	watermark        fhir.Instant
	forgotten        fhir.Instant
	epoch            uint64
	created, expires time.Time
	rule             []byte
	rows             []row
	open             int
	revoked          bool
	choice           *store.Choice
	renewed          func(fhir.Key) bool
	veil             *store.Veil
	kept             map[string][]byte
}

// Choosing implements export.Snapshot.
func (p *Snapshot) Choosing(c store.Choice) export.Snapshot {
	return &Snapshot{store: p.store, watermark: p.watermark, forgotten: p.forgotten, rows: p.rows, veil: p.veil, choice: &c}
}

// Renewing implements export.Snapshot.
func (p *Snapshot) Renewing(renewed func(fhir.Key) bool) export.Snapshot {
	return &Snapshot{store: p.store, watermark: p.watermark, forgotten: p.forgotten, rows: p.rows, veil: p.veil, choice: p.choice, renewed: renewed}
}

// Veiled implements export.Snapshot, for what lives: the rest is tested with a real store.
func (p *Snapshot) Veiled(v *store.Veil) export.Snapshot {
	return &Snapshot{store: p.store, watermark: p.watermark, forgotten: p.forgotten, rows: p.rows, kept: p.kept, choice: p.choice, renewed: p.renewed, veil: v}
}

// Attached implements export.Snapshot: it does not look which rows are asked for.
func (p *Snapshot) Attached([]store.Extent) bool {
	return slices.ContainsFunc(p.rows, row.attached)
}

// AnyAttached implements export.Snapshot.
func (p *Snapshot) AnyAttached(sec store.Section) bool {
	return slices.ContainsFunc(p.rows, func(r row) bool { return r.sec == sec && r.attached() })
}

// counts tells whether a row is one of the window's and of the choice.
func (p *Snapshot) counts(r *row, since, upto fhir.Instant) bool {
	if r.c > p.watermark || r.d <= p.watermark || r.c > upto {
		return false
	}
	back := false
	if r.sec.Kind == store.Live && p.veil != nil {
		row := &store.Row{Section: r.sec, Key: r.key, Patients: r.Patients, References: r.Refers}
		if p.veil.Hides(row) {
			return false
		}
		back = p.veil.Behind(row, fhir.None+1) == fhir.None
	}
	renewed := back || p.renewed != nil && slices.ContainsFunc(r.Refers, p.renewed)
	behind := func(after fhir.Instant) bool { return renewed || r.c > after }
	c := p.choice
	switch {
	case c == nil:
		return behind(since)
	case c.Patients == nil && c.Keys == nil && c.Refer == nil:
		return behind(since) && len(r.Patients) > 0
	case c.Nobodys && len(r.Patients) == 0 && behind(since):
		return true
	}
	for _, id := range r.Patients {
		if after, ok := c.Patients[id]; ok && behind(after) {
			return true
		}
	}
	if after, ok := c.Keys[r.key]; ok && behind(after) && (!c.Outside || len(r.Patients) == 0) {
		return true
	}
	if c.Among != nil && !slices.Contains(c.Among, r.key) {
		return false
	}
	return c.Refer != nil && slices.ContainsFunc(r.Refers, func(k fhir.Key) bool {
		after, ok := c.Refer(k)
		return ok && behind(after)
	})
}

// ProvenanceOf implements export.Snapshot.
func (p *Snapshot) ProvenanceOf(_ context.Context, compartments map[uint32]bool) ([]fhir.Key, bool, error) {
	within := map[fhir.Key]bool{}
	for i := range p.rows {
		r := &p.rows[i]
		set := segment.PatientsHash(r.Patients)
		if r.key.Type.String() == "Group" {
			set = segment.GroupHash(r.key.ID)
		}
		within[r.key] = within[r.key] || compartments[set]
	}
	list := []fhir.Key{}
	for i := range p.rows {
		if r := &p.rows[i]; r.key.Type.String() == "Provenance" && slices.ContainsFunc(r.Refers, func(k fhir.Key) bool { return within[k] }) {
			list = append(list, r.key)
		}
	}
	return list, true, nil
}

func (r row) attached() bool {
	return slices.ContainsFunc(r.Refers, func(k fhir.Key) bool { return k.Type == fhir.Binary })
}

// Resource implements export.Snapshot.
func (p *Snapshot) Resource(key fhir.Key) ([]byte, error) {
	for _, r := range p.rows {
		if r.key == key && r.sec.Kind == store.Live && r.c <= p.watermark && p.watermark < r.d {
			return []byte(r.line), nil
		}
	}
	return nil, store.ErrUnknown
}

// Referrers implements export.Snapshot.
func (p *Snapshot) Referrers(_ context.Context, binary fhir.Key, fn func(*store.Row) error) error {
	for _, r := range p.rows {
		if r.sec.Kind != store.Live || r.key.Type == binary.Type || r.c > p.watermark || r.d <= p.watermark || !slices.Contains(r.Refers, binary) {
			continue
		}
		if err := fn(&store.Row{Section: r.sec, Key: r.key, Instant: r.c, Patients: r.Patients, References: r.Refers}); err != nil {
			return err
		}
	}
	return nil
}

// Known implements export.Snapshot.
func (p *Snapshot) Known(key fhir.Key) (bool, error) {
	return slices.ContainsFunc(p.rows, func(r row) bool { return r.key == key }), nil
}

// Cut is two partitions, one of which is behind.
func (p *Snapshot) Cut() store.Cut {
	return store.Cut{Lag: 1250 * time.Millisecond, Partitions: []store.Covered{
		{Partition: store.Partition{Topic: "fhir", ID: 0}, Next: 7}, {Partition: store.Partition{Topic: "fhir", ID: 1}, Next: 5, Behind: 2},
	}}
}

// Sum implements export.Snapshot.
func (p *Snapshot) Sum(ext []store.Extent) (uint32, bool) {
	var lines []byte
	for _, x := range ext {
		if !x.Whole {
			return 0, false
		}
		lines = p.lines(lines, []store.Extent{x}, fhir.None, forever)
	}
	return crc32.ChecksumIEEE(lines), true
}

// References implements export.Snapshot.
func (p *Snapshot) References(ctx context.Context, sec store.Section, since, upto fhir.Instant, fn func(fhir.Key)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.store.OnRead != nil {
		p.store.OnRead()
	}
	p.store.mu.Lock()
	broken := p.store.broken
	p.store.mu.Unlock()
	if broken != nil {
		return broken
	}
	for i := range p.rows {
		if r := &p.rows[i]; r.sec == sec && p.counts(r, since, upto) {
			for _, k := range r.Refers {
				fn(k)
			}
		}
	}
	return nil
}

// Rows implements export.Snapshot: in the fake, each version is placed anew.
func (p *Snapshot) Rows(_ context.Context, sec store.Section, since, upto fhir.Instant, fn func(*store.Row) error) error {
	for i := range p.rows {
		r := &p.rows[i]
		if r.sec != sec || !p.counts(r, since, upto) {
			continue
		}
		if err := fn(&store.Row{Section: sec, Key: r.key, Instant: r.c, Placed: r.c, Patients: r.Patients, References: r.Refers}); err != nil {
			return err
		}
	}
	return nil
}

// Blocks implements export.Snapshot.
func (p *Snapshot) Blocks(sec store.Section) (n int) {
	for _, r := range p.rows {
		if r.sec == sec {
			n++
		}
	}
	return (n + p.store.BlockRows - 1) / p.store.BlockRows
}

// Watermark and the others implement export.Snapshot.
func (p *Snapshot) Watermark() fhir.Instant { return p.watermark }

// Forgotten is what Forget had said before.
func (p *Snapshot) Forgotten() fhir.Instant { return p.forgotten }

// Epoch is the store's.
func (p *Snapshot) Epoch() uint64 { return p.epoch }

// Rule is what was pinned, or what it was amended to.
func (p *Snapshot) Rule() []byte { p.store.mu.Lock(); defer p.store.mu.Unlock(); return p.rule }

// Expires is when it may be unpinned.
func (p *Snapshot) Expires() time.Time {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	return p.expires
}

// Close implements export.Snapshot.
func (p *Snapshot) Close() error { p.store.mu.Lock(); defer p.store.mu.Unlock(); p.open--; return nil }

// Sections are in order of first use, to show that nobody relies on theirs.
func (p *Snapshot) Sections(kind store.Kind) []store.Section {
	var all []store.Section
	for _, r := range p.rows {
		if r.sec.Kind == kind && !slices.Contains(all, r.sec) {
			all = append(all, r.sec)
		}
	}
	return all
}

// block is the rows of block n of a section that lie in the window.
func (p *Snapshot) block(sec store.Section, n int, since, upto fhir.Instant) (in []row, whole, ok bool) {
	var all []row
	for _, r := range p.rows {
		if r.sec == sec {
			all = append(all, r)
		}
	}
	slices.SortStableFunc(all, func(a, b row) int { return int(a.c - b.c) })
	from := n * p.store.BlockRows
	if from >= len(all) {
		return nil, false, false
	}
	all = all[from:min(from+p.store.BlockRows, len(all))]
	for _, r := range all {
		if p.counts(&r, since, upto) {
			in = append(in, r)
		}
	}
	return in, len(in) == len(all), true
}

// Extents implements export.Snapshot.
func (p *Snapshot) Extents(sec store.Section, since, upto fhir.Instant) ([]store.Extent, error) {
	var all []store.Extent
	for n := 0; ; n++ {
		rows, whole, ok := p.block(sec, n, since, upto)
		if !ok {
			return all, nil
		}
		if len(rows) == 0 {
			continue
		}
		x := store.Extent{Segment: number(sec), Block: n, Rows: len(rows), Whole: whole}
		if p.choice != nil {
			x.Picked = p.store.pick(rows)
		}
		for _, r := range rows {
			x.Bytes += int64(len(r.line)) + 1
		}
		all = append(all, x)
	}
}

// number is a section as the number of a segment.
func number(sec store.Section) uint64 { return uint64(sec.Kind)<<32 | uint64(sec.Type) }

// rowsOf are the rows of an extent that count.
func (p *Snapshot) rowsOf(x store.Extent, since, upto fhir.Instant) []row {
	if x.Picked != nil {
		return p.store.pickedRows(x.Picked)
	}
	sec := store.Section{Kind: store.Kind(x.Segment >> 32), Type: fhir.Type(x.Segment & 0xffff)}
	rows, _, _ := p.block(sec, x.Block, since, upto)
	return rows
}

// Filter implements export.Snapshot.
func (p *Snapshot) Filter(ctx context.Context, since, upto fhir.Instant, ext []store.Extent, match func([]byte) bool, step func()) (kept []store.Extent, lost int, err error) {
	for _, x := range ext {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		y := store.Extent{Segment: x.Segment, Block: x.Block}
		var rows []row
		for _, r := range p.rowsOf(x, since, upto) {
			if match([]byte(r.line + "\n")) {
				rows = append(rows, r)
				y.Rows, y.Bytes = y.Rows+1, y.Bytes+int64(len(r.line))+1
			}
		}
		if y.Rows > 0 {
			y.Picked = p.store.pick(rows)
			kept = append(kept, y)
		}
		step()
	}
	return kept, 0, nil
}

// Lines implements export.Snapshot.
func (p *Snapshot) Lines(ctx context.Context, since, upto fhir.Instant, ext []store.Extent, fn func([]byte) error, step func()) (lost int, err error) {
	if p.store.OnLines != nil {
		p.store.OnLines()
	}
	for _, x := range ext {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		for _, r := range p.rowsOf(x, since, upto) {
			if err := fn([]byte(r.line + "\n")); err != nil {
				return 0, err
			}
		}
		step()
	}
	return 0, nil
}

// LastStates implements export.Snapshot: in the fake they are kept for ever.
func (p *Snapshot) LastStates(_ context.Context, t fhir.Type, since fhir.Instant, fn func([]byte) error) error {
	for _, gone := range p.rows {
		if gone.sec != (store.Section{Kind: store.Deleted, Type: t}) || !p.counts(&gone, since, p.watermark) {
			continue
		}
		for _, r := range p.rows {
			if r.key != gone.key || r.sec.Kind != store.Live || r.d != gone.c {
				continue
			}
			if err := fn([]byte(r.line + "\n")); err != nil {
				return err
			}
		}
	}
	return nil
}

// Compartments implements export.Snapshot.
func (p *Snapshot) Compartments(ctx context.Context, since, upto fhir.Instant, ext []store.Extent, fn func([]byte, []string) error, step func()) (lost int, err error) {
	for _, x := range ext {
		rows := p.rowsOf(x, since, upto)
		lost, err := p.Lines(ctx, since, upto, []store.Extent{x}, func(line []byte) error {
			r := rows[0]
			rows = rows[1:]
			return fn(line, r.Patients)
		}, step)
		if err != nil {
			return lost, err
		}
	}
	return 0, nil
}

// Holds is what Hold said.
func (p *Snapshot) Holds() int64 { return p.store.held }

// pick remembers rows under a name that is opaque to whoever keeps it.
func (s *Store) pick(rows []row) []byte {
	s.picking.Lock()
	defer s.picking.Unlock()
	name := strconv.Itoa(len(s.picked))
	s.picked[name] = rows
	return []byte(name)
}

func (s *Store) pickedRows(name []byte) []row {
	s.picking.Lock()
	defer s.picking.Unlock()
	return s.picked[string(name)]
}

func (p *Snapshot) lines(dst []byte, ext []store.Extent, since, upto fhir.Instant) []byte {
	for _, x := range ext {
		for _, r := range p.rowsOf(x, since, upto) {
			dst = append(append(dst, r.line...), '\n')
		}
	}
	return dst
}
