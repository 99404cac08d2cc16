package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"tidemark/store"
)

// maxHeld is what of a block is held in memory before its file is chosen, bytes. A
// block of a Patient is a few megabytes. One that is larger begins a file of its
// own, so that it is split only if no file can take it.
const maxHeld = 32 << 20

// A binding writes blocks to files, each whole if a file can take it.
type binding struct {
	writing

	a        *arranging
	id       []byte // of the block
	header   []byte // nil: the block has not begun
	context  []byte // the resource itself, if it goes with whatever else there is
	held     []byte // lines that are not written yet
	lengths  []int  // of them
	written  bool   // part of the block: the rest goes on there
	inFile   int64  // lines of the block in the file, without the header
	before   int64  // records in front of the block
	finished int64  // records
	lines    int64  // of the block that are written
	skip     int64  // lines of it that an earlier process has written
}

// A place is how far the files of blocks are written.
type place struct {
	Records int64 `json:"records"` // in front of the block
	Lines   int64 `json:"lines"`   // of it, without headers
}

// bind makes the files.
func (a *arranging) bind(ctx context.Context, l Limits) (err error) {
	b := &binding{writing: writing{g: a.g, limits: l, file: OutputFile{List: Output, Made: true}}, a: a}
	defer func() { err = errors.Join(err, b.discard()) }() // also after a panic, which ends this job alone
	c, err := a.blocks.sorted()
	if err != nil {
		return err
	}
	if err = b.goOn(ctx, c); err == nil {
		err = b.all(ctx, c)
	}
	if err == nil {
		err = errors.Join(c.err(), b.flush())
	}
	if err = errors.Join(err, c.close()); err != nil {
		return fmt.Errorf("write the files of blocks: %w", err)
	}
	return nil
}

// goOn passes by what an earlier process has written.
func (b *binding) goOn(ctx context.Context, c cursor) error {
	done := b.a.place
	for ; b.finished < done.Records; b.finished++ {
		if !c.next() {
			return damaged(errors.Join(store.ErrCorrupt, c.err()))
		}
		if b.finished%lookEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	b.before, b.skip = done.Records, done.Lines
	b.g.did(b.a.bound(done.Records))
	return nil
}

// reached says that a file is whole, and how much of the block stands in it or
// before. While all is in memory there is nothing to go on from.
func (b *binding) reached(lines int64) error {
	if b.a.blocks.size > 0 {
		return nil
	}
	b.a.place = place{b.before, lines}
	return b.g.reached(0, nil)
}

func (b *binding) all(ctx context.Context, c cursor) error {
	for c.next() {
		id, tail := cutKey(c.key())
		if !bytes.Equal(id, b.id) {
			if err := b.end(); err != nil {
				return err
			}
			b.id, b.before = append(b.id[:0], id...), b.finished
		}
		if err := b.line(tail[0], c.value()); err != nil {
			return err
		}
		if b.finished++; b.finished%lookEvery == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			b.g.did(b.a.bound(lookEvery))
		}
	}
	return b.end()
}

// line takes a line of the block.
func (b *binding) line(rank byte, line []byte) error {
	switch {
	case rank == contextRank && b.header == nil:
		b.context = append(b.context[:0], line...)
		return nil
	case rank == contextRank: // it is there
		return nil
	case b.header == nil:
		b.header = fmt.Appendf(nil, `{"resourceType":"Parameters","parameter":[{"name":"header","valueReference":{"reference":"%s/%s"}}]}`+"\n", b.a.by, b.id)
		b.lines = b.skip
		if b.skip > 0 { // the rest goes on in a file of its own
			b.written = true
			if err := b.begin(); err != nil {
				return err
			}
		}
		if len(b.context) > 0 {
			if err := b.take(b.context); err != nil {
				return err
			}
		}
	}
	return b.take(line)
}

func (b *binding) take(line []byte) error {
	if b.skip > 0 {
		b.skip--
		return nil
	}
	if b.written {
		return b.write(line)
	}
	b.held, b.lengths = append(b.held, line...), append(b.lengths, len(line))
	if b.size() <= min(maxHeld, noLimit(b.limits.Bytes)) && b.rows() <= noLimit(b.limits.Resources) {
		return nil
	}
	if err := b.next(0); err != nil { // a file of its own
		return err
	}
	return b.release()
}

// size and rows are what the block would add to a file.
func (b *binding) size() int64 { return int64(len(b.header) + len(b.held)) }
func (b *binding) rows() int64 { return int64(1 + len(b.lengths)) }

// end ends the block. One of which there is only the resource itself, which has
// not changed, is none.
func (b *binding) end() error {
	if b.header != nil && !b.written {
		if b.full(b.size(), b.rows()) {
			if err := b.next(0); err != nil {
				return err
			}
		}
		if err := b.release(); err != nil {
			return err
		}
	}
	b.header, b.written, b.context = nil, false, b.context[:0]
	return nil
}

// release writes what of the block is held, and all that comes as it comes.
func (b *binding) release() error {
	b.written = true
	if err := b.begin(); err != nil {
		return err
	}
	rest := b.held
	for _, n := range b.lengths {
		if err := b.write(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	b.held, b.lengths = b.held[:0], b.lengths[:0]
	return nil
}

// begin writes the header: of a block, or of what of it goes on in another file.
func (b *binding) begin() error {
	b.inFile = 0
	return b.put(b.header)
}

// write writes a line of the block, in the next file if this one is full.
func (b *binding) write(line []byte) error {
	if b.inFile > 0 && b.full(int64(len(line)), 1) {
		b.file.Continues = true
		if err := errors.Join(b.next(b.lines), b.begin()); err != nil {
			return err
		}
	}
	b.inFile++
	b.lines++
	return b.put(line)
}

// next ends the file at hand.
func (b *binding) next(lines int64) error {
	if b.draft == nil {
		return nil
	}
	if err := b.flush(); err != nil {
		return err
	}
	return b.reached(lines)
}
