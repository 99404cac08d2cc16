package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"tidemark/store/disk"
	"tidemark/store/storetest"
)

func mustOpen(t *testing.T, o Options) *Trail {
	t.Helper()
	if o.Dir == "" {
		o.Dir = "audit"
	}
	trail, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return trail
}

func (t *Trail) mustRecord(tb *testing.T, list ...Event) {
	tb.Helper()
	for _, e := range list {
		if err := t.Record(context.Background(), e); err != nil {
			tb.Fatal(err)
		}
	}
}

// commands are events that can be told apart.
func commands(names ...string) (list []Event) {
	for _, n := range names {
		list = append(list, Event{Action: Command, Command: n})
	}
	return list
}

// recorded are the commands on record.
func recorded(t *testing.T, fs vfs.FS) (names []string, r Report) {
	t.Helper()
	r, err := Walk(fs, "audit", func(l *Line) error {
		if l.Event.Action == Command {
			names = append(names, l.Event.Command)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names, r
}

var everything = Event{
	Time: time.Date(2026, 11, 29, 7, 0, 0, 123e6, time.UTC), Action: KickOff, Outcome: Denied, Reason: "the scope does not cover it", Phase: Ended, Pair: "PAIR",
	Client: "research", Issuer: "https://issuer.example", Serial: 7, TokenID: "t-1", Remote: "192.0.2.7",
	Job: "j0b", Level: "group", Group: "diabetics", GroupVersion: "3", Resource: "Patient/7f0a", W: time.Date(2026, 11, 29, 6, 0, 0, 1e6, time.UTC),
	Since: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Until: time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC), Types: []string{"Patient", "Observation"},
	Scopes: "system/*.rs", Withheld: true, Command: "erase",
	Parameters: []Parameter{{"_typeFilter", "Patient?name=ä"}, {"patient", ""}, {"patient", " x\x00\xff"}, {"patient", "(empty) not"}},
	File:       "3", Kind: "output", Parts: 2, Range: "bytes 0-9/100", Bytes: 10, Rows: 2, Status: 403,
}

// TestEvent: a line says all that is known, and nothing else; this one is an example in
// the manual.
func TestEvent(t *testing.T) {
	got, err := decode(append([]byte("{"), everything.encode("tidemark")...))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&everything, got); d != "" {
		t.Errorf("what was said and what is read (-want +got):\n%s", d)
	}
	small := Event{
		Time: everything.Time, Action: Download, Client: "research", Serial: 7, Remote: "192.0.2.7",
		Job: "j0b", Phase: Ended, Pair: "PAIR", File: "3", Kind: "output", Types: []string{"Patient"}, Bytes: 4711, Status: 200,
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, append([]byte("{"), small.encode("tidemark")...), "", " "); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join("testdata", "download.json"))
	if d := cmp.Diff(string(want), pretty.String()+"\n"); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

// TestStrangersChoose: what strangers choose is cut, and cannot break a line or a
// terminal.
func TestStrangersChoose(t *testing.T) {
	fs := vfs.NewMem()
	trail := mustOpen(t, Options{FS: fs})
	evil := "\x1b[2J\u202e\r\n" + strings.Repeat("x", 1000)
	trail.mustRecord(t, Event{
		Action: Refused, Client: evil, Issuer: evil, Remote: evil, TokenID: evil, Reason: evil, Range: evil, Job: evil, User: "",
		Parameters: []Parameter{{evil, evil}},
	})
	n := 0
	if _, err := Walk(fs, "audit", func(l *Line) error {
		n++
		if bytes.ContainsAny(l.Text, "\x1b\u202e\r\n") {
			t.Errorf("%q", l.Text)
		}
		if e := l.Event; e.Action == Refused && (len(e.Client) > maxName+3 || e.Parameters[0].Value != evil) {
			t.Errorf("%+v", e)
		}
		return nil
	}); err != nil || n != 2 {
		t.Errorf("%d lines, %v", n, err)
	}
}

// TestChain: whatever is done to the files shows, with the place.
func TestChain(t *testing.T) {
	build := func(t *testing.T) *vfs.MemFS {
		fs := vfs.NewMem()
		trail := mustOpen(t, Options{FS: fs, MaxSize: 3000})
		for i := range 12 {
			trail.mustRecord(t, commands(fmt.Sprint("c", i))...)
		}
		if err := trail.Close(); err != nil {
			t.Fatal(err)
		}
		return fs
	}
	fs := build(t)
	list, err := files(fs, "audit")
	if names, r := recorded(t, fs); err != nil || len(list) < 3 || len(names) != 12 || len(r.Breaks)+len(r.Notes) > 0 || r.Files != len(list) || r.Lines != 12+len(list) {
		t.Fatalf("%v, %v: %v %+v", list, err, names, r)
	}
	lines := func(lines ...int) func(string, [][]byte) [][]byte { // of the second file, which of the old ones
		return func(_ string, old [][]byte) (out [][]byte) {
			for _, n := range lines {
				out = append(out, old[n-1])
			}
			return out
		}
	}
	for _, c := range []struct {
		what  string
		file  int // of list
		do    func(name string, old [][]byte) [][]byte
		where string
	}{
		{"a byte is changed", 1, func(_ string, old [][]byte) [][]byte {
			old[2] = bytes.Replace(old[2], []byte(`"valueString":"c`), []byte(`"valueString":"d`), 1)
			return old
		}, ":3: it does not follow"},
		{"an id is changed", 1, func(_ string, old [][]byte) [][]byte {
			old[2][len(beforeID)] ^= 1
			return old
		}, ":3: it does not follow"},
		{"a line is no line", 1, func(_ string, old [][]byte) [][]byte {
			old[2] = []byte("{}\n")
			return old
		}, ":3: it is no line of this trail"},
		{"a first line is changed", 1, func(_ string, old [][]byte) [][]byte {
			old[0] = bytes.Replace(old[0], []byte(`tidemark"`), []byte(`tidemarc"`), 1)
			return old
		}, ":1: it was changed"},
		{"a line is taken out", 1, func(_ string, old [][]byte) [][]byte { return slices.Delete(old, 1, 2) }, ":2: it does not follow"},
		{"two are swapped", 1, func(_ string, old [][]byte) [][]byte {
			old[1], old[2] = old[2], old[1]
			return old
		}, ":2: it does not follow"},
		{"one comes twice", 1, func(_ string, old [][]byte) [][]byte { return slices.Insert(old, 2, old[1]) }, ":3: it does not follow"},
		{"the first is missing", 1, func(_ string, old [][]byte) [][]byte { return old[1:] }, ":1: the beginning of the file is missing"},
		{"a file ends early", 0, func(_ string, old [][]byte) [][]byte { return old[:len(old)-1] }, ": lines at its end are missing"},
		{"a file ends within a line", 0, func(_ string, old [][]byte) [][]byte {
			old[len(old)-1] = old[len(old)-1][:50]
			return old
		}, ": it ends in the middle of a line"},
		{"the last file ends early", len(list) - 1, lines(1), ": lines at its end are missing"},
		{"a file is emptied", 1, lines(), ": lines at its end are missing"},
	} {
		t.Run(c.what, func(t *testing.T) {
			fs := build(t)
			path := fs.PathJoin("audit", list[c.file])
			text, err := disk.Read(fs, path)
			if err != nil {
				t.Fatal(err)
			}
			writeFile(t, fs, path, bytes.Join(c.do(list[c.file], slices.Collect(bytes.Lines(text))), nil))
			_, r := recorded(t, fs)
			if len(r.Breaks) == 0 || !strings.Contains(fmt.Sprint(r.Breaks), c.where) {
				t.Errorf("%v, want %q", r.Breaks, c.where)
			}
			// It goes on being found once the trail is opened and written again.
			trail := mustOpen(t, Options{FS: fs})
			trail.mustRecord(t, commands("later")...)
			if err := trail.Close(); err != nil {
				t.Fatal(err)
			}
			if names, r := recorded(t, fs); len(r.Breaks) == 0 || !slices.Contains(names, "later") {
				t.Errorf("after another start: %v, %v", r.Breaks, names)
			}
		})
	}
	t.Run("a file is removed", func(t *testing.T) {
		for i := range list {
			fs := build(t)
			if err := fs.Remove(fs.PathJoin("audit", list[i])); err != nil {
				t.Fatal(err)
			}
			_, r := recorded(t, fs)
			if found := len(r.Breaks) > 0; found != (i > 0) { // the oldest may go: audit.keep
				t.Errorf("file %d of %d: %v", i, len(list), r.Breaks)
			}
			mustOpen(t, Options{FS: fs}).mustRecord(t, commands("later")...)
			if _, r := recorded(t, fs); (len(r.Breaks) > 0) != (i > 0) {
				t.Errorf("file %d of %d, after another start: %v", i, len(list), r.Breaks)
			}
		}
	})
}

func writeFile(t *testing.T, fs vfs.FS, path string, text []byte) {
	t.Helper()
	file, err := create(fs, path, text)
	if err = errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestLink: the chain is what the manual says it is, made by other means.
func TestLink(t *testing.T) {
	fs := vfs.NewMem()
	trail := mustOpen(t, Options{FS: fs})
	trail.mustRecord(t, commands("a", "b")...)
	before := strings.Repeat("0", 64)
	_, err := Walk(fs, "audit", func(l *Line) error {
		var e struct{ ID string }
		if err := json.Unmarshal(l.Text, &e); err != nil {
			return err
		}
		without := strings.Replace(string(l.Text), `{"resourceType":"AuditEvent","id":"`+e.ID+`",`, "", 1)
		if sum := sha256.Sum256([]byte(before + without)); hex.EncodeToString(sum[:]) != e.ID {
			t.Errorf("%s", l.Text)
		}
		before = e.ID
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestCrash: whatever is on record stays so through a crash at any write, sync or
// rename, and what is torn goes; the chain holds.
func TestCrash(t *testing.T) {
	for seed := range storetest.Rounds(uint64(200)) {
		mem := vfs.NewCrashableMem()
		rng := rand.New(rand.NewPCG(seed, 1))
		var crashed atomic.Pointer[vfs.MemFS]
		var onRecord, atCrash atomic.Int64
		steps := rng.IntN(60)
		disk := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
				return nil
			}
			if steps--; steps == 0 {
				atCrash.Store(onRecord.Load())
				crashed.Store(mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[rng.IntN(3)], RNG: rng}))
			}
			return nil
		}))
		trail := mustOpen(t, Options{FS: disk, MaxSize: 4000, Required: true})
		for i := range 15 {
			var group sync.WaitGroup // a batch of several is torn, too
			trail.disk.Lock()
			for range 3 {
				group.Go(func() { trail.mustRecord(t, commands(fmt.Sprint(i))...) })
			}
			trail.disk.Unlock()
			group.Wait()
			onRecord.Add(3)
		}
		trail.Close()
		if crashed.Load() == nil {
			continue
		}
		for range 2 { // also killed right after the start
			again, err := Open(Options{Dir: "audit", FS: crashed.Load(), MaxSize: 4000})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			again.mustRecord(t, commands("again")...)
			crashed.Store(crashed.Load().CrashClone(vfs.CrashCloneCfg{}))
		}
		names, r := recorded(t, crashed.Load())
		if len(r.Breaks)+len(r.Notes) > 0 || len(names) < int(atCrash.Load())+2 || len(names) > int(atCrash.Load())+3+2 {
			t.Errorf("seed %d: %d on record before the crash, now %v\n%+v", seed, atCrash.Load(), names, r)
		}
	}
}

// TestDrafts: what was half written when the machine stopped goes.
func TestDrafts(t *testing.T) {
	fs := vfs.NewMem()
	if err := errors.Join(disk.MakeDir(fs, "audit"), disk.Replace(fs, "audit", fileName(time.Now(), 1)+".new", []byte("half"))); err != nil {
		t.Fatal(err)
	}
	if err := mustOpen(t, Options{FS: fs}).Close(); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("audit")
	if names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, ".new") }); err != nil || len(names) > 0 {
		t.Errorf("%q, %v", names, err)
	}
}

// TestSync: nothing is on record that was not synced, and many at a time share a sync.
func TestSync(t *testing.T) {
	var syncs, onRecord atomic.Int64
	var held atomic.Bool
	arrived, gate := make(chan struct{}, 100), make(chan struct{})
	disk := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSync && held.Load() {
			syncs.Add(1)
			arrived <- struct{}{}
			<-gate
		}
		return nil
	}))
	trail := mustOpen(t, Options{FS: disk})
	trail.mustRecord(t, Event{Action: Read})
	trail.disk.Lock()
	held.Store(true)
	var group sync.WaitGroup
	for range 1000 {
		group.Go(func() {
			trail.mustRecord(t, commands("c")...)
			onRecord.Add(1)
		})
	}
	for gathered := 0; gathered < 1000; runtime.Gosched() {
		trail.mu.Lock()
		gathered = len(trail.gather.lines)
		trail.mu.Unlock()
	}
	trail.disk.Unlock()
	<-arrived
	if n := onRecord.Load(); n != 0 {
		t.Errorf("%d are on record before the sync has ended", n)
	}
	close(gate)
	group.Wait()
	if n := syncs.Load(); n != 1 {
		t.Errorf("%d syncs for a thousand records at the same time, and one was enough", n)
	}
	if names, r := recorded(t, disk); len(names) != 1000 || len(r.Breaks) > 0 {
		t.Errorf("%d, %v", len(names), r)
	}
}

// TestKeep: each day has a file, and old ones go; the chain is then proved from the
// oldest that is kept.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		trail := mustOpen(t, Options{FS: fs, Keep: 3 * 24 * time.Hour})
		for day := range 10 {
			trail.mustRecord(t, commands(fmt.Sprint(day))...)
			time.Sleep(24 * time.Hour)
		}
		names, r := recorded(t, fs)
		if len(r.Breaks) > 0 || r.Files != len(names) || !slices.Equal(names, []string{"5", "6", "7", "8", "9"}) {
			t.Errorf("%v, %+v", names, r)
		}
		if err := trail.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * 24 * time.Hour)
		mustOpen(t, Options{FS: fs, Keep: 3 * 24 * time.Hour}).mustRecord(t, commands("late")...)
		if names, r := recorded(t, fs); len(r.Breaks) > 0 || !slices.Equal(names, []string{"9", "late"}) /* when its file ended is told by the one that follows */ {
			t.Errorf("%v, %+v", names, r)
		}
	})
}

// fullDisk fails writes, or syncs after the write, when told.
func fullDisk(mem vfs.FS) (vfs.FS, *atomic.Int64) {
	var kind atomic.Int64
	kind.Store(-1)
	return errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpKind(kind.Load()) {
			return syscall.ENOSPC
		}
		return nil
	})), &kind
}

// TestUnwritable: what must be on record is refused while it cannot be, whatever fails,
// and all goes on afterwards; nothing that was refused breaks the chain.
func TestUnwritable(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpFileWriteAt, errorfs.OpFileSync, errorfs.OpCreate, errorfs.OpOpenDir} {
		mem := vfs.NewMem()
		disk, fail := fullDisk(mem)
		trail := mustOpen(t, Options{FS: disk, Required: true})
		trail.mustRecord(t, commands("a")...)
		var want []string
		for i := range 3 {
			fail.Store(int64(kind))
			var refused int
			for range 3 {
				if err := trail.Record(t.Context(), commands("no")[0]); errors.Is(err, ErrUnwritable) && errors.Is(err, syscall.ENOSPC) {
					refused++
				}
			}
			if broken := kind == errorfs.OpFileWriteAt || kind == errorfs.OpFileSync; broken && refused != 3 {
				t.Errorf("%v: %d of 3 were refused", kind, refused)
			}
			fail.Store(-1)
			want = append(want, fmt.Sprint(i))
			trail.mustRecord(t, commands(fmt.Sprint(i))...)
		}
		names, r := recorded(t, mem)
		names = slices.DeleteFunc(names, func(n string) bool { return n == "no" || n == "a" })
		if len(r.Breaks) > 0 || !slices.Equal(names, want) {
			t.Errorf("%v: %v, %+v", kind, names, r)
		}
		if err := trail.Close(); err != nil {
			t.Error(err)
		}
		if err := trail.Record(t.Context(), commands("late")[0]); !errors.Is(err, ErrUnwritable) {
			t.Errorf("closed: %v", err)
		}
	}
}

// TestLost: what need not be on record is lost, visibly.
func TestLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewMem()
		disk, fail := fullDisk(mem)
		reader := metric.NewManualReader()
		var text bytes.Buffer
		fail.Store(int64(errorfs.OpCreate))
		trail := mustOpen(t, Options{
			FS: disk, Logger: slog.New(slog.NewTextHandler(&text, nil)),
			Meter: metric.NewMeterProvider(metric.WithReader(reader)).Meter("test"),
		})
		trail.mustRecord(t, commands("lost", "lost")...)
		d, err := trail.Begin(t.Context(), Event{Action: Download})
		if err != nil {
			t.Fatal(err)
		}
		d.End(t.Context(), 5, Done)
		if n := strings.Count(text.String(), "cannot be written"); n != 1 {
			t.Errorf("it is said %d times in a minute:\n%s", n, &text)
		}
		time.Sleep(time.Minute)
		trail.mustRecord(t, commands("lost")...)
		if n := strings.Count(text.String(), "cannot be written"); n != 2 {
			t.Errorf("it is said %d times in two minutes:\n%s", n, &text)
		}
		fail.Store(-1)
		trail.mustRecord(t, commands("a", "b")...)
		var lost []int64
		if _, err := Walk(mem, "audit", func(l *Line) error {
			if l.Event.Action == Lost {
				lost = append(lost, l.Event.Rows)
			}
			return nil
		}); err != nil || !slices.Equal(lost, []int64{5}) {
			t.Errorf("%v are said to be lost, %v", lost, err)
		}
		var m metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &m); err != nil {
			t.Fatal(err)
		}
		if got := m.ScopeMetrics[0].Metrics[0]; got.Name != "audit.lost" || got.Data.(metricdata.Sum[int64]).DataPoints[0].Value != 5 {
			t.Errorf("%+v", got)
		}
	})
}

// TestDisclosure: two lines that belong together, the first before anything is sent.
func TestDisclosure(t *testing.T) {
	disk, fail := fullDisk(vfs.NewMem())
	trail := mustOpen(t, Options{FS: disk, Required: true})
	d, err := trail.Begin(t.Context(), Event{Action: Download, Job: "j", File: "1"})
	if err != nil {
		t.Fatal(err)
	}
	d.Event.Range = "bytes 5-9/10"
	d.End(t.Context(), 5, Failed)
	fail.Store(int64(errorfs.OpFileSync))
	if d, err := trail.Begin(t.Context(), Event{Action: Download}); d != nil || !errors.Is(err, ErrUnwritable) {
		t.Errorf("%v, %v", d, err)
	}
	fail.Store(-1)
	var list []*Event
	if _, err := Walk(disk, "audit", func(l *Line) error { list = append(list, l.Event); return nil }); err != nil || len(list) < 3 { // what was refused may be there until another file begins
		t.Fatalf("%d, %v", len(list), err)
	}
	begun, ended := list[1], list[2]
	if begun.Phase != Begun || begun.Bytes != 0 || ended.Phase != Ended || ended.Bytes != 5 || ended.Range != "bytes 5-9/10" || ended.Outcome != Failed ||
		begun.Pair == "" || begun.Pair != ended.Pair || ended.Job != "j" {
		t.Errorf("%+v\n%+v", begun, ended)
	}
}

// TestNil: no trail takes everything.
func TestNil(t *testing.T) {
	var trail *Trail
	d, err := trail.Begin(t.Context(), Event{})
	d.End(t.Context(), 1, Done)
	if err = errors.Join(err, trail.Record(t.Context(), Event{}), trail.Close()); err != nil {
		t.Error(err)
	}
}

// TestOneWriter: a second process is refused, on a disk too, where nobody else may read
// the files whatever the umask is.
func TestOneWriter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	trail, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second one: %v", err)
	}
	trail.mustRecord(t, commands("a")...)
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	again.mustRecord(t, commands("b")...)
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 3 {
		t.Errorf("%v, %v", list, err)
	}
	for _, e := range list {
		if info, err := e.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
	}
	if names, r := recordedIn(t, dir); !slices.Equal(names, []string{"a", "b"}) || len(r.Breaks) > 0 || r.Files != 1 {
		t.Errorf("%v, %+v", names, r)
	}
	again.Close()
}

func recordedIn(t *testing.T, dir string) (names []string, r Report) {
	t.Helper()
	r, err := Walk(Disk, dir, func(l *Line) error {
		if l.Event.Action == Command {
			names = append(names, l.Event.Command)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names, r
}

// A topic takes lines, or fails.
type topic struct {
	mu    sync.Mutex
	fails bool
	lines []string // commands, in order; one that came again is there again
}

func (p *topic) Publish(_ context.Context, lines []Published) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fails {
		return errors.New("no broker")
	}
	for _, l := range lines {
		e, err := decode(l.Text)
		if err != nil {
			return err
		}
		if id, _, ok := split(append(l.Text, '\n')); !ok || id != l.ID {
			return errors.New("another id")
		}
		if e.Action == Command {
			p.lines = append(p.lines, e.Command)
		}
	}
	return nil
}

// TestPublish: all lines get there in their order, also after the topic was away or the
// server was; who records waits for neither.
func TestPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, to := vfs.NewMem(), &topic{}
		var want []string
		for life := range 4 {
			trail := mustOpen(t, Options{FS: fs, MaxSize: 3000, Publisher: to, Keep: time.Hour})
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- trail.Run(ctx) }()
			for i := range 20 {
				to.mu.Lock()
				to.fails = life%2 == 1
				to.mu.Unlock()
				want = append(want, fmt.Sprint(life, "-", i))
				trail.mustRecord(t, commands(want[len(want)-1])...)
			}
			synctest.Wait()
			if life%2 == 1 {
				time.Sleep(5 * 24 * time.Hour) // files that are not published yet stay
				trail.mustRecord(t, commands("x")...)
				want = append(want, "x")
			}
			if life == 1 {
				to.mu.Lock()
				to.fails = false
				to.mu.Unlock()
				time.Sleep(3 * time.Minute)
			}
			stop()
			if err := errors.Join(<-done, trail.Close()); err != nil {
				t.Fatal(err)
			}
		}
		to.fails = false
		trail := mustOpen(t, Options{FS: fs, Publisher: to})
		ctx, stop := context.WithCancel(t.Context())
		go func() { _ = trail.Run(ctx) }()
		synctest.Wait()
		stop()
		synctest.Wait()
		if d := cmp.Diff(want, to.lines); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	})
}

// TestLag: how far the topic is behind is known, since when and why, over restarts too.
func TestLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, to := vfs.NewMem(), &topic{fails: true}
		first := time.Now().Truncate(time.Millisecond)
		for life := range 2 {
			trail := mustOpen(t, Options{FS: fs, MaxSize: 2000, Publisher: to})
			for range 20 {
				trail.mustRecord(t, commands("x")...)
				time.Sleep(time.Hour)
			}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- trail.Run(ctx) }()
			synctest.Wait()
			lag, err := trail.Lag()
			if err != nil || !lag.Since.Equal(first) || lag.Bytes != sizeOf(t, fs, trail.o.Dir) || lag.Err == nil {
				t.Errorf("life %d: %v %v, want %d bytes since %v", life, lag, err, sizeOf(t, fs, trail.o.Dir), first)
			}
			to.mu.Lock()
			to.fails = life == 0
			to.mu.Unlock()
			if time.Sleep(2 * time.Minute); life == 1 {
				if lag, err = trail.Lag(); err != nil || lag != (Lag{}) {
					t.Errorf("in the end: %v %v", lag, err)
				}
			}
			stop()
			if err := errors.Join(<-done, trail.Close()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// sizeOf is that of all files of a trail.
func sizeOf(t *testing.T, fs vfs.FS, dir string) (n int64) {
	t.Helper()
	list, err := files(fs, dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range list {
		info, err := fs.Stat(fs.PathJoin(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	return n
}

// BenchmarkRecord: many clients at the same time, on this machine's disk.
func BenchmarkRecord(b *testing.B) {
	for _, clients := range []int{1, 10, 1000} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			trail, err := Open(Options{Dir: b.TempDir(), Required: true})
			if err != nil {
				b.Fatal(err)
			}
			defer trail.Close()
			e := everything
			e.Time = time.Time{}
			var left atomic.Int64
			left.Store(int64(b.N))
			var group sync.WaitGroup
			b.ResetTimer()
			for range clients {
				group.Go(func() {
					for left.Add(-1) >= 0 {
						if err := trail.Record(context.Background(), e); err != nil {
							b.Error(err)
						}
					}
				})
			}
			group.Wait()
		})
	}
}

var _ io.Closer = (*Trail)(nil)

// TestSecretParameters: a token that a client has put into the URL is none of the trail's.
func TestSecretParameters(t *testing.T) {
	e := Event{Parameters: []Parameter{{"access_token", "canary-1"}, {"Client_Assertion", "canary-2"}, {"_type", "Patient"}}}
	for _, part := range e.entities() {
		for _, d := range part.Detail {
			if strings.Contains(d.value(), "canary") || d.Type == "_type" && d.value() != "Patient" {
				t.Errorf("%s is %s", d.Type, d.value())
			}
		}
	}
}
