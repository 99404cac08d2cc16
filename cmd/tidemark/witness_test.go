package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/api/audit"
	"tidemark/cmd/tidemark/internal/config"
	"tidemark/store"
)

// commandsIn are what a trail says of operators: command, phase and outcome.
func commandsIn(t *testing.T, dir string) (said []string) {
	t.Helper()
	r, err := audit.Walk(audit.Disk, dir, func(l *audit.Line) error {
		e := l.Event
		if e.Action != audit.Command {
			return nil
		}
		if e.User == "" {
			t.Errorf("%s: nobody did it", e.Command)
		}
		text := e.Command + " " + string(e.Phase) + " " + auditOutcomes[e.Outcome]
		for _, p := range e.Parameters {
			text += " " + p.Name
		}
		said = append(said, text)
		return nil
	})
	if err != nil || len(r.Breaks) > 0 {
		t.Fatalf("%v %v", r.Breaks, err)
	}
	return said
}

// aStore is one that holds nothing.
func aStore(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	db, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// everyCommand runs what acts on a stopped store without a configuration, and returns a backup of it.
func everyCommand(t *testing.T, dir string) (backup string) {
	t.Helper()
	backups := t.TempDir()
	for _, args := range [][]string{
		{"backup", backups, "--store", dir},
		{"check", dir},
		{"deadletter", "list", dir, "--topic", "x"},
		{"deadletter", "show", "1", dir},
		{"erase", "Patient/none", "--yes", "--store", dir},
		{"inspect", "--store", dir},
		{"promise", "reset", "--yes", dir},
		{"reindex", dir},
	} {
		refuses := args[0] == "promise" || args[0] == "reindex" || args[1] == "show" // of a store with nothing in it
		if got, code := command(t, args...); (code != 0) != refuses {
			t.Errorf("%q: exit %d: %s", args, code, got)
		}
	}
	list, err := store.Backups(store.Disk, backups)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v %v", list, err)
	}
	return list[0].Path
}

var everyLine = []string{
	"backup begun done root", "backup ended done root",
	"check begun done", "check ended done",
	"deadletter-list begun done topic", "deadletter-list ended done topic",
	"deadletter-show begun done number", "deadletter-show ended failed number",
	"erase begun done resource", "erase ended done resource",
	"inspect begun done", "inspect ended done",
	"promise-reset begun done", "promise-reset ended failed",
	"reindex begun done", "reindex ended failed",
}

// TestWitnessCold: every command on a stopped store is on record in the store, and that
// of a restore in the new one.
func TestWitnessCold(t *testing.T) {
	dir, restored := aStore(t), filepath.Join(t.TempDir(), "restored")
	backup := everyCommand(t, dir)
	if got, code := command(t, "restore", backup, restored); code != 0 {
		t.Errorf("restore: exit %d: %s", code, got)
	}
	if d := cmp.Diff(everyLine, commandsIn(t, filepath.Join(dir, config.AuditName))); d != "" {
		t.Error(d)
	}
	want := []string{"restore begun done backup", "restore ended done backup"}
	if d := cmp.Diff(want, commandsIn(t, filepath.Join(restored, config.AuditName))); d != "" {
		t.Error(d)
	}
}

// TestWitnessElsewhere: a server notes where its trail is. Commands that are given no
// configuration write there, or do nothing.
func TestWitnessElsewhere(t *testing.T) {
	dir, trail := aStore(t), filepath.Join(t.TempDir(), "trail")
	c := config.Default()
	c.Store.Path, c.Audit.File = dir, trail
	if err := writeWhere(c); err != nil {
		t.Fatal(err)
	}
	got, code := command(t, "erase", "Patient/none", "--yes", "--store", dir)
	if code == 0 || !strings.Contains(got, "elsewhere") || !strings.Contains(got, "--config") {
		t.Errorf("exit %d: %s", code, got)
	}
	if err := os.Mkdir(trail, 0o700); err != nil {
		t.Fatal(err)
	}
	everyCommand(t, dir)
	if d := cmp.Diff(everyLine, commandsIn(t, trail)); d != "" {
		t.Error(d)
	}
	if _, err := os.Stat(filepath.Join(dir, config.AuditName)); err == nil {
		t.Error("there is a trail in the store, too")
	}
	c.Audit.Enabled = false
	if err := writeWhere(c); err != nil {
		t.Fatal(err)
	}
	if got, code := command(t, "inspect", "--store", dir); code != 0 {
		t.Errorf("without a trail: exit %d: %s", code, got)
	}
	if got := commandsIn(t, trail); len(got) != len(everyLine) {
		t.Errorf("it is on record, and nothing should be: %q", got[len(everyLine):])
	}
	other := t.TempDir()
	if got, code := command(t, "inspect", "--store", dir, "--set", "audit.file="+other); code != 0 || len(commandsIn(t, other)) != 2 {
		t.Errorf("with a configuration: exit %d: %s", code, got)
	}
}

// TestWitnessRestoreRefused: nothing is left in a directory that is somebody else's; the
// trail of a lost store goes on.
func TestWitnessRestoreRefused(t *testing.T) {
	dir, home, lost := aStore(t), t.TempDir(), t.TempDir()
	backup := everyCommand(t, dir)
	if err := os.WriteFile(filepath.Join(home, "letter"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, code := command(t, "restore", backup, home); code == 0 {
		t.Errorf("exit %d: %s", code, got)
	}
	if list, err := os.ReadDir(home); len(list) != 1 {
		t.Errorf("%v %v", list, err)
	}
	if err := os.Rename(filepath.Join(dir, config.AuditName), filepath.Join(lost, config.AuditName)); err != nil {
		t.Fatal(err)
	}
	if got, code := command(t, "restore", backup, lost); code != 0 {
		t.Errorf("exit %d: %s", code, got)
	}
	if got := commandsIn(t, filepath.Join(lost, config.AuditName)); len(got) != len(everyLine)+2 {
		t.Errorf("%q", got)
	}
}

// attendedStore is one whose server has its socket open, and its trail.
func attendedStore(t *testing.T) (dir string, trail *audit.Trail) {
	t.Helper()
	dir = aStore(t)
	trail, err := audit.Open(audit.Options{Dir: filepath.Join(dir, config.AuditName), Required: true})
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := listenControl(t.Context(), dir, slog.New(slog.DiscardHandler))
	if l == nil {
		t.Skip("the directory's name is too long for a socket")
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- runControl(ctx, l, &opened{db: db, trail: trail}) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = trail.Close()
		_ = db.Close()
	})
	return dir, trail
}

// TestWitness: what a command does in its own process is put on record by the server
// that has the trail, before and after.
func TestWitness(t *testing.T) {
	dir, trail := attendedStore(t)
	if got, code := command(t, "deadletter", "list", dir); code != 0 || !strings.Contains(got, "no dead letters") {
		t.Errorf("exit %d: %s", code, got)
	}
	if got, code := command(t, "deadletter", "list", "--topic", "t", dir); code != 0 || !strings.Contains(got, "no dead letters that these flags choose") {
		t.Errorf("exit %d: %s", code, got)
	}
	if got, code := command(t, "deadletter", "show", "1", dir); code == 0 || !strings.Contains(got, "no dead letter 1") || strings.Contains(got, "server") {
		t.Errorf("exit %d: %s", code, got)
	}
	at := filepath.Join(dir, config.AuditName)
	want := []string{
		"deadletter-list begun done", "deadletter-list ended done",
		"deadletter-list begun done topic", "deadletter-list ended done topic",
		"deadletter-show begun done number", "deadletter-show ended failed number",
	}
	if d := cmp.Diff(want, commandsIn(t, at)); d != "" {
		t.Error(d)
	}
	conn, err := dialControl(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	err = askWitness(t.Context(), conn, "reindex", nil, func() error {
		if got := commandsIn(t, at); !slices.Contains(got, "reindex begun done") || slices.Contains(got, "reindex ended done") {
			t.Errorf("while it is done: %q", got)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if got := commandsIn(t, at); !slices.Contains(got, "reindex ended done") {
		t.Errorf("afterwards: %q", got)
	}
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	if got, code := command(t, "deadletter", "list", dir); code == 0 || strings.Contains(got, "no dead letters") || !strings.Contains(got, "cannot be written") {
		t.Errorf("without a trail: exit %d: %s", code, got)
	}
}

// TestWitnessStopped: a command that somebody stops does not say that the server has ended.
func TestWitnessStopped(t *testing.T) {
	dir, _ := attendedStore(t)
	conn, err := dialControl(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stopped := errors.New("stopped: run it again")
	err = askWitness(ctx, conn, "load", nil, func() error {
		stop()
		return stopped
	})
	if err == nil || err.Error() != stopped.Error() {
		t.Errorf("%v", err)
	}
}

// TestWitnessKilled: a command that ends without a word has failed.
func TestWitnessKilled(t *testing.T) {
	dir, _ := attendedStore(t)
	conn, err := dialControl(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, kill := context.WithCancel(t.Context())
	body, _ := io.Pipe()
	heard, says := io.Pipe()
	asked := make(chan error, 1)
	go func() { asked <- askServer(ctx, conn, "reindex", nil, body, says) }()
	if _, err := heard.Read(make([]byte, len(standingBy))); err != nil {
		t.Fatal(err)
	}
	kill()
	_ = body.Close()
	<-asked
	at := filepath.Join(dir, config.AuditName)
	for end := time.Now().Add(patience); !slices.Contains(commandsIn(t, at), "reindex ended failed"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q", commandsIn(t, at))
		}
	}
}
