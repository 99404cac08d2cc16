package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/cmd/tidemark/internal/hospital"
	"tidemark/cmd/tidemark/internal/proof"
)

var (
	processKills = flag.Int("process.kills", 8, "how often TestProcessKills kills the server")
	processSeed  = flag.Uint64("process.seed", 0, "seed of TestProcessKills; 0: a new one at each run")
	processRate  = flag.Int("process.rate", 500, "records a second that TestProcessKills writes")
	processLife  = flag.Duration("process.life", 0, "how long a server of TestProcessKills lives, about; 0: 1.5 s at most, and some not until they are ready")
	processJobs  = flag.Int("process.jobs", 300, "how many jobs the client of TestProcessKills keeps; older ones it deletes")
)

// A server that is killed at random moments, while it starts, takes in,
// commits, merges and answers, misses nothing and delivers nothing twice; and
// a job that it has answered for is served with the same bytes ever after.
func TestProcessKills(t *testing.T) {
	t.Parallel() // it mostly waits
	seed := *processSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("again with -process.seed=%d -process.kills=%d -process.rate=%d -process.life=%v", seed, *processKills, *processRate, *processLife)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "fhir-changes"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	more := []string{"--set", "limits.jobs_kept=1000000", "--set", "retention.last_state=5s"}
	if *processLife > 0 {
		more = append(more, "--set", "compaction.settle_after=30s", "--set", "retention.last_state=2m")
	}
	r := newRig(t, cluster.ListenAddrs()[0], "fhir-changes", nil, more...)
	r.hospital = hospital.New(hospital.Options{Seed: seed, Patients: 10, Years: 1, End: time.Now().Add(-time.Second)})
	r.ledger = proof.NewLedger(proof.Options{Allowance: time.Second})
	r.chain = r.ledger.Chain()
	r.write(r.hospital.History)
	r.ledger.Start(time.Now())

	goOn, done := context.WithCancel(t.Context())
	defer done()
	k := &keeper{r: r, rng: rand.New(rand.NewPCG(seed, 1))}
	work, ctx := errgroup.WithContext(goOn)
	work.Go(func() error { return r.pour(ctx, rand.New(rand.NewPCG(seed, 2)), &k.written) })
	work.Go(func() error { return k.collect(ctx) })
	lives(ctx, r, k, rand.New(rand.NewPCG(seed, 3)))
	r.start()
	done()
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	r.catchUp()
	r.prove()
	k.proveKept(t)
	if err := r.stop(); err != nil {
		t.Errorf("SIGTERM: the server ended with %v", err)
	}
	if got, code := ends(t, "check", r.store()); code != 0 || !strings.Contains(got, "every invariant holds") {
		t.Errorf("check: exit %d: %s", code, got)
	}
}

// lives starts the server and kills it, again and again: now and then before
// it is ready, and never with the same pace of commits for long.
func lives(ctx context.Context, r *rig, k *keeper, rng *rand.Rand) {
	r.t.Helper()
	intervals := []string{"10ms", "50ms", "500ms"}
	for i := range *processKills {
		r.launch("--set", "commit.interval="+intervals[rng.IntN(len(intervals))])
		lifetime := time.Duration(rng.IntN(300)) * time.Millisecond
		if rng.IntN(4) > 0 {
			r.ready()
			lifetime *= 5
		}
		if *processLife > 0 {
			lifetime = *processLife/2 + time.Duration(rng.Int64N(int64(*processLife)))
		}
		if i == *processKills-1 { // a slow machine may have answered nothing yet
			r.until("a job is done, for the last kill to be survived by one", func() bool { return k.windows.Load() > 0 || ctx.Err() != nil })
		}
		pause(ctx, lifetime)
		if ctx.Err() != nil {
			return // somebody failed: Wait tells
		}
		if *processLife > 0 {
			r.t.Logf("life %d, %v: %d records written, %d windows; %s", i+1, lifetime.Round(time.Second), k.written.Load(), k.windows.Load(), r.state())
		}
		r.kill()
		k.killed.Add(1)
	}
}

// state is what a server says of itself before it is killed.
func (r *rig) state() string {
	page := strings.TrimSuffix(r.client.Base, "/fhir") + "/metrics"
	mib := func(name string) string { return fmt.Sprintf("%.0f MiB", metric(page, name)/(1<<20)) }
	return fmt.Sprintf("%.0f segments of %s, %s in snapshots only, backlog %s, %.1f s behind, at most %d MiB of memory",
		metric(page, "tidemark_store_segments"), mib("tidemark_store_body_size_bytes"), mib("tidemark_store_pinned_size_bytes"),
		mib("tidemark_store_backlog_bytes"), metric(page, "tidemark_store_watermark_lag_seconds"), peakMemory(r.t, r.server.Process.Pid)>>20)
}

// launch starts a server with more arguments and does not wait for it.
func (r *rig) launch(more ...string) {
	r.t.Helper()
	log, err := os.OpenFile(r.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	r.server = program(r.t, slices.Concat(r.args, more)...)
	r.server.Stdout, r.server.Stderr = log, log
	if err := r.server.Start(); err != nil {
		r.t.Fatal(err)
	}
}

// ready waits until the server is ready.
func (r *rig) ready() {
	r.t.Helper()
	r.until("the server is ready", func() bool {
		answer, err := http.Get(strings.TrimSuffix(r.client.Base, "/fhir") + "/readyz")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
}

// pour lets the hospital write -process.rate records a second until ctx ends, in
// so small portions that some arrive while a commit is under way.
func (r *rig) pour(ctx context.Context, rng *rand.Rand, written *atomic.Int64) error {
	const portion = 5 * time.Millisecond
	perTick := max(1, int(float64(*processRate)*portion.Seconds()+0.5))
	tick := time.NewTicker(portion)
	defer tick.Stop()
	acked := make(chan error, 1) // the first failure
	sending := context.WithoutCancel(ctx)
	var failed error
	for ctx.Err() == nil && failed == nil {
		<-tick.C
		// Stamped a little earlier, as in a database that stamps when its
		// transaction begins: what seems to come from the future is no evidence.
		r.hospital.Live(time.Now().Add(-20*time.Millisecond), 1+rng.IntN(2*perTick-1), func(rec hospital.Record) bool {
			receipt, err := r.ledger.Sent(rec)
			if err != nil {
				failed = err
				return false
			}
			written.Add(1)
			r.producer.Produce(sending, r.record(rec), func(_ *kgo.Record, err error) {
				if err == nil {
					r.ledger.Acked(receipt, time.Now())
					return
				}
				select {
				case acked <- err:
				default:
				}
			})
			return true
		})
	}
	failed = errors.Join(failed, r.producer.Flush(sending))
	select {
	case err := <-acked:
		return errors.Join(failed, err)
	default:
		return failed
	}
}

// A keeper is a client that chains exports and keeps their jobs for long, so
// that it can come back for them.
type keeper struct {
	r      *rig
	rng    *rand.Rand
	killed atomic.Int32
	jobs   []kept

	written, windows atomic.Int64 // records written, exports made
}

// kept is a job with what its files were.
type kept struct {
	job      *bulkclient.Job
	life     int32 // of the server, when the last file came
	manifest *bulkclient.Manifest
	files    [][sha256.Size]byte // as they came over the wire
}

// collect makes windows until ctx ends, and looks at old jobs now and then.
func (k *keeper) collect(ctx context.Context) error {
	for ctx.Err() == nil {
		pause(ctx, time.Duration(k.rng.IntN(40))*time.Millisecond) // else most windows are empty
		// A window that has begun is finished: the chain cannot take half of one back.
		if err := k.window(context.WithoutCancel(ctx)); err != nil {
			return err
		}
		if k.rng.IntN(10) == 0 {
			if err := k.again(context.WithoutCancel(ctx), &k.jobs[k.rng.IntN(len(k.jobs))]); err != nil {
				return err
			}
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// window makes one more window of the chain.
func (k *keeper) window(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	params := url.Values{}
	if !k.r.since.IsZero() {
		params.Set("_since", instant(k.r.since))
	}
	job, err := k.r.client.Start(ctx, "$export", params)
	if err != nil {
		return err
	}
	m, err := job.Wait(ctx)
	if err != nil {
		return err
	}
	if err := k.r.chain.Window(k.r.since, m.TransactionTime); err != nil {
		return err
	}
	one := kept{job: job, manifest: m}
	for _, f := range files(m) {
		body, err := k.r.client.Fetch(ctx, f)
		if err != nil {
			return err
		}
		one.files = append(one.files, sha256.Sum256(body.Wire))
		if _, err := body.Lines(func(line []byte) error { return k.enter(f, line) }); err != nil {
			return err
		}
	}
	one.life = k.killed.Load()
	k.jobs = append(k.jobs, one)
	k.r.since = m.TransactionTime
	k.windows.Add(1)
	if len(k.jobs) <= *processJobs {
		return nil
	}
	i := k.rng.IntN(len(k.jobs))
	job = k.jobs[i].job
	k.jobs = slices.Delete(k.jobs, i, i+1)
	return job.Delete(ctx)
}

// enter tells the chain of a line.
func (k *keeper) enter(f bulkclient.File, line []byte) error {
	if f.Type != deletions {
		return k.r.chain.Output(f.Type, line)
	}
	keys, err := bulkclient.Deletions(line)
	for _, key := range keys {
		k.r.chain.Deleted(key)
	}
	return err
}

// deletions is the type of the files below `deleted`; output has none of it.
const deletions = "Bundle"

func files(m *bulkclient.Manifest) []bulkclient.File {
	return slices.Concat(m.Output, m.Deleted)
}

// instant is t as _since takes it.
func instant(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// again fetches a job once more: all must be as it was.
func (k *keeper) again(ctx context.Context, old *kept) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, err := old.job.Wait(ctx)
	if err != nil {
		return fmt.Errorf("a job of before: %w", err)
	}
	if diff := cmp.Diff(old.manifest, m); diff != "" {
		return fmt.Errorf("the manifest of a job of before has changed (-before +now):\n%s", diff)
	}
	for i, f := range files(m) {
		body, err := k.r.client.Fetch(ctx, f)
		if err != nil {
			return fmt.Errorf("a job of before: %w", err)
		}
		if sha256.Sum256(body.Wire) != old.files[i] {
			return fmt.Errorf("a file of %s of a job of before has other bytes now", f.Type)
		}
	}
	return nil
}

// proveKept fails the test unless all jobs are what they were.
func (k *keeper) proveKept(t *testing.T) {
	t.Helper()
	survived, files := 0, 0
	for i := range k.jobs {
		if err := k.again(t.Context(), &k.jobs[i]); err != nil {
			t.Fatal(err)
		}
		if k.jobs[i].life < k.killed.Load() {
			survived++
			files += len(k.jobs[i].files)
		}
	}
	t.Logf("%d kills, %d jobs of before one with %d files served again", k.killed.Load(), survived, files)
	if files == 0 {
		t.Error("no job outlived a kill: nothing was shown")
	}
}
