package publish_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tidemark/api/apitest"
	"tidemark/api/export"
	"tidemark/api/publish"
	"tidemark/store"
	"tidemark/store/fhir"
)

// TestFollowThroughQuiet: whoever follows the chain of types that hardly ever change,
// as often as he is told to, is led on to fresher roots before the page at which he
// waits is taken away, and never has to begin again.
func TestFollowThroughQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := apitest.New(fhir.FromTime(time.Now()))
		put(t, db, "Organization/0")
		p, err := publish.New(db, publish.Options{Types: []fhir.Type{typ(t, "Organization")}})
		if err != nil {
			t.Fatal(err)
		}
		defer running(t, p)()
		time.Sleep(time.Minute)
		root, err := p.Root()
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		at, before := root.Next, root.TransactionTime
		for hour := range 100 * 24 {
			now := fhir.FromTime(time.Now())
			if hour == 1 || hour == 99*24 { // all that ever happens
				put(t, db, "Organization/1")
			}
			db.SetWatermark(now)
			time.Sleep(time.Hour)
			for {
				page := p.Increment
				if at.Stub {
					page = p.Stub
				}
				m, err := page(at.Page)
				if err != nil {
					t.Fatalf("on day %d, on the page where a consumer waits: %v", hour/24, err)
				}
				if m.TransactionTime < before {
					t.Fatalf("on day %d: from %v back to %v", hour/24, before, m.TransactionTime)
				}
				if before = m.TransactionTime; m.Next.Page == publish.Pending {
					break
				}
				if at = m.Next; !at.Stub {
					found++
				}
			}
		}
		if found != 2 {
			t.Errorf("%d increments were found, want 2", found)
		}
	})
}

// TestLettersAreTold: records that could not be decoded make no page of their own,
// and are told to who follows the chain in its next page, also where that is made
// beside a root for which nothing else has changed.
func TestLettersAreTold(t *testing.T) {
	for _, root := range []bool{false, true} {
		db := apitest.New(0)
		db.Put(key(t, "Organization/1"), 10, apitest.Links{})
		db.SetWatermark(10)
		p, err := publish.New(db, publish.Options{Types: []fhir.Type{typ(t, "Organization")}})
		if err != nil {
			t.Fatal(err)
		}
		publishAt := func(at fhir.Instant, root bool) {
			t.Helper()
			db.SetWatermark(at)
			if err := p.Publish(t.Context(), root); err != nil {
				t.Fatal(err)
			}
		}
		publishAt(10, true)
		first, err := p.Root()
		if err != nil {
			t.Fatal(err)
		}
		db.Dead(15)
		publishAt(20, false)
		if s, err := p.Stub(first.Page); err != nil || s.Next.Page != publish.Pending {
			t.Fatalf("%v: letters made a page of their own: %+v", err, s)
		}
		if publishAt(30, root); !root {
			db.Put(key(t, "Organization/2"), 40, apitest.Links{})
		}
		publishAt(40, false)
		s, err := p.Stub(first.Page)
		if err != nil {
			t.Fatal(err)
		}
		m, err := p.Increment(s.Next.Page)
		if err != nil || len(m.Severities) != 1 || m.Severities[0].Count != 1 {
			t.Errorf("with a root %v: %v: told of %v, want 1 warning", root, err, m.Severities)
		}
	}
}

// pins counts attempts to publish.
type pins struct {
	export.Store
	n *atomic.Int64
}

func (p pins) Pin(ctx context.Context, id string, expires time.Time, rule func(export.Snapshot) ([]byte, error)) (export.Snapshot, error) {
	p.n.Add(1)
	return p.Store.Pin(ctx, id, expires, rule)
}

// TestAskingDoesNotPublish: whoever asks for a root that there is not may have it
// made at once, but a thousand who ask while the disk takes nothing do not fill the
// log.
func TestAskingDoesNotPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := apitest.New(0)
		db.Fail(store.ErrReadOnly)
		var tried atomic.Int64
		p, err := publish.New(pins{db, &tried}, publish.Options{Types: []fhir.Type{typ(t, "Organization")}})
		if err != nil {
			t.Fatal(err)
		}
		defer running(t, p)()
		for range 10_000 {
			if _, err := p.Root(); !errors.Is(err, publish.ErrNoRoot) {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		if n := tried.Load(); n < 5 || n > 15 {
			t.Errorf("in ten seconds it was tried %d times, want once a second", n)
		}
	})
}

// opens counts the snapshots that are opened.
type opens struct {
	export.Store
	n *atomic.Int64
}

func (o opens) Snapshot(id string) (export.Snapshot, error) {
	o.n.Add(1)
	return o.Store.Snapshot(id)
}

// TestPublishLooksAtNewPages: what a page costs does not grow with those that are
// there, which were looked at when they were made.
func TestPublishLooksAtNewPages(t *testing.T) {
	db := apitest.New(0)
	var opened atomic.Int64
	p, err := publish.New(opens{db, &opened}, publish.Options{Types: []fhir.Type{typ(t, "Organization")}})
	if err != nil {
		t.Fatal(err)
	}
	for n := range fhir.Instant(50) {
		db.Put(key(t, "Organization/1"), 1+n, apitest.Links{})
		db.SetWatermark(1 + n)
		opened.Store(0)
		if err := p.Publish(t.Context(), n == 0); err != nil {
			t.Fatal(err)
		}
		if got := opened.Load(); got != 1 {
			t.Fatalf("with %d pages %d were opened, want the new one", n+1, got)
		}
	}
}
