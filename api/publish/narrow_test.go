package publish_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/api/apitest"
	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/api/publish"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
)

// step takes versions in and publishes.
func (d *disk) step(t *testing.T, root bool, ids ...string) {
	t.Helper()
	if err := errors.Join(d.put(ids...), d.pages.Publish(t.Context(), root)); err != nil {
		t.Fatal(err)
	}
}

// reopen is a restart under a policy.
func (d *disk) reopen(t *testing.T, fs vfs.FS, policy withhold.Policy) *disk {
	t.Helper()
	if err := d.db.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := openDiskUnder(fs, policy)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.put(); err != nil {
		t.Fatal(err)
	}
	return d
}

// text is all that the files of a page hold but for what is said in errors.
func (d *disk) text(t *testing.T, m publish.Manifest) string {
	t.Helper()
	var text bytes.Buffer
	for i, f := range m.Files {
		if f.List == export.Errors {
			continue
		}
		file, err := d.pages.Open(t.Context(), m.Page, m.Before+i+1)
		if err != nil {
			t.Fatal(err)
		}
		if f.CRC == nil || *f.CRC != file.CRC32() {
			t.Errorf("file %d: the manifest does not tell its CRC-32", i+1)
		}
		if err := errors.Join(file.Write(&text, false, 0, file.Size(false)), file.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return text.String()
}

// TestWithheldPages: pages hold what a policy lets out, of deletions, too; where it lets
// out nothing there is none. They keep no segment, outlive a restart, and end with an
// erasure only of what they hold.
func TestWithheldPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		d, err := openDiskUnder(fs, strict)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { d.db.Close() }()
		d.step(t, true, "a", "b!", "c", "Patient/p")
		root, err := d.pages.Root()
		if err != nil {
			t.Fatal(err)
		}
		if want := []outcome.Tally{{Severity: outcome.Information, Count: 1}}; !cmp.Equal(root.Severities, want) {
			t.Errorf("the root says %v", root.Severities)
		}
		d.step(t, false, "d!", "b!")
		if pages, _, err := d.follow(); err != nil || len(pages) != 0 {
			t.Errorf("of what is withheld a page was made: %v, %v", pages, err)
		}
		d.step(t, true)
		if s, err := d.pages.Stub(root.Page); err != nil || !s.Next.Stub {
			t.Errorf("a root for which nothing has changed that may go leads on to %v, %v", s.Next, err)
		}
		d.step(t, false, "d", "-a", "-b")
		for range 2 {
			pages, has, err := d.follow()
			if want := map[string]string{"c": "2", "d": "6"}; err != nil || len(pages) != 1 || !cmp.Equal(has, want) {
				t.Fatalf("%v, pages %v: %v", err, pages, has)
			}
			m, err := d.pages.Increment(pages[0])
			if err != nil {
				t.Fatal(err)
			}
			if text := d.text(t, m); strings.Contains(text, "/b") || !strings.Contains(text, "/a") || !strings.Contains(text, "SUBSETTED") {
				t.Errorf("the page holds %s", text)
			}
			for _, pin := range d.db.Pinned() {
				s, err := d.db.Snapshot(pin.ID)
				if err != nil {
					t.Fatal(err)
				}
				if n := s.Holds(); n > 0 {
					t.Errorf("a page keeps %d bytes of segments", n)
				}
				s.Close()
			}
			d = d.reopen(t, fs, strict)
		}
		for _, ref := range []string{"Patient/p", "Organization/b", "Organization/c"} {
			if _, err := d.db.Erase(t.Context(), store.Erasure{Key: key(t, ref)}); err != nil {
				t.Fatal(err)
			}
			if err := d.put(); err != nil {
				t.Fatal(err)
			}
			if _, _, err := d.follow(); errors.Is(err, publish.ErrNoRoot) != (ref == "Organization/c") {
				t.Errorf("after the erasure of %s: %v", ref, err)
			}
		}
		if _, err := d.pages.Stub(root.Page); !errors.Is(err, publish.ErrWithdrawn) {
			t.Errorf("the root that held it: %v", err)
		}
	})
}

// TestPolicyChanges: more that is withheld, or something else, ends all pages that were
// made before, for good; less closes their chain, for what was withheld comes in none of
// its increments. The same in another order is the same.
func TestPolicyChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		d, err := openDisk(fs)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { d.db.Close() }()
		labels := withhold.Policy{Security: []string{"R", "V"}}
		turned := withhold.Policy{Security: []string{"V", "R"}}
		d.step(t, true, "a", "b!", "c")
		var roots []string
		ended := map[string]bool{}
		for _, c := range []struct {
			name   string
			policy withhold.Policy
			ends   []int // of the roots so far
			new    bool  // another chain begins
			has    int
		}{
			{"none", withhold.Policy{}, nil, false, 3},
			{"more", labels, []int{0}, true, 2},
			{"the same", turned, nil, false, 2},
			{"less", withhold.Policy{}, nil, true, 3},
			{"as before", labels, []int{2}, true, 2},
			{"another", withhold.Policy{Security: []string{"R"}, Elements: strict.Elements}, []int{1, 3}, true, 2},
			{"less again", withhold.Policy{Elements: strict.Elements}, nil, true, 3},
		} {
			root, err := d.pages.Root()
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(roots, root.Page) {
				roots = append(roots, root.Page)
			}
			d = d.reopen(t, fs, c.policy)
			for _, i := range c.ends {
				ended[roots[i]] = true
			}
			for i, page := range roots {
				m, err := d.pages.Stub(page)
				switch last := i == len(roots)-1; {
				case ended[page] != errors.Is(err, publish.ErrWithdrawn):
					t.Errorf("%s: root %d: %v", c.name, i, err)
				case err == nil && (m.Next.Page == publish.Closed) != (c.new || !last):
					t.Errorf("%s: root %d leads to %v", c.name, i, m.Next)
				}
			}
			if _, err := d.pages.Root(); errors.Is(err, publish.ErrNoRoot) != c.new {
				t.Errorf("%s: the root: %v", c.name, err)
			}
			d.step(t, false)
			if _, has, err := d.follow(); err != nil || len(has) != c.has {
				t.Errorf("%s: %v, the root has %v", c.name, err, has)
			}
			for _, pin := range d.db.Pinned() {
				if pin.Revoked != ended[pin.ID[strings.LastIndex(pin.ID, "-")+1:]] {
					t.Errorf("%s: ended on the disk: %v", c.name, pin.Revoked)
				}
			}
		}
	})
}

// beside does something before a page whose files are made becomes one.
type beside struct {
	export.Store
	do func()
}

func (b beside) Detach(id string, rule []byte) error {
	b.do()
	return b.Store.Detach(id, rule)
}

// TestEraseAmidPage: an erasure ends a page in the making that may hold what is erased,
// and no other: whoever follows is not sent back to the root, and the page is made once
// more.
func TestEraseAmidPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := openDiskUnder(vfs.NewMem(), strict)
		if err != nil {
			t.Fatal(err)
		}
		defer d.db.Close()
		d.step(t, true, "a")
		root, err := d.pages.Root()
		if err != nil {
			t.Fatal(err)
		}
		pending := func(when string) {
			t.Helper()
			if m, err := d.pages.Stub(root.Page); err != nil || m.Next.Page != publish.Pending {
				t.Errorf("%s the chain leads to %v, %v", when, m.Next, err)
			}
		}
		erase := func() {
			pending("before an erasure")
			if _, err := d.db.Erase(t.Context(), store.Erasure{Key: key(t, "Organization/b")}); err != nil {
				t.Fatal(err)
			}
			pending("after an erasure")
		}
		if err := errors.Join(d.publisher(beside{export.Of(d.db), erase}), d.put("b", "c")); err != nil {
			t.Fatal(err)
		}
		if err := d.pages.Publish(t.Context(), false); !errors.Is(err, store.ErrRevoked) {
			t.Errorf("a page was made of what was erased meanwhile: %v", err)
		}
		pending("after that")
		if err := errors.Join(d.leftovers(), d.publisher(export.Of(d.db))); err != nil {
			t.Error(err)
		}
		d.step(t, false)
		if pages, has, err := d.follow(); err != nil || len(pages) != 1 || len(has) != 2 {
			t.Errorf("%v, pages %v: %v", err, pages, has)
		}
	})
}

// TestUnfinishedPages: a page that cannot be finished is none, and leaves nothing; what a
// process has left that was killed goes with the next page, or with the last that looks.
func TestUnfinishedPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, on := range []bool{true, false} {
			db := apitest.New(fhir.FromTime(time.Now()))
			put(t, db, "Organization/0")
			o := publish.Options{Withhold: strict}
			if on {
				o.Types = []fhir.Type{typ(t, "Organization")}
			}
			killed := func() { panic("killed") }
			p, err := publish.New(beside{db, killed}, publish.Options{Types: []fhir.Type{typ(t, "Organization")}, Withhold: strict})
			if err != nil {
				t.Fatal(err)
			}
			func() {
				defer func() { _ = recover() }()
				_ = p.Publish(t.Context(), true)
			}()
			if len(db.Pinned()) != 1 {
				t.Fatal("nothing was left")
			}
			if p, err = publish.New(db, o); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Root(); !errors.Is(err, publish.ErrNoRoot) {
				t.Errorf("half a page is shown: %v", err)
			}
			if on {
				err = p.Publish(t.Context(), true)
			} else {
				err = p.Sweep(t.Context())
			}
			if n := len(db.Pinned()); err != nil || n != map[bool]int{true: 1, false: 0}[on] {
				t.Errorf("published %v: %v, %d pins", on, err, n)
			}
			if _, err := p.Root(); (err == nil) != on {
				t.Errorf("published %v: %v", on, err)
			}
		}
	})
}

// TestWithheldUntold: of a deletion of which it is not known what was deleted the page
// says no more than that, and names nothing.
func TestWithheldUntold(t *testing.T) {
	db := apitest.New(10)
	db.Put(key(t, "Organization/1"), 10, apitest.Links{})
	p, err := publish.New(db, publish.Options{Types: []fhir.Type{typ(t, "Organization")}, Withhold: withhold.Policy{Security: []string{"R"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	root, err := p.Root()
	if err != nil {
		t.Fatal(err)
	}
	db.Delete(key(t, "Organization/unknown"), 15, apitest.Links{})
	db.Put(key(t, "Organization/2"), 20, apitest.Links{})
	db.SetWatermark(20)
	if err := p.Publish(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	s, err := p.Stub(root.Page)
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.Increment(s.Next.Page)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range m.Files {
		if f.List == export.Deleted {
			t.Errorf("it names what it does not know: %+v", f)
		}
	}
	if want := []outcome.Tally{{Severity: outcome.Warning, Count: 1}, {Severity: outcome.Information, Count: 1}}; !cmp.Equal(m.Severities, want) {
		t.Errorf("it says %v", m.Severities)
	}
}

// TestWithheldDamage: what cannot be read may be withheld or not, and would be missing
// for good to who follows the chain: no page is made without it, and the log says why.
func TestWithheldDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		d, err := openDiskUnder(fs, strict)
		if err != nil {
			t.Fatal(err)
		}
		defer d.db.Close()
		d.step(t, true, "a")
		if err := d.put("b"); err != nil {
			t.Fatal(err)
		}
		names, err := fs.List("store/segments")
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if strings.HasSuffix(n, ".ndjson.gz") {
				spoil(t, fs, "store/segments/"+n)
			}
		}
		if err := d.pages.Publish(t.Context(), false); !errors.Is(err, store.ErrCorrupt) || !strings.Contains(err.Error(), "tidemark check") {
			t.Errorf("a page without what cannot be read: %v", err)
		}
		if pages, has, err := d.follow(); err != nil || len(pages) != 0 || len(has) != 1 {
			t.Errorf("%v, pages %v: %v", err, pages, has)
		}
		if err := d.leftovers(); err != nil {
			t.Error(err)
		}
	})
}

// spoil changes a byte in the middle of a file.
func spoil(t *testing.T, fs vfs.FS, path string) {
	t.Helper()
	in, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(in)
	if err := errors.Join(err, in.Close()); err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 0xff
	out, err := fs.Create(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	_, err = out.Write(data)
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
}

// stuck refuses to end anything.
type stuck struct{ export.Store }

func (stuck) Revoke(string, []byte) error { return store.ErrReadOnly }

// TestWeakerPagesCannotEnd: pages that hold what is withheld now are not shown, though
// the disk takes no word of their end; that is tried again, and then they are as others
// that have ended.
func TestWeakerPagesCannotEnd(t *testing.T) {
	db := apitest.New(fhir.FromTime(time.Now()))
	put(t, db, "Organization/0")
	o := publish.Options{Types: []fhir.Type{typ(t, "Organization")}}
	p, err := publish.New(db, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	root, err := p.Root()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	o.Withhold, o.Logger = strict, slog.New(slog.NewTextHandler(&log, nil))
	s := &swapped{Store: stuck{db}}
	if p, err = publish.New(s, o); err != nil {
		t.Fatal(err)
	}
	for _, of := range []export.Store{stuck{db}, db, db} {
		s.Store = of
		if err := errors.Join(p.Publish(t.Context(), false), p.Sweep(context.Background())); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Stub(root.Page); !errors.Is(err, publish.ErrWithdrawn) {
			t.Errorf("a page that holds more: %v", err)
		}
	}
	if !strings.Contains(log.String(), "hold what is withheld now") || strings.Contains(log.String(), root.Page) {
		t.Errorf("the log says %s", &log)
	}
	for _, pin := range db.Pinned() {
		if strings.HasSuffix(pin.ID, root.Page) && !pin.Revoked {
			t.Error("the page has not ended")
		}
	}
}

// swapped is a store that changes its ways.
type swapped struct{ export.Store }

// TestOptOutAndPages: what people may be in is not published where some have opted out;
// to pages of nobody's data it makes no difference who does.
func TestOptOutAndPages(t *testing.T) {
	db := apitest.New(fhir.FromTime(time.Now()))
	put(t, db, "Organization/0")
	o := publish.Options{Types: []fhir.Type{typ(t, "Organization"), typ(t, "Schedule")}, Withhold: withhold.Policy{Groups: []string{"g"}}}
	if _, err := publish.New(db, o); err == nil || strings.Count(err.Error(), "opted out") != 1 || !strings.Contains(err.Error(), "Schedule can") {
		t.Errorf("Schedules are published beside withhold.groups: %v", err)
	}
	o.Types = o.Types[:1]
	page := ""
	for _, groups := range [][]string{nil, {"g"}, {"h"}, nil} {
		o.Withhold.Groups = groups
		p, err := publish.New(db, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Publish(t.Context(), page == ""); err != nil {
			t.Fatal(err)
		}
		root, err := p.Root()
		if err != nil || page != "" && root.Page != page || root.Severities != nil {
			t.Errorf("groups %v: %v, the root says %v, is another: %v", groups, err, root.Severities, root.Page != page)
		}
		page = root.Page
	}
}
