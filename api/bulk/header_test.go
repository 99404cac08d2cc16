package bulk

import (
	"math"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/api/export"
)

// TestProgress: X-Progress is free text of less than 100 characters (Bulk Data, "Bulk
// Data Status Request").
func TestProgress(t *testing.T) {
	for _, c := range []struct {
		p    export.Progress
		want string
	}{
		{export.Progress{}, "0 % looked through, 0 resources in 0 files are ready"},
		{export.Progress{Share: 0.374, Files: 3, Rows: 12345}, "37 % looked through, 12345 resources in 3 files are ready"},
	} {
		head := http.Header{}
		progress(head, &export.WorkingError{Progress: c.p, After: 2 * time.Second})
		if got := head.Get("X-Progress"); got != c.want || head.Get("Retry-After") != "2" {
			t.Errorf("%+v: %q, Retry-After %q; want %q", c.p, got, head.Get("Retry-After"), c.want)
		}
	}
	head := http.Header{}
	progress(head, &export.WorkingError{Progress: export.Progress{Share: 1, Files: math.MaxInt32, Rows: math.MaxInt64}})
	if got := head.Get("X-Progress"); len(got) >= 100 {
		t.Errorf("%d characters: %s", len(got), got)
	}
}

func TestList(t *testing.T) {
	tests := []struct {
		lines []string
		want  []element
	}{
		{nil, nil},
		{[]string{"", " , ,"}, nil},
		{[]string{"a, B;q=0.5"}, []element{{"a", ""}, {"b", "q=0.5"}}},
		{[]string{"a", "b"}, []element{{"a", ""}, {"b", ""}}},
		{[]string{`a="x,y;z", b ; c="\",", d`}, []element{{`a="x,y;z"`, ""}, {"b", ` c="\","`}, {"d", ""}}},
		{[]string{`a="x`}, []element{{`a="x`, ""}}},
	}
	for _, tt := range tests {
		got := list(http.Header{"X": tt.lines}, "X")
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(element{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.lines, diff)
		}
	}
}

func TestWeight(t *testing.T) {
	for params, want := range map[string]float64{
		"": 1, "q=0.5": 0.5, " Q = 0.5 ": 0.5, "x=1;q=0": 0, `x=";q=0"`: 1, "q=": 0, "q=2": 0, "q=-1": 0, "q=NaN": 0, "q=1.000": 1,
	} {
		if got := (element{params: params}).q(); got != want {
			t.Errorf("q of %q = %v, want %v", params, got, want)
		}
	}
}
