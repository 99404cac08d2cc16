package export_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/api/apitest"
	"tidemark/api/export"
)

// meanwhile is a store in which something happens between the opening of a snapshot
// and what is done with it.
type meanwhile struct {
	export.Store
	happens *func() // once
}

func (m meanwhile) Snapshot(id string) (export.Snapshot, error) {
	s, err := m.Store.Snapshot(id)
	if err != nil || *m.happens == nil {
		return s, err
	}
	before := asItWas{s, bytes.Clone(s.Rule())}
	happens := *m.happens
	*m.happens = nil
	happens()
	return before, nil
}

// asItWas is a snapshot with the rule that it had when it was opened.
type asItWas struct {
	export.Snapshot
	rule []byte
}

func (a asItWas) Rule() []byte { return a.rule }

// TestPageOfJobThatFails: a job that fails while a page of its manifest is made has
// failed. It has no page, least of all one that says that nothing was found.
func TestPageOfJobThatFails(t *testing.T) {
	for page := 1; page <= 2; page++ {
		synctest.Test(t, func(t *testing.T) {
			db := apitest.New(instant(t, "2026-01-02T12:00:00Z"))
			for _, ref := range []string{"Condition/1", "Encounter/1", "Observation/1"} {
				db.Put(key(t, ref), instant(t, "2026-01-01T12:00:00Z"), apitest.Links{})
			}
			goOn := make(chan struct{})
			types := 0
			db.OnLines = func() {
				if types++; types > 1 {
					<-goOn
				}
				if types > page {
					panic("a fault of ours")
				}
			}
			var happens func()
			j := export.New(meanwhile{db, &happens}, export.Options{Checkpoint: -1})
			q := everything()
			q.Elements, q.Partial = []string{"id"}, true
			id := start(t, j, q)
			defer runs(t, j)()
			synctest.Wait()
			for seen := 1; seen < page; seen++ {
				if m, err := j.Page(id, seen); err != nil || len(m.Files) != 1 || !m.More {
					t.Fatalf("page %d: %v %+v", seen, err, m)
				}
				goOn <- struct{}{}
				synctest.Wait()
			}
			happens = func() { goOn <- struct{}{}; synctest.Wait() }
			m, err := j.Page(id, page)
			if _, failed := errors.AsType[*export.FailedError](err); !failed {
				t.Errorf("page %d: %v, %d files, want the failure", page, err, len(m.Files))
			}
		})
	}
}

// TestPagesInBlocks: whatever a page of a job in blocks names can be had, the file in
// which its last block goes on, too.
func TestPagesInBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var look func()
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpCreate && strings.Contains(op.Path, ".made") {
				look()
			}
			return nil
		}))
		db := makingStore(t, fs)
		var list []string
		for i := range 20 {
			list = append(list, fmt.Sprintf(`{"resourceType":"Observation","id":"%d","subject":{"reference":"Patient/%d"}}`, i, 1+i%2*2))
		}
		commits(t, db, 8, list)
		j := export.New(export.Of(db), export.Options{Checkpoint: -1, Memory: 1 << 10, Limits: export.Limits{Resources: 4}})
		q := everything()
		q.By, q.Partial = key(t, "Patient/1").Type, true
		var id string
		pages, split := 0, 0
		look = func() {
			m, err := j.Page(id, pages+1)
			if _, working := errors.AsType[*export.WorkingError](err); working {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			pages++
			for i, f := range m.Files {
				needed := m.From + i + 1
				if f.Continues {
					split++
					needed++
				}
				d, err := j.Open(t.Context(), id, needed)
				if err != nil {
					t.Errorf("page %d names file %d: %v", m.Page, needed, err)
					continue
				}
				_ = d.Close()
			}
		}
		id = start(t, j, q)
		stop := runs(t, j)
		time.Sleep(time.Minute)
		synctest.Wait() // what it did is seen
		look()
		stop()
		if pages < 2 || split < 4 {
			t.Errorf("%d pages in which %d files go on", pages, split)
		}
	})
}
