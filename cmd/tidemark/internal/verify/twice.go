package verify

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Resources are known by 64 bits of hash, which are looked at part by part: for
// ten million resources it all takes some 200 MB of memory, the garbage collector's
// share included. Two that look alike by chance (one pair in
// 2^64 / n² exports of n resources) are told apart when their lines are read.

const (
	parts  = 16   // of the hashes, by their first bits
	looked = 1000 // at most so many doubled resources are looked at
)

// doubles are the resources that stand where they should not.
type doubles struct {
	mu    sync.Mutex
	twice hashes // in output more than once
	both  hashes // in output and in deleted
	again int64  // in deleted more than once
}

// hashes are some of those there are.
type hashes struct {
	some map[uint64]bool
	more int64
}

// add enters one that was not entered before.
func (h *hashes) add(k uint64) {
	if len(h.some) == looked {
		h.more++
		return
	}
	if h.some == nil {
		h.some = map[uint64]bool{}
	}
	h.some[k] = true
}

// resources says which resources stand twice, over all files.
func (r *Report) resources(ctx context.Context, entries []*entry, organised, show bool) error {
	var outputs, deletions []*file
	for _, e := range entries {
		switch {
		case e.file == nil:
		case e.list == output:
			outputs = append(outputs, e.file)
		case e.list == deleted:
			deletions = append(deletions, e.file)
		}
	}
	var d doubles
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	for part := range uint64(parts) {
		work.Go(func() error {
			d.find(part, outputs, deletions, organised)
			return ctx.Err()
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	if d.again > 0 {
		r.note(deleted, isAre(d.again, "resource")+" named there more than once")
	}
	if len(d.twice.some)+len(d.both.some) == 0 {
		return nil
	}
	places, err := d.locate(ctx, outputs)
	if err != nil {
		return err
	}
	r.tell(places, d.twice, 2, " in output more than once", show)
	r.tell(places, d.both, 1, " in output and in deleted", show)
	return nil
}

// find looks at one part of the hashes.
func (d *doubles) find(part uint64, outputs, deletions []*file, organised bool) {
	here := func(files []*file, keys func(*file) *keys) (found []uint64) {
		for _, f := range files {
			for _, k := range keys(f).all() {
				if k/(1<<64/parts) == part && k != 0 {
					found = append(found, k)
				}
			}
		}
		slices.Sort(found)
		return found
	}
	live := here(outputs, func(f *file) *keys { return &f.keys })
	gone := here(deletions, func(f *file) *keys { return &f.gone })
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, k := range live {
		second := i > 0 && k == live[i-1] && (i == 1 || k != live[i-2])
		if second && !organised { // a resource may stand in several blocks
			d.twice.add(k)
		}
	}
	for i, k := range gone {
		if i > 0 && k == gone[i-1] {
			d.again++
			continue
		}
		if _, found := slices.BinarySearch(live, k); found {
			d.both.add(k)
		}
	}
}

// keys are what lines are known by again: a hash for each line, 0 for none.
// They are many: they grow by chunks, for a list that is copied when it grows
// leaves as much behind as it holds.
type keys struct{ chunks [][]uint64 }

const chunk = 1 << 13

func (k *keys) add(h uint64) {
	last := len(k.chunks) - 1
	if last < 0 || len(k.chunks[last]) == chunk {
		k.chunks = append(k.chunks, nil)
		last++
	}
	k.chunks[last] = append(k.chunks[last], h)
}

// all are the keys by their lines' numbers.
func (k *keys) all() iter.Seq2[int64, uint64] {
	return func(yield func(int64, uint64) bool) {
		line := int64(0)
		for _, c := range k.chunks {
			for _, h := range c {
				if line++; !yield(line, h) {
					return
				}
			}
		}
	}
}

// repeated are the keys that stand in a list more than once.
func repeated(k *keys) map[uint64]bool {
	sorted := slices.Concat(k.chunks...)
	slices.Sort(sorted)
	again := map[uint64]bool{}
	for i, k := range sorted {
		if i > 0 && k == sorted[i-1] && k != 0 {
			again[k] = true
		}
	}
	return again
}

// A place is where a resource stands in output.
type place struct {
	file *file
	line int64
	key  string // Type/id; "" if it has none
	kind string
	hash uint64 // of the line
}

// locate reads the lines that hold doubled resources.
func (d *doubles) locate(ctx context.Context, outputs []*file) (map[uint64][]place, error) {
	found := map[uint64][]place{}
	seed := maphash.MakeSeed()
	for _, f := range outputs {
		lines := map[int64]uint64{}
		for line, k := range f.keys.all() {
			if k != 0 && (d.twice.some[k] || d.both.some[k]) && !f.told[line] {
				lines[line] = k
			}
		}
		if len(lines) == 0 {
			continue
		}
		n, reader := int64(0), newReader()
		_ = f.each(ctx, nil, func(b []byte) error { // what is wrong with the file was said
			n++
			k, wanted := lines[n]
			if !wanted {
				return nil
			}
			b = bytes.TrimRight(bytes.TrimPrefix(b, bom), "\r\n")
			p := place{file: f, line: n, hash: hash(seed, b)}
			if res, err := reader.read(b); err == nil {
				p.kind = string(res.kind)
				if len(res.id) > 0 {
					p.key = string(reader.key(res))
				}
			}
			found[k] = append(found[k], p)
			return nil
		})
	}
	return found, ctx.Err()
}

// tell names the resources that really are where they should not be.
func (r *Report) tell(found map[uint64][]place, which hashes, least int, what string, show bool) {
	var list [][]place
	for k := range which.some {
		byKey := map[string][]place{}
		for _, p := range found[k] {
			byKey[p.key] = append(byKey[p.key], p)
		}
		for _, places := range byKey {
			if len(places) >= least {
				list = append(list, places)
			}
		}
	}
	if len(list) == 0 {
		return
	}
	slices.SortFunc(list, func(a, b []place) int { return a[0].compare(b[0]) })
	said := []string{}
	for _, places := range list[:min(few, len(list))] {
		said = append(said, describe(places, show))
	}
	n := int64(len(list)) + which.more
	if rest := n - int64(len(said)); rest > 0 {
		said = append(said, fmt.Sprintf("and %s more", comma(rest)))
	}
	r.doubled = true
	r.fault(isAre(n, "resource")+what, said...)
}

func (p place) compare(q place) int {
	return cmp.Or(cmp.Compare(p.file.name, q.file.name), cmp.Compare(p.line, q.line))
}

func describe(places []place, show bool) string {
	said := typeName(places[0].kind)
	if show && places[0].key != "" {
		said = quoted(places[0].key)
	}
	var where []string
	how := "the same"
	for i, p := range places {
		if i < 4 {
			where = append(where, p.file.name+" line "+comma(p.line))
		}
		if p.hash != places[0].hash {
			how = "different"
		}
	}
	if more := len(places) - len(where); more > 0 {
		where = append(where, fmt.Sprintf("and %d more", more))
	}
	said += ": " + strings.Join(where, ", ")
	if len(places) > 1 {
		said += " (" + how + ")"
	}
	return said
}
