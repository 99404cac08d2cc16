package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// TestBeside changes a byte of what lies beside a snapshot: in a copy of an output file, in
// its table, in what was cut for it, in its list of keys. The scrub finds it in its time,
// and check; both say where it lies, and neither which snapshot's it is.
func TestBeside(t *testing.T) {
	for _, c := range []struct {
		name string
		at   func(length int) int
	}{
		{"f1.made", func(int) int { return 5 }},
		{"f1.made", func(n int) int { return n - cutTrailer - 1 }},
		{"f1.cut", func(int) int { return 5 }},
		{"f1.keys", func(int) int { return 5 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs := vfs.NewMem()
				var log bytes.Buffer
				o := Options{FS: fs, Scrub: time.Hour, Allowance: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))}
				db := mustOpen(t, "store", o)
				copiedPage(t, db, "the-id-of-a-page")
				ctx, stop := context.WithCancel(t.Context())
				ran := make(chan error, 1)
				go func() { ran <- db.Run(ctx) }()
				time.Sleep(3 * time.Hour)
				if _, err := db.Check(true); err != nil || strings.Contains(log.String(), "damaged") {
					t.Fatalf("nothing is damaged: %v\n%s", err, &log)
				}
				data := copyFiles(t, fs, "store/jobs/the-id-of-a-page")[c.name]
				data[c.at(len(data))] ^= 0x10
				writeFile(t, fs, "store/jobs/the-id-of-a-page/"+c.name, data)
				time.Sleep(3 * time.Hour)
				pins := db.Pinned()
				if i := slices.IndexFunc(pins, func(p Pinned) bool { return p.ID == "the-id-of-a-page" }); !pins[i].Damaged || pins[1-i].Damaged {
					t.Errorf("pinned are %+v", pins)
				}
				_, err := db.Check(true)
				told := fmt.Sprint(err)
				stop()
				if err := errors.Join(<-ran, db.Close()); err != nil {
					t.Error(err)
				}
				_, cold := CheckDir("store", o, nil)
				for _, said := range []string{told, log.String(), fmt.Sprint(cold)} {
					if strings.Count(said, c.name) != 1 || strings.Contains(said, "the-id") {
						t.Errorf("it is said: %s", said)
					}
				}
				if !strings.Contains(told, "J2") || !strings.Contains(log.String(), "is damaged") {
					t.Errorf("check: %s\n%s", told, &log)
				}
			})
		})
	}
}

// copiedPage pins two snapshots, one of which has a copy of all that it needs.
func copiedPage(t *testing.T, db *DB, id string) {
	t.Helper()
	f := newFeed(t, db)
	f.advance(time.Second)
	f.commit(observationOf("o1", "anna", "1"), observationOf("old", "anna", "2"))
	f.commit(observationOf("old", "anna", "3"))
	f.advance(time.Second)
	sec := segment.Section{Kind: segment.Live, Type: observationType}
	pinOnly(t, db, "another", observationType).Close()
	s := pinOnly(t, db, id, observationType)
	ext, err := s.Extents(sec, fhir.None, s.Watermark())
	if err := errors.Join(err, s.Copy(t.Context(), "f1", sec, fhir.None, s.Watermark(), ext), db.Detach(id, nil), s.Close()); err != nil {
		t.Fatal(err)
	}
}

// openings counts how often each file is opened.
type openings struct {
	vfs.FS
	mu    sync.Mutex
	count map[string]int
}

func (o *openings) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	o.mu.Lock()
	o.count[name]++
	o.mu.Unlock()
	return o.FS.Open(name, opts...)
}

// TestBesideEvenly: each pass reads all that lies beside snapshots, also what comes first.
func TestBesideEvenly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := &openings{FS: vfs.NewMem(), count: map[string]int{}}
		db := mustOpen(t, "store", Options{FS: fs, Scrub: time.Hour, Allowance: time.Millisecond})
		copiedPage(t, db, "page")
		clear(fs.count)
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- db.Run(ctx) }()
		time.Sleep(100 * time.Hour)
		stop()
		if err := errors.Join(<-ran, db.Close()); err != nil {
			t.Error(err)
		}
		least, most := math.MaxInt, 0
		for _, name := range []string{"f1.cut", "f1.made"} { // the first and the last
			n := fs.count["store/jobs/page/"+name]
			least, most = min(least, n), max(most, n)
		}
		if least < 90 || most > least+least/4 {
			t.Errorf("in a hundred hours some are read %d times and some %d times: %v", least, most, fs.count)
		}
	})
}
