// Package apitest has a store in memory for the tests of api and its
// packages: a list of rows and a watermark, read as design.md section 2 says.
// It cuts blocks of a few rows, so that a few rows make many files.
package apitest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
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
