package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tidemark/cmd/tidemark/internal/config"
	"tidemark/pipeline/join"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A reader is a store that reads topics of a broker in this process and answers commands.
type reader struct {
	t       *testing.T
	dir     string
	cluster *kfake.Cluster
	client  *kgo.Client
	config  *config.Config
	db      *store.DB
	stop    func()
}

func newReading(t *testing.T, topics ...string) *reader {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, topics...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	r := &reader{t: t, dir: filepath.Join(t.TempDir(), "data"), cluster: cluster, client: client, config: config.Default()}
	r.config.Store.Path, r.config.Kafka.Brokers, r.config.Kafka.Group = r.dir, cluster.ListenAddrs(), ""
	r.config.Audit.Enabled = false
	sample := r.config.Topics[0]
	r.config.Topics = nil
	for _, name := range topics {
		topic := sample
		topic.Name = name
		r.config.Topics = append(r.config.Topics, topic)
	}
	return r
}

// start serves until stop is called or the test ends.
func (r *reader) start() {
	r.t.Helper()
	var err error
	r.db, err = store.Open(r.dir, store.Options{CommitInterval: 5 * time.Millisecond, Allowance: 10 * time.Millisecond})
	if err != nil {
		r.t.Fatal(err)
	}
	intake, err := idleIntake(&opened{db: r.db, config: r.config})
	if err != nil {
		r.t.Fatal(err)
	}
	l := listenControl(r.t.Context(), r.dir, coldLog())
	if l == nil {
		r.t.Skip("the directory's name is too long for a socket")
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return r.db.Run(ctx) })
	work.Go(func() error { return intake.Run(ctx) })
	work.Go(func() error { return runControl(ctx, l, &opened{db: r.db, config: r.config, intake: intake}) })
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := errors.Join(work.Wait(), r.db.Flush(), r.db.Close()); err != nil {
			r.t.Error(err)
		}
	}
	r.t.Cleanup(r.stop)
}

func (r *reader) write(topic string, ids ...string) {
	r.t.Helper()
	for _, id := range ids {
		body := fmt.Sprintf(`{"resourceType":"Patient","id":"%s"}`, id)
		rec := &kgo.Record{Topic: topic, Key: []byte("Patient/" + id), Value: []byte(body)}
		if err := r.client.ProduceSync(r.t.Context(), rec).FirstErr(); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *reader) until(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: did not happen; %+v", what, r.db.Status())
		}
	}
}

func (r *reader) readUpTo(topic string, next int64) {
	r.t.Helper()
	r.until("read", func() bool { s, _ := r.db.Partition(store.Partition{Topic: topic}); return s.Next == next })
}

// topic runs a topic command that must end well.
func (r *reader) topic(args ...string) string {
	r.t.Helper()
	return says(r.t, append([]string{"topic"}, append(args, "--store", r.dir)...)...)
}

func (r *reader) refused(want string, args ...string) {
	r.t.Helper()
	got, code := command(r.t, append([]string{"topic"}, append(args, "--store", r.dir)...)...)
	if code == 0 || !strings.Contains(got, want) {
		r.t.Errorf("topic %q: exit %d, want an error with %q: %s", args, code, want, got)
	}
}

// TestTopicNotThereYet: who waits for the first export learns which topic it waits for.
func TestTopicNotThereYet(t *testing.T) {
	const says = "no export can begin until each of them is there"
	r := newReading(t, "fhir-changes")
	r.config.Topics = append(r.config.Topics, config.Topic{Name: "fhir-load", Format: "resource", StopAfter: new(100)})
	r.write("fhir-changes", "a")
	r.start()
	r.readUpTo("fhir-changes", 1)
	contains(t, r.topic("list"), "do not have yet: fhir-load", says, "exports reach to none")
	makeTopic(t, strings.Join(r.cluster.ListenAddrs(), ","), "fhir-load", 1, map[string]string{"cleanup.policy": "compact"})
	r.until("all are there", func() bool { return r.db.Status().Watermark != fhir.None })
	if got := r.topic("list"); strings.Contains(got, says) {
		t.Errorf("all are there:\n%s", got)
	}
}

// The commands beside a running server, as an operator meets them: pause and resume, a gap, an
// open transaction, a topic that is gone.
func TestTopicCommands(t *testing.T) {
	r := newReading(t, "fhir-changes", "gone")
	r.write("fhir-changes", "a", "b")
	r.write("gone", "c")
	r.start()
	r.readUpTo("fhir-changes", 2)
	r.readUpTo("gone", 1)

	contains(t, r.topic("pause", "fhir-changes", "--because", "a restore"), "paused")
	r.write("fhir-changes", "d")
	contains(t, r.topic("list"), "fhir-changes", "(a restore)", "tidemark topic resume fhir-changes", "held", "0 dead letters")
	r.refused("whole topics", "pause", "fhir-changes/0")
	r.refused("nothing is known of fhir-chagnes", "list", "fhir-chagnes")
	r.refused("nothing is known of gone/7", "list", "gone/7")
	r.refused("not configured", "pause", "fhir-chagnes")
	r.stop()
	r.refused("was never read", "pause", "fhir-chagnes")
	r.refused("not configured", "pause", "fhir-chagnes", "--set", "topics=[{name: fhir-changes, format: resource}]")
	r.refused("nothing is known of fhir-chagnes", "list", "fhir-chagnes")
	r.refused("start the server", "accept", "fhir-changes", "--because", "x", "--yes")
	contains(t, r.topic("list"), "paused since", "no server has the store open")
	contains(t, r.topic("resume", "fhir-changes"), "read again")
	r.refused("not paused", "resume", "fhir-changes")

	r.write("fhir-changes", "e", "f")
	if err := r.cluster.DeleteRecords("fhir-changes", 0, 4); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.until("a gap", func() bool {
		return strings.Contains(r.topic("list", "fhir-changes"), "tidemark topic accept fhir-changes/0")
	})
	contains(t, says(t, "inspect", "--store", r.dir), "fhir-changes/0 holds the watermark", "gap in fhir-changes/0")
	r.refused("give --yes", "accept", "fhir-changes/0", "--because", "x")
	r.refused("no gap", "accept", "gone", "--because", "x", "--yes")
	contains(t, r.topic("accept", "fhir-changes/0", "--because", "x", "--yes"), "fhir-changes/0 is read on from offset 4", "the log now starts at offset 4")
	r.readUpTo("fhir-changes", 5)
	contains(t, says(t, "deadletter", "list", r.dir), "a gap in the log (expired) was accepted: offsets 2 to 3")

	hangs(t, r)
	r.refused("take it out of topics", "forget", "gone", "--because", "x", "--yes")
	r.stop()
	r.refused("--config", "forget", "gone", "--because", "x", "--yes")
	contains(t, r.topic("forget", "gone", "--because", "x", "--yes", "--set", "topics=[{name: fhir-changes, format: resource}]"), "gone/0 is forgotten")
	if got := r.topic("list"); strings.Contains(got, "gone") {
		t.Errorf("it is still listed:\n%s", got)
	}
	contains(t, says(t, "check", r.dir), "every invariant holds")
}

// What is wrong with a command line alone was not tried.
func TestTopicMisuse(t *testing.T) {
	dir := t.TempDir()
	for want, args := range map[string][]string{
		"whole topics":               {"topic", "pause", "fhir-changes/0"},
		"neither a topic nor":        {"topic", "list", "fhir-changes/x"},
		"in one line":                {"topic", "pause", "fhir-changes", "--because", "a\nb"},
		"--because: say why":         {"topic", "forget", "fhir-changes", "--because", " ", "--yes"},
		"say which (--number":        {"deadletter", "drop", "--because", "x"},
		"is neither a date":          {"deadletter", "list", "--since", "yesterday"},
		"no topic to write to":       {"load", dir},
		"no NDJSON file lies in":     {"load", "--dry-run", dir},
		"no such file or directory":  {"load", "--dry-run", filepath.Join(dir, "nosuch")},
		"nothing says as of when":    {"reconcile", os.Args[0]},
		"which is yet to come":       {"load", "--dry-run", "--at", "2999-01-01T00:00:00Z", os.Args[0]},
		"is no instant such as 2026": {"reconcile", "--at", "now", os.Args[0]},
	} {
		if got, code := command(t, args...); code != exitUsage || !strings.Contains(got, want) {
			t.Errorf("%q: exit %d, want %d and %q: %s", args, code, exitUsage, want, got)
		}
	}
}

// Who may not ask a server is told who may.
func TestControlDenied(t *testing.T) {
	err := denied(&os.PathError{Op: "connect", Path: "control.sock", Err: syscall.EACCES})
	if !strings.Contains(err.Error(), "run this as that user") || nobodyServes(err) {
		t.Errorf("got %v", err)
	}
	if err := denied(syscall.ECONNREFUSED); !nobodyServes(err) || denied(nil) != nil {
		t.Errorf("got %v", err)
	}
}

// hangs leaves a transaction open and finds its producer in the list.
func hangs(t *testing.T, r *reader) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(r.cluster.ListenAddrs()...), kgo.TransactionalID("hangs"))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "fhir-changes", Value: []byte("{}")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	producer, _, err := cl.ProducerID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got string
	r.until("an open transaction", func() bool {
		got = r.topic("list")
		return strings.Contains(got, "open transaction")
	})
	contains(t, got, fmt.Sprintf("producer %d, ", producer), "since offset 5", "--topic fhir-changes --partition 0 --start-offset 5")
	if err := cl.EndTransaction(context.Background(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
}

// TestWhatVersionsWaitFor: topic list says why the watermark stays below versions that have
// come without the rows of other tables, since when, and what will become of them.
func TestWhatVersionsWaitFor(t *testing.T) {
	var said strings.Builder
	l := topicList{out: bufio.NewWriter(&said)}
	since := fhir.FromTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	l.waiting([]join.Wait{{For: "one table", Versions: 1, Since: since}, {For: "another", Versions: 1234, Since: since + 1000}})
	if err := l.out.Flush(); err != nil {
		t.Fatal(err)
	}
	contains(t, said.String(), "1 version since 2026-01-02T03:04:05Z:\n  one table\n", "1,234 versions since 2026-01-02T03:04:06Z:\n  another\n", "a dead letter")
}
