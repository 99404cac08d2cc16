package roster

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
)

// TestRead shows what becomes of files: their members, or all their faults.
func TestRead(t *testing.T) {
	datadriven.RunTest(t, "testdata/read", func(_ *testing.T, d *datadriven.TestData) string {
		text := strings.NewReplacer(`\t`, "\t", `\r`, "\r", `\n`, "\n", `\0`, "\x00", `\xff`, "\xff", `\ufeff`, "\ufeff", `\u00a0`, "\u00a0").Replace(d.Input)
		list, err := Read(strings.NewReader(text), Options{NoHeading: d.HasArg("no-heading")})
		if err != nil {
			return err.Error() + "\n"
		}
		var out strings.Builder
		for _, m := range list.Members {
			line, err := json.Marshal(m)
			if err != nil {
				return err.Error()
			}
			fmt.Fprintf(&out, "%s\n", line)
		}
		if list.Repeats > 0 {
			fmt.Fprintf(&out, "%d repeats\n", list.Repeats)
		}
		return out.String()
	})
}

func TestReadFails(t *testing.T) {
	why := errors.New("the disk is gone")
	if _, err := Read(iotest.ErrReader(why), Options{}); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	if _, err := Read(strings.NewReader("\xff\xfep\x001\x00"), Options{}); err == nil || !strings.Contains(err.Error(), "UTF-16") {
		t.Errorf("UTF-16: got %v", err)
	}
}

// A wrong file may have as many faults as lines.
func TestFaultsHaveAnEnd(t *testing.T) {
	_, err := Read(strings.NewReader("id\n"+strings.Repeat("a b\n", maxTold+7)), Options{})
	if got := err.Error(); !strings.HasSuffix(got, "\n  and 7 more") || strings.Count(got, "\n") != maxTold+1 {
		t.Errorf("%d lines, the last is %q", strings.Count(got, "\n"), got[len(got)-20:])
	}
}

// Of what stands in a file nothing is repeated: it may be anybody's, and short.
func TestFaultsRepeatNothing(t *testing.T) {
	for _, csv := range []string{
		"id\nCANARY 1\n\"CANARY 2\"\n",
		"CANARY 1\nCANARY 2\n",
		"id,CANARY\np1,x\n",
		"CANARY,id\nx,p1\n",
		"id,start,end,inactive\np1,CANARY,CANARY,CANARY\n",
		"system,value\nCANARY|x,1\nCAN ARY,1\nCANARY,\nhttp://s,\"CANARY\n\"\n",
		"id,value\nCANARY,1\n",
		"id\nPractitioner/CANARY\nCANARY |\n",
		"id\nCANARY\nCANARY,x\n",
		"id\nCANARY\"x\n",
	} {
		_, err := Read(strings.NewReader(csv), Options{})
		if err == nil || strings.Contains(err.Error(), "CAN") {
			t.Errorf("%q: got %v", csv, err)
		}
	}
}

func TestGroup(t *testing.T) {
	list, err := Read(strings.NewReader("id\np2\np1\n<a>&b|1\n"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	g, err := New("diabetics", "Diabetics <2026>", []Identifier{{"http://payer.example/rosters", "d"}}, list.Members, 1767323045678)
	if err != nil {
		t.Fatal(err)
	}
	got, err := g.Body()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"resourceType":"Group","id":"diabetics","meta":{"lastUpdated":"2026-01-02T03:04:05.678Z"},` +
		`"identifier":[{"system":"http://payer.example/rosters","value":"d"}],"type":"person","actual":true,"name":"Diabetics <2026>",` +
		`"member":[{"entity":{"reference":"Patient/p1"}},{"entity":{"reference":"Patient/p2"}},{"entity":{"type":"Patient","identifier":{"system":"<a>&b","value":"1"}}}]}`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Error(d)
	}
	// It is what the store understands.
	var scan fhir.Scanner
	res, err := scan.Scan(got)
	if err != nil || res.Key.String() != "Group/diabetics" || len(res.Members) != 3 || res.LastUpdated != LastUpdated(got) {
		t.Errorf("the scanner reads %+v, %v", res, err)
	}
	for _, id := range []string{"", "a_b", "Group/a", strings.Repeat("a", 65)} {
		if _, err := New(id, "", nil, nil, 0); err == nil {
			t.Errorf("%q is taken for an id", id)
		}
	}
}

func TestParseIdentifier(t *testing.T) {
	for s, want := range map[string]Identifier{"a|b": {"a", "b"}, " a | b ": {"a", "b"}, "|b": {"", "b"}, "a|b|c": {"a", "b|c"}} {
		if got, err := ParseIdentifier(s); err != nil || got != want {
			t.Errorf("%q: got %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "a", "a|", "a b|c", "a|b\nc"} {
		if got, err := ParseIdentifier(s); err == nil {
			t.Errorf("%q: got %+v", s, got)
		}
	}
}

// body is a Group with the members of a list.
func body(t *testing.T, csv string) []byte {
	t.Helper()
	list, err := Read(strings.NewReader(csv), Options{})
	if err != nil {
		t.Fatal(err)
	}
	g, err := New("g", "", nil, list.Members, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := g.Body()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCompare(t *testing.T) {
	old := body(t, "id,start,end,inactive\np1\np2,2026\np3\np4,,,true\np5\np5,2027\n")
	now := body(t, "id,start,end,inactive\np1\np2,2026,2027\np3,,,yes\np4\np5,2027\np5\np6\nmrn|7\n")
	want := Difference{Joined: []string{"Patient/p4", "Patient/p6", "mrn|7"}, Left: []string{"Patient/p3"}, Changed: []string{"Patient/p2"}}
	got := Compare(old, now)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := got.String(); got != "3 joined, 1 left, 1 with another period" {
		t.Error(got)
	}
	var out strings.Builder
	if err := got.Print(&out); err != nil || out.String() != "+ Patient/p4\n+ Patient/p6\n+ mrn|7\n- Patient/p3\n~ Patient/p2\n" {
		t.Errorf("%v, %s", err, &out)
	}
	if d := cmp.Diff(Difference{}, Compare(old, old)); d != "" {
		t.Errorf("from itself a Group differs: %s", d)
	}
	if d := Compare(nil, old); len(d.Joined) != 4 || len(d.Left)+len(d.Changed) > 0 {
		t.Errorf("from nothing: %v", d)
	}
	if d := Compare([]byte(`{"member":[5,{"entity":{"reference":"Patient/p1"}},{"entity":{}}]}`), nil); len(d.Left) != 1 {
		t.Errorf("from a body with odd members: %v", d)
	}
}

func TestSame(t *testing.T) {
	a := `{"resourceType":"Group","id":"g","meta":{"lastUpdated":"2026-01-02T03:04:05.678Z"},"actual":true}`
	for _, test := range []struct {
		b    string
		want bool
	}{
		{a, true},
		{`{"actual":true,"id":"g","resourceType":"Group","meta":{"versionId":"7"}}`, true},
		{`{"resourceType":"Group","id":"g","actual":true,"text":{}}`, false},
		{`{"resourceType":"Group","id":"g","actual":false}`, false},
		{``, false},
	} {
		if got := Same([]byte(a), []byte(test.b)); got != test.want {
			t.Errorf("%s: got %v", test.b, got)
		}
	}
}
