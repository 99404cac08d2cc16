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

	"tidemark/cmd/tidemark/internal/manifest"
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
	crc  *uint32 // that the answer's header tells
	gzip bool
}

// Fetch downloads a file, whole: what breaks off is fetched again, so a line is
// never handed over twice.
func (c *Client) Fetch(ctx context.Context, f File) (*Body, error) {
	body, err := retry(ctx, c.patience(), func() (*Body, error) { return c.fetch(ctx, f) })
	if err != nil {
		return nil, fmt.Errorf("download a file of %s: %w", kind(f), err)
	}
	return body, nil
}

// Lines hands over the lines of the file, without their newlines, and checks
// its form, and its count, bytes and checksum where they are known. A line is
// valid until the next one.
func (b *Body) Lines(line func([]byte) error) (Transfer, error) {
	var tally manifest.Tally
	t, err := b.lines(line, &tally)
	tally.Lines = t.Lines
	if err == nil {
		err = b.check(tally)
	}
	if err != nil {
		return t, fmt.Errorf("read a file of %s: %w", kind(b.file), err)
	}
	return t, nil
}

// check compares with the manifest, and with the checksum of the answer: the
// manifest may have been made before there was one.
func (b *Body) check(t manifest.Tally) error {
	if err := b.file.Check(t); err != nil {
		return err
	}
	if b.crc != nil && *b.crc != t.CRC {
		return fmt.Errorf("its CRC-32 is %08x, its header %s says %08x", t.CRC, manifest.Header, *b.crc)
	}
	return nil
}

func kind(f File) string {
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
	crc, err := checksum(answer.Header)
	if err != nil {
		return nil, backoff.Permanent(err)
	}
	var body bytes.Buffer
	if answer.ContentLength > 0 {
		body.Grow(int(answer.ContentLength) + bytes.MinRead)
	}
	if _, err := body.ReadFrom(answer.Body); err != nil {
		return nil, err
	}
	return &Body{Wire: body.Bytes(), file: f, crc: crc, gzip: encoding == "gzip"}, nil
}

// checksum is what a file's header tells of its CRC-32, nil if nothing.
func checksum(header http.Header) (*uint32, error) {
	digits := header.Get(manifest.Header)
	if digits == "" {
		return nil, nil
	}
	crc, err := manifest.ParseCRC(digits)
	if err != nil {
		return nil, fmt.Errorf("its header %s: %w", manifest.Header, err)
	}
	return crc, nil
}

// ErrNoChecksum says that a server does not tell checksums.
var ErrNoChecksum = errors.New("the server tells no checksum")

// Checksum asks the server for the CRC-32 of a file without downloading it.
func (c *Client) Checksum(ctx context.Context, f File) (uint32, error) {
	crc, err := retry(ctx, c.patience(), func() (*uint32, error) {
		answer, err := c.do(ctx, http.MethodHead, f.URL, http.Header{"Accept": {"application/fhir+ndjson"}})
		if err != nil {
			return nil, err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return nil, refusal(answer)
		}
		crc, err := checksum(answer.Header)
		if err == nil && crc == nil {
			err = ErrNoChecksum
		}
		if err != nil {
			return nil, backoff.Permanent(err)
		}
		return crc, nil
	})
	if err != nil {
		return 0, err
	}
	return *crc, nil
}

func (b *Body) lines(line func([]byte) error, tally *manifest.Tally) (t Transfer, err error) {
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
	scan := bufio.NewScanner(&counted{text, tally})
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

// counted counts what is read.
type counted struct {
	r     io.Reader
	tally *manifest.Tally
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.tally.Add(p[:n])
	return n, err
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
