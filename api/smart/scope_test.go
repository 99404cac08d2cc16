package smart

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"tidemark/store/fhir"
)

// TestGrant: SMART 2.2.0, "Scopes", and decisions.md 6.
func TestGrant(t *testing.T) {
	for _, c := range []struct{ name, may, asks, gets string }{
		{"all, as Inferno asks", "system/*.rs", "system/*.read", "system/*.read"},
		{"all, in the second dialect", "system/*.read", "system/*.rs", "system/*.rs"},
		{"reading of whatever", "system/*.rs", "system/Patient.cruds system/Observation.*", "system/Patient.rs system/Observation.read"},
		{"writing is not granted", "system/*.cruds", "system/Patient.cud system/Patient.write system/Observation.rs", "system/Observation.rs"},
		{"only what may be", "system/Patient.rs system/Observation.rs", "system/*.rs", "system/Patient.rs system/Observation.rs"},
		{"in the dialect that was asked", "system/Patient.rs", "system/*.read", "system/Patient.read"},
		{"one of two", "system/Patient.rs", "system/Patient.rs system/Observation.rs", "system/Patient.rs"},
		{"only r", "system/Patient.r", "system/Patient.read", "system/Patient.r"},
		{"only s was asked for", "system/Patient.rs", "system/Patient.s", "system/Patient.s"},
		{"in two halves", "system/*.rs", "system/Patient.r system/Patient.s", "system/Patient.r system/Patient.s"},
		{"narrowed by the client", "system/*.rs", "system/Observation.rs?category=laboratory", "system/Observation.rs?category=laboratory"},
		{"narrowed by us", "system/Observation.rs?category=laboratory", "system/*.read", "system/Observation.rs?category=laboratory"},
		{"narrowed by both", "system/Observation.rs?category=laboratory", "system/Observation.rs?status=final", "system/Observation.rs?status=final&category=laboratory"},
		{"narrowed alike", "system/Observation.rs?status=final", "system/Observation.rs?status=final", "system/Observation.rs?status=final"},
		{"every type narrowed", "system/*.rs?_security=N", "system/Patient.rs", "system/Patient.rs?_security=N"},
		{"twice", "system/*.rs", "system/Patient.rs system/Patient.rs system/*.rs", "system/*.rs"},
		{"others are dropped", "system/*.rs", "openid user/*.rs patient/*.rs launch system/Nothing.rs system/Patient.rs system/Patient.sr system/Patient. system/Patient system/*.$export offline_access", "system/Patient.rs"},
		{"a constraint that nobody knows", "system/*.rs", "system/Observation.rs?colour=red system/*.rs?category=laboratory system/Patient.rs?", ""},
		{"nothing is asked for", "system/*.rs", "", ""},
		{"nothing may be", "", "system/*.rs", ""},
		{"nothing in common", "system/Patient.r", "system/Patient.s", ""},
		{"case counts", "system/*.rs", "System/Patient.rs system/patient.rs system/Patient.Read system/Patient.RS", ""},
	} {
		granted, err := Parse(c.may).Grant(c.asks)
		if (err != nil) != (c.gets == "") || err != nil && !errors.Is(err, ErrInvalidScope) || granted.String() != c.gets {
			t.Errorf("%s: %q of %q is %q, %v; want %q", c.name, c.asks, c.may, granted, err, c.gets)
		}
	}
}

// TestParse: what grants no reading is no right.
func TestParse(t *testing.T) {
	if rights := Parse("system/Patient.cud system/*.write system/Observation.cruds"); len(rights) != 1 {
		t.Errorf("%v", rights)
	}
	if rights := Parse(strings.Repeat("system/Patient.rs ", maxScopes+1)); len(rights) != maxScopes {
		t.Errorf("of more than %d scopes %d are looked at", maxScopes, len(rights))
	}
}

// TestRights: what is granted is what may be exported.
func TestRights(t *testing.T) {
	observation, _ := fhir.ParseType("Observation")
	patient, _ := fhir.ParseType("Patient")
	for _, c := range []struct {
		scopes         string
		reads, exports bool
		filters        string
	}{
		{"system/*.rs", true, true, ""},
		{"system/Observation.r", true, false, ""},
		{"system/Observation.s", false, false, ""},
		{"system/Observation.r system/*.s", true, true, ""},
		{"system/Patient.rs", false, false, ""},
		{"system/Observation.rs?category=laboratory", true, true, "Observation?category=laboratory"},
		{"system/Observation.rs?category=laboratory system/Observation.rs?status=final", true, true, "Observation?category=laboratory Observation?status=final"},
		{"system/Observation.rs?category=laboratory system/*.rs", true, true, ""},
		{"system/Observation.rs?status=final&category=laboratory system/Observation.rs?category=laboratory&status=final", true, true, "Observation?category=laboratory&status=final"},
		{"system/Observation.r?category=laboratory system/*.s?_security=N", true, true, "Observation?_security=N&category=laboratory"},
	} {
		rights := Parse(c.scopes)
		if got := strings.Join(rights.Filters(observation), " "); rights.Reads(observation) != c.reads || rights.Exports(observation) != c.exports || got != c.filters {
			t.Errorf("%q: read %v, export %v, filters %q; want %+v", c.scopes, rights.Reads(observation), rights.Exports(observation), got, c)
		}
		if rights.Exports(patient) != (strings.Contains(c.scopes, "*.rs") || strings.Contains(c.scopes, "Patient.rs")) {
			t.Errorf("%q lets export Patient", c.scopes)
		}
	}
}

// TestGrantIsWhatBothLet: whatever is asked for and allowed, a resource may be read
// or found by what is granted if and only if both let, and the words of the answer
// mean the same.
func TestGrantIsWhatBothLet(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	constraints := []string{"status=final", "category=laboratory", "_security=N"}
	scopes := func() string {
		var list []string
		for range r.IntN(5) {
			s := "system/" + pick("*", "Patient", "Observation", "Observation") + "." + pick("read", "*", "write", "r", "s", "rs", "cruds", "cud", "rs", "rs")
			if r.IntN(2) == 0 {
				s += "?" + pick(constraints...)
				if r.IntN(3) == 0 {
					s += "&" + pick(constraints...)
				}
			}
			list = append(list, s)
		}
		return strings.Join(list, " ")
	}
	// A resource is its type and the constraints that it meets.
	lets := func(rights Rights, typ fhir.Type, meets []string, do func(Right) bool) bool {
		return slices.ContainsFunc(rights, func(right Right) bool {
			return do(right) && (right.Type == 0 || right.Type == typ) &&
				(right.Query == "" || !slices.ContainsFunc(strings.Split(right.Query, "&"), func(q string) bool { return !slices.Contains(meets, q) }))
		})
	}
	granted, refused := 0, 0
	for range 20_000 {
		may, asks := scopes(), scopes()
		got, err := Parse(may).Grant(asks)
		if err != nil {
			refused++
		} else {
			granted++
		}
		for _, name := range []string{"Patient", "Observation", "Basic"} {
			typ, _ := fhir.ParseType(name)
			meets := slices.DeleteFunc(slices.Clone(constraints), func(string) bool { return r.IntN(2) == 0 })
			for _, do := range []func(Right) bool{func(r Right) bool { return r.Read }, func(r Right) bool { return r.Search }} {
				want := lets(Parse(may), typ, meets, do) && lets(Parse(asks), typ, meets, do)
				if lets(got, typ, meets, do) != want || lets(Parse(got.String()), typ, meets, do) != want {
					t.Fatalf("%q of %q is %q: of a %s that meets %v it lets %v, want %v", asks, may, got, name, meets, !want, want)
				}
			}
		}
	}
	if granted < 1000 || refused < 1000 {
		t.Errorf("%d granted, %d refused", granted, refused)
	}
}

// FuzzParse: whatever is asked for, what is granted is understood again as the same.
func FuzzParse(f *testing.F) {
	f.Add("system/*.rs", "system/Observation.rs?category=laboratory system/Patient.read")
	f.Add("system/*.rs?_tag=a", "system/*.* user/x.rs ?.? system/.")
	f.Fuzz(func(t *testing.T, may, asks string) {
		granted, err := Parse(may).Grant(asks)
		if err != nil {
			return
		}
		if again := Parse(granted.String()); again.String() != granted.String() || len(again) != len(granted) {
			t.Errorf("%q of %q is %q, understood as %q", asks, may, granted, again)
		}
	})
}

// TestManyConstraints: what a token costs whoever asks what it lets does not grow with
// the square of its scopes. Of one type so many constraints are looked at.
func TestManyConstraints(t *testing.T) {
	patient, _ := fhir.ParseType("Patient")
	var asks []string
	for i := range maxScopes {
		asks = append(asks, fmt.Sprintf("system/*.rs?_id=%d", i))
	}
	rights, err := Parse("system/*.rs").Grant(strings.Join(asks, " "))
	if err != nil || len(rights) != maxConstraints {
		t.Errorf("of %d constraints %d are granted, right are %d: %v", len(asks), len(rights), maxConstraints, err)
	}
	if n := len(rights.Filters(patient)); n != len(rights) {
		t.Errorf("they make %d searches", n)
	}
	if n := len(Parse(strings.Join(asks[:maxConstraints], " ") + " system/Patient.rs?_id=1 system/Observation.rs")); n != maxConstraints+2 {
		t.Errorf("constraints of other types are counted with them: %d", n)
	}
	// Of both together a token says no more than it is read for afterwards.
	var may []string
	for i := range maxConstraints {
		may = append(may, fmt.Sprintf("system/Patient.rs?_tag=%d", i))
	}
	if rights, err = Parse(strings.Join(may, " ")).Grant(strings.Join(asks, " ")); err != nil || Parse(rights.String()).String() != rights.String() {
		t.Errorf("%d are granted, %d of them count: %v", len(rights), len(Parse(rights.String())), err)
	}
}
