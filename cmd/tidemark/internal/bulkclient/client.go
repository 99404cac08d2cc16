// Package bulkclient is a FHIR Bulk Data client: kick-off, polling, manifest,
// files, deletions, the end of the job.
//
// It knows HTTP and the Bulk Data guide, and refuses to know anything about the
// server it talks to, or how to get a token: the demo proves a server with it, so it trusts nothing
// that it can check (counts, lengths, checksums, types).
package bulkclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"tidemark/cmd/tidemark/internal/manifest"
)

// A Client talks to one server. The zero value of all but Base works.
type Client struct {
	Base string // of the FHIR server, without a slash at the end
	HTTP *http.Client

	// Patience is how long a request is repeated while the server is away or
	// asks to wait; default 1 minute. Polling a job has no limit but ctx.
	Patience time.Duration
}

// A Job is an export under way on the server.
type Job struct {
	URL string // of the status

	// Began is when the request that was accepted was sent.
	Began  time.Time
	client *Client
	after  time.Duration // the server's wish before the first poll
}

// A Manifest lists the files of an export.
type Manifest = manifest.Manifest

// A File is an entry of a manifest.
type File = manifest.File

// Start kicks off an export. path is $export, Patient/$export or
// Group/[id]/$export.
func (c *Client) Start(ctx context.Context, path string, params url.Values) (*Job, error) {
	address := c.Base + "/" + path
	if len(params) > 0 {
		address += "?" + params.Encode()
	}
	job, err := retry(ctx, c.patience(), func() (*Job, error) {
		began := time.Now()
		answer, err := c.do(ctx, http.MethodGet, address, http.Header{
			"Accept": {"application/fhir+json"}, "Prefer": {"respond-async"},
		})
		if err != nil {
			return nil, err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusAccepted {
			return nil, refusal(answer)
		}
		status := answer.Header.Get("Content-Location")
		if u, err := url.Parse(status); err != nil || !u.IsAbs() {
			return nil, backoff.Permanent(fmt.Errorf("no absolute Content-Location in the answer: %.64q", status))
		}
		after, _ := retryAfter(answer.Header)
		return &Job{URL: status, Began: began, client: c, after: after}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("kick off %s: %w", path, err)
	}
	return job, nil
}

// Wait polls the job, no faster than the server asks, until it is complete.
func (j *Job) Wait(ctx context.Context) (*Manifest, error) {
	if err := pause(ctx, j.after); err != nil {
		return nil, fmt.Errorf("poll the job: %w", err)
	}
	m, err := retry(ctx, 0, func() (*Manifest, error) { return j.poll(ctx) })
	if err != nil {
		return nil, fmt.Errorf("poll the job: %w", err)
	}
	return m, nil
}

func (j *Job) poll(ctx context.Context) (*Manifest, error) {
	answer, err := j.client.do(ctx, http.MethodGet, j.URL, http.Header{"Accept": {"application/json"}})
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusOK:
	case http.StatusAccepted:
		return nil, again(answer.Header, errors.New("the job is not complete"))
	default:
		return nil, refusal(answer)
	}
	if kind := answer.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/json") {
		return nil, backoff.Permanent(fmt.Errorf("a manifest of type %.64q", kind))
	}
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	m, err := manifest.Read(text)
	if err != nil {
		return nil, backoff.Permanent(err)
	}
	return m, nil
}

// Delete ends the job and with it the files. The server must know nothing of
// it afterwards.
func (j *Job) Delete(ctx context.Context) error {
	first := true
	_, err := retry(ctx, j.client.patience(), func() (struct{}, error) {
		again := !first
		first = false
		answer, err := j.client.do(ctx, http.MethodDelete, j.URL, http.Header{"Accept": {"application/fhir+json"}})
		if err != nil {
			return struct{}{}, err
		}
		defer answer.Body.Close()
		switch {
		case answer.StatusCode == http.StatusAccepted:
		case answer.StatusCode == http.StatusNotFound && again: // the answer to the first try was lost
		default:
			return struct{}{}, refusal(answer)
		}
		return struct{}{}, nil
	})
	if err != nil {
		return fmt.Errorf("delete the job: %w", err)
	}
	return nil
}

func (c *Client) patience() time.Duration {
	if c.Patience > 0 {
		return c.Patience
	}
	return time.Minute
}

// do sends one request. What goes wrong before there is an answer may go right
// at the next try.
func (c *Client) do(ctx context.Context, method, address string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return nil, backoff.Permanent(err)
	}
	req.Header = header
	if c.HTTP != nil {
		return c.HTTP.Do(req)
	}
	return http.DefaultClient.Do(req)
}

// retry repeats a request while its error is a passing one.
func retry[T any](ctx context.Context, patience time.Duration, request func() (T, error)) (T, error) {
	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval, pace.MaxInterval = 50*time.Millisecond, 2*time.Second
	return backoff.Retry(ctx, request, backoff.WithBackOff(pace), backoff.WithMaxElapsedTime(patience))
}

// again asks for another try, at the time that the server names.
func again(header http.Header, err error) error {
	if after, ok := retryAfter(header); ok {
		return fmt.Errorf("%w, %w", err, &backoff.RetryAfterError{Duration: after})
	}
	return err
}

// retryAfter reads Retry-After, which is a number of seconds or a date.
func retryAfter(header http.Header) (time.Duration, bool) {
	value := header.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil && seconds >= 0 {
		return time.Duration(seconds) * time.Second, true
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at)), true
	}
	return 0, false
}

// refusal is the error that an answer means: a passing one if the server is
// busy or away behind a proxy.
func refusal(answer *http.Response) error {
	err := fmt.Errorf("the server answered %d%s", answer.StatusCode, diagnostics(answer.Body))
	switch answer.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		return again(answer.Header, err)
	}
	return backoff.Permanent(err)
}

// diagnostics is what an OperationOutcome says, in short.
func diagnostics(body io.Reader) string {
	var outcome struct {
		Issue []struct {
			Diagnostics string
			Details     struct{ Text string }
		}
	}
	text, err := io.ReadAll(io.LimitReader(body, 64<<10))
	if err != nil || json.Unmarshal(bytes.TrimSpace(text), &outcome) != nil || len(outcome.Issue) == 0 {
		return ""
	}
	said := outcome.Issue[0].Diagnostics
	if said == "" {
		said = outcome.Issue[0].Details.Text
	}
	return fmt.Sprintf(": %.200q", said)
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
