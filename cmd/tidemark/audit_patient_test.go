package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/api/audit"
	"tidemark/store"
	"tidemark/store/fhir"
)

// TestAuditPatient: who was given a patient's data is told from the trail and the store:
// surely, perhaps with the reason, or not. Asking is on record, too.
func TestAuditPatient(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	db, err := store.Open(dir, store.Options{CommitInterval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- db.Run(ctx) }()
	part := store.Partition{Topic: "t"}
	if err := db.Discover(store.Discovery{Complete: true, Partitions: []store.Discovered{{Partition: part}}}); err != nil {
		t.Fatal(err)
	}
	next := int64(0)
	put := func(texts ...string) time.Time {
		t.Helper()
		asked := db.Now()
		b := store.Batch{Partition: part, LeaderEpoch: -1, Asked: asked}
		for _, text := range texts {
			r, err := new(fhir.Scanner).Scan([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			b.Changes = append(b.Changes, store.Change{
				Key: r.Key, Body: r.Body, Meta: r.Meta, Patients: r.Patients, References: r.References, Members: r.Members, Offset: next,
				Version: store.NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: asked,
			})
			next++
		}
		b.Next, b.End = next, next
		for first := true; first || db.Status().Watermark < asked || db.Status().Gathering > 0; first = false {
			if err := db.Apply(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			b = store.Batch{Partition: b.Partition, LeaderEpoch: -1, Asked: db.Now(), Next: next, End: next}
			time.Sleep(time.Millisecond)
		}
		snap, err := db.Pin(t.Context(), strings.Repeat("a", 32), time.Now().Add(time.Hour), func(*store.Snapshot) ([]byte, error) { return []byte("{}"), nil })
		if err != nil {
			t.Fatal(err)
		}
		defer snap.Close()
		return snap.Watermark().Time() // promised, as that of a job is
	}
	before := db.Now().Time().Add(-time.Second)
	w := put(`{"resourceType":"Patient","id":"a"}`, `{"resourceType":"Patient","id":"b"}`,
		`{"resourceType":"Group","id":"g","member":[{"entity":{"reference":"Patient/a"}}]}`,
		`{"resourceType":"Observation","id":"o","subject":{"reference":"Patient/b"}}`)
	stop()
	if err := errors.Join(<-ran, db.Close()); err != nil {
		t.Fatal(err)
	}
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
