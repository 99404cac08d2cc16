// Package demo tells a newcomer in seconds what Tidemark does, and proves it: a
// simulated hospital writes to an embedded broker, the real server exports, is
// killed and comes back, and in the end the hospital's own log says whether the
// chain of exports delivered every change exactly once.
//
// It knows how to run all of this on one machine, and refuses to know how the
// server works: it sees the command line, the configuration file and HTTP, as
// any user does. Every number that it shows was measured in this very run.
package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/cmd/tidemark/internal/hospital"
	"tidemark/cmd/tidemark/internal/proof"
)

// Options of a demo.
type Options struct {
	Once    bool   // end after the proof
	Seed    uint64 // of the hospital
	Rate    int    // changes a second that it writes while it is watched
	Keep    string // folder to leave everything in; "": a temporary one, removed in the end
	Listen  string // of the server; another port is taken where this one is not free
	Program string // tidemark itself
	Version string

	// Hospital is for tests that need a smaller one; the zero value is the
	// hospital of 100 patients. Its seed and partitions are the demo's own.
	Hospital hospital.Options

	// Tests are in more of a hurry, and several run at once.
	watch, settling time.Duration
	temp            string   // where the temporary folder is made
	env             []string // more of the server's environment
}

// ErrFailed says that the proof failed: the server did not keep its promise.
var ErrFailed = errors.New("the proof failed")

const (
	allowance = time.Second // watermark.allowance, which the proof relies on

	patience = time.Minute             // for a server that starts; it takes a second or two
	watch    = 2500 * time.Millisecond // how long we look on while the hospital writes
	burst    = 500                     // changes under way when the server is killed
	settling = 20 * time.Second        // for the last change to be exported
	farewell = 5 * time.Second         // for the server to end by itself
)

// Run plays the demo. Unless opts.Once it stays until ctx ends.
func Run(ctx context.Context, out io.Writer, opts Options) (err error) {
	d := &demo{opts: opts, screen: newScreen(out), rng: rand.New(rand.NewPCG(opts.Seed, 1))}
	if err := d.folder(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.tidy()) }()
	err = d.play(ctx)
	if err != nil && ctx.Err() != nil {
		if d.proved {
			return nil // Ctrl-C is how it ends
		}
		return errors.New("interrupted before the proof")
	}
	return err
}

// demo is one run.
type demo struct {
	opts   Options
	screen *screen
	rng    *rand.Rand
	dir    string

	source *source
	server *server
	ledger *proof.Ledger
	us     *receiver
	stop   func() error // pauses the hospital
	proved bool
	number int // of the export
}

func (d *demo) folder() (err error) {
	if d.opts.Keep == "" {
		d.dir, err = os.MkdirTemp(d.opts.temp, "tidemark-demo-")
		return err
	}
	d.dir, err = filepath.Abs(d.opts.Keep)
	if err == nil {
		err = os.MkdirAll(d.dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("make the folder to keep: %w", err)
	}
	entries, err := os.ReadDir(d.dir)
	if err == nil && len(entries) > 0 {
		err = errors.New("it is not empty; a store and the topic it was read from belong together, so each demo needs a fresh folder")
	}
	if err != nil {
		return fmt.Errorf("use %s: %w", d.dir, err)
	}
	return nil
}

// tidy ends everything in the order in which it depends on one another.
func (d *demo) tidy() (err error) {
	if d.stop != nil {
		err = d.stop()
	}
	if d.server != nil {
		d.server.stop(farewell)
	}
	if d.source != nil {
		d.source.close()
	}
	if d.opts.Keep == "" {
		err = errors.Join(err, os.RemoveAll(d.dir))
	}
	return err
}

func (d *demo) play(ctx context.Context) error {
	place := "a temporary folder, removed on exit; --keep DIR"
	if d.opts.Keep != "" {
		place = "everything stays in " + d.dir
	}
	d.screen.line("tidemark %s demo   seed %d   (%s)", d.opts.Version, d.opts.Seed, place)
	for _, scene := range []func(context.Context) error{d.open, d.ingest, d.everything, d.increment, d.crash, d.proof} {
		if err := scene(ctx); err != nil {
			return err
		}
	}
	d.proved = true
	if d.opts.Once {
		return nil
	}
	return d.stay(ctx)
}

// open starts the broker and writes the hospital's history.
func (d *demo) open(ctx context.Context) (err error) {
	of := d.opts.Hospital
	of.Seed, of.Partitions = d.opts.Seed, partitions
	of.Patients, of.Years = cmp.Or(of.Patients, 100), cmp.Or(of.Years, 3)
	of.End = time.Now().Add(-time.Second)
	h := hospital.New(of)
	d.ledger = proof.NewLedger(proof.Options{Allowance: allowance})
	if d.source, err = openSource(filepath.Join(d.dir, "kafka"), h, d.ledger); err != nil {
		return err
	}
	d.screen.step("kafka", "embedded broker %s, topic %s, %d partitions", d.source.address(), topic, partitions)
	if err := d.source.history(ctx); err != nil {
		return err
	}
	d.screen.step("hospital", "%s, %s of history, still writing", plural(of.Patients, "patient"), plural(of.Years, "year"))
	return nil
}

// ingest starts the server and waits until it has read what is there.
func (d *demo) ingest(ctx context.Context) error {
	address, taken, err := freeAddress(ctx, d.opts.Listen)
	if err != nil {
		return err
	}
	if taken {
		d.screen.step("http", "%s is taken: %s instead", d.opts.Listen, address)
	}
	d.server = &server{
		program: d.opts.Program, listen: address, env: d.opts.env,
		config: filepath.Join(d.dir, "tidemark.yaml"), log: filepath.Join(d.dir, "server.log"),
	}
	store := filepath.Join(d.dir, "store")
	if err := d.server.configure(store, d.source.address()); err != nil {
		return err
	}
	past := d.source.tally()
	d.ledger.Start(d.source.now())
	if err := d.server.start(); err != nil {
		return err
	}
	d.resume(ctx)
	err = d.server.ready(ctx, patience, func() {
		if n, ok := d.server.taken(ctx); ok {
			d.screen.progress(n, int64(past.Records()))
		}
	})
	d.screen.done()
	if err != nil {
		return err
	}
	d.screen.step("ingest", "████████████████████ %s changes  %s → %s on disk",
		count(past.Records()), size(past.Bytes), size(used(store)))
	return nil
}

// resume lets the hospital write until d.stop is called.
func (d *demo) resume(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- d.source.live(ctx, d.opts.Rate) }()
	d.stop = func() error {
		cancel()
		d.stop = nil
		return <-ended
	}
}

func (d *demo) everything(ctx context.Context) error {
	d.us = d.receiver()
	e, err := d.export(ctx, "everything")
	if err != nil {
		return err
	}
	return e.job.Delete(ctx)
}

func (d *demo) receiver() *receiver {
	return &receiver{client: &bulkclient.Client{Base: d.server.base()}, chain: d.ledger.Chain()}
}

// increment looks on for a while, then fetches what has changed.
func (d *demo) increment(ctx context.Context) error {
	before := d.source.tally()
	if err := pause(ctx, cmp.Or(d.opts.watch, watch)); err != nil {
		return err
	}
	t := d.source.tally().Sub(before)
	d.screen.line("        …  the hospital wrote %s (%s late, %s repeated, %s)",
		plural(t.Records(), "change"), count(t.Late), count(t.Ops[hospital.Duplicate]+t.Ops[hospital.Stale]),
		plural(t.Ops[hospital.Delete], "deletion"))
	e, err := d.export(ctx, "only what changed")
	if err != nil {
		return err
	}
	return unchanged(ctx, d.us.client, e, func() error { return d.kill(ctx) })
}

// kill ends the server in the middle of intake and starts it again.
func (d *demo) kill(ctx context.Context) error {
	d.source.write(context.WithoutCancel(ctx), burst)
	// Anywhere within a commit interval: gathering, sealing or committing.
	if err := pause(ctx, time.Duration(d.rng.Int64N(int64(500*time.Millisecond)))); err != nil {
		return err
	}
	killed := time.Now()
	if err := d.server.kill(); err != nil {
		return err
	}
	if err := d.server.start(); err != nil {
		return err
	}
	if err := d.server.ready(ctx, patience, func() {}); err != nil {
		return err
	}
	d.screen.event("CRASH", "kill -9 while %d changes were under way … back in %.1f s", burst, time.Since(killed).Seconds())
	return nil
}

// crash goes on with the chain behind the kill.
func (d *demo) crash(ctx context.Context) error {
	d.screen.more("the files of EXPORT %d are as they were, byte for byte", d.number)
	e, err := d.export(ctx, "the chain goes on")
	if err != nil {
		return err
	}
	return e.job.Delete(ctx)
}

// proof lets the hospital pause, takes the last window and asks the ledger. A
// change that came late may need one window more.
func (d *demo) proof(ctx context.Context) error {
	if err := d.stop(); err != nil {
		return err
	}
	last := d.ledger.LastAcked()
	if err := pause(ctx, allowance+500*time.Millisecond); err != nil {
		return err
	}
	if _, err := d.export(ctx, "the hospital pauses: the rest"); err != nil {
		return err
	}
	verdict := d.us.chain.Judge()
	for since := time.Now(); (d.us.since.Before(last) || verdict.Lacking() > 0) && time.Since(since) < cmp.Or(d.opts.settling, settling); verdict = d.us.chain.Judge() {
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		if _, err := d.us.export(ctx); err != nil {
			return err
		}
	}
	other := d.receiver()
	if _, err := other.export(ctx); err != nil {
		return err
	}
	return d.pronounce(verdict, other.chain.Judge())
}

func (d *demo) pronounce(chain, full *proof.Verdict) error {
	word := d.screen.good("OK")
	if !chain.OK() || !full.OK() {
		word = d.screen.bad("FAILED")
	}
	d.screen.event("PROOF", "%s changes written = %d windows, each exactly once: %v   %s",
		count(chain.Records), chain.Windows, chain, word)
	d.screen.more("a second client's full export: %s resources, %v", count(full.Delivered), full)
	for _, where := range append(chain.Examples(8), full.Examples(8)...) {
		d.screen.more("%s", where)
	}
	if !chain.OK() || !full.OK() {
		return ErrFailed
	}
	return nil
}

// export takes the next window of our chain and shows it.
func (d *demo) export(ctx context.Context, why string) (*exported, error) {
	d.number++
	request := "/fhir/$export"
	if !d.us.since.IsZero() {
		request += "?_since=…" + instant(d.us.since)[17:]
	}
	d.screen.event(fmt.Sprintf("EXPORT %d", d.number), "GET %-36s %s", request, why)
	e, err := d.us.export(ctx)
	if err != nil {
		return nil, err
	}
	deleted := ""
	if e.deletions > 0 {
		deleted = fmt.Sprintf(", %s deleted", count(e.deletions))
	}
	d.screen.more("manifest %s   %s resources%s, %s, %s   download %s", ms(e.toFile),
		count(e.transfer.Lines-e.deletions), deleted, plural(len(e.manifest.Output)+len(e.manifest.Deleted), "file"),
		size(e.transfer.Wire), ms(e.download))
	d.screen.more("transactionTime %s", instant(d.us.since))
	return e, nil
}

// stay shows what to try while the hospital writes on.
func (d *demo) stay(ctx context.Context) error {
	d.resume(ctx)
	base := d.server.base()
	d.screen.line(" Still running, Ctrl-C ends it. Now you:")
	for _, command := range []string{
		"curl -s " + base + "/metadata",
		"curl -s -D- -H 'Accept: application/fhir+json' -H 'Prefer: respond-async' '" + base + "/$export?_type=Patient'",
		"curl -s CONTENT-LOCATION                  # the manifest, from the header above",
		"curl -s --compressed URL | head -1        # a file of the manifest",
		"curl -s -D- -H 'Accept: application/fhir+json' -H 'Prefer: respond-async' '" + base + "/$export?_since=" + instant(d.us.since) + "'",
	} {
		d.screen.line("   %s", command)
	}
	d.screen.line(" The server's log and configuration: %s", d.dir)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-d.server.died:
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("the server ended (%s)%s", ending(err), d.server.lastWords())
	case err := <-d.source.failed:
		return err
	}
}

// used is how many bytes a folder's files have.
func used(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return nil // a file may go while we look
		}
		if info, err := entry.Info(); err == nil {
			sum += info.Size()
		}
		return nil
	})
	return sum
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
