package publish_test

import (
	"errors"
	"testing"
	"testing/synctest"

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
		for _, id := range []string{"a", "b", "Patient/p", "c"} {
			if err := errors.Join(d.put(id), d.pages.Publish(t.Context(), id == "a")); err != nil {
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
		if err != nil || len(again) != 0 || len(has) != 2 || has["b"] != "" {
			t.Errorf("the new chain: %v, %v, %v", again, has, err)
		}
		if m, err := d.pages.Stub(root.Page); err != nil || m.Next.Page != publish.Closed {
			t.Errorf("the old chain leads to %v, %v", m.Next, err)
		}
	})
}
