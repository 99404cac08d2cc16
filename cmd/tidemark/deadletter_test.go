package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"tidemark/cmd/tidemark/internal/config"
	"tidemark/store"
	"tidemark/store/fhir"
)

// aPartition is one that stores of tests have read.
var aPartition = store.Partition{Topic: "fhir-changes", ID: 2}

// deadStore is a store with dead letters: resources that were read in a wrong format, and
// what is none.
func deadStore(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	db, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	letter := func(offset int64, reason, key, value string) store.Change {
		return store.Change{Offset: offset, LastUpdated: fhir.None, Time: fhir.None, Timestamp: 1700000000000 + fhir.Instant(offset), Dead: &store.DeadLetter{
			Reason: reason, Key: []byte(key), Value: []byte(value), Headers: []store.Header{{Key: "trace", Value: []byte("\xff\x00")}, {Key: "none"}},
		}}
	}
	b := store.Batch{
		Partition: aPartition, Next: 5, LeaderEpoch: 1, Asked: db.Now(), End: 5,
		Topic: []byte(`{"format":"bundle","run":4}`),
		Changes: []store.Change{
			letter(1, "is no Bundle", "Patient/p1", `{"resourceType":"Patient","id":"p1"}`),
			letter(2, "is no Bundle", "Patient/p2", `{"resourceType":"Patient","id":"p2","meta":{"versionId":"3"}}`),
			letter(3, "is no JSON object", "x", "\xfe\xff"),
			letter(4, "is no Bundle", "Patient/p1", `{"resourceType":"Patient","id":"p1","active":true}`),
		},
	}
	err = db.Discover(store.Discovery{Complete: true, Partitions: []store.Discovered{{Partition: aPartition, End: 5}}})
	if err == nil {
		err = db.Apply(t.Context(), b)
	}
	if err := errors.Join(err, db.Flush(), db.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// says runs a command that must end well.
func says(t *testing.T, args ...string) string {
	t.Helper()
	got, code := command(t, args...)
	if code != 0 {
		t.Fatalf("%q: exit %d: %s", args, code, got)
	}
	return got
}

func wantCount(t *testing.T, dir string, want int) {
	t.Helper()
	got := says(t, "deadletter", "list", dir)
	n := strings.Count(got, "\n") - 1
	if n != want {
		t.Errorf("%d dead letters are listed, want %d:\n%s", n, want, got)
	}
}

func TestDeadLettersAreChosen(t *testing.T) {
	dir := deadStore(t)
	for _, test := range []struct {
		args []string
		want int
	}{
		{nil, 4},
		{[]string{"--number", "2,3"}, 2},
		{[]string{"--reason", "bundle"}, 3},
		{[]string{"--reason", "*object"}, 1},
		{[]string{"--topic", "other"}, 0},
		{[]string{"--partition", "2"}, 4},
		{[]string{"--partition", "0"}, 0},
		{[]string{"--since", "2000-01-01"}, 4},
		{[]string{"--until", "2000-01-01"}, 0},
		{[]string{"--since", "48h", "--reason", "bundle"}, 0}, // they are of 2023: before the bootstrap instants are true
	} {
		got := max(0, strings.Count(says(t, append([]string{"deadletter", "list", dir}, test.args...)...), "\n")-1)
		if got != test.want {
			t.Errorf("%q: %d, want %d", test.args, got, test.want)
		}
	}
	got := says(t, "deadletter", "list", dir, "--summary")
	if !regexp.MustCompile(`(?m)^3 +fhir-changes .*is no Bundle$`).MatchString(got) || strings.Count(got, "\n") != 3 {
		t.Errorf("summary:\n%s", got)
	}
	if got, code := command(t, "deadletter", "list", dir, "--since", "yesterday"); code == 0 || !strings.Contains(got, "--since") {
		t.Errorf("exit %d: %s", code, got)
	}
}

// What is exported is the records, which validate reads again.
func TestDeadLettersAreExported(t *testing.T) {
	dir, file := deadStore(t), filepath.Join(t.TempDir(), "records.ndjson")
	if got := says(t, "deadletter", "export", dir, "--out", file); !strings.Contains(got, "4 records") || !strings.Contains(got, "patient data") {
		t.Error(got)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	records, err := readRecords(file, 10)
	if err != nil || len(records) != 4 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	r := records[2]
	if r.Topic != aPartition.Topic || r.Partition != 2 || r.Offset != 3 || r.Timestamp != 1700000000003 || string(r.Key) != "x" || string(r.Value) != "\xfe\xff" {
		t.Errorf("got %+v", r)
	}
	if len(r.Headers) != 2 || string(r.Headers[0].Value) != "\xff\x00" || r.Headers[1].Value != nil {
		t.Errorf("headers %+v", r.Headers)
	}
	if got := string(records[0].Value); got != `{"resourceType":"Patient","id":"p1"}` {
		t.Errorf("value %s", got)
	}
	if _, code := command(t, "deadletter", "export", dir, "--out", file); code == 0 {
		t.Error("a file was written over")
	}
	if got, code := command(t, "validate", "--file", file); code != exitFailed || !strings.Contains(got, "format: resource") {
		t.Errorf("validate: exit %d: %s", code, got)
	}
}

// On a stopped store: what decodes with the configuration of now is there, at its own place.
func TestDeadLettersAreReplayedCold(t *testing.T) {
	dir := deadStore(t)
	if got, code := command(t, "deadletter", "replay", dir); code == 0 || !strings.Contains(got, "--config") {
		t.Errorf("without a configuration: exit %d: %s", code, got)
	}
	got := says(t, "deadletter", "replay", dir, "--set", "topics=[{name: fhir-changes, format: resource}]")
	if !strings.Contains(got, "3 records decoded, with 3 changes") || !strings.Contains(got, "1 record not: ") {
		t.Error(got)
	}
	wantCount(t, dir, 1)
	history := says(t, "inspect", "Patient/p1", "--store", dir)
	if !strings.Contains(history, "fhir-changes/2 at 1") || !strings.Contains(history, "fhir-changes/2 at 4") {
		t.Errorf("both versions of Patient/p1 in their order, at their places:\n%s", history)
	}
	if got := says(t, "check", dir); !strings.Contains(got, "every invariant holds") {
		t.Error(got)
	}
	db, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if st, _ := db.Partition(aPartition); st.Next != 5 {
		t.Errorf("the partition goes on at %d, want 5", st.Next)
	}
	if got := string(db.Topic(aPartition.Topic)); got != `{"format":"bundle","run":0}` {
		t.Errorf("state of the topic: %s", got)
	}
}

func TestDeadLettersAreDroppedCold(t *testing.T) {
	dir := deadStore(t)
	for _, args := range [][]string{
		{"--number", "1", "--because", "test"},
		{"--number", "1", "--yes"},
		{"--because", "test", "--yes"},
		{"--all", "--because", " ", "--yes"},
	} {
		if got, code := command(t, append([]string{"deadletter", "drop", dir}, args...)...); code == 0 {
			t.Errorf("%q: %s", args, got)
		}
	}
	wantCount(t, dir, 4)
	if got := says(t, "deadletter", "drop", dir, "--reason", "*Bundle", "--because", "canary of the reason", "--yes"); !strings.Contains(got, "3 records dropped") {
		t.Error(got)
	}
	wantCount(t, dir, 1)
	lines, _ := linesIn(t, filepath.Join(dir, config.AuditName))
	if !strings.Contains(strings.Join(lines, "\n"), "canary of the reason") {
		t.Errorf("the trail does not say why:\n%s", lines)
	}
}

// Beside a server its pipeline does it.
func TestDeadLettersAreSettledByTheServer(t *testing.T) {
	dir := deadStore(t)
	c := config.Default()
	c.Store.Path = dir
	c.Topics[0].Format = "resource"
	db, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	intake, err := idleIntake(&opened{db: db, config: c})
	if err != nil {
		t.Fatal(err)
	}
	serveControl(t, dir, &opened{db: db, config: c, intake: intake})
	if got := says(t, "deadletter", "replay", dir, "--number", "1"); !strings.Contains(got, "1 record decoded") {
		t.Error(got)
	}
	if got := says(t, "deadletter", "drop", dir, "--number", "2", "--because", "test", "--yes"); !strings.Contains(got, "1 record dropped") {
		t.Error(got)
	}
	wantCount(t, dir, 2)
	if got := says(t, "deadletter", "show", "4", dir); !strings.Contains(got, "offset 4") {
		t.Error(got)
	}
}

// serveControl answers commands for a store until the test ends, which closes it.
func serveControl(t *testing.T, dir string, at *opened) {
	t.Helper()
	l := listenControl(t.Context(), dir, coldLog())
	if l == nil {
		t.Skip("the directory's name is too long for a socket")
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- runControl(ctx, l, at) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := at.db.Close(); err != nil {
			t.Error(fmt.Errorf("close: %w", err))
		}
	})
}
