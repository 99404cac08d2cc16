package export

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"tidemark/store"
	"tidemark/store/storetest"
)

// drawer is a disk of files in memory.
type drawer struct {
	files map[string]*paper
	made  int
	fail  func(op string) error
}

type paper struct {
	d    *drawer
	name string
	b    bytes.Buffer
	kept bool
}

func (d *drawer) Scratch(name string) (Scratch, error) {
	d.made++
	d.files[name] = &paper{d: d, name: name}
	return d.files[name], d.fail("make")
}

func (d *drawer) FindScratch(name string, size int64) (Scratch, error) {
	if f := d.files[name]; f != nil && f.kept && f.Size() == size {
		return f, nil
	}
	return nil, store.ErrCorrupt
}

func (d *drawer) SweepScratch(but ...string) error {
	maps.DeleteFunc(d.files, func(name string, _ *paper) bool { return !slices.Contains(but, name) })
	return nil
}

func (p *paper) Write(b []byte) (int, error) {
	n, _ := p.b.Write(b)
	return n, p.d.fail("write")
}

func (p *paper) Open() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(p.b.Bytes())), p.d.fail("open")
}

func (p *paper) Size() int64   { return int64(p.b.Len()) }
func (p *paper) Keep() error   { p.kept = true; return p.d.fail("keep") }
func (p *paper) Remove() error { delete(p.d.files, p.name); return nil }

func newDrawer() *drawer {
	return &drawer{files: map[string]*paper{}, fail: func(string) error { return nil }}
}

func drain(t *testing.T, s *sorting) (got []string) {
	t.Helper()
	c, err := s.sorted()
	if err != nil {
		t.Fatal(err)
	}
	for c.next() {
		got = append(got, string(c.key())+"="+string(c.value()))
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	return got
}

// TestSorting: whatever is gathered comes in order and each key once, from memory
// and from many runs, again and again; and of its files none stays.
func TestSorting(t *testing.T) {
	for seed := range storetest.Rounds(uint64(30)) {
		r := rand.New(rand.NewPCG(seed, 3))
		d := newDrawer()
		m := &sorter{pad: newPad(d), limit: []int{300, 3000, 1 << 20}[seed%3], fanIn: 2 + r.IntN(3)}
		want := []map[string]string{{}, {}}
		all := []*sorting{m.sorting(), m.sorting()}
		for range 50 + r.IntN(800) {
			i := r.IntN(2)
			key, value := fmt.Sprint(r.IntN(400)), strings.Repeat("v", r.IntN(40))
			if r.IntN(100) == 0 {
				value = strings.Repeat("large", 200)
			}
			if have, met := want[i][key]; met { // of the same key the same value
				value = have
			}
			want[i][key] = value
			if err := all[i].add([]byte(value), []byte(key[:1]), []byte(key[1:])); err != nil {
				t.Fatal(err)
			}
			if gathered := all[0].size + all[1].size; gathered != m.used || gathered > m.limit && len(all[0].records)+len(all[1].records) > 1 {
				t.Fatalf("%d bytes are gathered, counted %d, at most %d", gathered, m.used, m.limit)
			}
		}
		for range 2 {
			for i, s := range all {
				var sorted []string
				for _, key := range slices.Sorted(maps.Keys(want[i])) {
					sorted = append(sorted, key+"="+want[i][key])
				}
				if got := drain(t, s); !slices.Equal(got, sorted) {
					t.Fatalf("seed %d: %d records, want %d", seed, len(got), len(sorted))
				}
				if len(s.runs) > m.fanIn {
					t.Errorf("%d runs are read together, at most %d", len(s.runs), m.fanIn)
				}
			}
		}
		if seed%3 == 2 != (d.made == 0) {
			t.Errorf("seed %d: %d files", seed, d.made)
		}
		if err := m.end(); err != nil || len(d.files) != 0 || m.used != 0 {
			t.Errorf("%v; %d files stay, %d bytes", err, len(d.files), m.used)
		}
	}
}

// TestSortingFails: whatever the disk refuses is told, and a run that is cut short
// is no end.
func TestSortingFails(t *testing.T) {
	for _, op := range []string{"make", "write", "open", "cut"} {
		d := newDrawer()
		s := (&sorter{pad: newPad(d), limit: 1000, fanIn: 4}).sorting()
		broken := errors.New("broken")
		d.fail = func(what string) error {
			if what == op {
				return broken
			}
			return nil
		}
		var err error
		for i := 0; i < 100 && err == nil; i++ {
			err = s.add([]byte("value"), []byte(fmt.Sprint(i)))
		}
		if err == nil {
			if op == "cut" {
				for _, f := range d.files {
					f.b.Truncate(f.b.Len() - 1)
				}
			}
			var c cursor
			if c, err = s.sorted(); err == nil {
				for c.next() {
				}
				err = c.close()
			}
		}
		if op == "cut" && err == nil || op != "cut" && !errors.Is(err, broken) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// TestFilterOfKeys: what was added is in it, what was not hardly ever.
func TestFilterOfKeys(t *testing.T) {
	f, wrong := newFilter(), 0
	for i := range 100_000 {
		if f.has(fmt.Append(nil, "o", i)) {
			wrong++
		}
		f.add(fmt.Append(nil, "k", i))
		if !f.has(fmt.Append(nil, "k", i)) {
			t.Fatal(i)
		}
	}
	if wrong > 10 {
		t.Errorf("%d chance hits", wrong)
	}
}
