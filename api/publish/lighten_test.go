package publish_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/api/publish"
	"tidemark/store"
)

// TestPagesKeepLittle: a page beside which much came in keeps a copy of its files
// and no segment. A disk that does not take the copy keeps nobody from the page;
// it is made when there is room, and nothing changes for who reads.
func TestPagesKeepLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && op.Kind == errorfs.OpCreate && strings.Contains(op.Path, ".made") {
				return syscall.ENOSPC
			}
			return nil
		}))
		d, err := openDisk(fs)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { d.db.Close() }()
		much := []string{"a", "b"}
		for i := range 200 {
			much = append(much, fmt.Sprintf("Patient/%d", i))
		}
		full.Store(true)
		for n, ids := range [][]string{much, append([]string{"c", "-b"}, much[2:]...), append([]string{"d"}, much[2:]...)} {
			if err := errors.Join(d.put(ids...), d.pages.Publish(t.Context(), n == 0)); err != nil {
				t.Fatal(err)
			}
		}
		held := func() (n int64) {
			for _, pin := range d.db.Pinned() {
				s, err := d.db.Snapshot(pin.ID)
				if err != nil {
					t.Fatal(err)
				}
				n += s.Holds()
				s.Close()
			}
			return n
		}
		pages, has, err := d.follow()
		if err != nil || held() == 0 {
			t.Fatalf("without room: %v, %d bytes are held", err, held())
		}
		full.Store(false)
		stop := running(t, d.pages)
		time.Sleep(2 * time.Minute)
		stop()
		if n := held(); n != 0 {
			t.Errorf("with room %d bytes are held", n)
		}
		for range 2 {
			pagesNow, hasNow, err := d.follow()
			if diff := cmp.Diff(has, hasNow); err != nil || diff != "" || !cmp.Equal(pages, pagesNow) {
				t.Errorf("%v, pages %v, then %v (-before +after):\n%s", err, pages, pagesNow, diff)
			}
			if err := d.db.Close(); err != nil {
				t.Fatal(err)
			}
			if d, err = openDisk(fs); err != nil {
				t.Fatal(err)
			}
			if err := d.put(); err != nil {
				t.Fatal(err)
			}
		}
		// What came in beside can be erased, what is in a copy takes the page with it.
		for _, ref := range []string{"Patient/7", "Organization/c"} {
			if _, err := d.db.Erase(t.Context(), store.Erasure{Key: key(t, ref)}); err != nil {
				t.Fatal(err)
			}
			if err := d.put(); err != nil {
				t.Fatal(err)
			}
			_, _, err := d.follow()
			if ended := errors.Is(err, publish.ErrNoRoot); ended != (ref == "Organization/c") {
				t.Errorf("after the erasure of %s: %v", ref, err)
			}
		}
		if _, err := d.pages.Increment(pages[0]); !errors.Is(err, publish.ErrWithdrawn) {
			t.Errorf("the page that held it: %v", err)
		}
	})
}
