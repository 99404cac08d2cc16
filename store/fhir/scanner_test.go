package fhir

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestScan(t *testing.T) {
	for _, c := range []struct {
		name, doc string
		want      Resource
	}{
		{
			"a patient lies in its own compartment and in no linked one",
			`{"resourceType":"Patient","id":"p-1","meta":{"versionId":"2","lastUpdated":"2026-01-02T03:04:05.123Z"},"link":[{"other":{"reference":"Patient/p-2"},"type":"seealso"}]}`,
			Resource{Key: key("Patient/p-1"), Version: "2", LastUpdated: 1767323045123, Patients: []string{"p-1"}},
		}, {
			"patients are sorted and named once",
			`{"resourceType":"Observation","id":"o","subject":{"reference":"Patient/b"},"performer":[{"reference":"Patient/a"},{"reference":"Patient/b"},{"reference":"Practitioner/c"}]}`,
			Resource{Key: key("Observation/o"), LastUpdated: None, Patients: []string{"a", "b"}, References: []Key{key("Practitioner/c")}},
		}, {
			"references to what is in nobody's compartment, wherever they stand",
			`{"subject":{"reference":"Patient/b"},"extension":[{"valueReference":{"reference":"Location/l/_history/2"}}],"resourceType":"Encounter","id":"e",` +
				`"contained":[{"resourceType":"Basic","x":{"\u0072eference":"Medication/m"}}],"serviceProvider":{"reference":"Organization/o"},` +
				`"location":[{"location":{"reference":"Location/l"}}],"diagnosis":[{"condition":{"reference":"Condition/c"}}],"a":{"reference":["Organization/no"]},` +
				`"b":{"reference":"Organization?identifier=no"},"c":{"reference":"#no"},"d":{"reference":"http://foreign.example/Organization/no"}}`,
			Resource{
				Key: key("Encounter/e"), LastUpdated: None, Patients: []string{"b"},
				References: []Key{key("Location/l"), key("Medication/m"), key("Organization/o")},
			},
		}, {
			"what a Provenance is about is noted wherever it lies, what else it refers to is not",
			`{"target":[{"reference":"Observation/late"}],"resourceType":"Provenance","id":"p","target2":[{"reference":"Observation/no"}],` +
				`"agent":[{"who":{"reference":"Practitioner/dr"}},{"who":{"reference":"Observation/no"}}],"entity":[{"what":{"reference":"Condition/no"}}]}`,
			Resource{Key: key("Provenance/p"), LastUpdated: None, References: []Key{key("Observation/late"), key("Practitioner/dr")}},
		}, {
			"but for Patients, which it lies with",
			`{"resourceType":"Provenance","id":"p","target":[{"reference":"Observation/o"},{"reference":"Patient/b"},{"reference":"Location/l"},{"reference":"Observation/o"}]}`,
			Resource{Key: key("Provenance/p"), LastUpdated: None, Patients: []string{"b"}, References: []Key{key("Location/l"), key("Observation/o")}},
		}, {
			"the type may come last",
			`{"subject":{"reference":"Patient/b"},"id":"o","resourceType":"Observation"}`,
			Resource{Key: key("Observation/o"), LastUpdated: None, Patients: []string{"b"}},
		}, {
			"a version is kept as it is written, and a date is no instant",
			`{"resourceType":"Device","id":"d","meta":{"versionId":"59f4-x","lastUpdated":"2026-01-02"},"patient":{"reference":"Patient/b"}}`,
			Resource{Key: key("Device/d"), Version: "59f4-x", LastUpdated: None, Patients: []string{"b"}},
		}, {
			"a part of a resource says so",
			`{"resourceType":"Patient","id":"p","meta":{"tag":[{"code":"x"},{"code":"SUBSETTED","system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","display":"y"}]}}`,
			Resource{Key: key("Patient/p"), LastUpdated: None, Patients: []string{"p"}, Subsetted: true},
		}, {
			"code and system in two tags say nothing",
			`{"resourceType":"Patient","id":"p","meta":{"tag":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue"},{"code":"SUBSETTED"}]}}`,
			Resource{Key: key("Patient/p"), LastUpdated: None, Patients: []string{"p"}},
		}, {
			"names that differ in case are other names",
			`{"resourceType":"Patient","id":"p","ID":"q","Id":"r","ResourceType":"Group"}`,
			Resource{Key: key("Patient/p"), LastUpdated: None, Patients: []string{"p"}},
		}, {
			"names we do not read may come twice",
			`{"resourceType":"Patient","id":"p","name":1,"name":2,"subject":1,"subject":2,"contact":[{"id":"x","id":"y"}]}`,
			Resource{Key: key("Patient/p"), LastUpdated: None, Patients: []string{"p"}},
		}, {
			"escapes are understood where we read, wherever they stand",
			`{"\u0072esourceType":"Goal","i\u0064":"\u0067","meta":{"versionId":"\b\f\n\r\t\"\\\/\u00E9\ud83d\udc26"},"\u0073ubject":{"reference":"Patient\/\u0070"}}`,
			Resource{Key: key("Goal/g"), Version: "\b\f\n\r\t\"\\/\u00e9\U0001f426", LastUpdated: None, Patients: []string{"p"}},
		}, {
			"null is absence where it leaves no doubt",
			`{"resourceType":"Observation","id":"o","meta":{"tag":null},"subject":null,"performer":[null,{"reference":null}]}`,
			Resource{Key: key("Observation/o"), LastUpdated: None},
		}, {
			"the members of a group",
			`{"resourceType":"Group","id":"g","member":[` +
				`{"entity":{"reference":"Patient/b"}},` +
				`{"entity":{"reference":"Patient/a/_history/1"},"inactive":true,"period":{"start":"2024","end":"2024-02"}},` +
				`{"entity":{"identifier":{"system":"s","value":"v"}},"inactive":false},` +
				`{"entity":{"reference":"http://foreign.example/Patient/c"}},` +
				`{"entity":{"identifier":{"value":"\u0076","system":null},"reference":"#c","type":"Patient"}},` +
				`{"entity":{"identifier":{"value":"v"},"type":"Practitioner"}},` +
				`{"entity":{"reference":"Group/h"}}]}`,
			Resource{
				Key: key("Group/g"), LastUpdated: None, Patients: []string{"a", "b"},
				Members: []Member{
					{Ref: "Patient/b", Start: None, End: None},
					{Ref: "Patient/a", Inactive: true, Start: instantOf("2024-01-01T00:00:00Z"), End: instantOf("2024-02-29T23:59:59.999Z")},
					{Ref: ByIdentifier([]byte("s"), []byte("v")), Start: None, End: None},
					{Start: None, End: None},
					{Ref: ByIdentifier(nil, []byte("v")), Start: None, End: None},
					{Start: None, End: None},
					{Ref: "Group/h", Start: None, End: None},
				},
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s Scanner
			got, err := s.Scan([]byte(c.doc))
			if err != nil {
				t.Fatal(err)
			}
			c.want.Body = []byte(c.doc)
			if diff := cmp.Diff(c.want, got, cmpopts.IgnoreFields(Resource{}, "Meta")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// patient wraps members into a resource that Scan accepts.
func patient(members string) string {
	return `{"resourceType":"Patient","id":"p",` + members + `}`
}

func TestScanRefuses(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for _, c := range []struct {
		doc    string
		offset int
		reason string
	}{
		// The grammar.
		{``, 0, reasonEnd},
		{` `, 1, reasonEnd},
		{`{`, 1, reasonEnd},
		{"\ufeff{}", 0, reasonObject},
		{`[]`, 0, reasonObject},
		{`"x"`, 0, reasonObject},
		{`{"a"`, 4, reasonEnd},
		{`{"a":`, 5, reasonEnd},
		{`{"a":1`, 6, reasonEnd},
		{`{"a":1,`, 7, reasonEnd},
		{`{"a":1,}`, 7, reasonName},
		{`{a:1}`, 1, reasonName},
		{`{'a':1}`, 1, reasonName},
		{`{"a" 1}`, 5, reasonColon},
		{`{"a":1 "b":2}`, 7, reasonComma},
		{`{"a":[1 2]}`, 8, reasonComma},
		{`{"a":[1,]}`, 8, reasonValue},
		{`{"a":[1}`, 7, reasonComma},
		{`{"a":tru}`, 5, reasonValue},
		{`{"a":True}`, 5, reasonValue},
		{`{"a":NaN}`, 5, reasonValue},
		{`{"a":}`, 5, reasonValue},
		{`{"a":+1}`, 5, reasonValue},
		{`{"a":.5}`, 5, reasonValue},
		{`{"a":01}`, 5, reasonNumber},
		{`{"a":-}`, 5, reasonNumber},
		{`{"a":-01}`, 5, reasonNumber},
		{`{"a":1.}`, 5, reasonNumber},
		{`{"a":1e}`, 5, reasonNumber},
		{`{"a":1e+}`, 5, reasonNumber},
		{`{"a":1.5e-}`, 5, reasonNumber},
		{`{"a":0x1}`, 6, reasonComma},
		{`{"a":"` + "\n" + `"}`, 6, reasonControl},
		{`{"a":"` + "\x00" + `"}`, 6, reasonControl},
		{`{"a":"` + "\x1f" + `"}`, 6, reasonControl},
		{`{"a":"\x41"}`, 7, reasonEscape},
		{`{"a":"\u12g4"}`, 7, reasonEscape},
		{`{"a":"\u12"}`, 7, reasonEscape},
		{`{"a":"\u12`, 7, reasonEscape},
		{`{"a":[[1 2]]}`, 9, reasonComma},
		{`{"a":{"b":1 "c":2}}`, 12, reasonComma},
		{`{"a":{1:2}}`, 6, reasonName},
		{`{"a":{"b" 2}}`, 10, reasonColon},
		{`{"a":"\`, 7, reasonEnd},
		{`{"a":"\ud800"}`, 7, reasonSurrogate},
		{`{"a":"\udc00"}`, 7, reasonSurrogate},
		{`{"a":"\ud800\u0041"}`, 7, reasonSurrogate},
		{`{"a":"\ud800\ud800"}`, 7, reasonSurrogate},
		{`{"a":"` + "\xff" + `"}`, 6, reasonUTF8},
		{`{"a":"` + "\xc0\x80" + `"}`, 6, reasonUTF8},
		{`{"a":"` + "\xed\xa0\x80" + `"}`, 6, reasonUTF8},
		{`{"a":"` + "12345678\xe2\x82" + `"}`, 6, reasonUTF8},
		{`{"` + "\xff" + `":1}`, 2, reasonUTF8},
		{`{"a":1}` + "\v", 7, reasonTrailing},
		{patient(`"a":1`) + `{}`, 41, reasonTrailing},
		{patient(`"a":1`) + "\n" + patient(`"a":1`), 42, reasonTrailing},
		{patient(`"a":` + deep(256)), 294, reasonDepth},
		{"{" + strings.Repeat(`"a":{`, 300), 1280, reasonDepth},

		// What we need to know.
		{`{}`, 0, reasonNoType},
		{`{"id":"p"}`, 0, reasonNoType},
		{`{"resourceType":"Patient"}`, 0, reasonNoID},
		{`{"resourceType":"Foo","id":"p"}`, 16, reasonType},
		{`{"resourceType":"patient","id":"p"}`, 16, reasonType},
		{`{"resourceType":"","id":"p"}`, 16, reasonType},
		{`{"resourceType":null,"id":"p"}`, 16, "resourceType is not a string"},
		{`{"resourceType":["Patient"],"id":"p"}`, 16, "resourceType is not a string"},
		{`{"resourceType":"Patient","id":7}`, 31, "id is not a string"},
		{`{"resourceType":"Patient","id":""}`, 31, reasonID},
		{`{"resourceType":"Patient","id":"a/b"}`, 31, reasonID},
		{`{"resourceType":"Patient","id":"` + strings.Repeat("a", 65) + `"}`, 31, reasonID},
		{patient(`"meta":null`), 42, "meta is not an object"},
		{patient(`"meta":[{}]`), 42, "meta is not an object"},
		{patient(`"meta":"x"`), 42, "meta is not an object"},
		{patient(`"meta":{"versionId":""}`), 55, reasonVersion},
		{patient(`"meta":{"versionId":null}`), 55, "meta.versionId is not a string"},
		{patient(`"meta":{"versionId":7}`), 55, "meta.versionId is not a string"},
		{patient(`"meta":{"lastUpdated":null}`), 57, "meta.lastUpdated is not a string"},
		{patient(`"meta":{"lastUpdated":{}}`), 57, "meta.lastUpdated is not a string"},
		{patient(`"meta":{"tag":"x"}`), 49, "meta.tag is not an object"},
		{`{"resourceType":"Goal","id":"g","subject":"Patient/p"}`, 42, "subject is not an object"},
		{`{"resourceType":"Goal","id":"g","subject":{"reference":["Patient/p"]}}`, 55, "subject.reference is not a string"},
		{`{"subject":{"reference":7},"resourceType":"Goal","id":"g"}`, 24, "subject.reference is not a string"},
		{`{"resourceType":"Group","id":"g","member":[{"inactive":"true"}]}`, 55, "member.inactive is not a boolean"},
		{`{"resourceType":"Group","id":"g","member":[{"inactive":1}]}`, 55, "member.inactive is not a boolean"},
		{`{"resourceType":"Group","id":"g","member":[{"period":{"end":"soon"}}]}`, 60, "member.period.end is not a dateTime"},

		// What would be ambiguous.
		{`{"resourceType":"Patient","resourceType":"Group","id":"p"}`, 27, "duplicate resourceType"},
		{patient(`"id":"q"`), 36, "duplicate id"},
		{patient(`"\u0069d":"q"`), 36, "duplicate id"},
		{patient(`"meta":{},"meta":{}`), 46, "duplicate meta"},
		{patient(`"meta":{"versionId":"1","versionId":"1"}`), 60, "duplicate meta.versionId"},
		{patient(`"meta":{"tag":[{"code":"a","code":"b"}]}`), 63, "duplicate meta.tag.code"},
		{`{"resourceType":"Goal","id":"g","subject":{},"subject":{}}`, 46, "duplicate subject"},
		{`{"subject":{},"subject":{},"resourceType":"Goal","id":"g"}`, 15, "duplicate subject"},
		{`{"subject":{},"resourceType":"Goal","id":"g","subject":{}}`, 2, "duplicate subject"},
		{`{"resourceType":"Goal","id":"g","subject":{"reference":"Patient/a","reference":"Patient/b"}}`, 68, "duplicate subject.reference"},
		{`{"resourceType":"CarePlan","id":"g","activity":[{},{"detail":{},"detail":{}}]}`, 65, "duplicate activity.detail"},
	} {
		var s Scanner
		got, err := s.Scan([]byte(c.doc))
		var syntax *SyntaxError
		if !errors.As(err, &syntax) {
			t.Errorf("Scan(%.80q) = %+v, %v, want it refused: %s", c.doc, got, err, c.reason)
			continue
		}
		if syntax.Reason != c.reason || syntax.Offset != c.offset {
			t.Errorf("Scan(%.80q): %v, want at byte %d: %s", c.doc, err, c.offset, c.reason)
		}
	}
}

func TestScanDepth(t *testing.T) {
	doc := []byte(patient(`"a":[[[{}]]]`)) // five levels
	for depth, want := range map[int]bool{0: true, 5: true, 4: false, 1: false} {
		s := Scanner{MaxDepth: depth}
		if _, err := s.Scan(doc); (err == nil) != want {
			t.Errorf("MaxDepth %d: %v", depth, err)
		}
	}
}

func TestScanKeepsEveryByteButWhiteSpace(t *testing.T) {
	doc := "\r\n {\t\"resourceType\" : \"Patient\" ,\"id\":\"p\", \"a\": [ 1.00 , -0.10E+05, 1e400, 123456789012345678901234567890 ],\n" +
		"\"b\" :{ \"x y\" : \" \\u00e9 é \\/ \\\"\" , \"x y\":[ ],\"e\":{ } } }\n\n"
	want := `{"resourceType":"Patient","id":"p","a":[1.00,-0.10E+05,1e400,123456789012345678901234567890],` +
		`"b":{"x y":" \u00e9 é \/ \"","x y":[],"e":{}}}`
	src := []byte(doc)
	var s Scanner
	res, err := s.Scan(src)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(res.Body)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if string(src) != doc {
		t.Error("Scan changed what it read")
	}
	// Scratch space must not shine through.
	if _, err := s.Scan([]byte(strings.ReplaceAll(doc, "a", "Z"))); err == nil {
		t.Error("the second document is not a resource")
	}
	if string(res.Body) != want {
		t.Error("the next Scan changed the body")
	}
}

func TestScanAliases(t *testing.T) {
	var s Scanner
	compact := patient(`"a":" x "`)
	for doc, want := range map[string]bool{
		compact:                true,
		compact + "\n":         true,
		" " + compact + "\r\n": true,
		patient(` "a":1`):      false,
	} {
		src := []byte(doc)
		res, err := s.Scan(src)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.IndexByte(src, '{')
		if got := unsafe.SliceData(res.Body) == &src[at]; got != want {
			t.Errorf("Scan(%q): body aliases the source: %v", doc, got)
		}
		if cap(res.Body) != len(res.Body) && want {
			t.Errorf("Scan(%q): appending to the body would write into the source", doc)
		}
	}
}

// The scanner's scratch holds what the last documents said. Nothing of it may
// turn up in the next.
func TestScanForgets(t *testing.T) {
	var s Scanner
	first, err := s.Scan([]byte(`{"subject":{"reference":"Patient/b"},"resourceType":"Goal","id":"g","meta":{"versionId":"1","lastUpdated":"2026-01-02T03:04:05Z",` +
		`"tag":{"code":"SUBSETTED","system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue"}}}`))
	if err != nil || !first.Subsetted {
		t.Fatal(first, err)
	}
	if _, err := s.Scan([]byte(`{"resourceType":"Group","id":"x","member":[{"entity":{"reference":"Patient/x"}},{"entity":7}]}`)); err == nil {
		t.Fatal("no error")
	}
	got, err := s.Scan([]byte(`{"resourceType":"Group","id":"y"}`))
	want := Resource{
		Key: key("Group/y"), Body: []byte(`{"resourceType":"Group","id":"y"}`), LastUpdated: None,
		Meta: Meta{at: 32, flags: lacksVersion | lacksUpdated | lacksMeta},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Meta{})); diff != "" || err != nil {
		t.Errorf("%v, -want +got:\n%s", err, diff)
	}
	if !slices.Equal(first.Patients, []string{"b"}) || first.Key.ID != "g" || first.Version != "1" {
		t.Errorf("the first answer changed: %+v", first)
	}
}

func TestScanAllocations(t *testing.T) {
	var s Scanner
	doc := observation(t)
	got := testing.AllocsPerRun(100, func() {
		if _, err := s.Scan(doc); err != nil {
			t.Fatal(err)
		}
	})
	if got > 3 { // the texts, and the lists of patients and references
		t.Errorf("%v allocations", got)
	}
}

// Whatever is wrong with a document, and wherever, the error says nothing of
// what stands in it.
func TestScanErrorsHoldNoContent(t *testing.T) {
	doc := `{"resourceType":"Group","id":"CANARY-id","meta":{"versionId":"CANARY-v","lastUpdated":"CANARY-lu","CANARY":"x"},"CANARY":[-1.5e7,true,null],` +
		`"name":"CANARY é","member":[{"entity":{"reference":"Patient/CANARY-p"},"inactive":true,"period":{"start":"2024-01-02","end":"2024-02"}}]}`
	reasons := allReasons()
	var s Scanner
	check := func(doc []byte) {
		t.Helper()
		_, err := s.Scan(doc)
		if err == nil {
			return
		}
		if syntax, ok := errors.AsType[*SyntaxError](err); !ok || !reasons[syntax.Reason] || strings.Contains(err.Error(), "CANARY") {
			t.Fatalf("%v (%T) for %q", err, err, doc)
		}
	}
	for i := range len(doc) {
		check([]byte(doc[:i]))
		for _, c := range []byte("\x00 \"\\{}[],:1nt\xff") {
			changed := []byte(doc)
			changed[i] = c
			check(changed)
			check(slices.Insert([]byte(doc), i, c))
		}
	}
}

// allReasons are all that a SyntaxError may say.
func allReasons() map[string]bool {
	all := map[string]bool{}
	for _, r := range slices.Concat(grammarReasons, []string{
		reasonObject, reasonLarge, reasonDepth, reasonType, reasonNoType, reasonID, reasonNoID, reasonVersion,
	}) {
		all[r] = true
	}
	var add func(n *node)
	add = func(n *node) {
		for _, r := range []string{reasonNoObject, reasonNoString, reasonNoBool, reasonNoTime} {
			all[n.name+r] = true
		}
		all[reasonDuplicate+n.name] = true
		for _, c := range n.children {
			add(c)
		}
	}
	for _, root := range roots {
		add(root)
	}
	return all
}

// grammarReasons are those that say "this is not JSON".
var grammarReasons = []string{
	reasonEnd, reasonValue, reasonName, reasonColon, reasonComma, reasonTrailing,
	reasonControl, reasonUTF8, reasonEscape, reasonSurrogate, reasonNumber,
}

func key(s string) Key {
	k, err := ParseKey(s)
	if err != nil {
		panic(err)
	}
	return k
}

func instantOf(s string) Instant {
	i, _, err := ParseInstant(s)
	if err != nil {
		panic(err)
	}
	return i
}

// TestAllReferences: who asks for all of them gets those to types of the
// compartment, too, wherever one stands and however it is written.
func TestAllReferences(t *testing.T) {
	some, all := Scanner{OwnBases: []string{ownBase}}, Scanner{OwnBases: []string{ownBase}, AllReferences: true}
	const doc = `{"resourceType":"Observation","id":"o","subject":{"reference":"Patient/p"},"encounter":{"re\u0066erence":"` + ownBase + `/Encounter/e/_history/2"},` +
		`"performer":[{"reference":"Practitioner/dr"},{"reference":"http://elsewhere/Patient/q"}],"extension":[{"url":"u","valueReference":{"reference":"Condition/c"}}]}`
	for s, want := range map[*Scanner][]string{&some: {"Practitioner/dr"}, &all: {"Condition/c", "Encounter/e", "Patient/p", "Practitioner/dr"}} {
		res, err := s.Scan([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, k := range res.References {
			got = append(got, k.String())
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("all %t: %v, want %v", s.AllReferences, got, want)
		}
	}
}
