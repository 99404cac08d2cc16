package export_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/storetest"
)

// reads is a store that counts the lines that are read of it.
type reads struct {
	export.Store
	lines *atomic.Int64
}

func (r reads) Snapshot(id string) (export.Snapshot, error) {
	s, err := r.Store.Snapshot(id)
	if err != nil {
		return nil, err
	}
	return readsOf{s, r.lines}, nil
}

type readsOf struct {
	export.Snapshot
	lines *atomic.Int64
}

func (r readsOf) Choosing(c store.Choice) export.Snapshot {
	return readsOf{r.Snapshot.Choosing(c), r.lines}
}

func (r readsOf) Lines(ctx context.Context, since, upto fhir.Instant, ext []store.Extent, fn func([]byte) error, step func()) (int, error) {
	return r.Snapshot.Lines(ctx, since, upto, ext, func(line []byte) error { r.lines.Add(1); return fn(line) }, step)
}

func (r readsOf) Compartments(ctx context.Context, since, upto fhir.Instant, ext []store.Extent, fn func([]byte, []string) error, step func()) (int, error) {
	return r.Snapshot.Compartments(ctx, since, upto, ext, func(line []byte, patients []string) error { r.lines.Add(1); return fn(line, patients) }, step)
}

func (r readsOf) Filter(ctx context.Context, since, upto fhir.Instant, ext []store.Extent, match func([]byte) bool, step func()) ([]store.Extent, int, error) {
	return r.Snapshot.Filter(ctx, since, upto, ext, func(line []byte) bool { r.lines.Add(1); return match(line) }, step)
}

// commits puts resources into a store, each list in blocks of its own.
func commits(t *testing.T, db *store.DB, offset int64, lists ...[]string) {
	t.Helper()
	part := store.Partition{Topic: "t"}
	var s fhir.Scanner
	for _, list := range lists {
		var changes []store.Change
		asked := db.Now()
		for _, text := range list {
			res, err := s.Scan([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			changes = append(changes, store.Change{
				Key: res.Key, Body: slices.Clone(res.Body), Meta: res.Meta, Patients: slices.Clone(res.Patients), References: slices.Clone(res.References), Offset: offset,
				Version: store.NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: asked,
			})
			offset++
		}
		if err := db.Apply(t.Context(), store.Batch{Partition: part, Changes: changes, Next: offset, End: offset, LeaderEpoch: -1, Asked: asked}); err != nil {
			t.Fatal(err)
		}
		for db.Status().Watermark < asked || db.Status().Gathering > 0 {
			if err := db.Apply(t.Context(), store.Batch{Partition: part, Next: offset, End: offset, LeaderEpoch: -1, Asked: db.Now()}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// planned waits for a job.
func planned(t *testing.T, j *export.Jobs, id string) export.Manifest {
	t.Helper()
	for {
		m, err := j.Manifest(id)
		if _, working := errors.AsType[*export.WorkingError](err); working {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
}

// delivered is all that a client gets of a job.
func delivered(t *testing.T, j *export.Jobs, id string) (text string) {
	t.Helper()
	for n, f := range planned(t, j, id).Files {
		d, err := j.Open(t.Context(), id, n+1)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := errors.Join(d.Write(&b, false, 0, d.Size(false)), d.Close()); err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintln(f.List, f.Type, f.Rows, f.Continues) + b.String()
	}
	return text
}

// TestKilled: a job that is killed at random points, by a crash that may lose what
// was not synced, ends with the bytes of one that was not; what was read before is
// not read again, but for the block that was at hand and, of Provenance that is
// attached, one reading; and nothing stays but its files.
func TestKilled(t *testing.T) {
	const patients, rounds = 6, 10
	var lists [][]string
	all := int64(0)
	for i := range rounds {
		var list []string
		for p := range patients {
			list = append(list,
				fmt.Sprintf(`{"resourceType":"Observation","id":"%d-%d","subject":{"reference":"Patient/%d"},"performer":[{"reference":"Practitioner/%d"}]}`, i, p, p, i%3),
				fmt.Sprintf(`{"resourceType":"Provenance","id":"%d-%d","target":[{"reference":"Observation/%d-%d"}],"recorded":"2026-01-01T00:00:00Z"}`, i, p, i, p))
		}
		if i < patients {
			list = append(list, fmt.Sprintf(`{"resourceType":"Patient","id":"%d"}`, i), fmt.Sprintf(`{"resourceType":"Practitioner","id":"%d"}`, i%3))
		}
		lists, all = append(lists, list), all+int64(len(list))
	}
	mem := vfs.NewCrashableMem()
	var ops, at atomic.Int64
	var kill func()
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if strings.Contains(op.Path, "jobs") || strings.Contains(op.Path, "segments") {
			if ops.Add(1) == at.Load() {
				kill()
			}
		}
		return nil
	}))
	db := makingStore(t, fs)
	commits(t, db, 8, lists...)
	since := db.Status().Watermark
	var changed []string
	for _, text := range lists[0][:4] {
		changed = append(changed, strings.TrimSuffix(text, "}")+`,"language":"de"}`)
	}
	commits(t, db, 8+all, changed)
	patient := key(t, "Patient/a").Type
	of := func(q export.Request) export.Request {
		q.URL, q.Upto = "x", fhir.None
		return q
	}
	r := rand.New(rand.NewPCG(5, 5))
	kills := storetest.Rounds(15)
	for name, q := range map[string]export.Request{
		"blocks":                  {By: patient, Since: fhir.None},
		"blocks of Practitioners": {By: key(t, "Practitioner/a").Type, Since: fhir.None},
		"blocks with _since":      {By: patient, Since: since - 1},
		"blocks with Provenance":  {By: patient, Since: fhir.None, Attach: export.Latest},
		"Provenance":              {Since: fhir.None, Attach: export.Relevant},
		"Provenance, cut":         {Since: fhir.None, Attach: export.Relevant, Elements: []string{"id"}},
		"filtered with Provenance": {
			Since: fhir.None, Attach: export.Latest, Filters: []string{"Observation?subject=Patient/1"},
		},
		"_departed": {Level: export.Patient, Since: since - 1, Departed: true, Filters: []string{"Observation?subject=Patient/1"}},
	} {
		q = of(q)
		o := export.Options{Checkpoint: -1, MaxJobs: 1000, Memory: 1 << 10, Limits: export.Limits{Resources: 7}}
		var before, span int64
		run := func(db *store.DB, id string) (text string, lines int64) {
			counted := reads{export.Of(db), new(atomic.Int64)}
			j := export.New(counted, o)
			if id == "" {
				id = start(t, j, q)
			}
			stop := runs(t, j)
			defer stop()
			planned(t, j, id)
			span = ops.Load() - before
			return delivered(t, j, id), counted.lines.Load()
		}
		before = ops.Load()
		first, whole := run(db, "")
		most := span
		if !strings.Contains(first, "Observation") || whole == 0 {
			t.Fatalf("%s: %d lines read for\n%s", name, whole, first)
		}
		killed := 0
		for range kills {
			counted := reads{export.Of(db), new(atomic.Int64)}
			var left *vfs.MemFS
			var done int64
			kill = func() {
				done = counted.lines.Load()
				left = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50 * r.IntN(3), RNG: r})
			}
			j := export.New(counted, o)
			id := start(t, j, q)
			at.Store(ops.Load() + 1 + r.Int64N(most))
			stop := runs(t, j)
			want := delivered(t, j, id) // the same job, not killed: merges go on between two
			stop()
			if at.Store(0); left == nil { // something else took some of the operations
				continue
			}
			killed++
			again, err := store.Open("store", store.Options{FS: left, MergeOff: true})
			if err != nil {
				t.Fatal(err)
			}
			got, rest := run(again, id)
			if got != want {
				t.Errorf("%s, killed after %d of %d lines: got\n%s\nwant\n%s", name, done, whole, got, want)
			}
			slack := int64(2 * patients)
			if q.Attach != export.ByDefault || len(q.Filters) > 0 {
				slack += 2 * patients * rounds // a reading of Provenance, or of what is filtered
			}
			if done+rest > whole+slack {
				t.Errorf("%s: %d lines were read before it was killed, %d after, want %d in all", name, done, rest, whole)
			}
			for _, n := range leftOnDisk(t, left, id) {
				if strings.HasSuffix(n, ".scratch") {
					t.Errorf("%s: %s stays", name, n)
				}
			}
			if err := again.Close(); err != nil {
				t.Error(err)
			}
		}
		if killed < kills*2/3 {
			t.Errorf("%s: killed %d times", name, killed)
		}
	}
}

// TestDamageAside: what was put aside and is not as it was is made again.
func TestDamageAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := groupStore(t)
		enter, leave := make(chan struct{}), make(chan struct{})
		calls := 0
		db.OnLines = func() {
			if calls++; calls == 2 {
				enter <- struct{}{}
				<-leave
			}
		}
		q := ofGroup("g")
		q.By = key(t, "Patient/p").Type
		o := export.Options{Checkpoint: -1, Memory: 1}
		j := export.New(db, o)
		id := start(t, j, q)
		stop := runs(t, j)
		<-enter
		sound, spoilt := db.Restart(), db.Restart()
		if n := spoilt.Spoil(); n == 0 {
			t.Fatal("nothing was put aside")
		}
		j = export.New(spoilt, o)
		again := runs(t, j)
		time.Sleep(time.Minute)
		got := delivered(t, j, id)
		again()
		db.OnLines = nil
		close(leave)
		stop()
		j = export.New(sound, o)
		id = start(t, j, q)
		stop = runs(t, j)
		if want := delivered(t, j, id); got != want || got == "" {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		stop()
	})
}
