package publish_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

	"tidemark/api/export"
	"tidemark/api/publish"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A disk is a real store on a disk in memory.
type disk struct {
	db     *store.DB
	pages  *publish.Pages
	policy withhold.Policy
	offset int64
}

func openDisk(fs vfs.FS) (*disk, error) { return openDiskUnder(fs, withhold.Policy{}) }

// strict is a policy by which labelled resources are withheld, and the alias of others.
var strict = withhold.Policy{Security: []string{"R"}, Elements: []string{"Organization.alias"}}

func openDiskUnder(fs vfs.FS, policy withhold.Policy) (*disk, error) {
	db, err := store.Open("store", store.Options{FS: fs, CommitInterval: time.Millisecond, Allowance: time.Millisecond, Cache: 1 << 20, MergeOff: true, Scrub: time.Hour})
	if err != nil {
		return nil, err
	}
	d := &disk{db: db, policy: policy}
	if err := d.publisher(export.Of(db)); err != nil {
		return nil, err
	}
	p, _ := db.Partition(part)
	d.offset = p.Next
	return d, db.Discover(store.Discovery{Complete: true, Partitions: []store.Discovered{{Partition: part, End: d.offset}}})
}

// publisher publishes what is in a store.
func (d *disk) publisher(db export.Store) (err error) {
	typ, _ := fhir.ParseType("Organization")
	d.pages, err = publish.New(db, publish.Options{Types: []fhir.Type{typ}, Grace: time.Nanosecond, Limits: export.Limits{Resources: 1}, Withhold: d.policy})
	return err
}

var part = store.Partition{Topic: "t"}

// put takes versions of Organizations in, or with "-id" deletions, and waits for
// the watermark. "Type/id" is of another type, "id!" labelled.
func (d *disk) put(ids ...string) error {
	asked := d.db.Now()
	var s fhir.Scanner
	b := store.Batch{Partition: part, LeaderEpoch: -1, Asked: asked}
	for _, id := range ids {
		ref, dies := strings.CutPrefix(id, "-")
		label := ""
		if bare, labelled := strings.CutSuffix(ref, "!"); labelled {
			ref, label = bare, `,"meta":{"security":[{"code":"R"}]}`
		}
		kind, name, other := strings.Cut(ref, "/")
		if !other {
			kind, name = "Organization", ref
		}
		res, err := s.Scan(fmt.Appendf(nil, `{"resourceType":%q,"id":%q%s,"name":"%d","alias":["canary"]}`, kind, name, label, d.offset))
		if err != nil {
			return err
		}
		ch := store.Change{
			Key: res.Key, Delete: dies, Offset: d.offset, Timestamp: asked + fhir.Instant(d.offset),
			Version: store.NoVersion, LastUpdated: fhir.None, Time: fhir.None,
		}
		if !dies {
			ch.Body, ch.Meta = bytes.Clone(res.Body), res.Meta
		}
		b.Changes = append(b.Changes, ch)
		d.offset++
	}
	for {
		b.Next, b.End = d.offset, d.offset
		if err := d.db.Apply(context.Background(), b); err != nil {
			return err
		}
		if err := d.db.Flush(); err != nil {
			return err
		}
		if st := d.db.Status(); st.Ready && st.Watermark > asked+fhir.Instant(d.offset) {
			return nil
		}
		time.Sleep(time.Millisecond)
		b.Changes, b.Asked = nil, d.db.Now()
	}
}

// follow reads all that is published, from the root on: ids of the pages in their
// order, and names by id.
func (d *disk) follow() (ids []string, has map[string]string, err error) {
	has = map[string]string{}
	m, err := d.pages.Root()
	if err != nil {
		return nil, nil, err
	}
	if err := d.take(m, has); err != nil {
		return nil, nil, err
	}
	for m, err = d.pages.Stub(m.Next.Page); err == nil && m.Next.Page != publish.Pending; {
		if m.Next.Page == publish.Closed {
			return nil, nil, errors.New("the chain is closed")
		}
		ids = append(ids, m.Next.Page)
		if m, err = d.pages.Increment(m.Next.Page); err == nil {
			err = d.take(m, has)
		}
	}
	return ids, has, err
}

func (d *disk) take(m publish.Manifest, has map[string]string) error {
	for i := range m.Files {
		if m.Files[i].List == export.Errors {
			continue
		}
		f, err := d.pages.Open(context.Background(), m.Page, m.Before+i+1)
		if err != nil {
			return err
		}
		var text bytes.Buffer
		if err := errors.Join(f.Write(&text, false, 0, f.Size(false)), f.Close()); err != nil {
			return err
		}
		for line := range bytes.Lines(text.Bytes()) {
			var r struct {
				ID, Name string
				Alias    []string
				Entry    []struct{ Request struct{ URL string } }
			}
			if err := json.Unmarshal(line, &r); err != nil {
				return err
			}
			if r.ID != "" && (r.Alias == nil) != (len(d.policy.Elements) > 0) || len(d.policy.Security) > 0 && bytes.Contains(line, []byte("security")) {
				return fmt.Errorf("with %v withheld a page holds %s", d.policy, line)
			}
			if has[r.ID] = r.Name; len(r.Entry) > 0 {
				delete(has, "")
				delete(has, strings.TrimPrefix(r.Entry[0].Request.URL, "Organization/"))
			}
		}
	}
	return nil
}

// A crashed disk is what one may hold after a crash, and what was shown before.
type crashed struct {
	fs    vfs.FS
	op    string
	shown []string          // pages behind the root
	has   map[string]string // nil: no root
}

// Wherever a crash comes, what was shown before is there after it, a page that
// was being made is there with the link to it or not at all, and the chain goes on.
func TestCrash(t *testing.T) { testCrash(t, withhold.Policy{}) }

// Likewise under a policy, where pages are made after their snapshots are pinned.
func TestCrashUnderPolicy(t *testing.T) { testCrash(t, strict) }

func testCrash(t *testing.T, policy withhold.Policy) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewCrashableMem()
		var mu sync.Mutex
		var crashes []crashed
		var now crashed
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			n := len(crashes)
			c := now
			c.fs = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[n%3], RNG: rand.New(rand.NewPCG(uint64(n), 1))})
			c.op = fmt.Sprintf("write %d, %v %s", n, op.Kind, op.Path)
			crashes = append(crashes, c)
			return nil
		}))
		d, err := openDiskUnder(fs, policy)
		if err != nil {
			t.Fatal(err)
		}
		lives, err := history(d, func() error {
			shown, has, err := d.follow()
			mu.Lock()
			defer mu.Unlock()
			now.shown, now.has = shown, has
			return err
		})
		if err := errors.Join(err, d.db.Close()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(lives, now.has); diff != "" {
			t.Errorf("without a crash (-want +got):\n%s", diff)
		}
		for _, c := range crashes {
			if err := c.recovers(policy); err != nil {
				t.Errorf("crash before %s: %v", c.op, err)
			}
		}
		if t.Logf("%d crashes", len(crashes)); len(crashes) < 50 {
			t.Errorf("only %d writes were tried", len(crashes))
		}
	})
}

// history publishes in all ways there are; seen is called after each page.
func history(d *disk, seen func() error) (lives map[string]string, err error) {
	for _, step := range []struct {
		put   []string
		root  bool
		sweep bool
	}{
		{[]string{"a", "b", "c", "s!"}, true, false},
		{[]string{"a", "-b"}, false, false},
		{[]string{"d", "-c", "a"}, false, false},
		{[]string{"e"}, true, false},
		{[]string{"b"}, false, true},
		{nil, true, true},
		{[]string{"-e"}, false, false},
	} {
		if err := errors.Join(d.put(step.put...), d.pages.Publish(context.Background(), step.root)); err != nil {
			return nil, err
		}
		if step.sweep {
			time.Sleep(time.Millisecond)
			err = d.pages.Sweep(context.Background())
		}
		if err := errors.Join(err, seen()); err != nil {
			return nil, err
		}
	}
	// Names are offsets, in the order above.
	lives = map[string]string{"a": "8", "b": "10", "d": "6", "s": "3"}
	if !d.policy.Empty() {
		delete(lives, "s")
	}
	return lives, nil
}

func (c *crashed) recovers(policy withhold.Policy) (err error) {
	d, err := openDiskUnder(c.fs, policy)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.db.Close()) }()
	shown, has, err := d.follow()
	switch {
	case c.has == nil && errors.Is(err, publish.ErrNoRoot):
	case err != nil:
		return err
	case c.has == nil:
	case slices.Equal(shown, c.shown):
		if diff := cmp.Diff(c.has, has); diff != "" {
			return fmt.Errorf("the same pages hold something else (-before +after):\n%s", diff)
		}
	case len(shown) == len(c.shown)+1 && slices.Equal(shown[:len(c.shown)], c.shown):
	case len(shown) == 0: // a fresh root, which leads on
	default:
		return fmt.Errorf("pages %v were shown, now there are %v", c.shown, shown)
	}
	// It goes on, and whoever began before the crash goes on with it.
	if err := errors.Join(d.put("z"), d.pages.Publish(context.Background(), false)); err != nil {
		return err
	}
	if _, has, err = d.follow(); err != nil {
		return err
	}
	if err := d.continues(c.shown); err != nil {
		return err
	}
	// What all pages add up to is what a fresh root holds.
	if err := d.pages.Publish(context.Background(), true); err != nil {
		return err
	}
	_, want, err := d.follow()
	if diff := cmp.Diff(want, has); diff != "" {
		return fmt.Errorf("after one more page (-root +chain):\n%s", diff)
	}
	return errors.Join(err, d.leftovers())
}

// leftovers tells of snapshots that are pinned and are no pages.
func (d *disk) leftovers() error {
	for _, pin := range d.db.Pinned() {
		if bytes.Contains(pin.Rule, []byte("unfinished")) {
			return errors.New("a page that was not finished keeps its snapshot")
		}
	}
	return nil
}

// continues follows the chain from the last page that was shown: it does not end
// but with #pending.
func (d *disk) continues(shown []string) error {
	if len(shown) == 0 {
		return nil
	}
	m, err := d.pages.Increment(shown[len(shown)-1])
	n := 0
	for ; err == nil && m.Next.Page != publish.Pending && m.Next.Page != publish.Closed; n++ {
		m, err = d.pages.Increment(m.Next.Page)
	}
	switch {
	case errors.Is(err, publish.ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("behind the last page: %w", err)
	case m.Next.Page != publish.Pending, n == 0:
		return fmt.Errorf("from the last page %d lead on, to %s", n, m.Next.Page)
	}
	return nil
}

// Who reads while pages are made, taken away and withdrawn meets whole pages, or
// is told that they are gone.
func TestConcurrent(t *testing.T) { testConcurrent(t, withhold.Policy{}) }

// Likewise under a policy. Nobody meets half a page.
func TestConcurrentUnderPolicy(t *testing.T) { testConcurrent(t, strict) }

func testConcurrent(t *testing.T, policy withhold.Policy) {
	d, err := openDiskUnder(vfs.NewMem(), policy)
	if err != nil {
		t.Fatal(err)
	}
	defer d.db.Close()
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				_, _, err := d.follow()
				switch {
				case err == nil, err.Error() == "the chain is closed":
				case errors.Is(err, publish.ErrNoRoot), errors.Is(err, publish.ErrNotFound), errors.Is(err, publish.ErrWithdrawn), errors.Is(err, store.ErrRevoked):
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	for n := range 60 {
		err := errors.Join(d.put(fmt.Sprint(n), fmt.Sprint(n/2), fmt.Sprint(n%9, "!")), d.pages.Publish(t.Context(), n%7 == 0))
		if n%10 == 0 {
			err = errors.Join(err, d.pages.Sweep(t.Context()))
		}
		if n%20 == 19 {
			typ, _ := fhir.ParseType("Organization")
			_, e := d.db.Erase(t.Context(), store.Erasure{Key: fhir.Key{Type: typ, ID: fmt.Sprint(n)}})
			err = errors.Join(err, e)
		}
		if err != nil {
			t.Error(err)
			break
		}
	}
	close(done)
	readers.Wait()
}
