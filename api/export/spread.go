package export

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"tidemark/store"
	"tidemark/store/fhir"
)

// spread puts into blocks what goes there because something refers to it.
func (a *arranging) spread(ctx context.Context) error {
	if err := a.followProvenance(ctx); err != nil {
		return fmt.Errorf("find the blocks of Provenance: %w", err)
	}
	layers, err := a.reach(ctx)
	if err != nil {
		return fmt.Errorf("find what goes with the blocks: %w", err)
	}
	all, err := unite(layers...)
	if err != nil {
		return err
	}
	loose, err := a.loose.sorted()
	if err != nil {
		return errors.Join(err, all.close())
	}
	return meet(ctx, all, loose,
		func(_, block []byte, lines [][]byte) error {
			line := lines[0] // a resource is one line
			return a.putInto(block, otherRank, binary.BigEndian.Uint64(line), line[9:])
		},
		func(key []byte, lines [][]byte) {
			if lines[0][8] == 0 {
				a.left[fhir.Type(key[0])]++
			}
		})
}

// followProvenance lets a Provenance without a block of its own go with what it is
// about.
func (a *arranging) followProvenance(ctx context.Context) error {
	if a.about.count == 0 {
		return nil
	}
	owned, err := a.owned.sorted()
	if err != nil {
		return err
	}
	about, err := a.about.sorted()
	if err != nil {
		return errors.Join(err, owned.close())
	}
	return meet(ctx, owned, about, func(_, block []byte, all [][]byte) error {
		for _, provenance := range all {
			if err := a.edges.add(nil, provenance, zero, block); err != nil {
				return err
			}
		}
		return nil
	}, nil)
}

// reach follows edges from what has no block of its own, until they lead to
// nothing new. Each layer holds what the one before leads to; layers are joined as
// they get many, for each new one is compared with all.
func (a *arranging) reach(ctx context.Context) (layers []*sorting, err error) {
	for layer := a.edges; ; {
		next, err := a.beyond(ctx, layer)
		if err != nil {
			return nil, err
		}
		if layers, err = a.join(ctx, append(layers, layer)); err != nil {
			return nil, err
		}
		if layer, err = a.without(ctx, next, layers); err != nil || layer.count == 0 {
			return layers, err
		}
	}
}

// join makes one of the last layers while the last is not much smaller than the one
// before: so there are few, and each edge is copied few times. The first, which may
// be large, stays as it is.
func (a *arranging) join(ctx context.Context, layers []*sorting) ([]*sorting, error) {
	for n := len(layers); n > 2 && layers[n-2].count < 2*layers[n-1].count; n = len(layers) {
		one, err := a.joined(ctx, layers[n-2:])
		if err != nil {
			return nil, err
		}
		layers = append(layers[:n-2], one)
	}
	return layers, nil
}

// joined is some layers in one. It uses them up.
func (a *arranging) joined(ctx context.Context, layers []*sorting) (*sorting, error) {
	one := a.sorting()
	c, err := unite(layers...)
	if err != nil {
		return nil, err
	}
	for looks := 1; c.next() && err == nil; looks++ {
		if err = one.add(nil, c.key()); looks%lookEvery == 0 {
			err = errors.Join(err, ctx.Err())
		}
	}
	err = errors.Join(err, c.close())
	for _, l := range layers {
		err = errors.Join(err, l.end())
	}
	return one, err
}

// beyond is where the resources at the ends of edges lead to.
func (a *arranging) beyond(ctx context.Context, layer *sorting) (*sorting, error) {
	next := a.sorting()
	if a.onward.count == 0 {
		return next, nil
	}
	from, err := layer.sorted()
	if err != nil {
		return nil, err
	}
	onward, err := a.onward.sorted()
	if err != nil {
		return nil, errors.Join(err, from.close())
	}
	return next, meet(ctx, from, onward, func(_, block []byte, to [][]byte) error {
		for _, key := range to {
			if err := next.add(nil, key, zero, block); err != nil {
				return err
			}
		}
		return nil
	}, nil)
}

// without is what of some edges is in no layer. It uses them up.
func (a *arranging) without(ctx context.Context, edges *sorting, layers []*sorting) (*sorting, error) {
	fresh := a.sorting()
	if edges.count == 0 {
		return fresh, nil
	}
	have, err := unite(layers...)
	if err != nil {
		return nil, err
	}
	c, err := edges.sorted()
	if err != nil {
		return nil, errors.Join(err, have.close())
	}
	more := have.next()
	for looks := 1; c.next() && err == nil; looks++ {
		for more && bytes.Compare(have.key(), c.key()) < 0 {
			more = have.next()
		}
		if !more || !bytes.Equal(have.key(), c.key()) {
			err = fresh.add(nil, c.key())
		}
		if looks%lookEvery == 0 {
			err = errors.Join(err, ctx.Err())
		}
	}
	return fresh, errors.Join(err, have.close(), c.close(), edges.end())
}

// unite goes through sortings as if they were one.
func unite(all ...*sorting) (cursor, error) {
	u := &united{}
	for _, s := range all {
		c, err := s.sorted()
		if err != nil {
			return nil, errors.Join(err, u.close())
		}
		u.of = append(u.of, c)
	}
	return u, nil
}

// cutKey parts a key of two.
func cutKey(key []byte) (first, second []byte) {
	first, second, _ = bytes.Cut(key, zero)
	return first, second
}

// lookEvery is after how many records somebody looks whether the job was given up.
const lookEvery = 1 << 12

// meet goes through two cursors side by side, and closes them. For each key that
// both begin with, fn is called with each second key on the left, and with all that
// the right has: second keys or values. alone, if not nil, is told what only the
// right has.
func meet(ctx context.Context, left, right cursor, fn func(key, second []byte, of [][]byte) error, alone func(key []byte, of [][]byte)) (err error) {
	defer func() { err = errors.Join(err, left.close(), right.close()) }()
	var key []byte
	var of [][]byte
	looks, more := 0, left.next()
	for has := right.next(); has; {
		first, _ := cutKey(right.key())
		key, of = append(key[:0], first...), of[:0]
		for has && begins(right, key) {
			_, second := cutKey(right.key())
			if second == nil {
				second = right.value()
			}
			of = append(of, bytes.Clone(second))
			has = right.next()
		}
		for more && compareFirst(left, key) < 0 {
			more = left.next()
		}
		met := false
		for more && begins(left, key) {
			met = true
			_, second := cutKey(left.key())
			if err := fn(key, second, of); err != nil {
				return err
			}
			if looks++; looks%lookEvery == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			more = left.next()
		}
		if !met && alone != nil && !has && right.err() != nil {
			return nil // the deferred close tells why
		}
		if !met && alone != nil {
			alone(key, of)
		}
	}
	return ctx.Err()
}

func compareFirst(c cursor, key []byte) int {
	first, _ := cutKey(c.key())
	return bytes.Compare(first, key)
}

func begins(c cursor, key []byte) bool { return compareFirst(c, key) == 0 }

// A filter is a set of keys in bounded memory: what was added is in it, and by
// chance a little more, which costs a look and changes nothing (Bloom). nil has all.
type filter struct {
	bits []uint64
	leaf *leaf // on which they stand; nil: they have changed
}

// filterBits makes of ten million keys one in twenty a chance hit, in 8 MB.
const filterBits = 1 << 26

func newFilter() *filter { return &filter{} }

func (f *filter) add(key []byte) {
	if f == nil {
		return
	}
	if f.bits == nil {
		f.bits = make([]uint64, filterBits/64)
	}
	if f.leaf != nil && f.has(key) {
		return
	}
	f.leaf = nil
	for h, step := f.hash(key), 0; step < 3; step++ {
		at := places(h, step)
		f.bits[at/64] |= 1 << (at % 64)
	}
}

func (f *filter) has(key []byte) bool {
	if f == nil {
		return true
	}
	if f.bits == nil {
		return false
	}
	for h, step := f.hash(key), 0; step < 3; step++ {
		if at := places(h, step); f.bits[at/64]>>(at%64)&1 == 0 {
			return false
		}
	}
	return true
}

// putAside puts the filter on a leaf; nil: there is nothing in it.
func (f *filter) putAside(p *pad) (_ *leaf, err error) {
	if f == nil || f.bits == nil {
		return nil, nil
	}
	if f.leaf == nil {
		f.leaf, err = p.writeWords(f.bits)
	}
	return f.leaf, err
}

// restore takes up what an earlier process has put aside.
func (f *filter) restore(p *pad, form leafForm) (err error) {
	if f == nil || form.N == 0 {
		return nil
	}
	if form.Holds != filterBits/64 {
		return damaged(store.ErrCorrupt)
	}
	if f.leaf, err = p.find(form); err == nil {
		f.bits, err = f.leaf.readWords(nil, form.Holds)
	}
	return err
}

func (f *filter) hash(key []byte) uint64 { return xxhash.Sum64(key) }

// places are three of one hash.
func places(h uint64, step int) uint64 { return (h + uint64(step)*(h>>32|1)) % filterBits }
