package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"unicode/utf8"

	"tidemark/store"
	"tidemark/store/fhir"
)

type exportDeadlettersCmd struct {
	storeFlags  `embed:""`
	selectFlags `embed:""`

	Out string `short:"o" type:"path" placeholder:"FILE" help:"Write to this file, which must not exist and nobody else may read; else to standard output."`
}

// Help is shown by --help.
func (*exportDeadlettersCmd) Help() string {
	return `Writes dead letters whole: number, reason, topic, partition, offset, timestamp, headers, key and value, a JSON object a line. Text
stands as text; bytes that are none in base64, as keyBase64 and valueBase64. It is patient data.

  tidemark deadletter export --topic fhir-changes --out records.ndjson
  tidemark validate --file records.ndjson --records 1000

Next: tidemark validate tells which format they look like.`
}

// Run writes dead letters.
func (c *exportDeadlettersCmd) Run(ctx context.Context, out io.Writer) (err error) {
	to := out
	if c.Out != "" {
		file, err := os.OpenFile(c.Out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		to = file
	}
	counted := &lineCount{w: to}
	if err := onDeadLetters(ctx, "export", &c.storeFlags, &c.selectFlags, counted, func(url.Values) {}); err != nil || c.Out == "" {
		return err
	}
	_, err = fmt.Fprintf(out, "%s written to %s: it is patient data, remove it when it has served\n", records(counted.lines), c.Out)
	return err
}

// A lineCount counts what passes through.
type lineCount struct {
	w     io.Writer
	lines int
}

func (c *lineCount) Write(p []byte) (int, error) {
	for _, b := range p {
		if b == '\n' {
			c.lines++
		}
	}
	return c.w.Write(p)
}

// A deadRecord is a line of an export; parseRecord reads it.
type deadRecord struct {
	Number    uint64       `json:"number"`
	Reason    string       `json:"reason"`
	TakenIn   string       `json:"takenIn"`
	Topic     string       `json:"topic"`
	Partition int32        `json:"partition"`
	Offset    int64        `json:"offset"`
	TS        *int64       `json:"ts"`      // milliseconds
	Headers   []deadHeader `json:"headers"` // in their order
	Key       *string      `json:"key"`     // null: Kafka's, or keyBase64 has it
	KeyB64    []byte       `json:"keyBase64,omitempty"`
	Value     *string      `json:"value"`
	ValueB64  []byte       `json:"valueBase64,omitempty"`
	// Of a record larger than kafka.max_record value is the beginning.
	Truncated bool   `json:"truncated,omitempty"`
	Length    int64  `json:"length,omitempty"`
	SHA256    string `json:"sha256,omitempty"`
}

type deadHeader struct {
	Name     string  `json:"name"`
	Value    *string `json:"value"`
	ValueB64 []byte  `json:"valueBase64,omitempty"`
}

// textOr splits bytes into text, or what is none.
func textOr(b []byte) (text *string, other []byte) {
	switch {
	case b == nil:
		return nil, nil
	case utf8.Valid(b):
		return new(string(b)), nil
	}
	return nil, b
}

func deadRecordOf(d store.DeadLetterRow) deadRecord {
	r := deadRecord{
		Number: d.Seq, Reason: d.Reason, TakenIn: d.Instant.String(), Topic: d.Partition.Topic, Partition: d.Partition.ID, Offset: d.Offset,
		Headers: []deadHeader{}, Truncated: d.Truncated, Length: d.Length, SHA256: d.SHA256,
	}
	if d.Timestamp != fhir.None {
		r.TS = new(int64(d.Timestamp))
	}
	r.Key, r.KeyB64 = textOr(d.Key)
	r.Value, r.ValueB64 = textOr(d.Value)
	for _, h := range d.Headers {
		to := deadHeader{Name: h.Key}
		to.Value, to.ValueB64 = textOr(h.Value)
		r.Headers = append(r.Headers, to)
	}
	return r
}

// exportDeadLetters is what the command does where the store is open.
func exportDeadLetters(_ context.Context, db *store.DB, args url.Values, out io.Writer) error {
	w := bufio.NewWriterSize(out, 64<<10)
	lines := json.NewEncoder(w)
	lines.SetEscapeHTML(false)
	err := eachDeadLetter(db, args, func(d store.DeadLetterRow) error { return lines.Encode(deadRecordOf(d)) }) //nolint:contextcheck // a commit is not cut short
	return errors.Join(err, w.Flush())
}
