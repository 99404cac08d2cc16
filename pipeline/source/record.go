package source

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"

	"tidemark/store"
	"tidemark/store/fhir"
)

var (
	errRecord   = errors.New("malformed record")
	errTrailing = errors.New("more bytes than its records take")
	errOrder    = errors.New("record offsets out of order")
)

// smallestRecord is a record with nothing in it: seven varints and flags.
const smallestRecord = 7

// sliceRecords appends the records in raw that lie at or behind in.From. They
// alias raw.
func (p *Parser) sliceRecords(in Portion, b batch, raw []byte, out *Parsed) error {
	if b.count > len(raw)/smallestRecord {
		return errRecord
	}
	var (
		all   = cursor{b: raw}
		next  = b.base
		first = len(out.Records)
	)
	if cap(out.Records)-first < b.count {
		grown := make([]Record, first, first+max(b.count, first/2))
		out.Records = grown[:copy(grown, out.Records)]
	}
	for range b.count {
		body := all.take(all.varint())
		r, err := p.parseRecord(b, body)
		switch {
		case all.bad || err != nil:
			return errors.Join(errRecord, err)
		case r.Offset < next || r.Offset > b.last:
			return errOrder
		}
		if next = r.Offset + 1; r.Offset >= in.From {
			out.Records = append(out.Records, r)
		}
	}
	if len(all.b) > 0 {
		return errTrailing
	}
	out.Size += len(raw)
	return nil
}

// parseRecord reads one record without its length.
func (p *Parser) parseRecord(b batch, body []byte) (Record, error) {
	c := cursor{b: body}
	c.int8() // attributes, unused so far
	r := Record{Timestamp: b.timestamp(c.varlong()), Offset: b.base + int64(c.varint())}
	r.Key = c.varbytes()
	r.Value = c.varbytes()
	r.Headers = p.parseHeaders(&c)
	if c.bad || len(c.b) > 0 {
		return r, errRecord
	}
	if len(body) > p.maxRecord {
		r.cut()
	}
	return r, nil
}

func (b batch) timestamp(delta int64) fhir.Instant {
	t := b.baseTime + delta
	if b.attributes&logAppendBit != 0 {
		t = b.maxTime
	}
	if t < 0 {
		return fhir.None
	}
	return fhir.Instant(t)
}

func (p *Parser) parseHeaders(c *cursor) []store.Header {
	n := c.varint()
	if n <= 0 || n > len(c.b)/2 { // a header takes two lengths
		c.bad = c.bad || n != 0
		return nil
	}
	headers := make([]store.Header, n)
	for i := range headers {
		key := c.varint()
		if key < 0 {
			c.bad = true
			return nil
		}
		headers[i] = store.Header{Key: p.name(c.take(key)), Value: c.varbytes()}
	}
	return headers
}

// name returns a header's key; the few that every record carries share one
// string.
func (p *Parser) name(key []byte) string {
	if name, ok := p.names[string(key)]; ok {
		return name
	}
	name := string(key)
	if len(p.names) < 256 && len(name) <= 64 {
		p.names[name] = name
	}
	return name
}

// kept is how much of an oversized record's key and value is kept.
const kept = 64 << 10

// cut reduces a record to what is kept of an oversized one, freeing its buffer.
func (r *Record) cut() {
	sum := sha256.Sum256(r.Value)
	r.Oversize = &Oversize{Length: int64(len(r.Value)), SHA256: hex.EncodeToString(sum[:])}
	r.Key = bytes.Clone(r.Key[:min(len(r.Key), kept)])
	r.Value = bytes.Clone(r.Value[:min(len(r.Value), kept)])
	r.Headers = nil
}

// streamRecords parses a batch too large to be inflated as a whole. It finds
// the oversized records that are the likely reason, at the price of a second
// pass; if what remains without them is still too large, the batch is refused.
func (p *Parser) streamRecords(in Portion, b batch, out *Parsed) error {
	r, err := p.inflater.stream(b.attributes&compressionBits, b.records)
	if err != nil {
		return err
	}
	var (
		src  = bufio.NewReaderSize(r, kept)
		next = b.base
		one  []Record
		size int
	)
	for range b.count {
		rec, n, err := p.streamRecord(b, src)
		switch {
		case err != nil:
			return err
		case rec.Offset < next || rec.Offset > b.last:
			return errOrder
		}
		if size += n; size > p.inflater.limit {
			return fmt.Errorf("%w (kafka.max_record is %d)", errTooLarge, p.maxRecord)
		}
		if next = rec.Offset + 1; rec.Offset >= in.From {
			one = append(one, rec)
		}
	}
	if _, err := src.ReadByte(); err != io.EOF {
		return errTrailing
	}
	out.Records = append(out.Records, one...)
	out.Size += size
	return nil
}

// streamRecord reads one record and says how many bytes of it are kept.
func (p *Parser) streamRecord(b batch, src *bufio.Reader) (Record, int, error) {
	n, err := readVarint(src)
	if err != nil || n < smallestRecord-1 {
		return Record{}, 0, errors.Join(errRecord, err)
	}
	if n <= int64(p.maxRecord) {
		body := make([]byte, n)
		if _, err := io.ReadFull(src, body); err != nil {
			return Record{}, 0, errors.Join(errRecord, err)
		}
		r, err := p.parseRecord(b, body)
		return r, len(body), err
	}
	r, err := streamOversize(b, bufio.NewReaderSize(io.LimitReader(src, n), kept))
	if err != nil {
		return r, 0, errors.Join(errRecord, err)
	}
	return r, len(r.Key) + len(r.Value), nil
}

// streamOversize reads all of an oversized record but keeps only its start.
func streamOversize(b batch, src *bufio.Reader) (Record, error) {
	if _, err := src.ReadByte(); err != nil {
		return Record{}, err
	}
	delta, err1 := binary.ReadVarint(src)
	offset, err2 := readVarint(src)
	if err := errors.Join(err1, err2); err != nil {
		return Record{}, err
	}
	r := Record{Timestamp: b.timestamp(delta), Offset: b.base + offset}
	sum := sha256.New()
	key, _, err1 := streamBytes(src, io.Discard)
	value, length, err2 := streamBytes(src, sum)
	_, err3 := io.Copy(io.Discard, src) // headers
	r.Key, r.Value = key, value
	r.Oversize = &Oversize{Length: length, SHA256: hex.EncodeToString(sum.Sum(nil))}
	return r, errors.Join(err1, err2, err3)
}

// streamBytes reads bytes behind a length, passes all of them to w and returns
// their start and their length.
func streamBytes(src *bufio.Reader, w io.Writer) ([]byte, int64, error) {
	n, err := readVarint(src)
	if err != nil || n < 0 {
		return nil, 0, err
	}
	head := make([]byte, min(n, kept))
	if _, err := io.ReadFull(src, head); err != nil {
		return nil, 0, err
	}
	w.Write(head) //nolint:errcheck // a hash or nothing
	_, err = io.CopyN(w, src, n-int64(len(head)))
	return head, n, err
}

// readVarint reads a zigzag varint of at most 32 bits.
func readVarint(src io.ByteReader) (int64, error) {
	v, err := binary.ReadVarint(src)
	if err == nil && (v < math.MinInt32 || v > math.MaxInt32) {
		err = errRecord
	}
	return v, err
}
