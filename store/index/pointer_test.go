package index

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestLeads: whether sets of Patients lead to a Provenance is found over links, and past
// however many others there are.
func TestLeads(t *testing.T) {
	kv, err := Open("index", Options{FS: vfs.NewMem(), Cache: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	to := func(set uint32, p Pointer) {
		t.Helper()
		if err := kv.Set(AboutKey(set, p), nil, pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	const many = 10_000
	for i := range many {
		to(1, Pointer{Provenance: fmt.Sprintf("p%05d", i)})
	}
	to(1, Pointer{Set: 2})
	to(2, Pointer{Set: 1})
	to(2, Pointer{Set: 3})
	to(3, Pointer{Provenance: "far"})
	to(4, Pointer{Provenance: "unled"})
	one := map[uint32]bool{1: true}
	for id, want := range map[string]bool{"p00000": true, "p09999": true, "far": true, "unled": false, "p": false} {
		it, err := kv.NewIter(nil)
		if err != nil {
			t.Fatal(err)
		}
		found, err := Leads(it, one, id)
		s := it.Stats()
		steps := s.ForwardSeekCount[pebble.InterfaceCall] + s.ForwardStepCount[pebble.InterfaceCall]
		if err := errors.Join(err, it.Close()); err != nil || found != want || steps > 20 {
			t.Errorf("%s: found %v in %d steps: %v", id, found, steps, err)
		}
	}
	it, err := kv.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	n := 0
	few, err := Reach(it, one, many, func(string) bool { n++; return n < 10 })
	if err != nil || !few || n != 10 {
		t.Errorf("who had enough of 10 was told of %d: %v %v", n, few, err)
	}
}
