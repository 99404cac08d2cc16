package demo

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/cmd/tidemark/internal/hospital"
	"tidemark/cmd/tidemark/internal/proof"
)

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
		if !d.screen.terminal {
			return
		}
		if n, ok := d.server.taken(ctx); ok {
			d.screen.progress(n, int64(past.Records()))
		}
	})
	d.screen.done()
	if err != nil {
		return err
	}
	d.screen.step("ingest", "%s %s changes  %s → %s on disk", strings.Repeat("█", barWidth),
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
		"curl -s " + base + "/metadata   # what it can do; for people: " + base,
		"curl -s -D- -H 'Accept: application/fhir+json' -H 'Prefer: respond-async' '" + base + "/$export?_type=Patient'",
		"curl -s CONTENT-LOCATION                  # the manifest, from the header above",
		"curl -s --compressed URL | head -1        # a file of the manifest",
		"curl -s -D- -H 'Accept: application/fhir+json' -H 'Prefer: respond-async' '" + base + "/$export?_since=" + instant(d.us.since) + "'",
		"curl -s -D- -H 'Accept: application/fhir+json' -H 'Prefer: respond-async' '" + base + "/Patient/$export?_type=Observation&_typeFilter=Observation%3Fcategory%3Dlaboratory&_elements=code,value'",
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
