package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/bulkclient"
)

// TestFullDisk runs the program on a file system of 64 MB that fills up.
// Downloads and kick-offs go on, jobs can be deleted; when something else makes
// room everything is taken in, in the same process.
func TestFullDisk(t *testing.T) {
	const size, filler, each, n = 64 << 20, 36 << 20, 900 << 10, 44 // three quarters of them are stored
	disk := smallDisk(t, size)
	if err := os.WriteFile(filepath.Join(disk, "filler"), noise(rand.NewChaCha8([32]byte{3}), filler), 0o600); err != nil {
		t.Fatal(err)
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "fhir-changes"), kfake.DataDir(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	r := newRig(t, cluster.ListenAddrs()[0], "fhir-changes", []kgo.Opt{kgo.ProducerBatchMaxBytes(2 << 20)}, quick...)
	r.args[2] = "store.path=" + filepath.Join(disk, "store")
	data := noise(rand.NewChaCha8([32]byte{4}), n*each)
	put := func(from, to int) {
		for i := from; i < to; i++ {
			rec := r.change("Media", fmt.Sprint(i), data[i*each:(i+1)*each], time.Now())
			rec.Partition = 0
			r.put(rec)
		}
	}
	put(0, 5)
	r.start()
	early, m := r.beyond(time.Now(), nil)
	put(5, n)
	r.until("intake waits for room", func() bool {
		return strings.Contains(r.said(), "a commit waits for room") || strings.Contains(r.said(), "the reserve was given up")
	})
	r.fetchAll(t, m, 5)
	late, now := r.ask(nil)
	if got := *now.Output[0].Count; got < 5 || got >= n {
		t.Errorf("on a full disk an export has %d resources", got)
	}
	r.fetchAll(t, now, int(*now.Output[0].Count))
	if err := errors.Join(early.Delete(t.Context()), late.Delete(t.Context())); err != nil {
		t.Errorf("delete jobs: %v", err)
	}
	if err := os.Remove(filepath.Join(disk, "filler")); err != nil {
		t.Fatal(err)
	}
	var all *bulkclient.Manifest
	r.until("everything was taken in", func() bool {
		job, m := r.ask(nil)
		if all = m; *m.Output[0].Count == n {
			return true
		}
		return job.Delete(t.Context()) != nil
	})
	r.fetchAll(t, all, n)
	if err := r.stop(); err != nil {
		t.Errorf("SIGTERM: the server ended with %v", err)
	}
	if got, code := ends(t, "check", r.store()); code != 0 || !strings.Contains(got, "every invariant holds") {
		t.Errorf("check: exit %d: %s", code, got)
	}
}

// smallDisk mounts a file system of some bytes.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("skipped: a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fetchAll downloads all files and counts their lines.
func (r *rig) fetchAll(t *testing.T, m *bulkclient.Manifest, want int) {
	t.Helper()
	got := 0
	for _, f := range m.Output {
		answer, err := http.Get(f.URL)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		if err := errors.Join(err, answer.Body.Close()); err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("download: %d, %v", answer.StatusCode, err)
		}
		got += strings.Count(string(text), "\n")
	}
	if got != want {
		t.Errorf("downloaded %d resources, want %d", got, want)
	}
}
