package export_test

import (
	"context"
	"testing"
	"testing/synctest"

	"tidemark/api/apitest"
	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A forgetful store keeps no last states.
type forgetful struct{ export.Store }

func (f forgetful) Snapshot(id string) (export.Snapshot, error) {
	s, err := f.Store.Snapshot(id)
	return forgotten{s}, err
}

type forgotten struct{ export.Snapshot }

func (f forgotten) Choosing(c store.Choice) export.Snapshot {
	return forgotten{f.Snapshot.Choosing(c)}
}

func (forgotten) LastStates(context.Context, fhir.Type, fhir.Instant, func([]byte) error) error {
	return nil
}

// TestGroupByIdentifierForgotten: of a Patient who was deleted in the window nobody
// knows which identifiers he had once his last state is gone, so whoever is named by
// one comes whole; while it is kept, who shared none with him does not come again.
func TestGroupByIdentifierForgotten(t *testing.T) {
	early, since, late := instant(t, "2026-01-01T10:00:00Z"), instant(t, "2026-01-01T11:00:00Z"), instant(t, "2026-01-01T11:30:00Z")
	name := fhir.ByIdentifier(nil, []byte("1"))
	for keeps, want := range map[bool]int{true: 0, false: 2} {
		synctest.Test(t, func(t *testing.T) {
			db := apitest.New(instant(t, "2026-01-02T12:00:00Z"))
			db.Put(key(t, "Patient/a"), early, apitest.Links{Patients: []string{"a"}, More: `,"identifier":[{"value":"1"}]`})
			db.Put(key(t, "Observation/o"), early, apitest.Links{Patients: []string{"a"}})
			db.Put(key(t, "Patient/b"), early, apitest.Links{Patients: []string{"b"}, More: `,"identifier":[{"value":"2"}]`})
			db.Put(key(t, "Group/g"), early, apitest.Links{Members: []string{name}, More: `,"member":[{"entity":{"identifier":{"value":"1"}}}]`})
			db.Delete(key(t, "Patient/b"), late, apitest.Links{Patients: []string{"b"}})
			var s export.Store = db
			if !keeps {
				s = forgetful{db}
			}
			j := export.New(s, export.Options{})
			q := ofGroup("g")
			q.Since = since
			id := start(t, j, q)
			stop := runs(t, j)
			synctest.Wait()
			stop()
			m, err := j.Manifest(id)
			if err != nil {
				t.Fatal(err)
			}
			rows := 0
			for _, f := range m.Files {
				if f.List == export.Output {
					rows += int(f.Rows)
				}
			}
			if rows != want {
				t.Errorf("last states kept %v: %d rows, want %d", keeps, rows, want)
			}
		})
	}
}
