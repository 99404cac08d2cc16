package main

import (
	"cmp"
	"os"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"tidemark/cmd/tidemark/internal/extract"
	"tidemark/cmd/tidemark/internal/reconcile"
)

// Real data that say neither versions nor instants: loaded, exported and compared by what
// they say, and reconciled with themselves.
func TestLoadSynthea(t *testing.T) {
	dir := cmp.Or(os.Getenv("TIDEMARK_SYNTHEA"), "../../testdata/synthea")
	e, err := extract.Find([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{}
	for _, f := range e.Files {
		err := f.Each(t.Context(), extract.Mark{}, nil, func(i *extract.Item) error {
			if i.Fault != "" {
				t.Errorf("%s:%d: %s", f.Name, i.Line, i.Fault)
			}
			want[i.Resource.Key.String()] = reconcile.Canonical(i.Resource.Body)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	r := newSourceRig(t, 1, nil)
	r.run(0, "load", dir)
	r.start()
	all, _, _ := r.window(time.Time{})
	got := map[string]uint64{}
	for key, line := range all {
		got[key] = reconcile.Canonical([]byte(line))
	}
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("the export is not what was loaded: %.2000s", d)
	}
	contains(t, r.run(0, "reconcile", "--content", "--at", time.Now().Add(-time.Second).UTC().Format(time.RFC3339), dir), "nothing is wrong")
	t.Logf("%d resources", len(got))
}
