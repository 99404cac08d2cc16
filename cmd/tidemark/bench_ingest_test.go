package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"tidemark/pipeline"
	"tidemark/pipeline/source"
	"tidemark/store"
	"tidemark/store/index"
)

// BenchmarkIngest is the whole pipeline, from the broker to the synced commit,
// beside kafka-go's Reader on the same topic and deflate alone on all cores.
// `-cpuprofile` with `go tool pprof -tagfocus part=ingest` shows ours only.
func BenchmarkIngest(b *testing.B) {
	bed := sync.OnceValues(func() (*testbed, [3]load) {
		t := newTestbed(b)
		return t, [3]load{1: t.write("creates", 1), 2: t.write("updates", 2)}
	})
	for i, kind := range []string{"creates", "updates"} {
		version := i + 1
		b.Run(kind, func(b *testing.B) {
			t, loads := bed()
			var read, taken effort
			n := 0
			for b.Loop() {
				db, end := openStore(b, filepath.Join(b.TempDir(), "store"), store.Options{})
				for i := 1; i < version; i++ {
					ingest(b, db, t.broker, loads[1:i+1])
				}
				read.add(func() time.Duration { return readWith(b, t.broker, loads[version]) })
				taken.add(func() time.Duration { return ingest(b, db, t.broker, loads[1:version+1]) })
				end()
				n++
			}
			all := loads[version]
			bytes := all.bytes * int64(n)
			flat1, flat6 := deflateAll(b, t, 1), deflateAll(b, t, 6)
			report(b, map[string]float64{
				"MB/s":          speed(bytes, taken.wall),
				"records/s":     float64(all.records*int64(n)) / taken.wall.Seconds(),
				"cpu-us/record": taken.cpu.Seconds() * 1e6 / float64(all.records*int64(n)),
				"reader-MB/s":   speed(bytes, read.wall),
				"x-reader":      read.wall.Seconds() / taken.wall.Seconds(),
				"x-reader-cpu":  read.cpu.Seconds() / taken.cpu.Seconds(),
				"gzip-1-MB/s":   flat1,
				"x-gzip-1":      speed(bytes, taken.wall) / flat1,
				"gzip-6-MB/s":   flat6,
				"x-gzip-6":      speed(bytes, taken.wall) / flat6,
				"topic-MB":      float64(all.bytes) / 1e6,
				"topic-records": float64(all.records),
			})
		})
	}
}

// An effort is what something took on the wall and of our processors.
type effort struct{ wall, cpu time.Duration }

func (e *effort) add(work func() time.Duration) {
	before := cpuTime(os.Getpid())
	e.wall += work()
	e.cpu += cpuTime(os.Getpid()) - before
}

// openStore opens a store and runs it until the function returned is called.
func openStore(b *testing.B, dir string, o store.Options) (*store.DB, func()) {
	b.Helper()
	db, err := store.Open(dir, o)
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go pprof.Do(ctx, ingestLabel, func(ctx context.Context) { done <- db.Run(ctx) })
	return db, func() {
		b.Helper()
		stop()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

var ingestLabel = pprof.Labels("part", "ingest")

// ingest carries what of the topics the store does not have yet into it and
// returns how long that took until all was durable.
func ingest(b *testing.B, db *store.DB, broker string, loads []load) time.Duration {
	b.Helper()
	into := &arrivals{DB: db, left: map[store.Partition]int64{}, all: make(chan struct{})}
	var topics []pipeline.Topic
	for _, l := range loads {
		topics = append(topics, pipeline.Topic{Name: l.topic, Format: "resource"})
		for id, end := range l.ends {
			p := store.Partition{Topic: l.topic, ID: int32(id)}
			if st, _ := db.Partition(p); st.Next < end {
				into.left[p] = end
			}
		}
	}
	p, err := pipeline.New(pipeline.Options{Source: source.Config{Brokers: []string{broker}}, Topics: topics}, into)
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan error, 1)
	start := time.Now()
	go pprof.Do(ctx, ingestLabel, func(ctx context.Context) { done <- p.Run(ctx) })
	select {
	case <-into.all:
	case err := <-done:
		b.Fatalf("the pipeline ended: %v", err)
	}
	if err := db.Flush(); err != nil {
		b.Fatal(err)
	}
	took := time.Since(start)
	stop()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	committed := db.Committed()
	for _, l := range loads {
		for id, end := range l.ends {
			if got := committed[store.Partition{Topic: l.topic, ID: int32(id)}]; got != end {
				b.Fatalf("%s/%d is committed up to %d, want %d", l.topic, id, got, end)
			}
		}
	}
	return took
}

// arrivals is a store that tells when it has taken in everything.
type arrivals struct {
	*store.DB
	all chan struct{}

	mu   sync.Mutex
	left map[store.Partition]int64 // where each partition ends
}

func (a *arrivals) Apply(ctx context.Context, batch store.Batch) error {
	if err := a.DB.Apply(ctx, batch); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if end, ok := a.left[batch.Partition]; ok && batch.Next >= end {
		if delete(a.left, batch.Partition); len(a.left) == 0 {
			close(a.all)
		}
	}
	return nil
}

// readWith reads a topic with kafka-go's Reader, one for each partition, and
// returns how long that took up to the last record. Closing them is not in it:
// a Reader waits for the fetch that it has sent ahead.
func readWith(b *testing.B, broker string, l load) time.Duration {
	b.Helper()
	var g errgroup.Group
	readers := make([]io.Closer, len(l.ends))
	start := time.Now()
	for id, end := range l.ends {
		r := kafka.NewReader(kafka.ReaderConfig{ //nolint:forbidigo // the limit, not our way
			Brokers: []string{broker}, Topic: l.topic, Partition: id, MinBytes: 1, MaxBytes: 8 << 20, MaxWait: 250 * time.Millisecond,
		})
		readers[id] = r
		g.Go(func() error {
			for at := int64(0); at < end; {
				m, err := r.ReadMessage(b.Context())
				if err != nil {
					return fmt.Errorf("read %s/%d: %w", l.topic, id, err)
				}
				at = m.Offset + 1
			}
			return nil
		})
	}
	err := g.Wait()
	took := time.Since(start)
	for _, r := range readers {
		err = errors.Join(err, r.Close())
	}
	if err != nil {
		b.Fatal(err)
	}
	return took
}

// deflateAll compresses the corpus on all cores, one stream for each, and
// returns megabytes a second.
func deflateAll(b *testing.B, t *testbed, level int) float64 {
	b.Helper()
	cores := runtime.GOMAXPROCS(0)
	var g errgroup.Group
	bytes := int64(0)
	for i := range t.corpus {
		bytes += int64(len(t.corpus[i].body))
	}
	start := time.Now()
	for part := range slices.Chunk(t.corpus, (len(t.corpus)+cores-1)/cores) {
		g.Go(func() error {
			w, err := flate.NewWriter(io.Discard, level)
			if err != nil {
				return err
			}
			for i := range part {
				if _, err := w.Write(part[i].body); err != nil {
					return err
				}
			}
			return w.Close()
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return speed(bytes, time.Since(start))
}

// never is an age that no row of a benchmark has.
const never = 1_000_000 * time.Hour

// BenchmarkDisk is what lies on disk after a bulk load, beside gzip -6 of the
// same rows in the same order. Nothing is timed.
func BenchmarkDisk(b *testing.B) {
	if _, err := exec.LookPath("gzip"); err != nil {
		b.Skip("skipped: gzip not found, apt-get install gzip")
	}
	bed := sync.OnceValues(func() (*testbed, [3]load) {
		t := newTestbed(b)
		return t, [3]load{1: t.write("creates", 1), 2: t.write("updates", 2)}
	})
	for _, kind := range []struct {
		name   string
		loads  int
		commit int64 // bytes; small ones give merges something to join
		merged bool
		settle time.Duration
	}{
		{"creates", 1, 32 << 20, false, never},
		{"creates-merged", 1, 2 << 20, true, never},
		{"updates-merged", 2, 2 << 20, true, never},
		{"creates-settled", 1, 2 << 20, true, time.Millisecond},
		{"updates-settled", 2, 2 << 20, true, time.Millisecond},
	} {
		b.Run(kind.name, func(b *testing.B) {
			t, loads := bed()
			for b.Loop() {
				dir := filepath.Join(b.TempDir(), "store")
				db, end := openStore(b, dir, store.Options{MergeOff: true, CommitSize: kind.commit, SettleAfter: kind.settle, LastState: kind.settle})
				for i := range kind.loads {
					ingest(b, db, t.broker, loads[1:i+2])
				}
				promise(b, db)
				start := time.Now()
				for more := kind.merged; more; {
					var err error
					if more, err = db.Merge(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(time.Since(start).Seconds(), "merge-s")
				st := db.Status()
				end()
				reportDisk(b, dir, st)
			}
		})
	}
}

// promise makes what was read promised, as an export would: rows settle and are
// left out only below.
func promise(b *testing.B, db *store.DB) {
	b.Helper()
	s, err := db.Pin(b.Context(), "promise", time.Now(), func(*store.Snapshot) ([]byte, error) { return nil, nil })
	if err != nil {
		b.Fatal(err)
	}
	if err := errors.Join(s.Close(), db.Unpin(b.Context(), "promise")); err != nil {
		b.Fatal(err)
	}
}

func reportDisk(b *testing.B, dir string, st store.Status) {
	b.Helper()
	bodies, plain := recompress(b, filepath.Join(dir, "segments"))
	compactIndex(b, filepath.Join(dir, "index"))
	rows := float64(st.Rows)
	report(b, map[string]float64{
		"x-gzip-6":     float64(bodies) / float64(plain.gzip),
		"body-B/row":   float64(bodies) / rows,
		"dir-B/row":    float64(sizeBelow(b, filepath.Join(dir, "segments"), ".dir")) / rows,
		"NDJSON-B/row": float64(plain.ndjson) / rows,
		"index-B/live": float64(sizeBelow(b, filepath.Join(dir, "index"), ".sst")) / (rows - float64(st.Dead)),
		"segments":     float64(st.Segments),
		"rows":         rows,
		"dead-rows":    float64(st.Dead),
	})
}

// text is NDJSON and what gzip -6 makes of it as one stream.
type text struct{ ndjson, gzip int64 }

// recompress reads all bodies in the order of their segments and has gzip(1)
// compress them once more, as a whole. Level 6 of Go's libraries is another: on
// Synthea's Observations the standard library's output is 6 % smaller.
func recompress(b testing.TB, dir string) (bodies int64, t text) {
	b.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.ndjson.gz"))
	if err != nil || len(names) == 0 {
		b.Fatalf("bodies in %s: %d, %v", dir, len(names), err)
	}
	cmd := exec.Command("gzip", "-6", "-c")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	var out counter
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	for _, name := range names {
		n, err := unzip(in, name)
		if err != nil {
			b.Fatal(err)
		}
		bodies += sizeBelow(b, name, "")
		t.ndjson += n
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		b.Fatal(err)
	}
	t.gzip = int64(out)
	return bodies, t
}

func unzip(to io.Writer, name string) (int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	body, err := gzip.NewReader(f)
	if err != nil {
		return 0, err
	}
	return io.Copy(to, body)
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// compactIndex brings the index to rest: memtables flushed, levels compacted,
// old files gone. A large index lies like that but for its newest part.
func compactIndex(b testing.TB, dir string) {
	b.Helper()
	db, err := index.Open(dir, index.Options{FS: vfs.Default, Cache: 32 << 20, Logger: quiet{}})
	if err != nil {
		b.Fatal(err)
	}
	if err := db.Compact(b.Context(), []byte{0}, []byte{0xff}, true); err != nil {
		b.Fatal(err)
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
}

// quiet drops what Pebble says.
type quiet struct{}

func (quiet) Infof(string, ...any)              {}
func (quiet) Errorf(string, ...any)             {}
func (quiet) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// sizeBelow adds up the files at or below path whose names end so.
func sizeBelow(b testing.TB, path, end string) (n int64) {
	b.Helper()
	err := filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, end) {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}
