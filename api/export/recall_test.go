package export_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tidemark/api/apitest"
	"tidemark/api/export"
	"tidemark/api/smart"
	"tidemark/api/withhold"
	"tidemark/store/fhir"
)

// An interrupted store calls stop when a job has made so many checkpoints.
type interrupted struct {
	export.Store
	after int
	stop  func()
}

func (s *interrupted) Amend(id string, rule []byte, expires time.Time) error {
	err := s.Store.Amend(id, rule, expires)
	if s.after--; s.after == 0 {
		s.stop()
	}
	return err
}

// TestRecallGoesOn: a job that goes on after a restart goes by what it began with,
// though other exports have ended meanwhile where its window begins.
func TestRecallGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		early, since := instant(t, "2026-01-01T10:00:00Z"), instant(t, "2026-01-01T11:00:00Z")
		db := apitest.New(instant(t, "2026-01-02T12:00:00Z"))
		for id, value := range map[string]string{"a": "1", "b": "2"} {
			of := apitest.Links{Patients: []string{id}}
			for _, typ := range []string{"Condition/", "Encounter/", "Observation/"} {
				db.Put(key(t, typ+id), early, of)
			}
			of.More = `,"identifier":[{"value":"` + value + `"}]`
			db.Put(key(t, "Patient/"+id), early, of)
		}
		db.Put(key(t, "Group/g"), early, apitest.Links{
			Members: []string{fhir.ByIdentifier(nil, []byte("1")), fhir.ByIdentifier(nil, []byte("2"))},
			More:    `,"member":[{"entity":{"identifier":{"value":"1"}}},{"entity":{"identifier":{"value":"2"}}}]`,
		})
		called := func(found ...string) {
			t.Helper()
			s, err := db.Present()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.CallRoll("g", since, found); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		called("a") // b has joined
		q := ofGroup("g")
		q.Since = since
		s := &interrupted{Store: db}
		text := func(j *export.Jobs, id string) (all string) {
			t.Helper()
			m, err := j.Manifest(id)
			if err != nil {
				t.Fatal(err)
			}
			for n := range m.Files {
				all += read(t, j, id, n+1, false)
			}
			return all
		}

		j := export.New(s, export.Options{})
		id := start(t, j, q)
		end := runs(t, j)
		synctest.Wait()
		end()
		want := text(j, id)
		if strings.Contains(want, `"id":"a"`) || strings.Count(want, `"id":"b"`) != 4 {
			t.Fatalf("setup: %s", want)
		}

		ctx, cancel := context.WithCancel(t.Context())
		s.after, s.stop = 3, cancel
		j = export.New(s, export.Options{Checkpoint: -1})
		id = start(t, j, q)
		if err := j.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := j.Manifest(id); err == nil {
			t.Fatal("setup: the job was not cut short")
		}
		called() // who looked later has found nobody
		j = export.New(s, export.Options{})
		end = runs(t, j)
		synctest.Wait()
		end()
		if got := text(j, id); got != want {
			t.Errorf("cut short and gone on:\n%s\nwant\n%s", got, want)
		}
	})
}

// TestOptOutGoesOn: likewise by who had opted out when it began.
func TestOptOutGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		early, since := instant(t, "2026-01-01T10:00:00Z"), instant(t, "2026-01-01T11:00:00Z")
		db := apitest.New(instant(t, "2026-01-02T12:00:00Z"))
		for _, id := range []string{"a", "b"} {
			for _, typ := range []string{"Condition/", "Encounter/", "Observation/", "Patient/"} {
				db.Put(key(t, typ+id), early, apitest.Links{Patients: []string{id}})
			}
		}
		db.Put(key(t, "Group/out"), early, apitest.Links{
			Members: []string{fhir.ByIdentifier(nil, []byte("1"))},
			More:    `,"member":[{"entity":{"identifier":{"value":"1"}}}]`,
		})
		called := func(found ...string) {
			t.Helper()
			s, err := db.Present()
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(s.CallRoll("out", since, found), s.Close()); err != nil {
				t.Fatal(err)
			}
		}
		called("a") // a has come back
		q := export.Request{Level: export.Patient, URL: "x", Since: since, Upto: fhir.None, Access: &export.Access{Rights: smart.Parse("system/*.rs"), Withhold: withhold.Policy{Groups: []string{"out"}}}}
		s := &interrupted{Store: db}
		j := export.New(s, export.Options{Checkpoint: -1})
		id := start(t, j, q)
		ctx, cancel := context.WithCancel(t.Context())
		s.after, s.stop = 2, cancel
		if err := j.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := j.Manifest(id); err == nil {
			t.Fatal("setup: the job was not cut short")
		}
		called("b") // another has looked since
		j = export.New(s, export.Options{})
		end := runs(t, j)
		synctest.Wait()
		end()
		m, err := j.Manifest(id)
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for n := range m.Files {
			text += read(t, j, id, n+1, false)
		}
		if strings.Count(text, `"id":"a"`) != 4 || strings.Contains(text, `"id":"b"`) {
			t.Errorf("it went by what was known later: %s", text)
		}
	})
}
