package source

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"tidemark/store"
	"tidemark/store/fhir"
)

// A Record is one record of a partition.
//
// Key, Value and the values of Headers may alias the fetch answer or the
// decompressed batch they came in. Such a buffer belongs to its records alone:
// it is never written to or used again, and is freed with the last of them.
type Record struct {
	Offset    int64
	Timestamp fhir.Instant // None if it has none
	Key       []byte       // nil is null
	Value     []byte       // nil is null
	Headers   []store.Header
	Oversize  *Oversize // set: larger than the limit, Key and Value are cut to 64 KiB
}

// Oversize is what is kept of a record beyond the limit, besides its start.
type Oversize struct {
	Length int64  // of the value, bytes
	SHA256 string // of the value, hexadecimal
}

// An Aborted transaction, as a fetch answer lists it.
type Aborted struct {
	ProducerID  int64
	FirstOffset int64
}

// Portion is what one fetch answer holds of one partition.
type Portion struct {
	Partition store.Partition
	From      int64 // records with lower offsets are left out
	Epoch     int32 // of the newest record batch read before, -1 if unknown
	Aborted   []Aborted
	Data      []byte // record batches; the last may be cut
}

// Parsed is what a portion held up to where its leader epoch changes: so the
// epoch is that of any place in it.
type Parsed struct {
	Records     []Record
	Next        int64 // behind the last batch read, whatever it held
	LeaderEpoch int32 // of the record batches read
	Size        int   // bytes that the records keep alive
}

// A Parser turns record batches into records. Its zero value is not usable;
// it keeps decoders and scratch space and serves one goroutine.
type Parser struct {
	maxRecord int
	inflater  inflater
	names     map[string]string
}

// NewParser returns a parser that surfaces records of more than maxRecord
// bytes cut, and refuses batches that inflate to more than twice that size
// without holding such a record.
func NewParser(maxRecord int) *Parser {
	limit := max(2*maxRecord, minInflated)
	return &Parser{maxRecord: maxRecord, inflater: inflater{limit: limit}, names: map[string]string{}}
}

// minInflated is what any batch may inflate to, however small the limit for
// records: Kafka's default of 1 MiB per batch, compressed sixteenfold.
const minInflated = 16 << 20

// The fixed part of a record batch (magic 2) and the parts of it before the
// length field's end and before what the checksum covers.
const (
	headerSize  = 61
	prefixSize  = 12
	magicAt     = 16
	checkedFrom = 21

	compressionBits = 0x07
	logAppendBit    = 0x08
	transactionBit  = 0x10
	controlBit      = 0x20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A batch is the header of a record batch and its still compressed records.
type batch struct {
	base, last int64
	epoch      int32
	attributes int16
	baseTime   int64
	maxTime    int64
	producer   int64
	count      int
	records    []byte
}

// ParseBatches parses what a fetch answer holds of a partition.
//
// Control batches and batches of aborted transactions yield no records but
// move Next. After an error Parsed holds what lies before the batch at fault.
// The error is a *Corrupt, or a *Gap when a batch cannot continue what was
// read: one of an older leader epoch, or one of a newer epoch that begins below.
func (p *Parser) ParseBatches(in Portion) (Parsed, error) {
	out := Parsed{Next: in.From, LeaderEpoch: in.Epoch}
	aborted := newAborts(in.Aborted)
	for data := in.Data; ; {
		size, whole := batchSize(data)
		if !whole {
			return out, nil
		}
		err := p.parseBatch(in, data[:size:size], aborted, &out)
		if errors.Is(err, errEpochEnds) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		data = data[size:]
	}
}

// batchSize returns the size of the batch at the head of data and whether
// all of it, or what proves it malformed, is there.
func batchSize(data []byte) (int, bool) {
	if len(data) <= magicAt {
		return 0, false
	}
	size := prefixSize + int(int32(binary.BigEndian.Uint32(data[8:])))
	if size <= magicAt {
		return len(data), true // parseHeader refuses it
	}
	return size, size <= len(data)
}

func (p *Parser) parseBatch(in Portion, data []byte, aborted *aborts, out *Parsed) error {
	b, err := parseHeader(data)
	if err != nil {
		return &Corrupt{in.Partition, b.base, err.Error()}
	}
	if b.last < in.From {
		return nil // answers start with the batch that holds the offset; compaction may leave none
	}
	if b.base < out.Next && out.Next > in.From {
		return &Corrupt{in.Partition, b.base, "overlaps the batch before it"}
	}
	switch {
	case b.epoch >= 0 && b.epoch < out.LeaderEpoch:
		return forked(in.Partition, out.Next, "the log continues with leader epoch %d after epoch %d was read", b.epoch, out.LeaderEpoch)
	case b.epoch > out.LeaderEpoch && out.LeaderEpoch >= 0 && b.base < out.Next:
		return forked(in.Partition, out.Next, "leader epoch %d begins at offset %d, below what was read of epoch %d", b.epoch, b.base, out.LeaderEpoch)
	case b.epoch > out.LeaderEpoch && out.Next > in.From:
		return errEpochEnds
	}
	whole := len(out.Records)
	if err := p.parseRecords(in, b, aborted, out); err != nil {
		out.Records = out.Records[:whole]
		return &Corrupt{in.Partition, b.base, err.Error()}
	}
	out.Next = b.last + 1
	out.LeaderEpoch = max(out.LeaderEpoch, b.epoch)
	return nil
}

// errEpochEnds says that a batch is of another epoch than those before it.
var errEpochEnds = errors.New("the leader epoch ends")

var (
	errOldFormat = errors.New("message format before version 2; rewrite the topic with a current producer")
	errHeader    = errors.New("malformed header")
	errChecksum  = errors.New("checksum does not match")
)

func parseHeader(data []byte) (batch, error) {
	b := batch{base: int64(binary.BigEndian.Uint64(data))}
	switch magic := int8(data[magicAt]); {
	case magic == 0 || magic == 1:
		return b, errOldFormat
	case magic != 2:
		return b, fmt.Errorf("unknown message format %d", magic)
	case len(data) < headerSize || len(data) != prefixSize+int(int32(binary.BigEndian.Uint32(data[8:]))):
		return b, errHeader
	}
	if crc32.Checksum(data[checkedFrom:], castagnoli) != binary.BigEndian.Uint32(data[17:]) {
		return b, errChecksum
	}
	b.epoch = int32(binary.BigEndian.Uint32(data[12:]))
	c := cursor{b: data[checkedFrom:]}
	b.attributes = c.int16()
	b.last = b.base + int64(c.int32())
	b.baseTime, b.maxTime = c.int64(), c.int64()
	b.producer = c.int64()
	c.take(6) // producer epoch: markers of transactions v2 carry another one; base sequence
	b.count = int(c.int32())
	b.records = c.b
	if b.base < 0 || b.last < b.base || b.last == int64(^uint64(0)>>1) || b.count < 0 {
		return b, errHeader
	}
	return b, nil
}

// parseRecords appends the batch's records to out, unless they are no data.
func (p *Parser) parseRecords(in Portion, b batch, aborted *aborts, out *Parsed) error {
	aborted.reach(b.last)
	drop := b.attributes&transactionBit != 0 && aborted.holds(b.producer)
	switch {
	case b.count == 0 && len(b.records) == 0:
		return nil // everything compacted away
	case b.attributes&controlBit != 0:
		return p.parseMarker(b, aborted)
	case drop:
		return nil
	}
	raw, err := p.inflater.inflate(b.attributes&compressionBits, b.records)
	if errors.Is(err, errTooLarge) {
		return p.streamRecords(in, b, out)
	}
	if err != nil {
		return err
	}
	return p.sliceRecords(in, b, raw, out)
}

// parseMarker reads the end of a transaction. An abort ends the producer's
// aborted transaction: what it sends next is data again, until the next one.
func (p *Parser) parseMarker(b batch, aborted *aborts) error {
	var one Parsed
	raw, err := p.inflater.inflate(b.attributes&compressionBits, b.records)
	if err != nil {
		return err
	}
	if err := p.sliceRecords(Portion{From: b.base}, b, raw, &one); err != nil {
		return err
	}
	for _, r := range one.Records {
		key := cursor{b: r.Key}
		key.int16() // version
		if kind := key.int16(); key.bad {
			return errors.New("malformed control record")
		} else if kind == abortMarker {
			aborted.end(b.producer)
		}
	}
	return nil
}

const abortMarker = 0

// aborts follows which producers are inside an aborted transaction while the
// batches of an answer go by. Only the producer id counts: its epoch may be
// raised by the marker that ends the transaction.
type aborts struct {
	pending []Aborted // in order of their first offset
	open    map[int64]bool
}

func newAborts(list []Aborted) *aborts {
	if len(list) == 0 {
		return &aborts{}
	}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Aborted) int { return cmp.Compare(a.FirstOffset, b.FirstOffset) })
	return &aborts{pending: list, open: map[int64]bool{}}
}

func (a *aborts) reach(offset int64) {
	for len(a.pending) > 0 && a.pending[0].FirstOffset <= offset {
		a.open[a.pending[0].ProducerID] = true
		a.pending = a.pending[1:]
	}
}

func (a *aborts) holds(producer int64) bool { return a.open[producer] }
func (a *aborts) end(producer int64)        { delete(a.open, producer) }
