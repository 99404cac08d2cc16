package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/store/fhir"
)

// BenchmarkBulkLoadMemory is the peak of the server's resident memory while it
// takes in a bulk load, beside the budget of 512 MiB.
func BenchmarkBulkLoadMemory(b *testing.B) {
	if _, err := os.Stat("/proc/self/status"); err != nil {
		b.Skip("skipped: no /proc/self/status to read resident memory from")
	}
	const budget = 512 << 20
	t := newTestbed(b)
	all := t.write("creates", 1)
	for b.Loop() {
		start := time.Now()
		p := t.serveTopic(all.topic)
		p.loaded(all.records)
		took := time.Since(start)
		peak := peakMemory(b, p.cmd.Process.Pid)
		p.stop()
		report(b, map[string]float64{
			"peak-MiB": float64(peak) / (1 << 20), "x-budget": float64(peak) / budget,
			"records/s": float64(all.records) / took.Seconds(), // with the start of the process
		})
	}
}

// peakMemory is the most that a process had resident, bytes.
func peakMemory(b testing.TB, pid int) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatal("no VmHWM in the status of the process")
	return 0
}

// BenchmarkDownload is downloading an output file as gzip, beside nginx, which
// serves the same bytes from a file. Both are processes of their own.
func BenchmarkDownload(b *testing.B) {
	program, err := exec.LookPath("nginx")
	if err != nil {
		b.Skip("skipped: nginx not found, apt-get install nginx")
	}
	served := sync.OnceValues(func() (ours, theirs site) {
		t := newTestbed(b)
		t.largestType(3) // files of the size that they have in a large store
		all := t.write("creates", 1)
		p := t.serveTopic(all.topic)
		p.loaded(all.records)
		p.settled()
		m, _, err := kickOff(p.base, nil)
		if err != nil {
			b.Fatal(err)
		}
		if got := manifestCount(b, m.Output); got != all.records {
			b.Fatalf("the manifest counts %d resources, want %d", got, all.records)
		}
		address, body := largest(b, m.Output)
		return site{address, p.cmd.Process.Pid}, startNginx(b, program, body)
	})
	const volume = 2 << 30 // of one measurement, bytes
	for _, streams := range []int{1, 16} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			ours, theirs := served()
			var took, limit effort
			var bytes int64
			for b.Loop() {
				for range 4 { // turn by turn: what disturbs one disturbs the other
					n, m := download(b, ours, streams, volume/4, &took), download(b, theirs, streams, volume/4, &limit)
					if n != m {
						b.Fatalf("downloaded %d bytes from us, %d from nginx", n, m)
					}
					bytes += n
				}
			}
			report(b, map[string]float64{
				"MB/s": speed(bytes, took.wall), "nginx-MB/s": speed(bytes, limit.wall), "x-nginx": limit.wall.Seconds() / took.wall.Seconds(),
				"cpu-s/GB": took.cpu.Seconds() * 1e9 / float64(bytes), "nginx-cpu-s/GB": limit.cpu.Seconds() * 1e9 / float64(bytes),
				"file-MB": float64(file(b, ours)) / 1e6,
			})
		})
	}
}

// A site is a file and the process that serves it.
type site struct {
	address string
	pid     int
}

// file is the length of a site's file, bytes.
func file(b *testing.B, s site) int64 {
	b.Helper()
	n, err := fetch(http.DefaultTransport.(*http.Transport), s.address, make([]byte, 1<<20))
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// manifestCount adds up the counts of files.
func manifestCount(b testing.TB, files []bulkclient.File) (n int64) {
	b.Helper()
	for _, f := range files {
		if f.Count == nil {
			b.Fatal("a file without a count")
		}
		n += *f.Count
	}
	return n
}

// largest fetches all files and returns the one with most bytes as gzip.
func largest(b *testing.B, files []bulkclient.File) (address string, body []byte) {
	b.Helper()
	for _, f := range files {
		status, got, err := ask(http.MethodGet, f.URL, asGzip)
		if err != nil || status != http.StatusOK {
			b.Fatalf("download a file of %s: %d, %v", f.Type, status, err)
		}
		if len(got) > len(body) {
			address, body = f.URL, got
		}
	}
	return address, body
}

var asGzip = http.Header{"Accept": {"application/fhir+ndjson"}, "Accept-Encoding": {"gzip"}}

// startNginx serves body.
func startNginx(b *testing.B, program string, body []byte) site {
	b.Helper()
	dir, address := b.TempDir(), anyPort(b)
	user := ""
	if os.Geteuid() == 0 { // its workers could not read our directory as another user
		user = "user root;"
	}
	conf := fmt.Sprintf(`%s
daemon off; worker_processes auto; pid nginx.pid; error_log error.log;
events { worker_connections 256; }
http {
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path t; proxy_temp_path t; fastcgi_temp_path t; uwsgi_temp_path t; scgi_temp_path t;
  server { listen %s; root .; default_type application/fhir+ndjson; add_header Content-Encoding gzip; }
}
`, user, address)
	for name, text := range map[string][]byte{"nginx.conf": []byte(conf), "file.ndjson.gz": body} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	cmd := exec.Command(program, "-p", dir, "-c", "nginx.conf", "-e", "error.log")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { // its workers end with the first process only if that is asked politely
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	file := "http://" + address + "/file.ndjson.gz"
	until(b, "nginx serves", func() bool {
		status, _, err := ask(http.MethodHead, file, nil)
		return err == nil && status == http.StatusOK
	})
	return site{file, cmd.Process.Pid}
}

// download fetches a file over and over in parallel streams, each on a
// connection of its own, until the volume has come, and adds what that took on
// the wall and of the server's processors.
func download(b *testing.B, from site, streams int, volume int64, took *effort) (total int64) {
	b.Helper()
	got := make([]int64, streams)
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: streams}
	defer transport.CloseIdleConnections()
	var g errgroup.Group
	start, before := time.Now(), cpuTime(from.pid)
	for i := range got {
		g.Go(func() error {
			buf := make([]byte, 1<<20)
			for got[i] < volume/int64(streams) {
				n, err := fetch(transport, from.address, buf)
				if err != nil {
					return err
				}
				got[i] += n
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	took.wall += time.Since(start)
	took.cpu += cpuTime(from.pid) - before
	for _, n := range got {
		total += n
	}
	return total
}

func fetch(transport *http.Transport, address string, buf []byte) (int64, error) {
	req, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil {
		return 0, err
	}
	req.Header = asGzip
	answer, err := transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Encoding") != "gzip" {
		return 0, errors.Join(fmt.Errorf("download: the server answered %d", answer.StatusCode), answer.Body.Close())
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, answer.Body, buf) // Discard's own ReadFrom has a small buffer
	return n, errors.Join(err, answer.Body.Close())
}

// BenchmarkAppendToExport is the time from producing a change to having
// downloaded it from the first export whose transactionTime covers it, while
// other changes keep the server at half of what it can take in.
func BenchmarkAppendToExport(b *testing.B) {
	const (
		probes = 200
		every  = 50 * time.Millisecond
		bound  = time.Second + 400*time.Millisecond // watermark.allowance and what we may add
	)
	t := newTestbed(b)
	t.write("changes", 1)
	all := t.write("changes", 2)
	start := time.Now()
	p := t.serveTopic(all.topic)
	p.loaded(2 * all.records)
	capacity := float64(2*all.records) / time.Since(start).Seconds()
	for b.Loop() {
		follow := &follower{base: p.base, since: fhir.FromTime(time.Now()), seen: map[string]time.Time{}}
		stopLoad := t.keepWriting(all.topic, capacity/2)
		stopFollowing := follow.run(b)
		sent := t.probe(all.topic, probes, every)
		until(b, "all probes were exported", func() bool { return follow.has(len(sent)) })
		stopFollowing()
		written, seconds := stopLoad()
		var waits []time.Duration
		for id, at := range sent {
			waits = append(waits, follow.seen[id].Sub(at))
		}
		p99 := quantile(waits, 0.99)
		report(b, map[string]float64{
			"p50-ms": milliseconds(quantile(waits, 0.5)), "p99-ms": milliseconds(p99), "x-bound": p99.Seconds() / bound.Seconds(),
			"load-records/s": float64(written) / seconds, "capacity-records/s": capacity, "exports": float64(follow.exports),
		})
	}
}

// keepWriting updates resources at a steady rate until the function returned is
// called, which says how many it wrote in how many seconds.
func (t *testbed) keepWriting(topic string, rate float64) func() (int, float64) {
	const tick = 10 * time.Millisecond
	stop, done := make(chan struct{}), make(chan int)
	rng := rand.New(rand.NewPCG(2, 2))
	start := time.Now()
	go func() {
		n := 0
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				done <- n
				return
			case now := <-ticker.C:
				for ; float64(n) < rate*now.Sub(start).Seconds(); n++ {
					s := &t.corpus[rng.IntN(len(t.corpus))]
					at := time.Now()
					t.producer.Produce(t.b.Context(), t.record(topic, s, at.UnixMilli(), at), nil)
				}
			}
		}
	}()
	return func() (int, float64) {
		seconds := time.Since(start).Seconds()
		close(stop)
		return <-done, seconds
	}
}

// probe writes resources of a type that nobody else writes and returns when it
// did.
func (t *testbed) probe(topic string, n int, every time.Duration) map[string]time.Time {
	t.b.Helper()
	sent := map[string]time.Time{}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	run := time.Now().UnixMilli()
	for i := range n {
		<-ticker.C
		at := time.Now()
		s := sample{key: fmt.Sprintf("Basic/probe-%d-%d", run, i)}
		r := &kgo.Record{Topic: topic, Key: []byte(s.key), Partition: s.partition(), Timestamp: at, Value: fmt.Appendf(nil,
			`{"resourceType":"Basic","id":"probe-%d-%d","meta":{"versionId":"1","lastUpdated":"%s"},"code":{"text":"probe"}}`, run, i, fhir.FromTime(at))}
		t.producer.Produce(t.b.Context(), r, nil)
		sent[s.key] = at
	}
	if err := t.producer.Flush(t.b.Context()); err != nil {
		t.b.Fatal(err)
	}
	return sent
}

// A follower exports in a chain and notes when it has downloaded what.
type follower struct {
	base  string
	since fhir.Instant

	mu      sync.Mutex
	seen    map[string]time.Time
	exports int
	failed  error
}

// has says whether so many were seen, or no more will be.
func (f *follower) has(n int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed != nil || len(f.seen) >= n
}

// run follows, fifty exports a second at most, until the function returned is
// called.
func (f *follower) run(b *testing.B) func() {
	ctx, stop := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if err := f.export(); err != nil {
				f.mu.Lock()
				defer f.mu.Unlock()
				f.failed = err
				return
			}
		}
	}()
	return func() {
		b.Helper()
		stop()
		<-done
		if f.failed != nil {
			b.Fatal(f.failed)
		}
	}
}

// export makes one window of the chain.
func (f *follower) export() error {
	m, job, err := kickOff(f.base, url.Values{"_type": {"Basic"}, "_since": {f.since.String()}})
	if err != nil {
		return err
	}
	for _, file := range m.Output {
		status, body, err := ask(http.MethodGet, file.URL, nil)
		if err != nil {
			return err
		}
		if status != http.StatusOK {
			return fmt.Errorf("download: the server answered %d", status)
		}
		if err := f.note(string(body)); err != nil {
			return err
		}
	}
	f.since = fhir.FromTime(m.TransactionTime)
	f.exports++
	_, _, err = ask(http.MethodDelete, job, nil)
	return err
}

// note takes down the keys of NDJSON. What comes twice is a fault of the chain.
func (f *follower) note(lines string) error {
	now := time.Now()
	var scanner fhir.Scanner
	f.mu.Lock()
	defer f.mu.Unlock()
	for line := range strings.Lines(lines) {
		r, err := scanner.Scan([]byte(line))
		if err != nil {
			return err
		}
		key := r.Key.String()
		if _, twice := f.seen[key]; twice {
			return fmt.Errorf("%s came twice", key)
		}
		f.seen[key] = now
	}
	return nil
}
