package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/cmd/tidemark/internal/proof"
)

// A receiver is one bulk client with its chain of exports.
type receiver struct {
	client *bulkclient.Client
	chain  *proof.Chain
	since  time.Time // transactionTime of the last export, zero before the first
}

// An exported is what one export was, in numbers.
type exported struct {
	job       *bulkclient.Job
	manifest  *bulkclient.Manifest
	toFile    time.Duration // from the kick-off to the manifest
	download  time.Duration
	transfer  bulkclient.Transfer
	deletions int64
}

// export takes the next export of the chain and enters it into the proof.
func (r *receiver) export(ctx context.Context) (*exported, error) {
	params := url.Values{}
	if !r.since.IsZero() {
		params.Set("_since", instant(r.since))
	}
	job, err := r.client.Start(ctx, "$export", params)
	if err != nil {
		return nil, err
	}
	m, err := job.Wait(ctx)
	if err != nil {
		return nil, err
	}
	e := &exported{job: job, manifest: m, toFile: time.Since(job.Began)}
	if err := r.chain.Window(r.since, m.TransactionTime); err != nil {
		return nil, err
	}
	r.since = m.TransactionTime
	if len(m.Error) > 0 {
		return nil, errors.New("the export came with a file of errors")
	}
	for _, f := range m.Output {
		if err := e.read(ctx, r.client, f, func(line []byte) error { return r.chain.Output(f.Type, line) }); err != nil {
			return nil, err
		}
	}
	for _, f := range m.Deleted {
		before := e.transfer.Lines
		if err := e.read(ctx, r.client, f, r.delete); err != nil {
			return nil, err
		}
		e.deletions += e.transfer.Lines - before
	}
	return e, nil
}

// read downloads a file and reads it; only the former is timed.
func (e *exported) read(ctx context.Context, c *bulkclient.Client, f bulkclient.File, line func([]byte) error) error {
	begin := time.Now()
	body, err := c.Fetch(ctx, f)
	if err != nil {
		return err
	}
	e.download += time.Since(begin)
	t, err := body.Lines(line)
	e.transfer.Add(t)
	return err
}

func (r *receiver) delete(line []byte) error {
	keys, err := bulkclient.Deletions(line)
	for _, key := range keys {
		r.chain.Deleted(key)
	}
	return err
}

// unchanged fetches the files of an export twice, with something happening in
// between, and compares them byte for byte.
func unchanged(ctx context.Context, c *bulkclient.Client, e *exported, between func() error) error {
	files := append(append([]bulkclient.File{}, e.manifest.Output...), e.manifest.Deleted...)
	before, err := fetchAll(ctx, c, files)
	if err != nil {
		return err
	}
	if err := between(); err != nil {
		return err
	}
	after, err := fetchAll(ctx, c, files)
	if err != nil {
		return err
	}
	for i := range files {
		if !bytes.Equal(before[i], after[i]) {
			return fmt.Errorf("file %d of an export is another one after the crash", i+1)
		}
	}
	return nil
}

func fetchAll(ctx context.Context, c *bulkclient.Client, files []bulkclient.File) (bodies [][]byte, err error) {
	for _, f := range files {
		body, err := c.Fetch(ctx, f)
		if err != nil {
			return nil, err
		}
		bodies = append(bodies, body.Wire)
	}
	return bodies, nil
}

// instant is how a client sends back what it was given.
func instant(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
