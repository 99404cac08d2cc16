package main

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"flag"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/store/fhir"
)

var (
	scaleResources = flag.Int("scale.resources", 6_000, "how many resources TestScale has in the end")
	scaleDir       = flag.String("scale.dir", "", "where TestScale keeps its store and its topic; default: a temporary directory")
)

// TestScale lets a store grow to -scale.resources, with the real program and a
// broker in a process of its own, and exports at several sizes and shares of
// dead rows. It asserts counts and correctness; what it measures it logs, as
// the tables of store/BENCHMARKS.md (`make scale N=10000000`).
func TestScale(t *testing.T) {
	t.Parallel() // it mostly waits
	if with := checking(); with != "" {
		t.Skipf("built with %s: the process tests have that", with)
	}
	s := newScale(t, *scaleResources)
	n := s.n
	s.growth.head("resources", "burst, records/s", "sustained", "kick-off p50, p99", "since p50, p99", "1000 changed", "0.1 % changed", "1 % changed", "restart")
	for _, size := range []int{n / 10, n * 3 / 10, n} {
		s.grow(size)
	}
	s.dead.head("changed since", "first full export", "then clean after", "full export then", "dead rows then")
	s.full("1.1 % updated while it grew", 0)
	for _, part := range []struct {
		name string
		n    int
	}{{"0.1 %", n / 1000}, {"1 %", n / 100}, {"10 %", n / 10}} {
		rate := s.update(part.n)
		s.full(part.name+" updated", rate)
	}
	s.remove(n / 100)
	s.full("1 % deleted", 0)
	s.groups()
	s.disk()
	t.Logf("\n%s\n%s\n%s\n%s", &s.growth, &s.dead, &s.chosen, &s.summary)
}

// small is a store whose every line is read.
const small = 150_000

// A scale is a store that grows.
type scale struct {
	*testbed
	t        *testing.T
	n        int // resources in the end
	size     int // resources so far
	uuids    [][]int
	versions map[int]int64 // of resources that were updated
	removed  map[int]bool
	next     int // how many resources were chosen for a change
	topic    string
	dir      string
	p        *process
	rows     float64 // committed by the process that runs
	peak     int64   // of the memory of all processes so far

	growth, dead, chosen, summary table
}

func newScale(t *testing.T, n int) *scale {
	t.Helper()
	var list []sample
	if n <= small {
		list = hospitalCorpus(t, n)
	} else {
		list = corpus(t)
	}
	// Groups bring internal rows with them, and rows are counted.
	list = slices.DeleteFunc(list, func(s sample) bool { return strings.HasPrefix(s.key, "Group/") })
	s := &scale{
		t: t, testbed: newTestbedOf(t, list), n: n, topic: "scale", versions: map[int]int64{}, removed: map[int]bool{},
		dir: cmp.Or(*scaleDir, t.TempDir()),
	}
	for i := range s.corpus {
		s.uuids = append(s.uuids, uuidsOf(s.corpus[i].body))
	}
	s.launch()
	return s
}

// uuidsOf lists where UUIDs begin.
func uuidsOf(body []byte) (list []int) {
	for _, m := range uuid.FindAllIndex(body, -1) {
		list = append(list, m[0])
	}
	return list
}

var uuid = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

// resource is resource i: one of the corpus whose ids, and all that it refers
// to, are those of another copy of the same hospital.
func (s *scale) resource(i int) sample {
	c, j := byte(i/len(s.corpus)), i%len(s.corpus)
	r := s.corpus[j]
	if c == 0 {
		return r
	}
	r.body = bytes.Clone(r.body)
	for _, at := range s.uuids[j] {
		shiftHex(r.body[at:at+2], c)
	}
	key := []byte(r.key)
	for _, at := range uuidsOf(key) {
		shiftHex(key[at:at+2], c)
	}
	r.key = string(key)
	return r
}

// shiftHex adds to a byte that is written as two digits.
func shiftHex(digits []byte, add byte) {
	v, err := strconv.ParseUint(string(digits), 16, 8)
	if err != nil {
		panic(err)
	}
	copy(digits, fmt.Sprintf("%02x", byte(v)+add))
}

// launch starts the program and returns how long it took until it was ready.
func (s *scale) launch() time.Duration {
	s.t.Helper()
	began := time.Now()
	s.p, s.rows = s.serve(s.topic, s.dir), 0
	s.until("the server answers", func() bool {
		status, _, err := ask(http.MethodGet, strings.TrimSuffix(s.p.base, "/fhir")+"/readyz", nil)
		return err == nil && (status == http.StatusOK || s.size == 0)
	})
	return time.Since(began)
}

// stop ends the program.
func (s *scale) stop() {
	s.t.Helper()
	s.peak = max(s.peak, peakMemory(s.t, s.p.cmd.Process.Pid))
	s.p.stop()
	if code := s.p.cmd.ProcessState.ExitCode(); code != 0 {
		s.t.Fatalf("the server ended with %d", code)
	}
}

// until waits for as long as a large store needs.
func (s *scale) until(what string, ok func() bool) {
	s.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end, said := time.Now().Add(time.Hour), time.Now(); !ok(); <-tick.C {
		if time.Now().After(end) {
			s.t.Fatalf("waited an hour until %s", what)
		}
		if s.p.cmd.ProcessState != nil {
			s.t.Fatalf("the server ended before %s", what)
		}
		if time.Since(said) > 30*time.Second {
			said = time.Now()
			s.t.Logf("waiting until %s ...", what)
		}
	}
}

func (s *scale) metric(name string) float64 { return metric(s.p.root+"/metrics", name) }

// produce writes records and waits for all of them to be acknowledged.
func (s *scale) produce(n int, record func(i int) *kgo.Record) {
	s.t.Helper()
	var failed atomic.Pointer[error]
	for i := range n {
		s.producer.Produce(s.t.Context(), record(i), func(_ *kgo.Record, err error) {
			if err != nil {
				failed.Store(&err)
			}
		})
	}
	if err := s.producer.Flush(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	if err := failed.Load(); err != nil {
		s.t.Fatal(*err)
	}
}

// load produces records while no server runs and returns how many a second a
// server then takes in, with its start.
func (s *scale) load(n int, record func(i int) *kgo.Record) (perSecond float64) {
	s.t.Helper()
	s.stop()
	s.produce(n, record)
	began := time.Now()
	s.launch()
	s.committed(n)
	return float64(n) / time.Since(began).Seconds()
}

// committed waits for so many more rows.
func (s *scale) committed(n int) {
	s.t.Helper()
	s.rows += float64(n)
	s.until("all records are committed", func() bool { return s.metric("tidemark_store_rows_total") >= s.rows })
	if got := s.metric("tidemark_store_rows_total"); got != s.rows {
		s.t.Fatalf("%v rows were committed, want %v", got, s.rows)
	}
}

// clean waits until merges find nothing more to do and returns when that was.
func (s *scale) clean() time.Time {
	s.t.Helper()
	const pause = 1500 * time.Millisecond // work is looked for each second
	last := time.Now()
	s.until("merges have nothing to do", func() bool {
		if s.merging() {
			last = time.Now()
		}
		return time.Since(last) > pause
	})
	return last
}

func (s *scale) merging() bool {
	_, page, err := ask(http.MethodGet, s.p.root+"/metrics", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	found := mergingNow.FindSubmatch(page)
	if found == nil {
		s.t.Fatal("no metric tells what is being merged")
	}
	return string(found[1]) != "0"
}

var mergingNow = regexp.MustCompile(`(?m)^tidemark_store_backlog_bytes\{.*work="now"\} (\S+)$`)

// grow loads resources up to size, measures exports of that store, and starts
// the server again.
func (s *scale) grow(size int) {
	s.t.Helper()
	from, n := s.size, size-s.size
	step := 365 * 24 * time.Hour / time.Duration(s.n)
	began := time.Now()
	burst := s.load(n, func(i int) *kgo.Record {
		r := s.resource(from + i)
		return s.record(s.topic, &r, 1, epochs[1].Add(time.Duration(from+i)*step))
	})
	s.size = size
	began = began.Add(time.Since(began) - time.Duration(float64(n)/burst*1e9)) // without the producing
	sustained := float64(n) / s.clean().Sub(began).Seconds()
	full := s.kickOffs(nil)
	half := s.kickOffs(url.Values{"_since": {fhir.FromTime(epochs[1].Add(time.Duration(size/2) * step)).String()}})
	var increments []string
	for _, k := range []int{min(1000, size/20), size / 1000, size / 100} {
		since := s.transactionTime()
		s.update(k)
		increments = append(increments, s.increment(since, k))
	}
	s.clean()
	s.stop()
	restart := s.launch()
	s.growth.row(count(size), count(int(burst)), count(int(sustained)), full, half, increments[0], increments[1], increments[2], short(restart))
}

// update changes resources that have not been changed, waits until they can be
// exported, and returns how many a second were taken in, with the start of the
// server, where they are many.
func (s *scale) update(n int) (rate float64) {
	s.t.Helper()
	since := s.transactionTime()
	record := func(int) *kgo.Record {
		i := s.choose()
		s.versions[i] = 2
		r := s.resource(i)
		return s.record(s.topic, &r, 2, time.Now())
	}
	if n > 50_000 {
		rate = s.load(n, record)
	} else {
		s.produce(n, record)
		s.committed(n)
	}
	s.exportable(since, n)
	return rate
}

// remove deletes resources.
func (s *scale) remove(n int) {
	s.t.Helper()
	since := s.transactionTime()
	s.produce(n, func(int) *kgo.Record {
		i := s.choose()
		s.removed[i] = true
		r := s.resource(i)
		return &kgo.Record{Topic: s.topic, Key: []byte(r.key), Partition: r.partition(), Timestamp: time.Now()}
	})
	s.committed(n)
	s.until("the deletions can be exported", func() bool {
		return s.countOf(since, func(m *bulkclient.Manifest) []bulkclient.File { return m.Deleted }) >= int64(n)
	})
	if got := s.countOf(since, func(m *bulkclient.Manifest) []bulkclient.File { return m.Deleted }); got != int64(n) {
		s.t.Errorf("an export has %d deletions, want %d", got, n)
	}
}

// choose picks a resource that was not picked before, anywhere in the store.
func (s *scale) choose() int {
	for {
		const stride = 7_368_787 // a prime: it meets each resource once before it meets one twice
		i := s.next * stride % s.n
		s.next++
		if _, updated := s.versions[i]; i < s.size && !updated && !s.removed[i] {
			return i
		}
	}
}

// transactionTime is that of an export now.
func (s *scale) transactionTime() time.Time {
	s.t.Helper()
	m, job, err := kickOff(s.p.base, url.Values{"_since": {fhir.FromTime(time.Now()).String()}})
	if err != nil {
		s.t.Fatal(err)
	}
	endJob(s.t, job)
	return m.TransactionTime
}

func (s *scale) countOf(since time.Time, files func(*bulkclient.Manifest) []bulkclient.File) int64 {
	s.t.Helper()
	m, job, err := kickOff(s.p.base, url.Values{"_since": {fhir.FromTime(since).String()}})
	if err != nil {
		s.t.Fatal(err)
	}
	endJob(s.t, job)
	return manifestCount(s.t, files(m))
}

// exportable waits until an export since then has so many resources.
func (s *scale) exportable(since time.Time, n int) {
	s.t.Helper()
	output := func(m *bulkclient.Manifest) []bulkclient.File { return m.Output }
	s.until("the changes can be exported", func() bool { return s.countOf(since, output) >= int64(n) })
	if got := s.countOf(since, output); got != int64(n) {
		s.t.Errorf("an export has %d changed resources, want %d", got, n)
	}
}

// kickOffs times exports up to their manifests.
func (s *scale) kickOffs(params url.Values) string {
	s.t.Helper()
	var took []time.Duration
	for range 200 {
		began := time.Now()
		m, job, err := kickOff(s.p.base, params)
		if err != nil {
			s.t.Fatal(err)
		}
		took = append(took, time.Since(began))
		endJob(s.t, job)
		if got := manifestCount(s.t, m.Output); len(params) == 0 && got != int64(s.size-len(s.removed)) {
			s.t.Fatalf("an export has %d resources, want %d", got, s.size-len(s.removed))
		}
	}
	return fmt.Sprintf("%.1f, %.1f ms", milliseconds(quantile(took, 0.5)), milliseconds(quantile(took, 0.99)))
}

// increment measures an export with _since: the time up to its last byte, and
// what the server read for what it sent.
func (s *scale) increment(since time.Time, n int) string {
	s.t.Helper()
	const rounds = 5
	var took []time.Duration
	var sent, read int64
	for range rounds {
		before := s.bytesRead()
		began := time.Now()
		v := s.export(url.Values{"_since": {fhir.FromTime(since).String()}})
		took = append(took, time.Since(began))
		sent, read = sent+v.sent, read+s.bytesRead()-before
		if v.count != int64(n) {
			s.t.Errorf("an export since %v has %d resources, want %d", since, v.count, n)
		}
	}
	return fmt.Sprintf("%s, %.2f read/sent", short(quantile(took, 0.5)), float64(read)/float64(sent))
}

// bytesRead is what the server has read from files and connections so far.
func (s *scale) bytesRead() int64 {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", s.p.cmd.Process.Pid))
	if err != nil {
		return 0 // not Linux
	}
	var n int64
	if _, err := fmt.Sscanf(string(text), "rchar: %d", &n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// exported is what an export gave: resources, and bytes as gzip.
type exported struct{ count, sent int64 }

// export downloads everything as gzip.
func (s *scale) export(params url.Values) exported {
	s.t.Helper()
	m, job, err := kickOff(s.p.base, params)
	if err != nil {
		s.t.Fatal(err)
	}
	defer endJob(s.t, job)
	return s.download(m)
}

func (s *scale) download(m *bulkclient.Manifest) (v exported) {
	s.t.Helper()
	v.count = manifestCount(s.t, m.Output)
	transport := &http.Transport{DisableCompression: true}
	defer transport.CloseIdleConnections()
	buf := make([]byte, 1<<20)
	for _, f := range slices.Concat(m.Output, m.Deleted) {
		n, err := fetch(transport, f.URL, buf)
		if err != nil {
			s.t.Fatal(err)
		}
		v.sent += n
	}
	return v
}

// verify reads all lines of a full export: every resource once, in its newest
// version.
func (s *scale) verify() {
	s.t.Helper()
	m, job, err := kickOff(s.p.base, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	defer endJob(s.t, job)
	want := map[string]int64{}
	for i := range s.size {
		if !s.removed[i] {
			want[s.resource(i).key] = cmp.Or(s.versions[i], 1)
		}
	}
	var scanner fhir.Scanner
	for _, f := range m.Output {
		answer, err := send(http.MethodGet, f.URL, asGzip)
		if err != nil {
			s.t.Fatal(err)
		}
		defer answer.Body.Close()
		zip, err := gzip.NewReader(answer.Body)
		if err != nil {
			s.t.Fatal(err)
		}
		lines := bufio.NewScanner(zip)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			r, err := scanner.Scan(bytes.Clone(lines.Bytes()))
			if err != nil {
				s.t.Fatal(err)
			}
			key := r.Key.String()
			if v, ok := want[key]; !ok || strconv.FormatInt(v, 10) != r.Version {
				s.t.Fatalf("%s is exported in version %s, or twice; want version %d", key, r.Version, v)
			}
			delete(want, key)
		}
		if err := lines.Err(); err != nil {
			s.t.Fatal(err)
		}
	}
	if len(want) > 0 {
		s.t.Fatalf("%d resources are in no file", len(want))
	}
}

// full measures full exports: at once, when dead rows must be left out of
// blocks, and again when merges have found nothing more to do.
func (s *scale) full(name string, ingest float64) {
	s.t.Helper()
	if ingest > 0 {
		name += fmt.Sprintf(" (%s records/s)", count(int(ingest)))
	}
	want := int64(s.size - len(s.removed))
	measure := func() string {
		began := time.Now()
		v := s.export(nil)
		took := time.Since(began)
		if v.count != want {
			s.t.Errorf("%s: a full export has %d resources, want %d", name, v.count, want)
		}
		return fmt.Sprintf("%s, %.0f MB/s", short(took), speed(v.sent, took))
	}
	began := time.Now()
	first := measure()
	cleaned := s.clean().Sub(began)
	text, gone := s.metric("tidemark_store_ndjson_size_bytes"), s.deadText()
	s.dead.row(name, first, short(cleaned), measure(), fmt.Sprintf("%.1f %% of the bytes", 100*gone/text))
	if s.n <= small {
		s.verify()
	}
}

func (s *scale) deadText() (sum float64) {
	_, page, err := ask(http.MethodGet, s.p.root+"/metrics", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "tidemark_store_ndjson_size_bytes{") && strings.Contains(line, `dead="true"`) {
			v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(strings.TrimSpace(line), ' ')+1:]), 64)
			if err != nil {
				s.t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}

// disk ends the server, proves the store and tells what it takes.
func (s *scale) disk() {
	s.t.Helper()
	rows := 0.0
	written, space := s.metric("tidemark_store_write_amplification_ratio"), s.metric("tidemark_store_space_amplification_ratio")
	s.stop()
	dir := filepath.Join(s.dir, "store")
	began := time.Now()
	said, code := ends(s.t, "check", dir)
	if code != 0 || !strings.Contains(said, "every invariant holds") {
		s.t.Errorf("check: exit %d: %s", code, said)
	}
	checked := time.Since(began)
	if found := checkedRows.FindStringSubmatch(said); found != nil {
		rows, _ = strconv.ParseFloat(strings.ReplaceAll(found[1], ",", ""), 64)
	}
	compactIndex(s.t, filepath.Join(dir, "index"))
	segments := filepath.Join(dir, "segments")
	s.summary.head("what", "in the end")
	s.summary.row("memory of the server at its peak (VmHWM)", fmt.Sprintf("%d MiB", s.peak>>20))
	s.summary.row("index, a live row", fmt.Sprintf("%.1f B", float64(sizeBelow(s.t, filepath.Join(dir, "index"), ".sst"))/float64(s.size-len(s.removed))))
	s.summary.row("directories, a row", fmt.Sprintf("%.1f B", float64(sizeBelow(s.t, segments, ".dir"))/rows))
	s.summary.row("bodies, a row", fmt.Sprintf("%.0f B", float64(sizeBelow(s.t, segments, ".ndjson.gz"))/rows))
	s.summary.row("bodies beside gzip -6 of a sample of them", s.beside(segments))
	s.summary.row("written for each byte that came, by the last process", fmt.Sprintf("%.1f", written))
	s.summary.row("on disk for each live byte", fmt.Sprintf("%.2f", space))
	s.summary.row("`tidemark check`", fmt.Sprintf("%s rows in %s", count(int(rows)), short(checked)))
}

var checkedRows = regexp.MustCompile(`([0-9,]+) rows`)

// beside compares bodies with what gzip(1) makes of the same bytes: of all, or
// of every so many.
func (s *scale) beside(dir string) string {
	s.t.Helper()
	if _, err := exec.LookPath("gzip"); err != nil {
		return "gzip not found"
	}
	const enough = 300 << 20 // bytes of bodies
	names, err := filepath.Glob(filepath.Join(dir, "*.ndjson.gz"))
	if err != nil || len(names) == 0 {
		s.t.Fatalf("bodies in %s: %d, %v", dir, len(names), err)
	}
	every := max(1, int(sizeBelow(s.t, dir, ".ndjson.gz")/enough))
	chosen := s.t.TempDir()
	for i := 0; i < len(names); i += every {
		if err := os.Symlink(names[i], filepath.Join(chosen, filepath.Base(names[i]))); err != nil {
			s.t.Fatal(err)
		}
	}
	var ours int64
	for i := 0; i < len(names); i += every {
		ours += sizeBelow(s.t, names[i], "")
	}
	_, plain := recompress(s.t, chosen)
	return fmt.Sprintf("%.2f", float64(ours)/float64(plain.gzip))
}

// A table is one of store/BENCHMARKS.md.
type table struct{ text strings.Builder }

func (t *table) head(cells ...string) {
	t.row(cells...)
	t.row(strings.Split(strings.Repeat("---,", len(cells)-1)+"---", ",")...)
}

func (t *table) row(cells ...string) { fmt.Fprintf(&t.text, "| %s |\n", strings.Join(cells, " | ")) }

func (t *table) String() string { return t.text.String() }

// count writes a number with its thousands.
func count(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// short writes a duration with three digits.
func short(d time.Duration) string {
	if d <= 0 {
		return "0 s"
	}
	unit := math.Pow(10, math.Floor(math.Log10(float64(d)))-2)
	return time.Duration(math.Round(float64(d)/unit) * unit).String()
}
