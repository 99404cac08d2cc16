package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tidemark/cmd/tidemark/internal/bulkclient"
)

var (
	memoryResources = flag.Int("memory.resources", 36, "how many resources of 15 MB TestMemory sends through the server")
	memoryStreams   = flag.Int("memory.streams", 1, "how many clients download in each coding at once in TestMemory")
	memoryHuge      = flag.Bool("memory.huge", false, "TestMemory sends one of 100 MB afterwards")
)

const (
	largePartitions = 4

	largeSize = 15 << 20
	hugeSize  = 100 << 20

	// budget is what design.md 4 allows the process.
	budget = 512 << 20
)

// Resources of 15 MB, more of them together than the budget, pass through the
// server, in and out, within it: what is held is bounded in bytes.
func TestMemory(t *testing.T) {
	if with := checking(); with != "" {
		t.Skipf("built with %s, which takes memory of its own", with)
	}
	r := largeRig(t)
	n := *memoryResources
	if n*largeSize <= budget {
		t.Fatalf("-memory.resources=%d would fit into the budget as a whole", n)
	}
	began := time.Now()
	data := noise(rand.NewChaCha8([32]byte{2}), hugeSize)
	for i := range n {
		rec := r.change("Media", fmt.Sprint(i), data[i:i+largeSize], time.Now())
		rec.Partition = int32(i % largePartitions)
		r.put(rec)
	}
	written := time.Now()
	r.start()
	_, m := r.beyond(written, nil)
	exported := time.Now()
	r.report(t, "taken in")
	r.downloadAll(t, m, n, n*largeSize)
	t.Logf("%d resources of %d MiB: produced in %v, exportable %v later, downloaded in %v",
		n, largeSize>>20, written.Sub(began), exported.Sub(written), time.Since(exported))
	if peak := r.report(t, "downloaded in both codings"); peak > budget {
		t.Errorf("peak RSS is %d MB, want at most %d", peak>>20, budget>>20)
	}
	if !*memoryHuge {
		return
	}
	r.put(r.change("Media", "huge", data, time.Now()))
	_, m = r.beyond(time.Now(), nil)
	r.report(t, "one of 100 MiB taken in")
	r.downloadAll(t, m, n+1, n*largeSize+hugeSize)
	r.report(t, "and downloaded")
}

// checking tells how this program was built to check itself, "" if it was not.
func checking() string {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "-race" && s.Value == "true" || s.Key == "-tags" && strings.Contains(s.Value, "invariants") {
			return s.Key + "=" + s.Value
		}
	}
	return ""
}

// largeRig has a broker that takes the largest records, and keeps them on disk.
func largeRig(t *testing.T) *rig {
	t.Helper()
	const largest = hugeSize + 1<<20
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(largePartitions, "fhir-changes"), kfake.DataDir(t.TempDir()),
		kfake.BrokerConfigs(map[string]string{"message.max.bytes": strconv.Itoa(largest)}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	options := []kgo.Opt{
		kgo.ProducerBatchMaxBytes(largest), kgo.BrokerMaxWriteBytes(2 * largest), kgo.ProducerBatchCompression(kgo.NoCompression()),
	}
	return newRig(t, cluster.ListenAddrs()[0], "fhir-changes", options, quick...)
}

// downloadAll fetches every file in both codings at once, by so many clients
// each, and keeps nothing of it but the number of lines and bytes.
func (r *rig) downloadAll(t *testing.T, m *bulkclient.Manifest, want, size int) {
	t.Helper()
	var clients errgroup.Group
	for i := range 2 * *memoryStreams {
		coding := []string{"gzip", "identity"}[i%2]
		clients.Go(func() error {
			var v volume
			for _, f := range m.Output {
				if err := v.add(f, coding); err != nil {
					return fmt.Errorf("%s: %w", coding, err)
				}
			}
			if v.lines != want || v.bytes < size {
				return fmt.Errorf("%s: %d resources of %d bytes together, want %d and at least %d", coding, v.lines, v.bytes, want, size)
			}
			return nil
		})
	}
	if err := clients.Wait(); err != nil {
		t.Fatal(err)
	}
}

// volume is how much was downloaded.
type volume struct{ lines, bytes int }

// add streams a file.
func (v *volume) add(f bulkclient.File, coding string) error {
	req, err := http.NewRequest(http.MethodGet, f.URL, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept-Encoding", coding)
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK || (answer.Header.Get("Content-Encoding") == "gzip") != (coding == "gzip") {
		return fmt.Errorf("status %d, encoding %q", answer.StatusCode, answer.Header.Get("Content-Encoding"))
	}
	var plain io.Reader = answer.Body
	if coding == "gzip" {
		if plain, err = gzip.NewReader(bufio.NewReaderSize(answer.Body, 1<<20)); err != nil {
			return err
		}
	}
	buf := make([]byte, 1<<20)
	for {
		n, err := plain.Read(buf)
		v.lines += bytes.Count(buf[:n], []byte("\n"))
		v.bytes += n
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var peakLine = regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB$`)

// report logs the server's peak RSS so far and returns it in bytes, 0 where
// the system does not tell.
func (r *rig) report(t *testing.T, when string) int64 {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Logf("%s: peak RSS is not measured on %s", when, runtime.GOOS)
		return 0
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.server.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	found := peakLine.FindSubmatch(status)
	if found == nil {
		t.Fatalf("no VmHWM in\n%s", status)
	}
	kb, err := strconv.ParseInt(string(found[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: peak RSS %d MB", when, kb>>10)
	return kb << 10
}
