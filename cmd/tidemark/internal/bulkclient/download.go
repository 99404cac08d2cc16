package bulkclient

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/cenkalti/backoff/v5"
	"github.com/klauspost/compress/gzip"
)

// Transfer says how much a file was.
type Transfer struct {
	Lines int64
	Wire  int64 // bytes as they came
	Bytes int64 // uncompressed
}

// Add sums up transfers.
func (t *Transfer) Add(other Transfer) {
	t.Lines += other.Lines
	t.Wire += other.Wire
	t.Bytes += other.Bytes
}

// A Body is a file as it came. It is kept in memory: a file that was cut for
// export is some tens of megabytes on the wire at most.
type Body struct {
	Wire []byte // as it came, compressed or not
	file File
	gzip bool
}

// Fetch downloads a file, whole: what breaks off is fetched again, so a line is
// never handed over twice.
func (c *Client) Fetch(ctx context.Context, f File) (*Body, error) {
	body, err := retry(ctx, c.patience(), func() (*Body, error) { return c.fetch(ctx, f) })
	if err != nil {
		return nil, fmt.Errorf("download a file of %s: %w", f.kind(), err)
	}
	return body, nil
}

// Lines hands over the lines of the file, without their newlines, and checks
// its form and its count. A line is valid until the next one.
func (b *Body) Lines(line func([]byte) error) (Transfer, error) {
	t, err := b.lines(line)
	if err == nil && b.file.Count != nil && *b.file.Count != t.Lines {
		err = fmt.Errorf("it has %d lines, the manifest says %d", t.Lines, *b.file.Count)
	}
	if err != nil {
		return t, fmt.Errorf("read a file of %s: %w", b.file.kind(), err)
	}
	return t, nil
}

func (f File) kind() string {
	if f.Type == "" {
		return "deletions"
	}
	return f.Type
}

func (c *Client) fetch(ctx context.Context, f File) (*Body, error) {
	answer, err := c.do(ctx, http.MethodGet, f.URL, http.Header{
		"Accept": {"application/fhir+ndjson"}, "Accept-Encoding": {"gzip"},
	})
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, refusal(answer)
	}
	if kind := answer.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/fhir+ndjson") {
		return nil, backoff.Permanent(fmt.Errorf("a file of type %.64q", kind))
	}
	encoding := answer.Header.Get("Content-Encoding")
	if encoding != "" && encoding != "gzip" && encoding != "identity" {
		return nil, backoff.Permanent(fmt.Errorf("an encoding that was not asked for: %.64q", encoding))
	}
	var body bytes.Buffer
	if answer.ContentLength > 0 {
		body.Grow(int(answer.ContentLength) + bytes.MinRead)
	}
	if _, err := body.ReadFrom(answer.Body); err != nil {
		return nil, err
	}
	return &Body{Wire: body.Bytes(), file: f, gzip: encoding == "gzip"}, nil
}

func (b *Body) lines(line func([]byte) error) (t Transfer, err error) {
	t.Wire = int64(len(b.Wire))
	wire := bytes.NewReader(b.Wire)
	var text io.Reader = wire
	if b.gzip {
		zip, err := gzip.NewReader(wire)
		if err != nil {
			return t, fmt.Errorf("read its gzip header: %w", err)
		}
		// Many clients stop after the first member without a word.
		zip.Multistream(false)
		text = zip
	}
	scan := bufio.NewScanner(text)
	scan.Buffer(make([]byte, 0, 64<<10), 1<<30)
	scan.Split(splitLines)
	for scan.Scan() {
		t.Lines++
		t.Bytes += int64(len(scan.Bytes())) + 1
		if err := checkLine(scan.Bytes()); err != nil {
			return t, fmt.Errorf("line %d: %w", t.Lines, err)
		}
		if err := line(scan.Bytes()); err != nil {
			return t, fmt.Errorf("line %d: %w", t.Lines, err)
		}
	}
	if err := scan.Err(); err != nil {
		return t, fmt.Errorf("after line %d: %w", t.Lines, err)
	}
	if wire.Len() > 0 {
		return t, fmt.Errorf("%d bytes follow the first gzip member", wire.Len())
	}
	return t, nil
}

// splitLines cuts at newlines only. bufio.ScanLines would also hide a carriage
// return, which is not NDJSON.
func splitLines(data []byte, end bool) (advance int, token []byte, err error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if end && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

func checkLine(line []byte) error {
	switch {
	case len(line) == 0:
		return errors.New("is blank")
	case line[0] != '{' || line[len(line)-1] != '}':
		return errors.New("is not one JSON object")
	}
	return nil
}

// Deletions reads a line of a deleted file and returns the resources that it
// names, as Type/id.
func Deletions(line []byte) ([]string, error) {
	var bundle struct {
		ResourceType, Type string
		Entry              []struct {
			Resource, FullURL any
			Request           struct{ Method, URL string }
		}
	}
	if err := json.Unmarshal(line, &bundle); err != nil {
		return nil, fmt.Errorf("read a deletion: %w", err)
	}
	if bundle.ResourceType != "Bundle" || bundle.Type != "transaction" || len(bundle.Entry) == 0 {
		return nil, errors.New("a deletion that is not a transaction Bundle with entries")
	}
	var keys []string
	for _, e := range bundle.Entry {
		kind, id, ok := strings.Cut(e.Request.URL, "/")
		if !ok || kind == "" || id == "" || strings.Contains(id, "/") {
			return nil, errors.New("a deletion whose URL is not Type/id")
		}
		if e.Request.Method != http.MethodDelete || e.Resource != nil || e.FullURL != nil {
			return nil, errors.New("an entry that is more than a DELETE")
		}
		keys = append(keys, e.Request.URL)
	}
	return keys, nil
}
