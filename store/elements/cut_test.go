package elements

import (
	"fmt"
	"strings"
	"testing"

	"tidemark/store/fhir"
)

const ours = `{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}`

// tagged is the meta of a resource that had none.
const tagged = `"meta":{"tag":[` + ours + `]}`

var appendCases = []struct{ name, values, doc, want string }{
	{
		"asked for, and what always stays", "Patient.name",
		`{"resourceType":"Patient","id":"p","implicitRules":"http://r","language":"de","extension":[{"url":"u"}],"modifierExtension":[{"url":"m"}],"active":true,"name":[{"family":"K"}],"gender":"male","deceasedBoolean":false,"link":[]}`,
		`{"resourceType":"Patient","id":"p","implicitRules":"http://r","modifierExtension":[{"url":"m"}],"active":true,"name":[{"family":"K"}],"deceasedBoolean":false,"link":[],` + tagged + `}`,
	}, {
		"a type that nothing applies to", "Patient.name",
		`{"resourceType":"Observation","id":"o","text":{"div":"<p>"},"status":"final","code":{"text":"c"},"valueString":"v","name":"x"}`,
		`{"resourceType":"Observation","id":"o","status":"final","code":{"text":"c"},` + tagged + `}`,
	}, {
		"a bare element, a list", "gender , birthDate",
		`{"resourceType":"Patient","id":"p","gender":"male","birthDate":"2000","name":[]}`,
		`{"resourceType":"Patient","id":"p","gender":"male","birthDate":"2000",` + tagged + `}`,
	}, {
		"nothing is cut", "id",
		`{"resourceType":"Patient","id":"p"}`,
		`{"resourceType":"Patient","id":"p",` + tagged + `}`,
	}, {
		"an element of another type", "Organization.name",
		`{"resourceType":"Patient","id":"p","name":[]}`,
		`{"resourceType":"Patient","id":"p",` + tagged + `}`,
	}, {
		"a choice", "Observation.value",
		`{"resourceType":"Observation","id":"o","status":"final","code":{},"valueQuantity":{"value":1.50},"valueFuture":1,"valueset":2,"value":3,"values":4}`,
		`{"resourceType":"Observation","id":"o","status":"final","code":{},"valueQuantity":{"value":1.50},"valueFuture":1,` + tagged + `}`,
	}, {
		"a choice, as its path has it", "value[x]",
		`{"resourceType":"Observation","id":"o","valueString":"s","_valueString":{"id":"1"},"note":[]}`,
		`{"resourceType":"Observation","id":"o","valueString":"s","_valueString":{"id":"1"},` + tagged + `}`,
	}, {
		"one name of a choice", "valueQuantity",
		`{"resourceType":"Observation","id":"o","valueQuantity":{},"valueString":"s","_valueQuantity":{},"valueQuantityX":1}`,
		`{"resourceType":"Observation","id":"o","valueQuantity":{},"_valueQuantity":{},` + tagged + `}`,
	}, {
		"a mandatory choice", "id",
		`{"resourceType":"MedicationRequest","id":"m","medicationCodeableConcept":{"text":"a"},"medication":1,"dosageInstruction":[]}`,
		`{"resourceType":"MedicationRequest","id":"m","medicationCodeableConcept":{"text":"a"},` + tagged + `}`,
	}, {
		"one of two that an invariant demands", "active",
		`{"resourceType":"Organization","id":"o","active":true,"type":[],"name":"O","alias":["P"]}`,
		`{"resourceType":"Organization","id":"o","active":true,"name":"O",` + tagged + `}`,
	}, {
		"what must not be there alone", "ServiceRequest.orderDetail",
		`{"resourceType":"ServiceRequest","id":"s","status":"active","intent":"order","code":{"text":"c"},"orderDetail":[{"text":"d"}],"subject":{},"note":[]}`,
		`{"resourceType":"ServiceRequest","id":"s","status":"active","intent":"order","code":{"text":"c"},"orderDetail":[{"text":"d"}],"subject":{},` + tagged + `}`,
	}, {
		"what may be there alone", "ServiceRequest.note",
		`{"resourceType":"ServiceRequest","id":"s","status":"active","intent":"order","code":{"text":"c"},"orderDetail":[{"text":"d"}],"subject":{},"note":[]}`,
		`{"resourceType":"ServiceRequest","id":"s","status":"active","intent":"order","subject":{},"note":[],` + tagged + `}`,
	}, {
		"a choice that another element wants beside it", "estimatedAge",
		`{"resourceType":"FamilyMemberHistory","id":"f","status":"completed","patient":{},"relationship":{},"ageString":"old","estimatedAge":true,"sex":{}}`,
		`{"resourceType":"FamilyMemberHistory","id":"f","status":"completed","patient":{},"relationship":{},"ageString":"old","estimatedAge":true,` + tagged + `}`,
	}, {
		"siblings of primitives", "birthDate",
		`{"resourceType":"Patient","_id":{"id":"i"},"id":"p","_birthDate":{"extension":[]},"__birthDate":1,"_gender":{"id":"g"},"_active":{"id":"a"},"_":0,"":1}`,
		`{"resourceType":"Patient","_id":{"id":"i"},"id":"p","_birthDate":{"extension":[]},"_active":{"id":"a"},` + tagged + `}`,
	}, {
		"the type at the end", "Observation.issued",
		`{"status":"final","note":[{"text":"}]\\\""}],"issued":"2020","id":"o","resourceType":"Observation"}`,
		`{"status":"final","issued":"2020","id":"o","resourceType":"Observation",` + tagged + `}`,
	}, {
		"the first and the last go", "name",
		`{"gender":"male","resourceType":"Patient","id":"p","name":[],"photo":[]}`,
		`{"resourceType":"Patient","id":"p","name":[],` + tagged + `}`,
	}, {
		"names with escapes", "Patient.name",
		`{"resource\u0054ype":"Patient","\u0069d":"p","n\u0061me":[{"family":"\u00e9"}],"g\u0065nder":"male","\u005factive":{},"l\u0069nk":[]}`,
		`{"resource\u0054ype":"Patient","\u0069d":"p","n\u0061me":[{"family":"\u00e9"}],"\u005factive":{},"l\u0069nk":[],` + tagged + `}`,
	}, {
		"names with escapes that are others", "Patient.name",
		`{"resourceType":"Patient","id":"p","na\"me":1,"name\u0000":2,"name\\":3,"\ud83d\udc26name":4}`,
		`{"resourceType":"Patient","id":"p",` + tagged + `}`,
	}, {
		"names that come twice", "Patient.name",
		`{"resourceType":"Patient","id":"p","name":1,"x":1,"name":2,"x":{"x":[]},"n\u0061me":3}`,
		`{"resourceType":"Patient","id":"p","name":1,"name":2,"n\u0061me":3,` + tagged + `}`,
	}, {
		"values of all kinds", "Patient.name",
		`{"resourceType":"Patient","a":1.50,"id":"p","b":null,"c":true,"d":-0.0E+2,"e":"","f":"\\","g":[],"h":{},"i":[[["]}"]]],"name":[1.00,{"k":[{}]},"\\\"",null],"j":false}`,
		`{"resourceType":"Patient","id":"p","name":[1.00,{"k":[{}]},"\\\"",null],` + tagged + `}`,
	}, {
		"meta stays, the tag is last in it", "id",
		`{"resourceType":"Patient","id":"p","meta":{"versionId":"1","profile":["u"],"security":[{"code":"R"}],"x":1},"gender":"male"}`,
		`{"resourceType":"Patient","id":"p","meta":{"versionId":"1","profile":["u"],"security":[{"code":"R"}],"x":1,"tag":[` + ours + `]}}`,
	}, {
		"an empty meta", "id",
		`{"meta":{},"resourceType":"Patient","id":"p"}`,
		`{"meta":{"tag":[` + ours + `]},"resourceType":"Patient","id":"p"}`,
	}, {
		"an empty list of tags", "id",
		`{"resourceType":"Patient","id":"p","meta":{"tag":[],"versionId":"1"}}`,
		`{"resourceType":"Patient","id":"p","meta":{"tag":[` + ours + `],"versionId":"1"}}`,
	}, {
		"other tags", "id",
		`{"resourceType":"Patient","id":"p","meta":{"tag":[{"system":"s","code":"SUBSETTED"},{"code":"SUBSETTED"}]}}`,
		`{"resourceType":"Patient","id":"p","meta":{"tag":[{"system":"s","code":"SUBSETTED"},{"code":"SUBSETTED"},` + ours + `]}}`,
	}, {
		"system and code in two tags", "id",
		`{"resourceType":"Patient","id":"p","meta":{"tag":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue"},{"code":"SUBSETTED"}]}}`,
		`{"resourceType":"Patient","id":"p","meta":{"tag":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue"},{"code":"SUBSETTED"},` + ours + `]}}`,
	}, {
		"system and code further down", "id",
		`{"resourceType":"Patient","id":"p","meta":{"tag":[{"extension":[` + ours + `]}]}}`,
		`{"resourceType":"Patient","id":"p","meta":{"tag":[{"extension":[` + ours + `]},` + ours + `]}}`,
	}, {
		"the tag is there", "id",
		`{"resourceType":"Patient","id":"p","meta":{"tag":[{"code":"x"},` + ours + `]},"name":[]}`,
		`{"resourceType":"Patient","id":"p","meta":{"tag":[{"code":"x"},` + ours + `]}}`,
	}, {
		"the tag is there, with more and escapes", "id",
		`{"resourceType":"Patient","id":"p","m\u0065ta":{"t\u0061g":[{"c\u006fde":"SUBSETTE\u0044","version":"1","system":"http:\/\/terminology.hl7.org\/CodeSystem\/v3-ObservationValue"}]}}`,
		`{"resourceType":"Patient","id":"p","m\u0065ta":{"t\u0061g":[{"c\u006fde":"SUBSETTE\u0044","version":"1","system":"http:\/\/terminology.hl7.org\/CodeSystem\/v3-ObservationValue"}]}}`,
	}, {
		"escapes, and the tag is not there", "id",
		`{"resourceType":"Patient","id":"p","m\u0065ta":{"t\u0061g":[{"c\u006fde":"x"}]}}`,
		`{"resourceType":"Patient","id":"p","m\u0065ta":{"t\u0061g":[{"c\u006fde":"x"},` + ours + `]}}`,
	}, {
		"the tags are null", "id",
		`{"resourceType":"Patient","id":"p","meta":{"tag":null}}`,
		`{"resourceType":"Patient","id":"p","meta":{"tag":[` + ours + `]}}`,
	}, {
		"a tag without a list", "id",
		`{"resourceType":"Patient","id":"p","meta":{"tag":{"code":"x"}}}`,
		`{"resourceType":"Patient","id":"p","meta":{"tag":[{"code":"x"},` + ours + `]}}`,
	}, {
		"our tag without a list", "id",
		`{"resourceType":"Patient","id":"p","meta":{"tag":` + ours + `}}`,
		`{"resourceType":"Patient","id":"p","meta":{"tag":` + ours + `}}`,
	}, {
		"our tag in a list of lists", "id",
		`{"resourceType":"Patient","id":"p","meta":{"tag":[null,[],[[` + ours + `]]]}}`,
		`{"resourceType":"Patient","id":"p","meta":{"tag":[null,[],[[` + ours + `]]]}}`,
	}, {
		"no tag of ours is one in meta.security", "id",
		`{"resourceType":"Patient","id":"p","meta":{"security":[` + ours + `]}}`,
		`{"resourceType":"Patient","id":"p","meta":{"security":[` + ours + `],"tag":[` + ours + `]}}`,
	}, {
		"contained resources go", "name",
		`{"resourceType":"Patient","id":"p","meta":{"source":"#1"},"contained":[{"resourceType":"Organization","id":"o","meta":{}}],"name":[{"text":"#o"}],"managingOrganization":{"reference":"#o"}}`,
		`{"resourceType":"Patient","id":"p","meta":{"source":"#1","tag":[` + ours + `]},"name":[{"text":"#o"}]}`,
	}, {
		"contained resources that are asked for", "Patient.contained",
		`{"resourceType":"Patient","id":"p","contained":[{"resourceType":"Organization","id":"o"}],"managingOrganization":{"reference":"#o"}}`,
		`{"resourceType":"Patient","id":"p","contained":[{"resourceType":"Organization","id":"o"}],` + tagged + `}`,
	}, {
		"contained resources that a mandatory element is about", "id",
		`{"resourceType":"MedicationRequest","id":"m","contained":[{"resourceType":"Medication","id":"d"}],"medicationReference":{"display":"x","reference":"#d"},"note":[]}`,
		`{"resourceType":"MedicationRequest","id":"m","contained":[{"resourceType":"Medication","id":"d"}],"medicationReference":{"display":"x","reference":"#d"},` + tagged + `}`,
	}, {
		"contained resources that an element asked for is about, with escapes", "managingOrganization",
		`{"resourceType":"Patient","id":"p","managingOrganiz\u0061tion":{"r\u0065ference":"\u0023\u006f"},"cont\u0061ined":[{"i\u0064":"\u006f"}]}`,
		`{"resourceType":"Patient","id":"p","managingOrganiz\u0061tion":{"r\u0065ference":"\u0023\u006f"},"cont\u0061ined":[{"i\u0064":"\u006f"}],` + tagged + `}`,
	}, {
		"contained resources that others of them are about", "performer",
		`{"resourceType":"Observation","id":"o","contained":[{"id":"a"},{"resourceType":"PractitionerRole","id":"b","organization":{"reference":"#c"},"practitioner":{"reference":"#b"}},{"id":"c","partOf":{"reference":"#d"}},{"id":"e","x":{"reference":"#b"}},{"id":"d"}],"performer":[{"reference":"#b"}],"subject":{"reference":"#a"}}`,
		`{"resourceType":"Observation","id":"o","contained":[{"resourceType":"PractitionerRole","id":"b","organization":{"reference":"#c"},"practitioner":{"reference":"#b"}},{"id":"c","partOf":{"reference":"#d"}},{"id":"d"}],"performer":[{"reference":"#b"}],` + tagged + `}`,
	}, {
		"contained resources that nothing can be about", "managingOrganization",
		`{"contained":{"id":"o"},"resourceType":"Patient","id":"p","managingOrganization":{"reference":"#o"}}`,
		`{"resourceType":"Patient","id":"p","managingOrganization":{"reference":"#o"},` + tagged + `}`,
	}, {
		"contained resources without an id, of the same id, and others", "managingOrganization",
		`{"resourceType":"Patient","id":"p","contained":[1,{},{"id":7},["o"],{"id":"o"},null,{"id":"o","x":1}],"managingOrganization":{"reference":"#o"}}`,
		`{"resourceType":"Patient","id":"p","contained":[{"id":"o"},{"id":"o","x":1}],"managingOrganization":{"reference":"#o"},` + tagged + `}`,
	}, {
		"other references", "managingOrganization",
		`{"contained":[{"id":"o"},{"id":""}],"resourceType":"Patient","id":"p","managingOrganization":{"reference":"Organization/1#o","display":"#o","x":["reference","#o"],"y":{"reference":["#o"]},"z":{"reference":"#"}}}`,
		`{"resourceType":"Patient","id":"p","managingOrganization":{"reference":"Organization/1#o","display":"#o","x":["reference","#o"],"y":{"reference":["#o"]},"z":{"reference":"#"}},` + tagged + `}`,
	}, {
		"a Binary", "id",
		`{"resourceType":"Binary","id":"b","contentType":"text/plain","data":"AAAA","modifierExtension":1}`,
		`{"resourceType":"Binary","id":"b","contentType":"text/plain","modifierExtension":1,` + tagged + `}`,
	},
}

func TestAppend(t *testing.T) {
	for _, c := range appendCases {
		t.Run(c.name, func(t *testing.T) {
			p := parse(t, c.values)
			var s fhir.Scanner
			res, err := s.Scan([]byte(c.doc))
			if err != nil {
				t.Fatal(err)
			}
			if string(res.Body) != c.doc {
				t.Fatal("the case is not compact")
			}
			got := p.Append([]byte("before "), res.Body, res.Key.Type)
			if string(got) != "before "+c.want {
				t.Errorf("got  %s\nwant before %s", got, c.want)
			}
			check(t, &s, p, c.values, res)
		})
	}
}

func TestAppendNewline(t *testing.T) {
	p, typ := parse(t, "id"), typeOf(t, "Patient")
	doc := `{"resourceType":"Patient","id":"p","name":[]}`
	want := `{"resourceType":"Patient","id":"p",` + tagged + `}`
	if got := string(p.Append(nil, []byte(doc+"\n"), typ)); got != want+"\n" {
		t.Errorf("got %q", got)
	}
}

// TestAppendManyContained: of more contained resources than are told apart all
// stay, if there is a reference to any, and else none.
func TestAppendManyContained(t *testing.T) {
	const head, tail = `{"resourceType":"Patient","id":"p"`, `,"generalPractitioner":[{"reference":"#7"}],` + tagged + `}`
	for _, n := range []int{maxInside, maxInside + 1} {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf(`{"id":"%d"}`, i))
		}
		contained := `,"contained":[` + strings.Join(list, ",") + `]`
		want := contained
		if n <= maxInside {
			want = `,"contained":[` + list[7] + `]`
		}
		doc := []byte(head + contained + tail)
		if got := string(parse(t, "generalPractitioner").Append(nil, doc, typeOf(t, "Patient"))); got != head+want+tail {
			t.Errorf("%d contained, one of which is referred to: %s", n, got)
		}
		if got := string(parse(t, "id").Append(nil, doc, typeOf(t, "Patient"))); got != head+","+tagged+"}" {
			t.Errorf("%d contained, none of which is referred to: %s", n, got)
		}
	}
}

// TestAppendNothing is no _elements.
func TestAppendNothing(t *testing.T) {
	var p *Projection
	doc := `{"resourceType":"Patient","id":"p","name":[]}`
	if got := string(p.Append([]byte("x"), []byte(doc), typeOf(t, "Patient"))); got != "x"+doc {
		t.Errorf("got %q", got)
	}
}

// TestAppendUnknownType: of a type that the table does not have yet, nothing stays
// but what all types have.
func TestAppendUnknownType(t *testing.T) {
	p := parse(t, "name,status")
	doc := `{"resourceType":"Future","id":"f","name":"n","status":"s"}`
	for _, typ := range []fhir.Type{0, 255, 256, 60000} {
		want := `{"resourceType":"Future","id":"f",` + tagged + `}`
		if got := string(p.Append(nil, []byte(doc), typ)); got != want {
			t.Errorf("%d: %s", typ, got)
		}
	}
}

func TestAppendAllocates(t *testing.T) {
	dst := make([]byte, 0, 1<<16)
	for _, c := range appendCases {
		p, doc := parse(t, c.values), []byte(c.doc)
		var s fhir.Scanner
		res, err := s.Scan(doc)
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(10, func() { p.Append(dst, doc, res.Key.Type) }); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}
