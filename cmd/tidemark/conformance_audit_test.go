//go:build conformance

package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/api/audit"
	"tidemark/cmd/tidemark/internal/config"
)

// TestConformanceAudit: a line of each kind, with all that lines can say and with no
// more than they must, is an AuditEvent of FHIR R4.
func TestConformanceAudit(t *testing.T) {
	for _, tool := range []string{"java", "javac", "mvn"} {
		needs(t, tool)
	}
	if out, err := exec.CommandContext(t.Context(), validatorScript, "fetch").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	a := &answers{clinic: &clinic{rig: &rig{t: t}}}
	a.onRecord(everyKind(t))
	var bodies [][]byte
	for _, one := range a.specimens {
		bodies = append(bodies, one.body)
	}
	// Of this it must find something, or it finds nothing in ours either.
	bodies = append(bodies, []byte(strings.Replace(string(bodies[0]), `"recorded"`, `"record"`, 1)))
	faults := validate(t, bodies)
	for i, one := range a.specimens {
		for _, f := range faults[i] {
			t.Errorf("%s: %s at %s: %s\n%s", one.from, f.Severity, f.Location, f.Message, one.body)
		}
	}
	if len(faults[len(a.specimens)]) == 0 {
		t.Error("the validator finds no error where one is")
	}
}

// everyKind writes lines of every action, and returns where.
func everyKind(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), config.AuditName)
	trail, err := audit.Open(audit.Options{Dir: dir, Required: true, Observer: "https://a.example/fhir"})
	if err != nil {
		t.Fatal(err)
	}
	full := audit.Event{
		Reason: "in words", Phase: audit.Ended, Pair: "PAIR", Client: "research", Issuer: "https://issuer.example/", Serial: 7, TokenID: "t-1", Remote: "2001:db8::7",
		Job: "j0b", Level: "group", Group: "diabetics", GroupVersion: "3", Resource: "Patient/7f0a", W: time.Now(), Since: time.Now(), Until: time.Now(),
		Types: []string{"Patient", "Observation"}, Scopes: "system/*.rs", Command: "erase",
		Parameters: []audit.Parameter{{Name: "_typeFilter", Value: "Patient?name=ä"}, {Name: "patient"}, {Name: "patient", Value: " x\x00\xff"}, {Value: "\t"}},
		File:       "3", Kind: "output", Range: "bytes 0-9/100", Bytes: 10, Rows: 2, Status: 403,
	}
	for _, action := range []audit.Action{
		audit.KickOff, audit.Download, audit.Read, audit.Publish, audit.Delete, audit.Token, audit.Refused, audit.Client, audit.Command, audit.Lost,
	} {
		for _, outcome := range []audit.Outcome{"", audit.Done, audit.Denied, audit.Failed} {
			least, most, operator := audit.Event{Action: action, Outcome: outcome}, full, full
			most.Action, most.Outcome = action, outcome
			operator.Action, operator.Outcome, operator.User = action, outcome, "root (0)"
			for _, e := range []audit.Event{least, most, operator, {Action: action, Outcome: outcome, Client: "\x00 ", Issuer: " ", Remote: "\n"}} {
				if err := trail.Record(t.Context(), e); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// onRecord takes the lines of a trail, of each kind those that say something else than
// the ones before.
func (a *answers) onRecord(dir string) {
	a.t.Helper()
	seen := map[string]int{}
	r, err := audit.Walk(audit.Disk, dir, func(l *audit.Line) error {
		kind := "a line of the trail: " + string(l.Event.Action) + " " + string(l.Event.Phase) + " " + string(l.Event.Outcome)
		if seen[kind]++; seen[kind] <= 20 {
			a.add(kind, append([]byte(nil), l.Text...), nil)
		}
		return nil
	})
	if err != nil || len(r.Breaks) > 0 || len(seen) < 8 {
		a.t.Errorf("%d kinds of lines: %v %v", len(seen), r.Breaks, err)
	}
}
