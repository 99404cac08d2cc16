package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/cmd/tidemark/internal/hospital"
	"tidemark/cmd/tidemark/internal/proof"
)

// actAsProgram makes this test binary the program itself, so that a test can
// kill a server as the power goes.
const actAsProgram = "ACT_AS_TIDEMARK"

func TestMain(m *testing.M) {
	if os.Getenv(actAsProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// patience bounds every wait for something that must come.
const patience = time.Minute

// A rig is a topic, a hospital that writes to it, a server that reads it, and
// a client that follows the server in a chain of exports.
type rig struct {
	t        *testing.T
	topic    string
	producer *kgo.Client
	hospital *hospital.Hospital
	ledger   *proof.Ledger
	chain    *proof.Chain
	client   *bulkclient.Client
	since    time.Time // transactionTime of the newest export
	args     []string
	log      string // file with what all servers printed
	server   *exec.Cmd
}

// newRig makes a rig on brokers that the options can reach, and a server with
// more arguments.
func newRig(t *testing.T, brokers, topic string, options []kgo.Opt, more ...string) *rig {
	t.Helper()
	producer, err := kgo.NewClient(append(options, kgo.SeedBrokers(brokers), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(producer.Close)
	address := freePort(t)
	dir := t.TempDir()
	r := &rig{
		t: t, topic: topic, producer: producer,
		hospital: hospital.New(hospital.Options{Seed: 7, Patients: 10, Years: 1}),
		ledger:   proof.NewLedger(proof.Options{}),
		client:   &bulkclient.Client{Base: "http://" + address + "/fhir"},
		log:      filepath.Join(dir, "log"),
		args: append([]string{
			"serve", "--set", "store.path=" + filepath.Join(dir, "store"), "--set", "store.min_free=0B", "--set", "store.reserve=1MiB",
			"--set", "kafka.brokers=" + brokers, "--set", "topics=[{name: " + topic + ", format: resource}]",
			"--set", "http.listen=" + address,
			// Rows settle while the test runs, as they would in days.
			"--set", "compaction.settle_after=1s", "--set", "compaction.cores=1",
		}, more...),
	}
	r.chain = r.ledger.Chain()
	t.Cleanup(func() {
		r.kill()
		if t.Failed() {
			t.Logf("what the servers said, but for requests:\n%s", r.said())
		}
	})
	return r
}

// said is the end of the servers' log without the many lines of requests.
func (r *rig) said() string {
	log, err := os.ReadFile(r.log)
	if err != nil {
		return err.Error()
	}
	var said strings.Builder
	for line := range strings.Lines(string(log)) {
		if !strings.Contains(line, `"msg":"request"`) {
			said.WriteString(line)
		}
	}
	return said.String()[max(0, said.Len()-8000):]
}

func (r *rig) store() string { return strings.TrimPrefix(r.args[2], "store.path=") }

// freePort is an address where nobody listens, nor will: systems give ports from 32768 on to
// connections, and to who asks for any, while the server is down that had it.
func freePort(t *testing.T) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 20_000+rand.IntN(12_000))
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

// program is this program with these arguments.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(plainEnviron(), actAsProgram+"=1")
	return cmd
}

// start starts a server and waits until it is ready.
func (r *rig) start() {
	r.t.Helper()
	log, err := os.OpenFile(r.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	r.server = program(r.t, r.args...)
	r.server.Stdout, r.server.Stderr = log, log
	if err := r.server.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.until("the server is ready", func() bool {
		answer, err := http.Get(strings.TrimSuffix(r.client.Base, "/fhir") + "/readyz")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
}

// until waits for a condition.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(end) {
			r.t.Fatalf("waited %v until %s", patience, what)
		}
	}
}

// kill ends the server as a power cut does.
func (r *rig) kill() {
	if r.server != nil {
		_ = r.server.Process.Kill()
		_ = r.server.Wait()
		r.server = nil
	}
}

// stop asks the server to end and returns what it ended with.
func (r *rig) stop() error {
	r.t.Helper()
	server := r.server
	r.server = nil
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		r.t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { _ = server.Process.Kill() })
	defer timer.Stop()
	return server.Wait()
}

// write produces records and returns when the broker has acknowledged all.
func (r *rig) write(records func(func(hospital.Record) bool)) {
	r.t.Helper()
	var mu sync.Mutex
	var failed error
	for rec := range records {
		receipt, err := r.ledger.Sent(rec)
		if err != nil {
			r.t.Fatal(err)
		}
		r.producer.Produce(r.t.Context(), r.record(rec), func(_ *kgo.Record, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = errors.Join(failed, err)
				return
			}
			r.ledger.Acked(receipt, time.Now())
		})
	}
	if err := errors.Join(r.producer.Flush(r.t.Context()), failed); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) record(rec hospital.Record) *kgo.Record {
	k := &kgo.Record{Topic: r.topic, Key: rec.Key, Value: rec.Value, Timestamp: rec.Timestamp, Partition: rec.Partition}
	for _, h := range rec.Headers {
		k.Headers = append(k.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	return k
}

// live writes n changes that happen now.
func (r *rig) live(n int) {
	r.t.Helper()
	r.write(func(yield func(hospital.Record) bool) { r.hospital.Live(time.Now(), n, yield) })
}

// catchUp goes on with the chain until an export reaches beyond everything that
// was acknowledged.
func (r *rig) catchUp() {
	r.t.Helper()
	r.until("an export holds everything that was acknowledged", func() bool {
		return r.export().TransactionTime.After(r.ledger.LastAcked())
	})
}

// export makes one more window of the chain.
func (r *rig) export() *bulkclient.Manifest {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	params := url.Values{}
	if !r.since.IsZero() {
		params.Set("_since", r.since.UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	m, err := r.follow(ctx, params)
	if err != nil {
		r.t.Fatal(err)
	}
	r.since = m.TransactionTime
	return m
}

func (r *rig) follow(ctx context.Context, params url.Values) (*bulkclient.Manifest, error) {
	job, err := r.client.Start(ctx, "$export", params)
	if err != nil {
		return nil, err
	}
	m, err := job.Wait(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.chain.Window(r.since, m.TransactionTime); err != nil {
		return nil, err
	}
	for _, f := range m.Output {
		if err := r.lines(ctx, f, func(line []byte) error { return r.chain.Output(f.Type, line) }); err != nil {
			return nil, err
		}
	}
	for _, f := range m.Deleted {
		err := r.lines(ctx, f, func(line []byte) error {
			keys, err := bulkclient.Deletions(line)
			for _, key := range keys {
				r.chain.Deleted(key)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return m, job.Delete(ctx)
}

func (r *rig) lines(ctx context.Context, f bulkclient.File, line func([]byte) error) error {
	body, err := r.client.Fetch(ctx, f)
	if err != nil {
		return err
	}
	_, err = body.Lines(line)
	return err
}

// prove fails the test unless the chain delivered everything exactly once.
func (r *rig) prove() {
	r.t.Helper()
	v := r.chain.Judge()
	r.t.Logf("%d records, %d changes, %d windows: %s", v.Records, v.Versions, v.Windows, v)
	if !v.OK() {
		r.t.Errorf("the chain is not whole: %s\n%s", v, strings.Join(v.Examples(20), "\n"))
	}
}

// get fetches a page of the server.
func (r *rig) get(path string) string {
	r.t.Helper()
	answer, err := http.Get(strings.TrimSuffix(r.client.Base, "/fhir") + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", answer.StatusCode, body)
}

// ends runs the program to its end and returns what it printed and its exit code.
func ends(t *testing.T, args ...string) (string, int) {
	t.Helper()
	var out bytes.Buffer
	cmd := program(t, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), 0
}

// plainEnviron is our environment without what would configure the server.
func plainEnviron() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "TIDEMARK_") })
}
