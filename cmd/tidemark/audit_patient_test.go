package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark/api/audit"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A past is a store to which changes come as a test says.
type past struct {
	t     *testing.T
	dir   string
	db    *store.DB
	next  int64
	close func()
}

func newPast(t *testing.T) *past {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	db, err := store.Open(dir, store.Options{CommitInterval: time.Millisecond, Allowance: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- db.Run(ctx) }()
	p := &past{t: t, dir: dir, db: db, close: sync.OnceFunc(func() {
		stop()
		if err := errors.Join(<-ran, db.Close()); err != nil {
			t.Error(err)
		}
	})}
	t.Cleanup(p.close)
	if err := db.Discover(store.Discovery{Complete: true, Partitions: []store.Discovered{{Partition: pastPart}}}); err != nil {
		t.Fatal(err)
	}
	return p
}

var pastPart = store.Partition{Topic: "t"}

// put has resources come, or go if their text is only Type/id, and returns the watermark
// at which exports hold that.
func (p *past) put(texts ...string) time.Time {
	p.t.Helper()
	asked := p.db.Now()
	b := store.Batch{Partition: pastPart, LeaderEpoch: -1, Asked: asked}
	for _, text := range texts {
		c := store.Change{Offset: p.next, Version: store.NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: asked}
		p.next++
		if text[0] != '{' {
			var err error
			c.Delete = true
			if c.Key, err = fhir.ParseKey(text); err != nil {
				p.t.Fatal(err)
			}
			b.Changes = append(b.Changes, c)
			continue
		}
		r, err := new(fhir.Scanner).Scan([]byte(text))
		if err != nil {
			p.t.Fatal(err)
		}
		c.Key, c.Body, c.Meta, c.Patients, c.References, c.Members = r.Key, r.Body, r.Meta, r.Patients, r.References, r.Members
		b.Changes = append(b.Changes, c)
	}
	b.Next, b.End = p.next, p.next
	for first := true; first || p.db.Status().Watermark < asked || p.db.Status().Gathering > 0; first = false {
		if err := p.db.Apply(p.t.Context(), b); err != nil {
			p.t.Fatal(err)
		}
		b = store.Batch{Partition: b.Partition, LeaderEpoch: -1, Asked: p.db.Now(), Next: p.next, End: p.next}
		time.Sleep(time.Millisecond)
	}
	snap, err := p.db.Pin(p.t.Context(), strings.Repeat("a", 32), time.Now().Add(time.Hour), func(*store.Snapshot) ([]byte, error) { return []byte("{}"), nil })
	if err != nil {
		p.t.Fatal(err)
	}
	defer snap.Close()
	return snap.Watermark().Time() // promised, as that of a job is
}

// TestAuditPatient: who was given a patient's data is told from the trail and the store:
// surely, perhaps with the reason, or not. Asking is on record, too.
func TestAuditPatient(t *testing.T) {
	h := newPast(t)
	dir, db, put := h.dir, h.db, h.put
	before := db.Now().Time().Add(-time.Second)
	w := put(`{"resourceType":"Patient","id":"a"}`, `{"resourceType":"Patient","id":"b"}`,
		`{"resourceType":"Group","id":"g","member":[{"entity":{"reference":"Patient/a"}}]}`,
		`{"resourceType":"Observation","id":"o","subject":{"reference":"Patient/b"}}`)
	h.close()
	trail, err := audit.Open(audit.Options{Dir: filepath.Join(dir, "audit"), Required: true})
	if err != nil {
		t.Fatal(err)
	}
	job := func(client, id, level, group string, w time.Time, typ string, patients ...string) {
		t.Helper()
		k := audit.Event{Action: audit.KickOff, Client: client, Job: id, Level: level, Group: group, W: w}
		for _, p := range patients {
			k.Parameters = append(k.Parameters, audit.Parameter{Name: "patient", Value: "Patient/" + p})
		}
		if err := trail.Record(t.Context(), k); err != nil {
			t.Fatal(err)
		}
		d, err := trail.Begin(t.Context(), audit.Event{Action: audit.Download, Client: client, Job: id, File: "1", Kind: "output", Types: []string{typ}})
		if err != nil {
			t.Fatal(err)
		}
		d.End(t.Context(), 100, audit.Done)
	}
	job("all", "1", "system", "", w, "Patient")
	job("early", "2", "system", "", before, "Patient")
	job("group", "3", "group", "g", w, "Patient")
	job("named", "4", "patient", "", w, "Patient", "b")
	if err := trail.Record(t.Context(), audit.Event{Action: audit.KickOff, Client: "filtered", Job: "6", Level: "system", W: w, Parameters: []audit.Parameter{{Name: "_typeFilter", Value: "Patient?gender=male"}}}); err != nil {
		t.Fatal(err)
	}
	d, err := trail.Begin(t.Context(), audit.Event{Action: audit.Download, Client: "filtered", Job: "6", File: "1", Kind: "output", Types: []string{"Patient"}})
	if err != nil {
		t.Fatal(err)
	}
	d.End(t.Context(), 100, audit.Done)
	job("observations", "5", "patient", "", w, "Observation")
	if err := trail.Record(t.Context(), audit.Event{Action: audit.Read, Client: "reader", Resource: "Patient/b"}); err != nil {
		t.Fatal(err)
	}
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	for patient, want := range map[string]map[string]string{
		"a": {"all": "received", "early": "may have received", "group": "received", "named": "", "observations": "may have received", "filtered": "may have received", "reader": ""},
		"b": {"all": "received", "early": "may have received", "group": "", "named": "received", "observations": "received", "reader": "received"},
		"c": {"all": "may have received", "observations": "may have received", "group": "", "named": "", "reader": ""},
	} {
		got, code := command(t, "audit", "--patient", patient, "--set", "store.path="+dir)
		if code != 0 {
			t.Fatalf("exit %d: %s", code, got)
		}
		for client, verdict := range want {
			said := ""
			for line := range strings.Lines(got) {
				if f := strings.Fields(line); len(f) > 2 && f[1] == client {
					if said = "received"; f[2] == "may" {
						said = "may have received"
					}
				}
			}
			if said != verdict {
				t.Errorf("%s of %s: %q, want %q\n%s", client, patient, said, verdict, got)
			}
		}
	}
	got, _ := command(t, "audit", "list", "--set", "store.path="+dir, "--action", "command")
	if !strings.Contains(got, "audit-patient") || !strings.Contains(got, "(") {
		t.Errorf("%s", got)
	}
}
