package publish_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/api/publish"
	"tidemark/store"
)

// TestErase: what is erased outside of the pages leaves them alone, though it came
// between them. What lies in one takes that page away and closes the chain: no
// link leads past it, for what else was in it would be missed.
func TestErase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := openDisk(vfs.NewMem())
		if err != nil {
			t.Fatal(err)
		}
		defer d.db.Close()
		// The root is larger than the segment that it keeps, so that it stays there.
		root0 := []string{"a"}
		for i := range 50 {
			root0 = append(root0, fmt.Sprintf("many-%d", i))
		}
		if err := d.put("Patient/p"); err != nil {
			t.Fatal(err)
		}
		for n, ids := range [][]string{root0, {"b"}, {"Patient/q"}, {"c"}} {
			if err := errors.Join(d.put(ids...), d.pages.Publish(t.Context(), n == 0)); err != nil {
				t.Fatal(err)
			}
		}
		erase := func(ref string) {
			if _, err := d.db.Erase(t.Context(), store.Erasure{Key: key(t, ref)}); err != nil {
				t.Fatal(err)
			}
			if err := d.put(); err != nil {
				t.Fatal(err)
			}
		}
		root, err := d.pages.Root()
		if err != nil {
			t.Fatal(err)
		}
		pages, _, err := d.follow()
		if err != nil || len(pages) != 2 {
			t.Fatal(pages, err)
		}

		erase("Patient/p")
		erase("Patient/q")
		if again, _, err := d.follow(); err != nil || len(again) != 2 {
			t.Errorf("after an erasure elsewhere: %v, %v", again, err)
		}

		erase("Organization/b")
		if _, err := d.pages.Root(); !errors.Is(err, publish.ErrNoRoot) {
			t.Errorf("the root: %v", err)
		}
		if m, err := d.pages.Stub(root.Page); err != nil || m.Next.Page != publish.Closed {
			t.Errorf("the page before leads to %v, %v", m.Next, err)
		}
		if _, err := d.pages.Increment(pages[0]); !errors.Is(err, publish.ErrWithdrawn) {
			t.Errorf("the page that held it: %v", err)
		}
		if _, err := d.pages.Open(t.Context(), pages[0], 1); !errors.Is(err, publish.ErrWithdrawn) {
			t.Errorf("its file: %v", err)
		}
		if m, err := d.pages.Increment(pages[1]); err != nil || m.Next.Page != publish.Closed {
			t.Errorf("the page behind leads to %v, %v", m.Next, err)
		}
		if err := d.pages.Publish(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		again, has, err := d.follow()
		if err != nil || len(again) != 0 || len(has) != 52 || has["b"] != "" {
			t.Errorf("the new chain: %v, %v, %v", again, has, err)
		}
		if m, err := d.pages.Stub(root.Page); err != nil || m.Next.Page != publish.Closed {
			t.Errorf("the old chain leads to %v, %v", m.Next, err)
		}
	})
}

// The root and the increment of one page are of one snapshot, and what is prepared
// for the files of one is not taken for that of the other.
func TestRootAndIncrementOfOnePage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := openDisk(vfs.NewMem())
		if err != nil {
			t.Fatal(err)
		}
		defer d.db.Close()
		var all []string
		for i := range 60 {
			all = append(all, fmt.Sprintf("many-%d", i))
		}
		if err := errors.Join(d.put(all...), d.pages.Publish(t.Context(), true)); err != nil {
			t.Fatal(err)
		}
		first, err := d.pages.Root()
		if err != nil {
			t.Fatal(err)
		}
		// Blocks with rows that died lie in both, others in each.
		if err := errors.Join(d.put(all[:59]...), d.put(all[0]), d.pages.Publish(t.Context(), true)); err != nil {
			t.Fatal(err)
		}
		stub, err := d.pages.Stub(first.Page)
		if err != nil {
			t.Fatal(err)
		}
		increment, err1 := d.pages.Increment(stub.Next.Page)
		root, err2 := d.pages.Root()
		if err := errors.Join(err1, err2); err != nil || root.Page != stub.Next.Page || root.TransactionTime != increment.TransactionTime {
			t.Fatal(err, root, increment)
		}
		for range 2 {
			changed, whole := map[string]string{}, map[string]string{}
			if err := errors.Join(d.take(increment, changed), d.take(root, whole)); err != nil {
				t.Fatal(err)
			}
			if len(changed) != 59 || len(whole) != 60 || changed["many-59"] != "" || whole["many-59"] != "59" || whole["many-0"] != "119" {
				t.Errorf("the increment has %d, the root %d: %v", len(changed), len(whole), whole)
			}
		}
	})
}

// TestDamagedPage: a page of which a copy is damaged is withdrawn when the store has found
// that, and its chain begins anew: else nobody who follows would come past it.
func TestDamagedPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		d, err := openDiskUnder(fs, strict) // so that its files are copies
		if err != nil {
			t.Fatal(err)
		}
		defer d.db.Close()
		d.step(t, true, "a", "b")
		d.step(t, false, "c")
		root, err := d.pages.Root()
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- d.db.Run(ctx) }()
		pages, _, err := d.follow()
		if err != nil || len(pages) != 1 {
			t.Fatal(pages, err)
		}
		for _, pin := range d.db.Pinned() {
			if strings.HasSuffix(pin.ID, pages[0]) {
				spoil(t, fs, "store/jobs/"+pin.ID+"/f1.made")
			}
		}
		time.Sleep(3 * time.Hour) // the store reads all in one
		if _, err := d.pages.Increment(pages[0]); !errors.Is(err, publish.ErrWithdrawn) {
			t.Errorf("the damaged page: %v", err)
		}
		if m, err := d.pages.Stub(root.Page); err != nil || m.Next.Page != publish.Closed {
			t.Errorf("the page before leads to %v, %v", m.Next, err)
		}
		d.step(t, false)
		if _, has, err := d.follow(); err != nil || len(has) != 3 {
			t.Errorf("the new chain: %v, %v", has, err)
		}
		if err := d.pages.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}
