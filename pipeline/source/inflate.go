package source

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// The codecs of record batches.
const (
	codecNone = iota
	codecGzip
	codecSnappy
	codecLZ4
	codecZstd
)

var codecNames = [8]string{"none", "gzip", "snappy", "lz4", "zstd", "5", "6", "7"}

var (
	errTooLarge = errors.New("inflates to more than is allowed")
	errCodec    = errors.New("unknown")
	errXerial   = errors.New("malformed snappy framing")
)

// An inflater decompresses the records of a batch. Its decoders and scratch
// space are kept from batch to batch.
type inflater struct {
	limit   int
	scratch []byte
	gzip    gzip.Reader
	lz4     *lz4.Reader
	zstd    *zstd.Decoder
}

// maxScratch bounds the space kept between batches; one that inflates further
// is rare enough to pay for its own.
const maxScratch = 16 << 20

// inflate returns the records of a batch in a buffer of their own, or src
// itself if it is not compressed.
//
// Codecs that do not tell their size beforehand inflate into scratch space
// first: a copy is cheaper than the half-empty buffers of growing, which would
// stay in memory until the last of their records is committed.
func (f *inflater) inflate(codec int16, src []byte) ([]byte, error) {
	if codec == codecNone {
		return src, nil
	}
	out, err := f.decompress(codec, src)
	if err != nil {
		return nil, fmt.Errorf("codec %s: %w", codecNames[codec&compressionBits], err)
	}
	return out, nil
}

func (f *inflater) decompress(codec int16, src []byte) ([]byte, error) {
	var err error
	switch codec {
	case codecSnappy:
		return f.unsnappy(src)
	case codecZstd:
		f.scratch, err = f.unzstd(src)
	default:
		var r io.Reader
		if r, err = f.open(codec, src); err == nil {
			f.scratch, err = readUpTo(r, f.scratch[:0], f.limit)
		}
	}
	scratch := f.scratch
	if cap(scratch) > maxScratch {
		f.scratch = nil
	}
	if err != nil {
		return nil, err
	}
	return bytes.Clone(scratch), nil
}

// stream is inflate for a batch that is too large to be held.
func (f *inflater) stream(codec int16, src []byte) (io.Reader, error) {
	switch codec {
	case codecSnappy:
		if !isXerial(src) { // one block, which its library inflates whole or not at all
			return nil, errTooLarge
		}
		return &xerialReader{src: src[xerialHeader:], limit: f.limit}, nil
	case codecZstd:
		return zstd.NewReader(bytes.NewReader(src), zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	default:
		return f.open(codec, src)
	}
}

func (f *inflater) open(codec int16, src []byte) (io.Reader, error) {
	switch codec {
	case codecGzip:
		return &f.gzip, f.gzip.Reset(bytes.NewReader(src))
	case codecLZ4:
		if f.lz4 == nil {
			f.lz4 = lz4.NewReader(nil)
		}
		f.lz4.Reset(bytes.NewReader(src))
		return f.lz4, nil
	}
	return nil, errCodec
}

// readUpTo appends all of r to dst, which is as long as limit at most.
func readUpTo(r io.Reader, dst []byte, limit int) ([]byte, error) {
	for {
		if len(dst) > limit {
			return dst[:0], errTooLarge
		}
		if len(dst) == cap(dst) {
			grown := make([]byte, len(dst), max(1<<20, 2*cap(dst)))
			copy(grown, dst)
			dst = grown
		}
		n, err := r.Read(dst[len(dst):min(cap(dst), limit+1)])
		dst = dst[:len(dst)+n]
		if err == io.EOF {
			return dst, nil
		}
		if err != nil {
			return dst[:0], err
		}
	}
}

// maxWindow is the largest zstd window we keep in memory: what level 22
// without its "long" options asks for.
const maxWindow = 128 << 20

func (f *inflater) unzstd(src []byte) ([]byte, error) {
	if f.zstd == nil {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(uint64(f.limit)), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		f.zstd = d
	}
	out, err := f.zstd.DecodeAll(src, f.scratch[:0])
	if errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return out[:0], errTooLarge
	}
	return out, err
}

// Snappy comes as one raw block or, from Java, as blocks in a framing named
// after its library: a header of 16 bytes, then length and block in turn.
var xerialMagic = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

const xerialHeader = 16

func isXerial(src []byte) bool {
	return len(src) >= xerialHeader && bytes.HasPrefix(src, xerialMagic)
}

func (f *inflater) unsnappy(src []byte) ([]byte, error) {
	if !isXerial(src) {
		return unsnap(nil, src, f.limit)
	}
	blocks := xerialReader{src: src[xerialHeader:], limit: f.limit}
	size, err := blocks.size()
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, size)
	for len(blocks.src) > 0 {
		if out, err = blocks.next(out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// unsnap appends the block src to dst, which has room for it if it was asked
// for its size before.
func unsnap(dst, src []byte, limit int) ([]byte, error) {
	n, err := snappy.DecodedLen(src)
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, errTooLarge
	}
	if room := cap(dst) - len(dst); room < n {
		dst = append(make([]byte, 0, len(dst)+n), dst...)
	}
	block, err := snappy.Decode(dst[len(dst):len(dst)+n], src)
	return dst[:len(dst)+len(block)], err
}

// xerialReader reads the blocks of framed snappy, as a stream or one by one.
type xerialReader struct {
	src   []byte
	limit int
	block []byte // what is left of the last one
	room  []byte
}

func (x *xerialReader) cut() ([]byte, error) {
	if len(x.src) < 4 {
		return nil, errXerial
	}
	n := binary.BigEndian.Uint32(x.src)
	if uint64(n) > uint64(len(x.src)-4) {
		return nil, errXerial
	}
	block := x.src[4 : 4+n]
	x.src = x.src[4+n:]
	return block, nil
}

// size adds up what the blocks say they inflate to.
func (x xerialReader) size() (int, error) {
	total := 0
	for len(x.src) > 0 {
		block, err := x.cut()
		if err != nil {
			return 0, err
		}
		n, err := snappy.DecodedLen(block)
		if err != nil {
			return 0, err
		}
		if total += n; total > x.limit {
			return 0, errTooLarge
		}
	}
	return total, nil
}

func (x *xerialReader) next(dst []byte) ([]byte, error) {
	block, err := x.cut()
	if err != nil {
		return nil, err
	}
	return unsnap(dst, block, x.limit)
}

func (x *xerialReader) Read(p []byte) (int, error) {
	for len(x.block) == 0 {
		if len(x.src) == 0 {
			return 0, io.EOF
		}
		var err error
		if x.room, err = x.next(x.room[:0]); err != nil {
			return 0, err
		}
		x.block = x.room
	}
	n := copy(p, x.block)
	x.block = x.block[n:]
	return n, nil
}
