package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/compaction"
	"tidemark/store/fhir"
	"tidemark/store/segment"
	"tidemark/store/storetest"
)

// scenario is a fixed history: commits with creates, updates, deletions, dead
// letters and a Group, snapshots with cut files, merges, an unpinned job.
type scenario struct {
	db      *DB
	commits int                 // acknowledged
	pins    []string            // acknowledged
	states  []map[string]string // by commit number: what is visible then
	offset  int64
	merges  []compaction.Kind
}

var scenarioPart = Partition{Topic: "fhir", ID: 0}

func (s *scenario) open(fs vfs.FS) error {
	db, err := Open("store", Options{
		FS: fs, MergeOff: true, still: true, Cache: 1 << 20, Allowance: time.Millisecond, SettleAfter: time.Millisecond, LastState: time.Hour, smallFile: 1,
	})
	if err != nil {
		return err
	}
	s.db = db
	return db.Discover(Discovery{Complete: true, Partitions: []Discovered{{Partition: scenarioPart}}})
}

// commit writes commit n, whose content follows from n alone.
func (s *scenario) commit(n int) error {
	state := map[string]string{}
	if n > 1 {
		maps.Copy(state, s.state(n-1))
	}
	now := s.db.Now()
	b := Batch{Partition: scenarioPart, LeaderEpoch: -1, Asked: now}
	add := func(ch Change) {
		ch.Offset, ch.Timestamp, ch.LastUpdated, ch.Time = s.offset, now, fhir.None, fhir.None
		s.offset++
		b.Changes = append(b.Changes, ch)
	}
	for i := range 4 {
		id := fmt.Sprintf("p%d", (n*3+i)%20)
		key := fhir.Key{Type: patientType, ID: id}
		if n%3 == 0 && i == 0 {
			add(Change{Key: key, Delete: true, Version: NoVersion})
			delete(state, key.String())
			continue
		}
		body := fmt.Sprintf(`{"resourceType":"Patient","id":"%s","n":%d}`, id, n)
		add(Change{Key: key, Body: []byte(body), Version: NoVersion, Patients: []string{id}})
		state[key.String()] = body
	}
	if n%4 == 0 {
		add(Change{Dead: &DeadLetter{Reason: "no JSON", Value: []byte("x")}, Version: NoVersion})
	}
	b.Next, b.End = s.offset, s.offset
	for len(s.states) <= n {
		s.states = append(s.states, nil)
	}
	s.states[n] = state
	if err := s.db.Apply(context.Background(), b); err != nil {
		return err
	}
	return s.db.Flush()
}

func (s *scenario) state(n int) map[string]string { return s.states[n] }

var patientType, _ = fhir.ParseType("Patient")

// run does the whole scenario and notes what was acknowledged.
func (s *scenario) run(acked func(commits int, pins []string)) error {
	for n := 1; n <= 20; n++ {
		if err := s.commit(n); err != nil {
			return fmt.Errorf("commit %d: %w", n, err)
		}
		s.commits = n
		acked(s.commits, s.pins)
		time.Sleep(10 * time.Millisecond)
		if err := s.idle(); err != nil {
			return err
		}
		if n%5 == 0 {
			if err := s.pin(fmt.Sprintf("job-%d", n)); err != nil {
				return fmt.Errorf("pin %d: %w", n, err)
			}
			acked(s.commits, s.pins)
		}
		if n%4 == 0 {
			for range 2 {
				r, err := s.db.rewrite(context.Background())
				if err != nil {
					return fmt.Errorf("merge at %d: %w", n, err)
				}
				s.merges = append(s.merges, r.job.Kind)
			}
		}
		if n == 16 {
			gone := s.pins[0]
			s.pins = slices.Clone(s.pins[1:])
			acked(s.commits, s.pins)
			if err := s.db.Unpin(context.Background(), gone); err != nil {
				return fmt.Errorf("unpin: %w", err)
			}
		}
	}
	return nil
}

// idle moves the watermark past what was committed.
func (s *scenario) idle() error {
	return s.db.Apply(context.Background(), Batch{Partition: scenarioPart, LeaderEpoch: -1, Asked: s.db.Now(), Next: s.offset, End: s.offset})
}

func (s *scenario) pin(id string) error {
	snap, err := s.db.Pin(context.Background(), id, time.Now().Add(time.Hour), func(*Snapshot) ([]byte, error) { return []byte(id), nil })
	if err != nil {
		return err
	}
	_, err = content(snap)
	s.pins = append(slices.Clone(s.pins), id)
	return errors.Join(err, snap.Close())
}

// content reads all Patients of a snapshot.
func content(s *Snapshot) (map[string]string, error) {
	sec := segment.Section{Kind: segment.Live, Type: patientType}
	ext, err := s.Extents(sec, fhir.None, s.Watermark())
	if err != nil {
		return nil, err
	}
	f, err := s.File(context.Background(), "patients", sec, fhir.None, s.Watermark(), ext)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var w lineWriter
	if err := f.WriteIdentity(&w, 0, f.Size()); err != nil {
		return nil, err
	}
	return w.byID()
}

type lineWriter struct{ b []byte }

func (w *lineWriter) Write(p []byte) (int, error) { w.b = append(w.b, p...); return len(p), nil }

func (w *lineWriter) byID() (map[string]string, error) {
	m := map[string]string{}
	var scan fhir.Scanner
	for len(w.b) > 0 {
		i := slices.Index(w.b, '\n')
		r, err := scan.Scan(slices.Clone(w.b[:i]))
		if err != nil {
			return nil, err
		}
		m[r.Key.String()] = string(w.b[:i])
		w.b = w.b[i+1:]
	}
	return m, nil
}

// clone is the disk as a crash before one write would leave it.
type clone struct {
	fs      *vfs.MemFS
	op      string
	percent int
	commits int
	pins    []string
}

// eachOf is of how many writes a test breaks one: each, under the race detector a quarter.
var eachOf = 4 / storetest.Rounds(4)

// TestCrash crashes at every write of the scenario, losing all, half and none
// of what was not synced.
func TestCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewCrashableMem()
		var mu sync.Mutex
		var clones []clone
		var commits int
		var pins []string
		writes := 0
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			percent := []int{0, 50, 100}[writes%3]
			rng := rand.New(rand.NewPCG(uint64(writes), 1))
			if writes++; writes%eachOf != 0 {
				return nil
			}
			clones = append(clones, clone{
				fs: mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}), op: fmt.Sprintf("%v %s", op.Kind, op.Path), percent: percent,
				commits: commits, pins: slices.Clone(pins),
			})
			return nil
		}))
		s := &scenario{}
		if err := s.open(fs); err != nil {
			t.Fatal(err)
		}
		err := s.run(func(n int, p []string) {
			mu.Lock()
			defer mu.Unlock()
			commits, pins = n, p
		})
		if err := errors.Join(err, s.db.Close()); err != nil {
			t.Fatal(err)
		}
		for i, c := range clones {
			if err := reindexed(s, &c); err != nil {
				t.Errorf("crash before write %d (%s, %d %% of unsynced data kept), and the index lost: %v", i, c.op, c.percent, err)
			}
			if err := recovered(s, &c); err != nil {
				t.Errorf("crash before write %d (%s, %d %% of unsynced data kept, %d commits acknowledged): %v", i, c.op, c.percent, c.commits, err)
			}
		}
		t.Logf("%d crashes; merges: %v", len(clones), s.merges)
		for _, k := range []compaction.Kind{compaction.Clean, compaction.Settle} {
			if !slices.Contains(s.merges, k) {
				t.Errorf("no merge was of the kind %s", k)
			}
		}
		if writes < 200 {
			t.Errorf("only %d writes were tried", writes)
		}
	})
}

// reindexed loses the index of what a crash left and makes it anew: what was
// acknowledged is there, and nothing twice.
func reindexed(s *scenario, c *clone) (err error) {
	fs := c.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	if err := fs.RemoveAll("store/index"); err != nil {
		return err
	}
	var out strings.Builder
	if err := Reindex(context.Background(), "store", Options{FS: fs, Cache: 1 << 20}, &out); err != nil {
		if c.commits == 0 {
			return nil // there was nothing
		}
		return err
	}
	r := &scenario{states: slices.Clone(s.states)}
	if err := r.open(fs); err != nil {
		return fmt.Errorf("%w\n%s", err, &out)
	}
	defer func() { err = errors.Join(err, r.db.Close()) }()
	if _, err := r.db.Check(true); err != nil {
		return fmt.Errorf("%w\n%s", err, &out)
	}
	got, err := wholeContent(r.db)
	if err != nil {
		return err
	}
	// The commit that the crash cut short may be whole: then it counts, with its offsets.
	if next := c.commits + 1; next < len(s.states) && maps.Equal(s.states[next], got) {
		return nil
	}
	want := map[string]string{}
	maps.Copy(want, s.states[c.commits])
	if d := cmp.Diff(want, got); d != "" {
		return fmt.Errorf("content of commit %d (-want +got):\n%s\n%s", c.commits, d, &out)
	}
	return nil
}

// wholeContent is everything committed.
func wholeContent(db *DB) (map[string]string, error) {
	snap := db.snapshotNow()
	snap.of = &pinned{id: "whole", readers: 1}
	got, err := content(snap)
	return got, errors.Join(err, snap.Close())
}

// recovered opens what a crash left and asks that acknowledged commits and pins
// are there, others whole or absent, and that the store goes on.
func recovered(s *scenario, c *clone) (err error) {
	r := &scenario{states: slices.Clone(s.states)}
	if err := r.open(c.fs); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.db.Close()) }()
	if _, err := r.db.Check(true); err != nil {
		return err
	}
	n := int(r.db.Status().Commit)
	if n < c.commits || n > c.commits+1 {
		return fmt.Errorf("commit %d is the last", n)
	}
	want := map[string]string{}
	if n > 0 {
		want = s.states[n]
	}
	got, err := wholeContent(r.db)
	if err != nil {
		return err
	}
	if d := cmp.Diff(want, got); d != "" {
		return fmt.Errorf("content of commit %d (-want +got):\n%s", n, d)
	}
	for _, id := range c.pins {
		p, err := r.db.Snapshot(id)
		if err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
		if _, err := content(p); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", id, err), p.Close())
		}
		if err := p.Close(); err != nil {
			return err
		}
	}
	st, _ := r.db.Partition(scenarioPart)
	r.offset = st.Next
	if err := r.commit(n + 1); err != nil {
		return fmt.Errorf("go on: %w", err)
	}
	_, err = r.db.Check(true)
	return err
}

// TestFault fails every write once, with and without its effect, and asks that
// the store stops by itself and that reopening finds every acknowledged commit.
func TestFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for k := 0; ; k += 7 * eachOf { // every seventh write: the kinds repeat
			mem := vfs.NewCrashableMem()
			var mu sync.Mutex
			n, hit := 0, false
			fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || isIndex(op.Path) {
					return nil // Pebble's own answer to a failed WAL write is to end the process
				}
				mu.Lock()
				defer mu.Unlock()
				n++
				if n == k+1 {
					hit = true
					return errorfs.ErrInjected
				}
				return nil
			}))
			s := &scenario{}
			err := s.open(fs)
			if err == nil {
				err = errors.Join(s.run(func(int, []string) {}), s.db.Close())
			}
			mu.Lock()
			done := !hit
			mu.Unlock()
			if done {
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%d faults", k/7)
				return
			}
			c := clone{fs: mem.CrashClone(vfs.CrashCloneCfg{}), commits: s.commits, pins: nil}
			if s.db == nil {
				continue
			}
			if err := recovered(s, &c); err != nil {
				t.Errorf("fault at write %d: %v", k, err)
			}
		}
	})
}

func isIndex(path string) bool { return len(path) >= 11 && path[:11] == "store/index" }
