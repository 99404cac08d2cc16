// Package apitest has a store in memory for the tests of api and its
// packages: a list of rows and a watermark, read as design.md section 2 says.
// It cuts blocks of a few rows, so that a few rows make many files.
package apitest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// A Store is a fake of store.DB.
type Store struct {
	BlockRows int    // rows in a block, default 2
	OnRead    func() // is called before References, unless nil
	OnLines   func() // is called before Lines, unless nil

	mu        sync.Mutex
	clock     fhir.Instant
	watermark fhir.Instant
	forgotten fhir.Instant
	epoch     uint64
	rows      []row
	pins      map[string]*Snapshot
	picking   sync.Mutex
	picked    map[string][]row
	fail      error // what Pin, Unpin and Snapshot return
	broken    error // what References returns
	full      bool  // there is no room for a Draft
	writers   []io.Writer
	held      int64
	rolls     []called
	short     int // bytes after which files break off, 0: never
}

type row struct {
	sec  store.Section
	key  fhir.Key
	c, d fhir.Instant // change instant, and that of the successor
	line string

	Links
}

// Links are what a resource has to do with others.
type Links struct {
	Patients []string   // in whose compartments it lies
	Refers   []fhir.Key // outside of compartments
	Members  []string   // of a Group: references
	More     string     // of a Group: more of its JSON
}

const forever fhir.Instant = 1<<63 - 1

// New makes an empty store that is ready and stands at clock.
func New(clock fhir.Instant) *Store {
	return &Store{BlockRows: 2, clock: clock, watermark: clock, forgotten: fhir.None, epoch: 1, pins: map[string]*Snapshot{}, picked: map[string][]row{}}
}

// Put applies a version of a resource.
func (s *Store) Put(key fhir.Key, c fhir.Instant, l Links) {
	typ, id := key.Type.String(), key.ID
	s.add(row{
		sec: store.Section{Kind: store.Live, Type: key.Type}, key: key, c: c, Links: l,
		line: fmt.Sprintf(`{"resourceType":%q,"id":%q,"meta":{"lastUpdated":%q}%s}`, typ, id, c, l.More),
	})
}

// Delete applies a tombstone of a resource that had these links.
func (s *Store) Delete(key fhir.Key, c fhir.Instant, l Links) {
	s.add(row{
		sec: store.Section{Kind: store.Deleted, Type: key.Type}, key: key, c: c, Links: l,
		line: fmt.Sprintf(`{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":%q}}]}`, key),
	})
}

// Dead applies a record that could not be decoded.
func (s *Store) Dead(c fhir.Instant) {
	s.add(row{sec: store.Section{Kind: store.Internal, Type: store.DeadLetters}, c: c, line: "{}"})
}

func (s *Store) add(r row) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.d = forever
	var lost []string
	for i := range s.rows {
		old := &s.rows[i]
		if old.key != r.key || r.key.ID == "" || old.d != forever || old.sec.Kind == store.Internal {
			continue
		}
		old.d = r.c
		lost = slices.DeleteFunc(slices.Clone(old.Patients), func(id string) bool { return slices.Contains(r.Patients, id) })
	}
	s.rows = append(s.rows, r)
	if len(lost) > 0 && r.sec.Kind == store.Live {
		s.rows = append(s.rows, row{
			sec: store.Section{Kind: store.Internal, Type: store.Departures}, key: r.key, c: r.c, d: forever,
			line: fmt.Sprintf(`{"key":%q}`, r.key), Links: Links{Patients: lost},
		})
	}
}

// Fill leaves no room for a Draft, or some again.
func (s *Store) Fill(full bool) { s.mu.Lock(); defer s.mu.Unlock(); s.full = full }

// SetClock sets the clock.
func (s *Store) SetClock(i fhir.Instant) { s.mu.Lock(); defer s.mu.Unlock(); s.clock = i }

// SetWatermark sets the watermark.
func (s *Store) SetWatermark(i fhir.Instant) { s.mu.Lock(); defer s.mu.Unlock(); s.watermark = i }

// Forget says that deletions up to i are no longer known.
func (s *Store) Forget(i fhir.Instant) { s.mu.Lock(); defer s.mu.Unlock(); s.forgotten = i }

// Erase ends all snapshots, as an erasure does.
func (s *Store) Erase() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pins {
		p.revoked, p.rule = true, nil
	}
}

// SetEpoch begins a new epoch, as a restore does.
func (s *Store) SetEpoch(n uint64) { s.mu.Lock(); defer s.mu.Unlock(); s.epoch = n }

// Age makes all pins older, or with a clock that was ahead, younger.
func (s *Store) Age(by time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pins {
		p.created = p.created.Add(-by)
	}
}

// Fail makes the store fail with err, or work again with nil.
func (s *Store) Fail(err error) { s.mu.Lock(); defer s.mu.Unlock(); s.fail = err }

// Break makes References fail with err, or work again with nil.
func (s *Store) Break(err error) { s.mu.Lock(); defer s.mu.Unlock(); s.broken = err }

// CutShort makes files break off after n bytes.
func (s *Store) CutShort(n int) { s.mu.Lock(); defer s.mu.Unlock(); s.short = n }

// Writers are all writers that a file was written to.
func (s *Store) Writers() []io.Writer { s.mu.Lock(); defer s.mu.Unlock(); return s.writers }

// Restart forgets what a process would forget; pins stay.
func (s *Store) Restart() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	again := &Store{BlockRows: s.BlockRows, OnRead: s.OnRead, clock: s.clock, watermark: s.watermark, forgotten: s.forgotten, epoch: s.epoch, rows: s.rows, pins: map[string]*Snapshot{}, picked: s.picked, held: s.held}
	for id, p := range s.pins {
		q := *p
		q.store, q.open = again, 0
		again.pins[id] = &q
	}
	return again
}

// Open is how many snapshots are open.
func (s *Store) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, p := range s.pins {
		n += p.open
	}
	return n
}

// Now implements export.Store.
func (s *Store) Now() fhir.Instant { s.mu.Lock(); defer s.mu.Unlock(); return s.clock }

// Pin implements export.Store.
func (s *Store) Pin(_ context.Context, id string, expires time.Time, rule func(export.Snapshot) ([]byte, error)) (export.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	p := &Snapshot{store: s, id: id, watermark: s.watermark, forgotten: s.forgotten, epoch: s.epoch, created: time.Now(), expires: expires, rows: slices.Clone(s.rows), open: 1, kept: map[string][]byte{}}
	var err error
	if p.rule, err = rule(p); err != nil {
		return nil, err
	}
	p.forgotten = 0 // as in the real one: it is asked for while the rule is made
	s.pins[id] = p
	return p, nil
}

// Present implements export.Store.
func (s *Store) Present() (export.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	return &Snapshot{store: s, watermark: s.watermark, forgotten: s.forgotten, epoch: s.epoch, rows: slices.Clone(s.rows)}, nil
}

// Snapshot implements export.Store.
func (s *Store) Snapshot(id string) (export.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	p := s.pins[id]
	if p == nil {
		return nil, store.ErrNotFound
	}
	if p.revoked {
		return nil, store.ErrRevoked
	}
	p.open++
	return p, nil
}

// Amend implements export.Store.
func (s *Store) Amend(id string, rule []byte, expires time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch p := s.pins[id]; {
	case s.fail != nil:
		return s.fail
	case p == nil:
		return store.ErrNotFound
	case p.revoked:
		return store.ErrRevoked
	default:
		if p.rule = rule; !expires.IsZero() {
			p.expires = expires
		}
		return nil
	}
}

// Detach implements export.Store: the rows are not found any more.
func (s *Store) Detach(id string, rule []byte) error {
	if err := s.Amend(id, rule, time.Time{}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := *s.pins[id]
	p.rows = nil
	s.pins[id] = &p
	return nil
}

// Revoke implements export.Store.
func (s *Store) Revoke(id string, rule []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch p := s.pins[id]; {
	case s.fail != nil:
		return s.fail
	case p == nil:
		return store.ErrNotFound
	default:
		p.revoked, p.rule = true, rule
		return nil
	}
}

// Hold says how many stored bytes each snapshot keeps.
func (s *Store) Hold(n int64) { s.mu.Lock(); defer s.mu.Unlock(); s.held = n }

// Pinned implements export.Store.
func (s *Store) Pinned() []store.Pinned {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []store.Pinned
	for id, p := range s.pins {
		all = append(all, store.Pinned{ID: id, Created: p.created, Expires: p.expires, Rule: p.rule, Revoked: p.revoked})
	}
	return all
}

// Unpin implements export.Store.
func (s *Store) Unpin(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	if s.pins[id] == nil {
		return store.ErrNotFound
	}
	delete(s.pins, id)
	return nil
}

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

// Rosters implements export.Snapshot.
func (p *Snapshot) Rosters(since fhir.Instant) (export.Rosters, error) { return rosters{p, since}, nil }

// A called is one list of those whom an export found in a Group.
type called struct {
	group    string
	upto, at fhir.Instant
	found    []string
}

// Roll implements export.Snapshot.
func (p *Snapshot) Roll(group string, upto fhir.Instant) (r store.Roll, err error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	times, of := map[string]int{}, 0
	for _, c := range p.store.rolls {
		if c.group != group || c.upto != upto {
			continue
		}
		r.Exact, of = r.Exact || c.at == upto, of+1
		for _, id := range c.found {
			times[id]++
		}
	}
	if of == 0 {
		return r, nil
	}
	r.Found = map[string]bool{}
	for id, n := range times {
		r.Found[id] = n == of
	}
	return r, nil
}

// CallRoll implements export.Snapshot.
func (p *Snapshot) CallRoll(group string, upto fhir.Instant, found ...[]string) error {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	for _, ids := range found {
		p.store.rolls = append(p.store.rolls, called{group, upto, p.watermark, ids})
	}
	return nil
}

type rosters struct {
	p     *Snapshot
	since fhir.Instant
}

// Of implements export.Rosters: who a version of the Group lists is a member
// from it to the next.
func (r rosters) Of(id string) (store.Roster, error) {
	key := groupKey(id)
	body, err := r.p.Resource(key)
	if errors.Is(err, store.ErrUnknown) {
		body, err = nil, nil
	}
	out := store.Roster{Body: body, Members: map[string][]store.Stay{}}
	for _, v := range r.p.rows {
		if v.key != key || v.c > r.p.watermark || v.sec.Kind == store.Internal {
			continue
		}
		for ref, stays := range out.Members {
			if last := &stays[len(stays)-1]; last.Left == fhir.None && !slices.Contains(v.Members, ref) {
				last.Left = v.c
			}
		}
		for _, ref := range v.Members {
			if stays := out.Members[ref]; len(stays) == 0 || stays[len(stays)-1].Left != fhir.None {
				out.Members[ref] = append(stays, store.Stay{Joined: v.c, Left: fhir.None})
			}
		}
	}
	for ref, stays := range out.Members {
		out.Members[ref] = slices.DeleteFunc(stays, func(t store.Stay) bool {
			return t.Left != fhir.None && (t.Left <= r.since || r.since == fhir.None)
		})
	}
	return out, err
}

func groupKey(id string) fhir.Key {
	t, _ := fhir.ParseType("Group")
	return fhir.Key{Type: t, ID: id}
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

// Keep implements export.Snapshot.
func (p *Snapshot) Keep(name string, data []byte) (uint32, error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	p.kept[name] = data
	return crc32.ChecksumIEEE(data), p.store.fail
}

// Kept implements export.Snapshot.
func (p *Snapshot) Kept(name string, sum uint32) ([]byte, error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	if crc32.ChecksumIEEE(p.kept[name]) != sum {
		return nil, store.ErrCorrupt
	}
	return p.kept[name], nil
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

// Scratch implements export.Snapshot.
func (p *Snapshot) Scratch(name string) (export.Scratch, error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	if p.store.full {
		return nil, store.ErrNoRoom
	}
	return &scratch{p: p, name: name}, nil
}

type scratch struct {
	bytes.Buffer
	p    *Snapshot
	name string
}

// FindScratch implements export.Snapshot: what was kept outlives Restart.
func (p *Snapshot) FindScratch(name string, size int64) (export.Scratch, error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	b, kept := p.kept[name]
	if !kept || int64(len(b)) != size {
		return nil, store.ErrCorrupt
	}
	return &scratch{*bytes.NewBuffer(b), p, name}, nil
}

// SweepScratch implements export.Snapshot.
func (p *Snapshot) SweepScratch(but ...string) error {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	maps.DeleteFunc(p.kept, func(name string, _ []byte) bool {
		return isScratch(name) && !slices.Contains(but, name)
	})
	return nil
}

// isScratch tells scratch files by their names, which export gives them, from what
// else is kept.
func isScratch(name string) bool {
	_, err := strconv.Atoi(strings.TrimPrefix(name, "s"))
	return err == nil
}

// Spoil cuts a byte off each scratch file that was kept, and counts them.
func (s *Store) Spoil() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pins {
		p.kept = maps.Clone(p.kept)
		for name, b := range p.kept {
			if isScratch(name) {
				p.kept[name] = b[:len(b)-1]
				n++
			}
		}
	}
	return n
}

// Size implements export.Scratch.
func (s *scratch) Size() int64 { return int64(s.Len()) }

// Keep implements export.Scratch.
func (s *scratch) Keep() error { _, err := s.p.Keep(s.name, s.Bytes()); return err }

// Open implements export.Scratch.
func (s *scratch) Open() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(s.Bytes())), nil }

// Remove implements export.Scratch.
func (s *scratch) Remove() error {
	s.p.store.mu.Lock()
	defer s.p.store.mu.Unlock()
	delete(s.p.kept, s.name)
	return nil
}

// Draft implements export.Snapshot.
func (p *Snapshot) Draft(name string) (export.Draft, error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	if p.store.full {
		return nil, store.ErrNoRoom
	}
	return &draft{p: p, name: name}, nil
}

type draft struct {
	p    *Snapshot
	name string
	text []byte
}

// Add implements export.Draft.
func (d *draft) Add(line []byte) error { d.text = append(d.text, line...); return nil }

// Discard implements export.Draft.
func (d *draft) Discard() error { return nil }

// Keep implements export.Draft.
func (d *draft) Keep() error { _, err := d.p.Keep(d.name, d.text); return err }

// CRC32 implements export.Draft.
func (d *draft) CRC32() uint32 { return crc32.ChecksumIEEE(d.text) }

// Only implements export.Snapshot: rows of other extents are not found any more.
func (p *Snapshot) Only(ext []store.Extent) error {
	p.rows = slices.DeleteFunc(p.rows, func(r row) bool {
		return !slices.ContainsFunc(ext, func(x store.Extent) bool { return x.Segment == number(r.sec) })
	})
	return nil
}

// Holds is what Hold said.
func (p *Snapshot) Holds() int64 { return p.store.held }

// Copy implements export.Snapshot.
func (p *Snapshot) Copy(ctx context.Context, name string, sec store.Section, since, upto fhir.Instant, ext []store.Extent) error {
	f, err := p.File(ctx, name, sec, since, upto, ext)
	if err != nil {
		return err
	}
	_, err = p.Keep(name, f.(*File).lines)
	return err
}

// Clear implements export.Snapshot.
func (p *Snapshot) Clear() error {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	clear(p.kept)
	return nil
}

// Made implements export.Snapshot.
func (p *Snapshot) Made(name string) (export.File, error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	return newFile(p.store, p.kept[name]), nil
}

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

// File implements export.Snapshot.
func (p *Snapshot) File(_ context.Context, _ string, _ store.Section, since, upto fhir.Instant, ext []store.Extent) (export.File, error) {
	return newFile(p.store, p.lines(nil, ext, since, upto)), nil
}

func (p *Snapshot) lines(dst []byte, ext []store.Extent, since, upto fhir.Instant) []byte {
	for _, x := range ext {
		for _, r := range p.rowsOf(x, since, upto) {
			dst = append(append(dst, r.line...), '\n')
		}
	}
	return dst
}

func newFile(s *Store, lines []byte) *File {
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	_, _ = zw.Write(lines)
	_ = zw.Close()
	return &File{s, lines, packed.Bytes()}
}

// A File is a fake of store.File.
type File struct {
	store         *Store
	lines, packed []byte
}

// Size and the others implement export.File.
func (f *File) Size() int64 { return int64(len(f.lines)) }

// GzipSize is the length of the gzip.
func (f *File) GzipSize() int64 { return int64(len(f.packed)) }

// CRC32 implements export.File.
func (f *File) CRC32() uint32 { return crc32.ChecksumIEEE(f.lines) }

// Close implements export.File.
func (f *File) Close() error { return nil }

// WriteGzip writes through io.ReaderFrom where there is one, as the real one
// does.
func (f *File) WriteGzip(w io.Writer, off, n int64) error { return f.write(w, f.packed[off:off+n]) }

// WriteIdentity writes NDJSON.
func (f *File) WriteIdentity(w io.Writer, off, n int64) error { return f.write(w, f.lines[off:off+n]) }

func (f *File) write(w io.Writer, b []byte) error {
	f.store.mu.Lock()
	f.store.writers = append(f.store.writers, w)
	short := f.store.short
	f.store.mu.Unlock()
	if short > 0 {
		_, err := w.Write(b[:short])
		return errors.Join(err, store.ErrCorrupt)
	}
	if to, ok := w.(io.ReaderFrom); ok {
		_, err := to.ReadFrom(&io.LimitedReader{R: bytes.NewReader(b), N: int64(len(b))})
		return err
	}
	_, err := w.Write(b)
	return err
}
