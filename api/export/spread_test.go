package export

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"tidemark/store/fhir"
)

// partOfs are Organizations each of which is part of the next, and a block that refers
// to the first of them.
func partOfs(t *testing.T, n, memory int) *arranging {
	t.Helper()
	a := &arranging{sorter: &sorter{limit: memory, fanIn: 4, pad: newPad(newDrawer())}, wanted: newFilter()}
	for _, s := range []**sorting{&a.edges, &a.onward} {
		*s = a.sorting()
	}
	typ, _ := fhir.ParseType("Organization")
	ids := rand.New(rand.NewPCG(1, 2)).Perm(n)
	key := func(i int) []byte { return appendKey(nil, fhir.Key{Type: typ, ID: fmt.Sprint(ids[i])}) }
	for i := range n - 1 {
		if err := a.onward.add(nil, key(i), zero, key(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.edges.add(nil, key(0), zero, []byte("block")); err != nil {
		t.Fatal(err)
	}
	a.wanted.add(key(n - 1))
	return a
}

// TestReach: a block has what it leads to over however many resources, and the layers
// of that are few.
func TestReach(t *testing.T) {
	const n = 700
	for _, memory := range []int{1 << 12, 1 << 20} {
		a := partOfs(t, n, memory)
		layers, err := a.reach(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all, err := unite(layers...)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for all.next() {
			found++
		}
		if err := all.close(); err != nil || found != n {
			t.Errorf("in %d bytes of memory: %d found, want %d: %v", memory, found, n, err)
		}
		if len(layers) > 12 {
			t.Errorf("%d resources in a row made %d layers", n, len(layers))
		}
		if err := a.end(); err != nil || len(a.pad.leaves) > 0 {
			t.Errorf("%d files stay: %v", len(a.pad.leaves), err)
		}
	}
}

// A job that was given up looks for nothing more.
func TestReachGivenUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := partOfs(t, 2, 1<<20).wantOnward(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("what leads to something wanted: %v", err)
	}
	many := func() *arranging { return partOfs(t, 2*lookEvery, 1<<20) }
	for name, look := range map[string]func() error{
		"without": func() error { a := many(); _, err := a.without(ctx, a.onward, []*sorting{a.edges}); return err },
		"joined":  func() error { a := many(); _, err := a.joined(ctx, []*sorting{a.onward, a.edges}); return err },
		"reach":   func() error { _, err := many().reach(ctx); return err },
	} {
		if err := look(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
