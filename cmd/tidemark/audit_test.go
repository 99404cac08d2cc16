package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/api/audit"
)

// TestAudit: what is on record is listed, and a byte that was changed is found.
func TestAudit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	trail, err := audit.Open(audit.Options{Dir: dir, Required: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []audit.Event{
		{Action: audit.KickOff, Client: "research", Job: "j1", Level: "system", Parameters: []audit.Parameter{{Name: "_type", Value: "Patient\x1b[2J"}}},
		{Action: audit.Refused, Client: "other", Outcome: audit.Denied, Reason: "not his Group"},
	} {
		if err := trail.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if got, code := command(t, "audit", "verify", "--dir", dir); code != 0 || !strings.Contains(got, "3 lines in 1 files") {
		t.Errorf("beside who writes: exit %d: %s", code, got)
	}
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	got, code := command(t, "audit", "list", "--dir", dir, "--client", "research")
	if code != 0 || !strings.Contains(got, "kickoff") || !strings.Contains(got, "job j1; level system") || strings.Contains(got, "other") || strings.Contains(got, "\x1b") {
		t.Errorf("exit %d: %q", code, got)
	}
	got, code = command(t, "audit", "list", "--dir", dir, "--action", "refused", "--json")
	if code != 0 || strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, `{"resourceType":"AuditEvent","id":"`) {
		t.Errorf("exit %d: %q", code, got)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.ndjson"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files[0], bytes.Replace(text, []byte("research"), []byte("somebody"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"audit", "verify", "--dir", dir}, {"audit", "list", "--dir", dir}} {
		if got, code := command(t, args...); code != exitFailed || args[1] == "verify" && !strings.Contains(got, ".ndjson:2: it does not follow") {
			t.Errorf("%v: exit %d: %s", args, code, got)
		}
	}
}
