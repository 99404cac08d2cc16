package main

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/cmd/tidemark/internal/hospital"
	"tidemark/store/fhir"
)

// The benchmarks put what we do beside the limit of this machine, measured in
// the same run and turn by turn with it: the ratios are what to read. Method
// and results are in store/BENCHMARKS.md.

// actAsBroker makes this test binary an embedded broker that keeps its data in
// the directory named: a broker takes its share of the machine, but not of the
// process that is measured.
const actAsBroker = "ACT_AS_BROKER"

func init() {
	dir := os.Getenv(actAsBroker)
	if dir == "" {
		return
	}
	if err := serveBroker(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serveBroker prints the address and runs until its standard input ends, which
// it also does when the benchmark dies.
func serveBroker(dir string) error {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(dir),
		kfake.AllowAutoTopicCreation(), kfake.DefaultNumPartitions(benchPartitions),
		kfake.BrokerConfigs(map[string]string{"message.max.bytes": strconv.Itoa(largestGroup)}))
	if err != nil {
		return fmt.Errorf("start the broker: %w", err)
	}
	defer cluster.Close()
	if _, err := fmt.Fprintln(os.Stdout, cluster.ListenAddrs()[0]); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// largestGroup bounds a Group of half the Patients of a large store, bytes.
const largestGroup = 64 << 20

// benchPartitions is the number of partitions of every topic.
const benchPartitions = 8

// A testbed is what most benchmarks need: a broker in a process of its own,
// and resources to send.
type testbed struct {
	b        testing.TB
	broker   string
	producer *kgo.Client
	corpus   []sample
	settings []string // of the programs to come, as --set has them
}

func newTestbed(b testing.TB) *testbed {
	b.Helper()
	return newTestbedOf(b, corpus(b))
}

func newTestbedOf(b testing.TB, corpus []sample) *testbed {
	b.Helper()
	t := &testbed{b: b, broker: startBroker(b), corpus: corpus}
	var err error
	t.producer, err = kgo.NewClient(kgo.SeedBrokers(t.broker), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.AllowAutoTopicCreation(), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(t.producer.Close)
	return t
}

func startBroker(b testing.TB) string {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), actAsBroker+"="+b.TempDir())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("the broker did not start: %v", err)
	}
	return strings.TrimSpace(address)
}

// A sample is a resource without meta.versionId and meta.lastUpdated.
type sample struct {
	key  string
	body []byte
	meta fhir.Meta
}

// stamped is the resource as a server publishes one of its versions.
func (s *sample) stamped(version int64, at time.Time) []byte {
	v := strconv.FormatInt(version, 10)
	return s.meta.Inject(make([]byte, 0, len(s.body)+s.meta.Len(v)), s.body, v, fhir.FromTime(at))
}

func (s *sample) partition() int32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s.key))
	return int32(h.Sum32() % benchPartitions)
}

// corpus is the large set of synthetic patients, type by type as a bulk load
// brings it, or what our own hospital writes where that set is not there.
func corpus(b testing.TB) []sample {
	b.Helper()
	dir := cmp.Or(os.Getenv("TIDEMARK_SYNTHEA_LARGE"), filepath.Join("..", "..", "..", "shared", "data", "synthea-large"))
	names, err := filepath.Glob(filepath.Join(dir, "*.ndjson.gz"))
	if err != nil {
		b.Fatal(err)
	}
	if len(names) == 0 {
		return hospitalCorpus(b, 150_000)
	}
	var list []sample
	for _, name := range names {
		if list, err = readSamples(list, name); err != nil {
			b.Fatalf("read %s: %v", name, err)
		}
	}
	return list
}

func readSamples(list []sample, name string) ([]sample, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(zip)
	lines.Buffer(nil, 16<<20)
	var scanner fhir.Scanner
	for lines.Scan() {
		s, err := newSample(&scanner, lines.Bytes())
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, lines.Err()
}

func newSample(scanner *fhir.Scanner, line []byte) (sample, error) {
	r, err := scanner.Scan(bytes.Clone(line))
	return sample{r.Key.String(), r.Body, r.Meta}, err
}

// hospitalCorpus is so many resources of our own hospital.
func hospitalCorpus(b testing.TB, enough int) []sample {
	b.Helper()
	h := hospital.New(hospital.Options{Seed: 1, Patients: 2000, Bare: 1, Past: &hospital.Habits{}, Partitions: benchPartitions})
	var list []sample
	var scanner fhir.Scanner
	for rec := range h.History {
		if rec.Op != hospital.Create {
			continue
		}
		s, err := newSample(&scanner, rec.Value)
		if err != nil {
			b.Fatal(err)
		}
		if list = append(list, s); len(list) == enough {
			break
		}
	}
	return list
}

// largestType leaves of the corpus only the type with most bytes, in so many
// copies with ids of their own.
func (t *testbed) largestType(copies int) {
	bytesOf := map[string]int{}
	kind := func(s *sample) string { return s.key[:strings.IndexByte(s.key, '/')] }
	for i := range t.corpus {
		bytesOf[kind(&t.corpus[i])] += len(t.corpus[i].body)
	}
	largest := ""
	for k, n := range bytesOf {
		if n > bytesOf[largest] {
			largest = k
		}
	}
	var list []sample
	for c := range copies {
		for _, s := range t.corpus {
			if kind(&s) == largest {
				old := s.key[len(largest)+1:]
				id := old[c:8] + old[:c] + old[8:] // as long, so that meta stays where it is
				list = append(list, sample{largest + "/" + id, bytes.Replace(s.body, []byte(old), []byte(id), 1), s.meta})
			}
		}
	}
	t.corpus = list
}

// A load is what was written to a topic.
type load struct {
	topic   string
	records int64
	bytes   int64                  // of keys and values
	ends    [benchPartitions]int64 // of a topic written once
}

// The first versions are of the past, so that a bulk load is history. The
// clock of the second ones runs a year later.
var epochs = [...]time.Time{{}, time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)}

// write produces a version of every resource to a topic: the first in the order
// of the corpus, later ones in an order without one.
func (t *testbed) write(topic string, version int64) load {
	t.b.Helper()
	order := make([]int, len(t.corpus))
	for i := range order {
		order[i] = i
	}
	if version > 1 {
		rand.New(rand.NewPCG(1, uint64(version))).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	l := load{topic: topic}
	var failed atomic.Pointer[error]
	for n, i := range order {
		s := &t.corpus[i]
		r := t.record(topic, s, version, epochs[version].Add(time.Duration(n)*time.Second/10))
		l.records++
		l.bytes += int64(len(r.Key) + len(r.Value))
		l.ends[r.Partition]++
		t.producer.Produce(t.b.Context(), r, func(_ *kgo.Record, err error) {
			if err != nil {
				failed.Store(&err)
			}
		})
	}
	if err := t.producer.Flush(t.b.Context()); err != nil {
		t.b.Fatal(err)
	}
	if err := failed.Load(); err != nil {
		t.b.Fatal(*err)
	}
	return l
}

func (t *testbed) record(topic string, s *sample, version int64, at time.Time) *kgo.Record {
	return &kgo.Record{Topic: topic, Key: []byte(s.key), Value: s.stamped(version, at), Partition: s.partition(), Timestamp: at}
}

// A process is the real program, serving.
type process struct {
	b    testing.TB
	cmd  *exec.Cmd
	base string // of FHIR
	root string // of what operators see
}

// serveTopic starts the program on a topic, with an empty store.
func (t *testbed) serveTopic(topic string) *process { return t.serve(topic, t.b.TempDir()) }

// serve starts the program on a topic, with what of a store lies in dir. Its
// profiles are at TIDEMARK_ADMIN_LISTEN, if that is set.
func (t *testbed) serve(topic, dir string) *process {
	t.b.Helper()
	address := anyPort(t.b)
	admin := cmp.Or(os.Getenv("TIDEMARK_ADMIN_LISTEN"), anyPort(t.b))
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.b.Fatal(err)
	}
	defer log.Close()
	p := &process{b: t.b, base: "http://" + address + "/fhir", root: "http://" + admin}
	p.cmd = exec.Command(os.Args[0], "serve", "--set", "store.path="+filepath.Join(dir, "store"), "--set", "store.min_free=0B",
		"--set", "kafka.brokers="+t.broker, "--set", "topics=[{name: "+topic+", format: resource}]", "--set", "http.listen="+address,
		"--set", "admin.listen="+admin)
	for _, setting := range t.settings {
		p.cmd.Args = append(p.cmd.Args, "--set", setting)
	}
	p.cmd.Env = append(plainEnviron(), actAsProgram+"=1")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		t.b.Fatal(err)
	}
	t.b.Cleanup(p.stop)
	return p
}

// stop ends the program the polite way, or else the other.
func (p *process) stop() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Signal(os.Interrupt)
	timer := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	_ = p.cmd.Wait()
}

// until waits for a condition.
func until(b testing.TB, what string, ok func() bool) {
	b.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * patience); !ok(); <-tick.C {
		if time.Now().After(end) {
			b.Fatalf("waited %v until %s", 2*patience, what)
		}
	}
}

// loaded waits until the program is ready and has committed so many rows.
func (p *process) loaded(rows int64) {
	p.b.Helper()
	until(p.b, "the records are committed", func() bool { return metric(p.root+"/metrics", "tidemark_store_rows_total") >= float64(rows) })
	until(p.b, "the server is ready", func() bool {
		status, _, err := ask(http.MethodGet, strings.TrimSuffix(p.base, "/fhir")+"/readyz", nil)
		return err == nil && status == http.StatusOK
	})
}

// settled waits until nothing has been merged for a while: a merge is looked
// for every second.
func (p *process) settled() {
	p.b.Helper()
	count, since := -1.0, time.Now()
	until(p.b, "merges are done", func() bool {
		if n := metric(p.root+"/metrics", "tidemark_store_segments"); n != count {
			count, since = n, time.Now()
		}
		return count >= 0 && time.Since(since) > 3*time.Second
	})
}

// metric is the sum of a metric's series, -1 if there is none.
func metric(address, name string) float64 {
	_, page, err := ask(http.MethodGet, address, nil)
	if err != nil {
		return -1
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(page)) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == '{' || rest[0] == ' ') {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
			if err == nil {
				sum, found = sum+v, true
			}
		}
	}
	if !found {
		return -1
	}
	return sum
}

func anyPort(b testing.TB) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// ask sends a request and reads the whole answer.
func ask(method, address string, header http.Header) (int, []byte, error) {
	answer, err := send(method, address, header)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return answer.StatusCode, body, err
}

func send(method, address string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	return http.DefaultClient.Do(req)
}

// kickOff exports and returns the manifest and the job's URL. Other than a
// client that obeys Retry-After it asks for the status at once, and again.
func kickOff(base string, params url.Values) (*bulkclient.Manifest, string, error) {
	return kickOffAt(base+"/$export", params)
}

// kickOffAt starts an export of another level than the system's.
func kickOffAt(path string, params url.Values) (*bulkclient.Manifest, string, error) {
	answer, err := send(http.MethodGet, path+"?"+params.Encode(),
		http.Header{"Accept": {"application/fhir+json"}, "Prefer": {"respond-async"}})
	if err != nil {
		return nil, "", err
	}
	_, err = io.Copy(io.Discard, answer.Body)
	if err := errors.Join(err, answer.Body.Close()); err != nil {
		return nil, "", err
	}
	if answer.StatusCode != http.StatusAccepted {
		return nil, "", fmt.Errorf("kick off: the server answered %d", answer.StatusCode)
	}
	job := answer.Header.Get("Content-Location")
	for wait := time.Millisecond; ; wait = min(wait*3/2, time.Second) {
		status, page, err := ask(http.MethodGet, job, http.Header{"Accept": {"application/json"}})
		if err != nil {
			return nil, "", err
		}
		switch status {
		case http.StatusAccepted:
			time.Sleep(wait)
		case http.StatusOK:
			m := new(bulkclient.Manifest)
			return m, job, json.Unmarshal(page, m)
		default:
			return nil, "", fmt.Errorf("ask for the status: the server answered %d", status)
		}
	}
}

// endJob deletes a job.
func endJob(b testing.TB, job string) {
	b.Helper()
	status, _, err := ask(http.MethodDelete, job, http.Header{"Accept": {"application/fhir+json"}})
	if err != nil || status != http.StatusAccepted {
		b.Fatalf("delete the job: %d, %v", status, err)
	}
}

// quantile sorts list and returns its q-th part, the greatest for 1.
func quantile(list []time.Duration, q float64) time.Duration {
	slices.Sort(list)
	return list[min(len(list)-1, int(q*float64(len(list))))]
}

// cpuTime is what a process and its children that still run have used of the
// processors so far, 0 where the system has no /proc. Other than time on the
// wall it hardly depends on who else is at work on the machine.
func cpuTime(pid int) (used time.Duration) {
	const tick = 10 * time.Millisecond // the kernel's, in all that it tells us
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // ended meanwhile
		}
		f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if len(f) < 13 || name != fmt.Sprintf("/proc/%d/stat", pid) && f[1] != strconv.Itoa(pid) {
			continue
		}
		for _, field := range f[11:13] { // user, system
			n, _ := strconv.ParseInt(field, 10, 64)
			used += time.Duration(n) * tick
		}
	}
	return used
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// megabytes a second.
func speed(bytes int64, d time.Duration) float64 { return float64(bytes) / 1e6 / d.Seconds() }

// report sets metrics instead of the time of an iteration, which holds the
// limits, too.
func report(b *testing.B, metrics map[string]float64) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	for unit, v := range metrics {
		b.ReportMetric(v, unit)
	}
}
