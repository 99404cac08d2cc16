package export

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/api/outcome"
	"tidemark/api/smart"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
)

func TestRuleRoundTrip(t *testing.T) {
	patient, _ := fhir.ParseType("Patient")
	for _, want := range []rule{
		{Since: fhir.None, Upto: 5},
		{Request: "http://x/$export?a=b&c", Since: -7, Upto: 5, Errors: "{}\n", Files: []OutputFile{
			{Output, patient, 0, 3, 10, 20, false, nil, false}, {Deleted, patient, 2, 3, 1, 2, false, new(uint32(0)), false}, {Output, patient, 0, 0, 1, 2, true, new(uint32(9)), false}, {List: Errors, Rows: 1, Bytes: 3},
		}},
		{Since: 0, Upto: 0, Face: STU4, Separate: true, Cut: store.Cut{Lag: time.Second, Partitions: []store.Covered{{Partition: store.Partition{Topic: "t", ID: 3}, Next: 4, Behind: 5}}}},
		{Upto: 5, By: patient, Files: []OutputFile{{Output, 0, 0, 0, 10, 20, true, nil, true}, {Output, 0, 0, 0, 1, 2, true, nil, false}, {Deleted, patient, 0, 1, 1, 2, false, nil, false}}},
		{Request: "r", By: patient, Pending: &Request{URL: "r", By: patient}},
		{Level: Group, Face: STU4, Separate: true, Request: "r", Since: fhir.None, Pending: &Request{
			Level: Group, Face: STU4, Separate: true, MaxBytes: 7, Partial: true, Group: "g", Patients: []string{"a"}, URL: "r", Types: []fhir.Type{patient}, Since: fhir.None,
			Filters: []string{"Patient?active=true"}, Elements: []string{"id"}, Attach: Latest, Departed: true,
			Notes: []outcome.Issue{{Severity: outcome.Warning, Code: outcome.Value, Text: "n"}},
		}},
		{
			Access: &Access{Owner: "#7", Rights: smart.Parse("system/Patient.rs?active=true system/*.read"), Types: []fhir.Type{patient}}, Request: "r",
			Pending: &Request{Access: &Access{Owner: "#7", Rights: smart.Parse("system/Patient.rs?active=true system/*.read"), Types: []fhir.Type{patient}}, URL: "r"},
		},
		{Level: Group, Request: "r", Access: &Access{Owner: "#7", Level: Group, Whole: true, Rights: smart.Parse("system/Group.r?_id=g"), Types: []fhir.Type{patient}}},
		{Access: &Access{Owner: "https://issuer#8", Types: []fhir.Type{}}, Taken: true},
		{Access: &Access{Rights: everything, Withhold: withhold.Policy{Groups: []string{"opt-out"}, Security: []string{"R"}, Filters: []string{"Condition?code=1,2&subject=Patient/1"}, Elements: []string{"Claim.item.net"}}}},
		{Level: Patient, Failure: []outcome.Issue{{Severity: outcome.Fatal, Code: outcome.Exception, Text: "f"}}},
		{
			Level: Group, Pages: []int{2, 3}, Pieces: []piece{{Name: "selection", Sum: 1}, {Name: "selection4", From: 4, Sum: 2}},
			Checkpoint: &checkpoint{Type: patient, At: &position{1, 2, 3, &strays{Missing: 1, Named: []string{"b"}, Origins: map[string]int{"urn:": 2}, Lost: 3}}, Notes: []outcome.Issue{{Severity: outcome.Error, Code: outcome.Incomplete, Text: "n"}}},
		},
	} {
		b, err := want.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeRule(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(smart.Right{})); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}

// The stored form is a promise to jobs that a newer version finds.
func TestRuleForm(t *testing.T) {
	patient, _ := fhir.ParseType("Patient")
	got, err := rule{Request: "r", Since: 1, Upto: 2, Errors: "e", Files: []OutputFile{
		{Output, patient, 3, 4, 5, 6, false, nil, false}, {List: Errors, Rows: 1, Bytes: 1},
	}}.encode()
	const want = `{"v":7,"request":"r","since":1,"upto":2,"files":[` +
		`{"list":"output","type":"Patient","from":3,"to":4,"rows":5,"bytes":6},{"list":"error","rows":1,"bytes":1}],"errors":"e"}`
	if err != nil || string(got) != want {
		t.Errorf("got  %s (%v)\nwant %s", got, err, want)
	}
	for _, bad := range []string{"", "[]", `{"v":0}`, `{"v":8}`, `{"v":6,"access":{"scopes":"system/*.rs","withhold":{"elements":["Claim.future"]}}}`, `{"v":5,"access":{"scopes":"system/Nothing.rs"}}`, `{"v":5,"access":{"scopes":"system/*.rs","types":["Nothing"]}}`, `{"v":2,"files":[{"list":"output","type":"Nothing"}]}`, `{"v":2,"files":[{"list":"error","type":"Patient"}]}`, `{"v":2,"pending":{"types":["Nothing"]}}`, `{"v":2,"level":"planet"}`, `{"v":4,"face":"v9"}`, `{"v":4,"upto":1,"by":"Nothing"}`, `{"v":4,"files":[{"list":"output"}]}`, `{"v":4,"by":"Patient","files":[{"list":"output","type":"Patient"}]}`, `{"v":4,"checkpoint":{"type":"Nothing"}}`} {
		if _, err := decodeRule([]byte(bad)); err == nil {
			t.Errorf("%s was read as a rule", bad)
		}
	}
}

// A job that the version before has begun is served to its end.
func TestRuleOfTheVersionBefore(t *testing.T) {
	patient, _ := fhir.ParseType("Patient")
	got, err := decodeRule([]byte(`{"v":1,"request":"r","upto":2,"files":[{"list":"output","type":"Patient","to":1,"rows":5,"bytes":6}]}`))
	want := rule{Request: "r", Since: fhir.None, Upto: 2, Files: []OutputFile{{Output, patient, 0, 1, 5, 6, false, nil, false}}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v, -want +got:\n%s", err, diff)
	}
	got, err = decodeRule([]byte(`{"v":3,"level":"group","request":"r","upto":2,"files":[{"list":"output","type":"Patient","to":1,"rows":5,"bytes":6}],"selection":7}`))
	if p := got.piece(1); err != nil || p == nil || *p != (piece{Name: "selection", Sum: 7}) {
		t.Errorf("%v, the rows of the file lie in %v", err, p)
	}
}

// So is that of what is kept beside a job about some Patients.
func TestSelectionForm(t *testing.T) {
	c := selection{{{Segment: 1, Block: 2, Rows: 3, Bytes: 4, Whole: true}, {Segment: 5, Picked: []byte{1, 128}}}, nil}
	const want = `[[{"s":1,"b":2,"n":3,"l":4,"w":true},{"s":5,"b":0,"n":0,"l":0,"p":"AYA="}],null]`
	b, err := c.encode()
	if err != nil || string(b) != want {
		t.Fatalf("got  %s (%v)\nwant %s", b, err, want)
	}
	got, err := decodeSelection(b)
	if diff := cmp.Diff(c, got); err != nil || diff != "" {
		t.Errorf("%v, -want +got:\n%s", err, diff)
	}
	for _, bad := range []string{"", "{}", `[[{"s":-1}]]`} {
		if _, err := decodeSelection([]byte(bad)); err == nil {
			t.Errorf("%s was read as a selection", bad)
		}
	}
}

// Files are filled up to their limits, none is empty, and together they are
// all extents, once.
func TestSplit(t *testing.T) {
	extents := func(rows ...int) (all []store.Extent) {
		for i, n := range rows {
			all = append(all, store.Extent{Block: i, Rows: n, Bytes: int64(n) * 10})
		}
		return all
	}
	tests := []struct {
		name    string
		extents []store.Extent
		limits  Limits
		want    string // rows of each file
	}{
		{"nothing", nil, Limits{}, ""},
		{"no limits", extents(1, 2, 3), Limits{}, "6"},
		{"exactly full", extents(1, 2, 3), Limits{Resources: 3}, "3 3"},
		{"bytes", extents(1, 2, 3), Limits{Bytes: 30}, "3 3"},
		{"one byte less", extents(1, 2, 3), Limits{Bytes: 29}, "1 2 3"},
		{"larger than a file", extents(1, 9, 1), Limits{Resources: 3}, "1 9 1"},
		{"whichever comes first", extents(2, 2, 2, 2), Limits{Resources: 6, Bytes: 40}, "4 4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			at := 0
			for _, f := range split(Output, 1, tt.extents, tt.limits) {
				var rows, size int64
				for _, x := range tt.extents[f.From:f.To] {
					rows, size = rows+int64(x.Rows), size+x.Bytes
				}
				if f.From != at || rows != f.Rows || size != f.Bytes || rows == 0 {
					t.Errorf("file %+v", f)
				}
				at = f.To
				got = append(got, string(rune('0'+rows)))
			}
			if s := strings.Join(got, " "); s != tt.want || at != len(tt.extents) {
				t.Errorf("files of %s rows, want %s; %d of %d extents", s, tt.want, at, len(tt.extents))
			}
		})
	}
}
