package source

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tidemark/store"
	"tidemark/store/fhir"
)

// testBatch builds record batches byte by byte, also such as brokers make and
// producers do not.
type testBatch struct {
	base     int64
	last     int32 // last offset delta; by default that of the last record
	epoch    int32
	attrs    int16
	baseTime int64
	maxTime  int64
	producer int64
	records  []testRecord
	codec    kgo.CompressionCodecType
	xerial   bool
}

type testRecord struct {
	delta      int64
	time       int64
	key, value []byte
	headers    []store.Header
}

func text(s string) []byte { return []byte(s) }

func values(vs ...string) []testRecord {
	rs := make([]testRecord, len(vs))
	for i, v := range vs {
		rs[i] = testRecord{delta: int64(i), key: text("k"), value: text(v)}
	}
	return rs
}

func marker(base, producer int64, commit int16) testBatch {
	key := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(commit))
	return testBatch{
		base: base, attrs: transactionBit | controlBit, producer: producer,
		records: []testRecord{{key: key, value: make([]byte, 6)}},
	}
}

const commitMarker = 1

func appendVarbytes(dst, b []byte) []byte {
	if b == nil {
		return binary.AppendVarint(dst, -1)
	}
	return append(binary.AppendVarint(dst, int64(len(b))), b...)
}

func (r testRecord) append(dst []byte) []byte {
	body := []byte{0}
	body = binary.AppendVarint(body, r.time)
	body = binary.AppendVarint(body, r.delta)
	body = appendVarbytes(body, r.key)
	body = appendVarbytes(body, r.value)
	body = binary.AppendVarint(body, int64(len(r.headers)))
	for _, h := range r.headers {
		body = appendVarbytes(body, []byte(h.Key))
		body = appendVarbytes(body, h.Value)
	}
	return append(binary.AppendVarint(dst, int64(len(body))), body...)
}

func (b testBatch) bytes(t testing.TB) []byte {
	t.Helper()
	var raw []byte
	last := b.last
	for _, r := range b.records {
		raw = r.append(raw)
		last = max(last, int32(r.delta))
	}
	return b.frame(last, int32(len(b.records)), b.compress(t, raw))
}

func (b testBatch) compress(t testing.TB, raw []byte) []byte {
	t.Helper()
	var codec kgo.CompressionCodec
	switch b.codec {
	case kgo.CodecNone:
		return raw
	case kgo.CodecGzip:
		codec = kgo.GzipCompression()
	case kgo.CodecSnappy:
		codec = kgo.SnappyCompression()
	case kgo.CodecLz4:
		codec = kgo.Lz4Compression()
	case kgo.CodecZstd:
		codec = kgo.ZstdCompression()
	}
	if b.xerial {
		return xerialFrame(t, raw)
	}
	c, err := kgo.DefaultCompressor(codec)
	if err != nil {
		t.Fatal(err)
	}
	out, _ := c.Compress(new(bytes.Buffer), raw)
	return out
}

// xerialFrame frames raw as the Java producer does, in blocks of 32 KiB.
func xerialFrame(t testing.TB, raw []byte) []byte {
	t.Helper()
	c, err := kgo.DefaultCompressor(kgo.SnappyCompression())
	if err != nil {
		t.Fatal(err)
	}
	out := append(bytes.Clone(xerialMagic), 0, 0, 0, 1, 0, 0, 0, 1)
	for len(raw) > 0 {
		n := min(len(raw), 32<<10)
		block, _ := c.Compress(new(bytes.Buffer), raw[:n])
		out = binary.BigEndian.AppendUint32(out, uint32(len(block)))
		out, raw = append(out, block...), raw[n:]
	}
	return out
}

func (b testBatch) frame(last, count int32, records []byte) []byte {
	out := binary.BigEndian.AppendUint64(nil, uint64(b.base))
	out = binary.BigEndian.AppendUint32(out, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(b.epoch))
	out = append(out, 2, 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint16(out, uint16(b.attrs)|uint16(b.codec))
	out = binary.BigEndian.AppendUint32(out, uint32(last))
	out = binary.BigEndian.AppendUint64(out, uint64(b.baseTime))
	out = binary.BigEndian.AppendUint64(out, uint64(b.maxTime))
	out = binary.BigEndian.AppendUint64(out, uint64(b.producer))
	out = append(out, 0, 0, 0, 0, 0, 0) // producer epoch, base sequence
	out = binary.BigEndian.AppendUint32(out, uint32(count))
	return reseal(append(out, records...))
}

// reseal sets length and checksum of a batch to what they should be.
func reseal(b []byte) []byte {
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-prefixSize))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[checkedFrom:], castagnoli))
	return b
}

func join(t testing.TB, batches ...testBatch) []byte {
	t.Helper()
	var out []byte
	for _, b := range batches {
		out = append(out, b.bytes(t)...)
	}
	return out
}

// got is what tests compare of a record.
type got struct {
	Offset int64
	Value  string
}

func gotten(rs []Record) []got {
	var out []got
	for _, r := range rs {
		v := string(r.Value)
		if r.Value == nil {
			v = "<null>"
		}
		out = append(out, got{r.Offset, v})
	}
	return out
}

func TestParseBatches(t *testing.T) {
	txn := func(base, producer int64, vs ...string) testBatch {
		return testBatch{base: base, producer: producer, attrs: transactionBit, records: values(vs...)}
	}
	survivors := testBatch{base: 10, last: 9, records: []testRecord{{delta: 3, value: text("d")}, {delta: 5, value: text("f")}}}
	for _, test := range []struct {
		name    string
		in      Portion
		batches []testBatch
		cut     int // bytes cut from the end
		want    []got
		next    int64
		epoch   int32
	}{
		{name: "nothing", in: Portion{From: 7}, next: 7},
		{
			name: "two batches", batches: []testBatch{{base: 0, epoch: 3, records: values("a", "b")}, {base: 2, epoch: 3, records: values("c")}},
			want: []got{{0, "a"}, {1, "b"}, {2, "c"}}, next: 3, epoch: 3,
		},
		{
			name: "starts inside a batch", in: Portion{From: 1}, batches: []testBatch{{base: 0, records: values("a", "b")}},
			want: []got{{1, "b"}}, next: 2,
		},
		{
			name: "starts behind a batch", in: Portion{From: 5}, batches: []testBatch{{base: 0, records: values("a", "b")}, {base: 5, records: values("f")}},
			want: []got{{5, "f"}}, next: 6,
		},
		{
			name: "last batch cut", batches: []testBatch{{base: 0, records: values("a")}, {base: 1, records: values("b")}}, cut: 1,
			want: []got{{0, "a"}}, next: 1,
		},
		{
			name: "cut inside the header", batches: []testBatch{{base: 0, records: values("a")}, {base: 1, records: values("b")}}, cut: 60,
			want: []got{{0, "a"}}, next: 1,
		},
		{
			name: "compacted: holes and a missing tail", in: Portion{From: 10}, batches: []testBatch{survivors},
			want: []got{{13, "d"}, {15, "f"}}, next: 20,
		},
		{name: "compacted: read on inside the missing tail", in: Portion{From: 16}, batches: []testBatch{survivors}, next: 20},
		{
			name: "compacted: empty batch first", batches: []testBatch{{base: 0, last: 4}, {base: 5, records: values("f")}},
			want: []got{{5, "f"}}, next: 6,
		},
		{
			name: "compacted: empty batch last", batches: []testBatch{{base: 0, records: values("a")}, {base: 1, last: 8}},
			want: []got{{0, "a"}}, next: 10,
		},
		{
			name: "a hole in the log", in: Portion{From: 3}, batches: []testBatch{{base: 9, records: values("j")}},
			want: []got{{9, "j"}}, next: 10,
		},
		{
			name: "control records are no data", batches: []testBatch{txn(0, 1, "a"), marker(1, 1, commitMarker)},
			want: []got{{0, "a"}}, next: 2,
		},
		{
			name: "aborted transaction", in: Portion{Aborted: []Aborted{{1, 0}}},
			batches: []testBatch{txn(0, 1, "a", "b"), marker(2, 1, abortMarker), txn(3, 1, "d"), marker(4, 1, commitMarker)},
			want:    []got{{3, "d"}}, next: 5,
		},
		{
			name: "interleaved transactions", in: Portion{Aborted: []Aborted{{1, 0}}},
			batches: []testBatch{
				txn(0, 1, "a"), txn(1, 2, "b"),
				{base: 2, producer: 1, records: values("plain")},
				txn(3, 1, "d"),
				marker(4, 2, commitMarker), marker(5, 1, abortMarker),
			},
			want: []got{{1, "b"}, {2, "plain"}}, next: 6,
		},
		{
			name: "aborted list out of order", in: Portion{Aborted: []Aborted{{1, 4}, {1, 0}}},
			batches: []testBatch{txn(0, 1, "a"), marker(1, 1, abortMarker), txn(2, 1, "c"), marker(3, 1, commitMarker), txn(4, 1, "e"), marker(5, 1, abortMarker)},
			want:    []got{{2, "c"}}, next: 6,
		},
		{
			name: "aborted transaction begun before the fetch", in: Portion{From: 5, Aborted: []Aborted{{1, 2}}},
			batches: []testBatch{txn(5, 1, "f"), marker(6, 1, abortMarker), txn(7, 1, "h")},
			want:    []got{{7, "h"}}, next: 8,
		},
		{
			name: "marker compacted away leaves the rest of the list alone", in: Portion{Aborted: []Aborted{{1, 3}}},
			batches: []testBatch{{base: 0, last: 2, attrs: transactionBit | controlBit, producer: 1}, txn(3, 1, "d"), marker(4, 1, abortMarker)},
			next:    5,
		},
		{
			name: "null and empty values", batches: []testBatch{{base: 0, records: []testRecord{{value: nil}, {delta: 1, value: text("")}}}},
			want: []got{{0, "<null>"}, {1, ""}}, next: 2,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			data := join(t, test.batches...)
			test.in.Data = data[:len(data)-test.cut]
			out, err := NewParser(1 << 20).ParseBatches(test.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, gotten(out.Records)); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
			if out.Next != test.next || out.LeaderEpoch != test.epoch {
				t.Errorf("next %d epoch %d, want %d and %d", out.Next, out.LeaderEpoch, test.next, test.epoch)
			}
		})
	}
}

func TestParseKeepsNullAndEmptyApart(t *testing.T) {
	in := testBatch{records: []testRecord{
		{key: nil, value: nil, headers: []store.Header{{Key: "", Value: nil}, {Key: "h", Value: text("")}}},
		{delta: 1, key: text(""), value: text("")},
	}}
	for _, codec := range []kgo.CompressionCodecType{kgo.CodecNone, kgo.CodecGzip, kgo.CodecSnappy, kgo.CodecLz4, kgo.CodecZstd} {
		in.codec = codec
		out, err := NewParser(1 << 20).ParseBatches(Portion{Data: in.bytes(t)})
		if err != nil {
			t.Fatal(err)
		}
		want := []Record{
			{Offset: 0, Headers: []store.Header{{Key: "", Value: nil}, {Key: "h", Value: []byte{}}}},
			{Offset: 1, Key: []byte{}, Value: []byte{}},
		}
		if diff := cmp.Diff(want, out.Records); diff != "" {
			t.Errorf("codec %d (-want +got):\n%s", codec, diff)
		}
	}
}

func TestParseTimestamps(t *testing.T) {
	records := []testRecord{{time: 0}, {delta: 1, time: 7}, {delta: 2, time: -5}}
	for _, test := range []struct {
		name string
		in   testBatch
		want []fhir.Instant
	}{
		{"create time", testBatch{baseTime: 1000, maxTime: 1007, records: records}, []fhir.Instant{1000, 1007, 995}},
		{"log append time", testBatch{attrs: logAppendBit, baseTime: 1000, maxTime: 5000, records: records}, []fhir.Instant{5000, 5000, 5000}},
		{"none", testBatch{baseTime: -1, maxTime: -1, records: records[:1]}, []fhir.Instant{fhir.None}},
	} {
		out, err := NewParser(1 << 20).ParseBatches(Portion{Data: test.in.bytes(t)})
		if err != nil {
			t.Fatal(err)
		}
		var got []fhir.Instant
		for _, r := range out.Records {
			got = append(got, r.Timestamp)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestParseCodecs(t *testing.T) {
	var records []testRecord
	for i := range 2000 {
		records = append(records, testRecord{
			delta: int64(i), time: int64(i), key: text("Patient/1"),
			value: []byte(strings.Repeat(string(rune('a'+i%26)), i%300)),
		})
	}
	plain := testBatch{records: records}
	want, err := NewParser(1 << 20).ParseBatches(Portion{Data: plain.bytes(t)})
	if err != nil {
		t.Fatal(err)
	}
	p := NewParser(1 << 20)
	for _, codec := range []testBatch{
		{codec: kgo.CodecGzip},
		{codec: kgo.CodecSnappy},
		{codec: kgo.CodecSnappy, xerial: true},
		{codec: kgo.CodecLz4},
		{codec: kgo.CodecZstd},
	} {
		codec.records = records
		for range 2 { // decoders are used again
			got, err := p.ParseBatches(Portion{Data: codec.bytes(t)})
			if err != nil {
				t.Fatalf("codec %d: %v", codec.codec, err)
			}
			if !reflect.DeepEqual(want.Records, got.Records) { // cmp takes seconds for so many
				t.Fatalf("codec %d: other records than uncompressed", codec.codec)
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := testBatch{base: 0, records: values("a", "b")}
	change := func(at int, to ...byte) func([]byte) []byte {
		return func(b []byte) []byte { return reseal(append(b[:at:at], append(to, b[at+len(to):]...)...)) }
	}
	old := func(magic byte) func([]byte) []byte {
		return func(b []byte) []byte { b[magicAt] = magic; return b }
	}
	for _, test := range []struct {
		name   string
		in     testBatch
		change func([]byte) []byte
		detail string
	}{
		{"flipped bit", good, func(b []byte) []byte { b[70] ^= 1; return b }, "checksum"},
		{"message format 0", good, old(0), "format before version 2"},
		{"message format 1", good, old(1), "format before version 2"},
		{"message format 3", good, old(3), "unknown message format"},
		{"negative length", good, func(b []byte) []byte { b[8] = 0xff; return b }, "malformed header"},
		{"length without header", good, func(b []byte) []byte { return reseal(b[:50]) }, "malformed header"},
		{"negative offset", good, change(0, 0x80), "malformed header"},
		{"negative last offset", good, change(23, 0xff), "malformed header"},
		{"negative count", good, change(57, 0xff), "malformed header"},
		{"more records than bytes", good, change(57, 0x7f), "malformed record"},
		{"fewer records than bytes", good, change(60, 1), "more bytes"},
		{"one record too many", good, change(60, 3), "malformed record"},
		{"last offset below the records", good, change(26, 0), "out of order"},
		{"offsets out of order", testBatch{last: 9, records: []testRecord{{delta: 3}, {delta: 2}}}, nil, "out of order"},
		{"same offset twice", testBatch{last: 9, records: []testRecord{{delta: 3}, {delta: 3}}}, nil, "out of order"},
		{"negative offset delta", testBatch{base: 5, last: 9, records: []testRecord{{delta: -1}}}, nil, "out of order"},
		{"key longer than the record", good, change(headerSize+4, 0x7e), "malformed record"},
		{"header without key", testBatch{records: []testRecord{{headers: []store.Header{{Key: "h"}}}}}, change(headerSize+7, 1), "malformed record"},
		{"many headers", good, change(headerSize+8, 0x7e), "malformed record"},
		{"unknown codec", testBatch{records: values("a"), attrs: 7}, nil, "codec 7: unknown"},
		{"not gzip", testBatch{records: values("a"), attrs: codecGzip}, nil, "gzip"},
		{"not snappy", testBatch{records: values("a"), attrs: codecSnappy}, nil, "snappy"},
		{"not lz4", testBatch{records: values("a"), attrs: codecLZ4}, nil, "lz4"},
		{"not zstd", testBatch{records: values("a"), attrs: codecZstd}, nil, "zstd"},
		{"malformed marker", testBatch{attrs: controlBit, records: []testRecord{{key: text("x")}}}, nil, "control record"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bad := test.in.bytes(t)
			if test.change != nil {
				bad = test.change(bad)
			}
			// A sound batch before the bad one is kept.
			first := testBatch{base: 0, records: values("z")}.bytes(t)
			id := store.Partition{Topic: "t", ID: 4}
			if test.in.base == 0 && test.name != "negative offset" {
				binary.BigEndian.PutUint64(bad, 1)
			}
			out, err := NewParser(1 << 20).ParseBatches(Portion{Partition: id, Data: append(first, bad...)})
			corrupt, ok := errors.AsType[*Corrupt](err)
			if !ok {
				t.Fatalf("got error %v, want one of corruption", err)
			}
			if corrupt.Partition != id || !strings.Contains(corrupt.Detail, test.detail) {
				t.Errorf("got %v, want %q", corrupt, test.detail)
			}
			if out.Next != 1 || len(out.Records) != 1 {
				t.Errorf("kept %d records and next %d, want 1 and 1", len(out.Records), out.Next)
			}
		})
	}
}

func TestParseRefusesOverlap(t *testing.T) {
	data := join(t, testBatch{base: 0, records: values("a", "b")}, testBatch{base: 1, records: values("c", "d")})
	_, err := NewParser(1 << 20).ParseBatches(Portion{Data: data})
	if corrupt, ok := errors.AsType[*Corrupt](err); !ok || corrupt.Offset != 1 {
		t.Errorf("got %v, want corruption at offset 1", err)
	}
}

func TestParseFindsForks(t *testing.T) {
	data := join(t, testBatch{base: 4, epoch: 5, records: values("a")}, testBatch{base: 5, epoch: 4, records: values("b")})
	out, err := NewParser(1 << 20).ParseBatches(Portion{From: 4, Epoch: 5, Data: data})
	gap, ok := errors.AsType[*Gap](err)
	if !ok || gap.Reason != Forked || gap.Next != 5 {
		t.Fatalf("got %v, want a fork at offset 5", err)
	}
	if out.Next != 5 || out.LeaderEpoch != 5 {
		t.Errorf("next %d, epoch %d, want 5 and 5", out.Next, out.LeaderEpoch)
	}
	// An unclean election cuts the log at 2, and the new leader goes on from there.
	data = join(t, testBatch{base: 2, epoch: 6, records: values("a", "b", "c", "d")})
	if _, err = NewParser(1 << 20).ParseBatches(Portion{From: 4, Epoch: 5, Data: data}); !errors.As(err, &gap) || gap.Reason != Forked || gap.Next != 4 {
		t.Errorf("got %v, want a fork at offset 4", err)
	}
	// Somebody may have begun within a batch, and then within it be stopped.
	for _, epoch := range []int32{-1, 6} {
		if out, err = NewParser(1 << 20).ParseBatches(Portion{From: 4, Epoch: epoch, Data: data}); err != nil || len(out.Records) != 2 {
			t.Errorf("begun within a batch, epoch %d: %v, %d records", epoch, err, len(out.Records))
		}
	}
	// What an unknown epoch says proves nothing.
	data = join(t, testBatch{base: 4, epoch: -1, records: values("a")})
	if out, err = NewParser(1 << 20).ParseBatches(Portion{From: 4, Epoch: 5, Data: data}); err != nil || out.LeaderEpoch != 5 {
		t.Errorf("unknown epoch: %v, epoch %d", err, out.LeaderEpoch)
	}
}

// Whoever stops within a portion must know the epoch there, or it finds a fork
// when it goes on.
func TestParseEndsWithTheEpoch(t *testing.T) {
	data := join(t, testBatch{base: 0, epoch: 4, records: values("a", "b")},
		testBatch{base: 2, epoch: 4, records: values("c")}, testBatch{base: 3, epoch: 5, records: values("d")})
	for _, want := range []Portion{{From: 0, Epoch: -1}, {From: 2, Epoch: 4}, {From: 3, Epoch: 4}} {
		in := want
		in.Data = data
		out, err := NewParser(1 << 20).ParseBatches(in)
		next, epoch := int64(3), int32(4)
		if in.From == 3 {
			next, epoch = 4, 5
		}
		if err != nil || out.Next != next || out.LeaderEpoch != epoch || len(out.Records) != int(next-in.From) {
			t.Errorf("from %d: next %d, epoch %d, %d records, %v", in.From, out.Next, out.LeaderEpoch, len(out.Records), err)
		}
	}
}

func TestParseOversize(t *testing.T) {
	const limit = 1 << 20
	noise := rand.NewChaCha8([32]byte{1})
	small := make([]byte, 100)
	noise.Read(small)
	big := bytes.Repeat(small, 200_000) // 20 MB: beyond what a batch may inflate to
	over := bytes.Repeat(small, 20_000) // 2 MB: beyond the limit for records only
	for _, test := range []struct {
		name  string
		value []byte
		batch testBatch
	}{
		{"plain", over, testBatch{}},
		{"gzip", over, testBatch{codec: kgo.CodecGzip}},
		{"streamed gzip", big, testBatch{codec: kgo.CodecGzip}},
		{"streamed snappy", big, testBatch{codec: kgo.CodecSnappy, xerial: true}},
		{"streamed lz4", big, testBatch{codec: kgo.CodecLz4}},
		{"streamed zstd", big, testBatch{codec: kgo.CodecZstd}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := test.batch
			b.base, b.baseTime = 50, 1000
			b.records = []testRecord{
				{key: text("before"), value: text("x")},
				{delta: 1, time: 5, key: text("big"), value: test.value, headers: []store.Header{{Key: "h", Value: text("v")}}},
				{delta: 2, key: text("after"), value: text("y")},
			}
			out, err := NewParser(limit).ParseBatches(Portion{From: 50, Data: b.bytes(t)})
			if err != nil {
				t.Fatal(err)
			}
			if len(out.Records) != 3 || out.Next != 53 {
				t.Fatalf("%d records, next %d", len(out.Records), out.Next)
			}
			sum := sha256.Sum256(test.value)
			want := Record{
				Offset: 51, Timestamp: 1005, Key: text("big"), Value: test.value[:kept],
				Oversize: &Oversize{Length: int64(len(test.value)), SHA256: hex.EncodeToString(sum[:])},
			}
			if diff := cmp.Diff(want, out.Records[1]); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if string(out.Records[0].Value) != "x" || string(out.Records[2].Value) != "y" {
				t.Error("neighbours of the oversized record are damaged")
			}
		})
	}
}

func TestParseRefusesBombs(t *testing.T) {
	zeros := make([]byte, 1<<20)
	var records []testRecord
	for i := range 20 {
		records = append(records, testRecord{delta: int64(i), value: zeros[:1<<20-100]})
	}
	for _, b := range []testBatch{
		{codec: kgo.CodecGzip},
		{codec: kgo.CodecSnappy},
		{codec: kgo.CodecSnappy, xerial: true},
		{codec: kgo.CodecLz4},
		{codec: kgo.CodecZstd},
	} {
		b.records = records
		_, err := NewParser(1 << 20).ParseBatches(Portion{Data: b.bytes(t)})
		if corrupt, ok := errors.AsType[*Corrupt](err); !ok || !strings.Contains(corrupt.Detail, errTooLarge.Error()) {
			t.Errorf("codec %d: got %v, want a refusal", b.codec, err)
		}
	}
}

func TestParseFetchKeepsNothingItCannotHold(t *testing.T) {
	// An array of 2^31-1 topics in 20 bytes.
	body := append(make([]byte, 10), 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0)
	if _, err := parseFetch(body); !errors.Is(err, errMalformed) {
		t.Errorf("got %v, want a malformed response", err)
	}
	body = append(make([]byte, 11), 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0, 0, 0)
	if _, err := parseFetchByID(body); !errors.Is(err, errMalformed) {
		t.Errorf("got %v, want a malformed response", err)
	}
}

func FuzzParseBatches(f *testing.F) {
	txn := int16(transactionBit)
	f.Add(join(f, testBatch{records: values("a", "b")}), int64(0), uint8(0))
	f.Add(join(f, testBatch{records: values("a", "b"), codec: kgo.CodecZstd}, testBatch{base: 2, last: 7}), int64(1), uint8(0))
	f.Add(join(f, testBatch{producer: 1, attrs: txn, records: values("a")}, marker(1, 1, abortMarker),
		testBatch{base: 2, producer: 1, attrs: txn, records: values("c")}, marker(3, 1, commitMarker)), int64(0), uint8(1))
	f.Add(join(f, testBatch{records: []testRecord{{headers: []store.Header{{Key: "h"}}}}, attrs: logAppendBit, maxTime: 99}), int64(0), uint8(0))
	for _, codec := range []kgo.CompressionCodecType{kgo.CodecGzip, kgo.CodecSnappy, kgo.CodecLz4} {
		f.Add(join(f, testBatch{records: values("a", "b"), codec: codec}), int64(0), uint8(0))
	}
	f.Add(join(f, testBatch{records: values("a"), codec: kgo.CodecSnappy, xerial: true}), int64(0), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, from int64, abort uint8) {
		data = mend(bytes.Clone(data))
		aborted := abortedAt(data, int(abort))
		in := Portion{From: max(0, from), Epoch: -1, Data: data}
		if _, err := NewParser(1 << 20).ParseBatches(in); err != nil {
			return // stricter than the other; what it lets pass must be the same
		}
		in.Aborted = aborted // whose data we do not look into
		mine, err := NewParser(1 << 20).ParseBatches(in)
		if err != nil {
			t.Fatalf("with an aborted transaction: %v", err)
		}
		ref := kmsg.FetchResponseTopicPartition{RecordBatches: data}
		for _, a := range aborted {
			ref.AbortedTransactions = append(ref.AbortedTransactions,
				kmsg.FetchResponseTopicPartitionAbortedTransaction{ProducerID: a.ProducerID, FirstOffset: a.FirstOffset})
		}
		theirs, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Offset: in.From, IsolationLevel: kgo.ReadCommitted()},
			&ref, kgo.DefaultDecompressor(), nil)
		if theirs.Err != nil {
			t.Fatalf("we take what franz-go refuses: %v", theirs.Err)
		}
		if next != mine.Next {
			t.Fatalf("next %d, franz-go has %d", mine.Next, next)
		}
		if diff := cmp.Diff(fromKgo(theirs.Records, mine.Records), append([]Record{}, mine.Records...)); diff != "" {
			t.Fatalf("(-franz-go +ours):\n%s", diff)
		}
	})
}

// mend makes lengths and checksums right, so that mutations reach what lies
// behind them, and keeps control batches such as only brokers write them.
func mend(data []byte) []byte {
	for rest := data; ; {
		size, whole := batchSize(rest)
		if !whole {
			return data
		}
		if size >= headerSize {
			if rest[22]&controlBit != 0 {
				rest[22] |= transactionBit
			}
			if size == headerSize { // the other would inflate nothing and fail
				rest[22] &^= compressionBits
			}
			reseal(rest[:size])
		}
		rest = rest[size:]
	}
}

// abortedAt lists the first producer's transaction as aborted from the n-th
// batch on; 0 is none.
func abortedAt(data []byte, n int) []Aborted {
	for i := 1; n > 0; i++ {
		size, whole := batchSize(data)
		if !whole || size < headerSize {
			return nil
		}
		if i == n {
			return []Aborted{{ProducerID: int64(binary.BigEndian.Uint64(data[43:])), FirstOffset: int64(binary.BigEndian.Uint64(data))}}
		}
		data = data[size:]
	}
	return nil
}

// lastTime is about the last instant that franz-go's times can hold.
const lastTime = 9_000_000_000_000

// fromKgo makes franz-go's records comparable to ours. Of timestamps that it
// cannot hold or that mean none, it has nothing to say.
func fromKgo(theirs []*kgo.Record, ours []Record) []Record {
	out := []Record{}
	for i, r := range theirs {
		n := Record{Offset: r.Offset, Timestamp: fhir.Instant(r.Timestamp.UnixMilli()), Key: r.Key, Value: r.Value}
		if i < len(ours) && (ours[i].Timestamp == fhir.None || ours[i].Timestamp > lastTime) {
			n.Timestamp = ours[i].Timestamp
		}
		for _, h := range r.Headers {
			n.Headers = append(n.Headers, store.Header{Key: h.Key, Value: h.Value})
		}
		out = append(out, n)
	}
	return out
}

func BenchmarkParse(b *testing.B) {
	resource := `{"resourceType":"Observation","id":"%","status":"final","code":{"coding":[{"system":"http://loinc.org","code":"8867-4"}]},"subject":{"reference":"Patient/%"},"valueQuantity":{"value":%}}`
	noise := rand.New(rand.NewPCG(1, 2))
	var records []testRecord
	var size int64
	for i := range 400 {
		var v strings.Builder
		for v.Len() < 1800 {
			id := make([]byte, 12)
			for j := range id {
				id[j] = byte(noise.Uint32())
			}
			v.WriteString(strings.ReplaceAll(resource, "%", hex.EncodeToString(id)))
		}
		records = append(records, testRecord{delta: int64(i), key: text("Observation/1"), value: text(v.String())})
		size += int64(v.Len())
	}
	for _, codec := range []struct {
		name string
		testBatch
	}{
		{"none", testBatch{}},
		{"gzip", testBatch{codec: kgo.CodecGzip}},
		{"snappy", testBatch{codec: kgo.CodecSnappy}},
		{"xerial", testBatch{codec: kgo.CodecSnappy, xerial: true}},
		{"lz4", testBatch{codec: kgo.CodecLz4}},
		{"zstd", testBatch{codec: kgo.CodecZstd}},
	} {
		codec.records = records
		data := codec.bytes(b)
		b.Run(codec.name, func(b *testing.B) {
			p := NewParser(128 << 20)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				out, err := p.ParseBatches(Portion{Data: data})
				if err != nil || len(out.Records) != len(records) {
					b.Fatal(err, len(out.Records))
				}
			}
		})
	}
}
