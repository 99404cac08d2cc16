package bulk

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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
